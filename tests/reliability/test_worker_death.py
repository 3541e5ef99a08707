"""A worker dies under load: its sibling answers, and another takes its place."""

import os
import signal
import time
from pathlib import Path

import pytest

from indexer.bundle import IndexBundle
from indexer.exact import ExactScorer
from tests.reliability.steady_load import COUNT, QUERIES, steady_load
from tests.server.processes import children, serving
from tests.server.published import publish


@pytest.mark.parametrize("n_times", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_calls_succeed_while_a_worker_is_replaced(tmp_path: Path, n_times: int) -> None:
    name = publish(tmp_path, 1)
    corpus = IndexBundle.open(tmp_path / "current").corpus
    rows = ExactScorer(corpus.embeddings).search(QUERIES, COUNT).rows
    oracle = {name: [corpus.candidate_ids.tokens(line) for line in rows]}
    slowest = 0.0
    with (
        serving(tmp_path / "current", "--workers", "2") as (process, address),
        steady_load(address, oracle) as outcome,
    ):
        for _ in range(n_times):
            time.sleep(6.0 if n_times > 1 else 0.5)  # longer than what counts as a short life
            before = set(children(process.pid))
            os.kill(min(before), signal.SIGSEGV)
            start = time.monotonic()
            while len(set(children(process.pid)) - before) == 0:
                assert time.monotonic() < start + 20
                time.sleep(0.005)
            slowest = max(slowest, time.monotonic() - start)
    print(f"{n_times} deaths, {outcome.answered.total()} answers, replaced in {slowest:.2f} s")  # noqa: T201
    assert (outcome.failed, outcome.mixed) == ([], [])
    if n_times > 1:
        assert slowest < 2.0
