"""A worker dies under load: its sibling answers, and another takes its place."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.reliability.steady_load import oracle_of, steady_load
from tests.server.processes import serving, wait_for, workers
from tests.server.published import publish


@pytest.mark.parametrize("n_times", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_calls_succeed_while_a_worker_is_replaced(tmp_path: Path, n_times: int) -> None:
    publish(tmp_path, 1)
    slowest = 0.0
    with (
        serving(tmp_path / "current", "--workers", "2") as (process, address),
        steady_load(address, oracle_of(tmp_path)) as outcome,
    ):
        for _ in range(n_times):
            time.sleep(6.0 if n_times > 1 else 0.5)  # longer than what counts as a short life
            before = set(workers(process.pid))
            os.kill(min(before), signal.SIGSEGV)
            start = time.monotonic()
            wait_for(lambda before=before: set(workers(process.pid)) - before, seconds=20)
            slowest = max(slowest, time.monotonic() - start)
    print(f"{n_times} deaths, {outcome.answered.total()} answers, replaced in {slowest:.2f} s")  # noqa: T201
    assert (outcome.failed, outcome.mixed) == ([], [])
    if n_times > 1:
        assert slowest < 2.0
