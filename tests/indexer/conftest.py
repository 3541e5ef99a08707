"""A small corpus of one's own, and its index, built once."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from indexer.backends import BACKENDS
from indexer.build import BuildOptions, build_bundle
from indexer.bundle import IndexBundle
from indexer.corpus import Corpus
from trainer.vocabulary import Vocabulary


def make_corpus(n: int = 300, dim: int = 8, *, has_bias_dimension: bool = False) -> Corpus:
    rng = np.random.default_rng(3)
    ids = [f"c{row}" for row in range(n)]
    return Corpus(
        candidate_ids=Vocabulary(ids),
        embeddings=rng.standard_normal((n, dim), dtype=np.float32),
        candidates=pa.table({"candidate_id": ids, "title": [f"Title {row}" for row in range(n)]}),
        popularity=np.arange(n, dtype=np.float32),
        has_bias_dimension=has_bias_dimension,
    )


@pytest.fixture(scope="session")
def milvus_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where milvus-lite keeps its collections, within this process."""
    return str(tmp_path_factory.mktemp("milvus") / "milvus.db")


@pytest.fixture(scope="module", autouse=True)
def _milvus(milvus_uri: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CANDIDATE_SEARCH_MILVUS_URI", milvus_uri)
        yield


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    return make_corpus()


@pytest.fixture(scope="session")
def queries() -> np.ndarray:
    return np.random.default_rng(4).standard_normal((60, 8), dtype=np.float32)


@pytest.fixture(scope="session")
def built(
    corpus: Corpus, queries: np.ndarray, milvus_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> IndexBundle:
    """An index bundle with all backends; not to be written to."""
    root = tmp_path_factory.mktemp("indexes")
    options = BuildOptions(k=20, backends=tuple(BACKENDS), milvus_uri=milvus_uri)
    return IndexBundle.open(build_bundle(corpus, queries, root, options))


@pytest.fixture
def own_files(tmp_path: Path) -> dict[str, Path]:
    """Three embeddings, their ids, and metadata in another order."""
    paths = {name: tmp_path / name for name in ("vectors.npy", "ids.txt", "metadata.parquet")}
    np.save(paths["vectors.npy"], np.array([[1, 0], [0, 1], [1, 1]], dtype=np.float32))
    paths["ids.txt"].write_text("a\nb\nc\n")
    pq.write_table(
        pa.table({"candidate_id": ["c", "a", "b"], "title": ["C", "A", "B"]}),
        paths["metadata.parquet"],
    )
    return paths
