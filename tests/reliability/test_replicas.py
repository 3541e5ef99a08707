"""One of two replicas dies under load: the clients, which know both, notice nothing."""

import time
from pathlib import Path

from tests.reliability.steady_load import oracle_of, steady_load
from tests.server.processes import serving
from tests.server.published import publish


def test_no_call_fails_when_a_replica_is_killed(tmp_path: Path) -> None:
    version = publish(tmp_path, 1)
    index, oracle = tmp_path / "current", oracle_of(tmp_path)
    with serving(index) as (first, one), serving(index) as (second, other):
        # As a headless service's name resolves: to the addresses of all replicas.
        with steady_load(f"ipv4:{one},{other}", oracle) as outcome:
            time.sleep(0.5)
            first.kill()
            first.wait()
            n_before = outcome.answered[version]
            time.sleep(2.0)
        n_after = outcome.answered[version] - n_before
        assert second.poll() is None
    assert (outcome.failed, outcome.mixed) == ([], [])
    assert min(n_before, n_after) > 0
    assert max(outcome.seconds) < 2.0, "a call waited longer than clients need to turn away"
