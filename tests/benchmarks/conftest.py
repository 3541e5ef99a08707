from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from indexer.build import BuildOptions, build_bundle
from indexer.bundle import IndexBundle
from indexer.corpus import Corpus
from trainer.vocabulary import Vocabulary


@pytest.fixture(scope="session")
def vector_bundle(tmp_path_factory: pytest.TempPathFactory) -> IndexBundle:
    """An index over embeddings alone: no query tower, no users."""
    ids = [f"c{row}" for row in range(50)]
    embeddings = np.random.default_rng(1).normal(size=(50, 8)).astype(np.float32)
    corpus = Corpus(Vocabulary(ids), embeddings, pa.table({"candidate_id": ids}), np.zeros(50))
    root: Path = tmp_path_factory.mktemp("vectors")
    options = BuildOptions(backends=("brute_force",), k=10)
    return IndexBundle.open(build_bundle(corpus, None, root, options))
