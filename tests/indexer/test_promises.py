"""What a build promises, seen from outside: the recall that was asked for, and whole bundles."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.workloads import generate_corpus
from indexer.build import BuildOptions, build_bundle
from indexer.bundle import IndexBundle
from indexer.exact import ExactScorer
from indexer.recall import recall_at_k
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


@pytest.mark.parametrize(
    ("n_candidates", "seed"),
    [(2_000, 0), *(pytest.param(12_000, seed, marks=pytest.mark.slow) for seed in range(20))],
)
def test_the_recall_that_was_asked_for_is_delivered(
    tmp_path: Path, n_candidates: int, seed: int
) -> None:
    """By every backend, on queries that the build has not seen."""
    corpus, queries = generate_corpus(n_candidates, 24, n_queries=2_500, seed=seed)
    tuned_on, fresh = queries[:1_000], queries[1_000:]
    options = BuildOptions(recall_target=0.95, k=20, seed=seed)
    bundle = IndexBundle.open(build_bundle(corpus, tuned_on, tmp_path, options))
    exact = ExactScorer(corpus.embeddings).search(fresh, 20)
    for name in bundle.backend_names:
        params = bundle.choose(20, recall_target=0.95, backend=name).params
        found = bundle.index(name).search(fresh, 20, params)
        assert recall_at_k(found, exact).mean() >= 0.945, name


@pytest.mark.parametrize("n_kills", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_a_build_that_is_killed_leaves_whole_bundles_only(tmp_path: Path, n_kills: int) -> None:
    delays = random.Random(7)
    for _ in range(n_kills):
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
