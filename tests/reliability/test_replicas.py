"""One of two replicas dies under load: the clients, which know both, notice nothing."""

import time
from pathlib import Path

import numpy as np
import pytest

from tests.reliability.steady_load import Outcome, oracle_of, steady_load
from tests.server.processes import serving
from tests.server.published import publish

BACK_WITHIN_SECONDS = 2.0
WINDOW_SECONDS, WINDOWS_OF_A_SECOND = 0.25, 4
# One replica then does the work of two, and on a busy machine the slowest of a hundred calls
# takes some milliseconds more or less from one window to the next.
USUAL_FACTOR, USUAL_SECONDS = 3.0, 0.03


def test_no_call_fails_when_a_replica_is_killed(tmp_path: Path) -> None:
    publish(tmp_path, 1)
    outcome, killed = load_while_one_is_killed(tmp_path, 3.1)
    assert max(seconds for _, seconds in outcome.calls) < BACK_WITHIN_SECONDS
    assert seconds_until_usual(outcome, killed) <= BACK_WITHIN_SECONDS


@pytest.mark.slow
def test_latency_is_soon_what_it_was(tmp_path: Path) -> None:
    publish(tmp_path, 1)
    for _ in range(10):
        outcome, killed = load_while_one_is_killed(tmp_path, 6.0)
        back = seconds_until_usual(outcome, killed)
        before, after = (p99(outcome, *span) for span in ((0.0, killed), (killed, np.inf)))
        longest = max(seconds for _, seconds in outcome.calls)
        print(  # noqa: T201
            f"{len(outcome.calls)} calls, p99 {1e3 * before:.1f} ms before and {1e3 * after:.1f} "
            f"ms after the kill, back after {back:.2f} s; the longest took {1e3 * longest:.0f} ms"
        )
        assert back <= BACK_WITHIN_SECONDS


def load_while_one_is_killed(root: Path, seconds: float) -> tuple[Outcome, float]:
    """Load two replicas, and kill one; return what became of the calls, and when it was killed.

    Args:
        root: the folder of the index.
        seconds: how long the load goes on after the kill.
    """
    index, oracle = root / "current", oracle_of(root)
    with serving(index) as (first, one), serving(index) as (second, other):
        # As a headless service's name resolves: to the addresses of all replicas.
        with steady_load(f"ipv4:{one},{other}", oracle) as outcome:
            time.sleep(1.0)
            killed = time.monotonic()
            first.kill()
            first.wait()
            n_before = outcome.answered.total()
            time.sleep(seconds)
        assert second.poll() is None
    assert (outcome.failed, outcome.mixed) == ([], [])
    assert min(n_before, outcome.answered.total() - n_before) > 0
    return outcome, killed


def seconds_until_usual(outcome: Outcome, killed: float) -> float:
    """Return when a second began in which calls took as long as before the kill, or not much more.

    What other work on the machine delays after that second is not the kill's.
    """
    usual = max(USUAL_FACTOR * p99(outcome, 0.0, killed), USUAL_SECONDS)
    n_windows = int((max(ended for ended, _ in outcome.calls) - killed) / WINDOW_SECONDS)
    starts = [killed + window * WINDOW_SECONDS for window in range(n_windows)]
    is_usual = [p99(outcome, start, start + WINDOW_SECONDS) <= usual for start in starts]
    for window in range(n_windows - WINDOWS_OF_A_SECOND + 1):
        if all(is_usual[window : window + WINDOWS_OF_A_SECOND]):
            return window * WINDOW_SECONDS
    return float("inf")


def p99(outcome: Outcome, start: float, end: float) -> float:
    """Return how long 99% of the calls took at most that ended then; NaN where none did."""
    taken = [seconds for ended, seconds in outcome.calls if start <= ended < end]
    return float(np.percentile(taken, 99)) if taken else float("nan")
