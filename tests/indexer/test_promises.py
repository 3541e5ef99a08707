"""What a build promises, seen from outside: the recall that was asked for, and whole bundles."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.corpora import open_corpus
from benchmarks.workloads import generate_corpus
from indexer.backends import BACKENDS, LocalIndex, SearchParams
from indexer.build import BuildOptions, build_bundle
from indexer.bundle import IndexBundle
from indexer.exact import ExactScorer
from indexer.recall import recall_at_k
from indexer.tuning import TuningQueries, tune
from tests.uncovered import measuring_no_coverage
from trainer.publish import CURRENT, versions

BUILD_FOREVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.indexer.conftest import make_corpus
from indexer.build import BuildOptions, build_bundle
while True:
    print(build_bundle(make_corpus(), None, Path(sys.argv[1]), BuildOptions(k=10)), flush=True)
"""


def test_a_build_delivers_the_recall_that_was_asked_for(tmp_path: Path) -> None:
    corpus, queries = generate_corpus(2_000, 24, n_queries=2_500)
    options = BuildOptions(recall_target=0.95, k=20)
    bundle = IndexBundle.open(build_bundle(corpus, queries[:1_000], tmp_path, options))
    for name in bundle.backend_names:
        params = bundle.choose(20, recall_target=0.95, backend=name).params
        assert delivered(bundle.index(name), queries[1_000:], params) >= 0.945, name


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", ["annoy", "scann"])
def test_the_recall_is_delivered_whatever_the_data(name: str, seed: int) -> None:
    corpus, queries = generate_corpus(12_000, 24, n_queries=2_500, seed=seed)
    index = BACKENDS[name].build(corpus.embeddings)
    prepared = TuningQueries.prepare(corpus.embeddings, queries[:1_000], 20, seed)
    point, _ = tune(index, prepared, 20, targets=(0.95,))
    params = index.search_params_type.model_validate(point.search_params)
    assert delivered(index, queries[1_000:], params) >= 0.945


@pytest.mark.slow
def test_the_recall_is_delivered_for_any_number_of_results(tmp_path: Path) -> None:
    """Of a large catalogue most of which nobody has touched, where few embeddings stand out."""
    bundle = open_corpus("generated:300000x64", tmp_path)
    assert bundle.query is not None
    queries = np.ascontiguousarray(bundle.query.query_embeddings)
    for k in (1, 5, 10, 20, 30, 60, 100, 200, 300, 1000):
        choice = bundle.choose(k, recall_target=0.95)
        few = queries[: max(100, 50_000 // k)]
        found = delivered(bundle.index(choice.backend), few, choice.params, k)
        assert found >= 0.93, (k, choice)


def delivered(
    index: LocalIndex[Any, Any], queries: np.ndarray, params: SearchParams, k: int = 20
) -> float:
    """Return the recall@k on queries."""
    exact = ExactScorer(index.embeddings).search(queries, k)
    return float(recall_at_k(index.search(queries, k, params), exact).mean())


@pytest.mark.parametrize("n_kills", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_a_build_that_is_killed_leaves_whole_bundles_only(tmp_path: Path, n_kills: int) -> None:
    delays = random.Random(7)
    for _ in range(n_kills):
        with measuring_no_coverage():
            builder = subprocess.Popen(
                [sys.executable, "-c", BUILD_FOREVER, tmp_path, Path.cwd()],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        try:
            assert builder.stdout is not None
            first = builder.stdout.readline()  # from here on it is somewhere in the next build
            time.sleep(delays.uniform(0, 1.5))
            assert builder.poll() is None
        finally:
            builder.send_signal(signal.SIGKILL)
            builder.wait()
        assert Path(first.strip()) in versions(tmp_path)
        query = np.ones((1, 8), dtype=np.float32)
        answers = []
        for version in (tmp_path / CURRENT, *versions(tmp_path)):
            bundle = IndexBundle.open(version)
            bundle.check()
            answers.append(bundle.index("brute_force").search(query, 3).rows.tolist())
        assert [answers[0]] * len(answers) == answers
