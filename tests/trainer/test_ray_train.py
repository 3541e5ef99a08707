"""The trainer in two workers that Ray Train starts, and starts again when one of them dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.processes import descendants, title
from trainer.bundle import TowerBundle

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "ray" / "train.py"
FIT = ("fit", "--dataset", "sample", "--dim", "8", "--no-ranker", "--split", "none")
LONGEST = 240


@pytest.mark.slow
def test_a_worker_that_dies_is_started_again_and_all_go_on(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    towers = tmp_path / "towers"
    command = [sys.executable, EXAMPLE, "--storage", tmp_path / "ray", *FIT]
    with subprocess.Popen(
        [*map(str, command), "--epochs", "100", "--output", str(towers)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as driver:
        deadline = time.monotonic() + LONGEST
        while not list(towers.glob(".checkpoints/*/checkpoint")):
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        workers = [pid for pid in descendants(driver.pid) if "RayTrainWorker" in title(pid)]
        assert len(workers) == 2
        os.kill(workers[-1], signal.SIGKILL)
        said, _ = driver.communicate(timeout=LONGEST)
    assert driver.returncode == 0, said
    assert said.count("Going on from the checkpoint") >= 1
    assert TowerBundle.open(towers / "current").manifest.dim == 8
