"""Memory and descriptors stay what they are, whatever is called, cancelled, refused and swapped."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from server.admin_client import AdminClient
from tests.server.processes import n_descriptors, serving, wait_for
from tests.server.published import publish

SLACK = 4  # descriptors: on an overloaded machine a few stay open, and it is not known whose
FLAT = 1.05  # the last third's memory, in the first third's


@pytest.mark.parametrize(
    ("n_calls", "n_swaps"), [(2_000, 2), pytest.param(1_000_000, 100, marks=pytest.mark.slow)]
)
def test_nothing_grows(tmp_path: Path, n_calls: int, n_swaps: int) -> None:
    names = [publish(tmp_path, seed) for seed in (1, 2)]
    with (
        serving(tmp_path / "current", "--admin") as (process, address),
        AdminClient(address) as admin,
    ):
        command = [sys.executable, "-m", "tests.reliability.mixed_load", address]
        warm = n_calls // 20
        subprocess.run([*command, str(warm)], check=True, capture_output=True)
        for name in names:
            admin.activate(name)
        descriptors = n_descriptors(process.pid)
        memory_bytes = []
        calling = subprocess.Popen([*command, str(n_calls)], stdout=subprocess.PIPE, text=True)
        for number in range(n_swaps):
            admin.activate(names[number % 2])
            memory_bytes.append(resident_bytes(process.pid))
            time.sleep(n_calls / n_swaps / 2_000)
        codes = ast.literal_eval(calling.communicate()[0])
        assert codes["OK"] == n_calls - n_calls // 10
        assert codes["INVALID_ARGUMENT"] + codes["CANCELLED"] == n_calls // 10
        # Closed connections are gone.
        wait_for(lambda: n_descriptors(process.pid) <= descriptors + SLACK)
        if n_swaps >= 100:
            third = n_swaps // 3
            growth = np.median(memory_bytes[-third:]) / np.median(memory_bytes[:third])
            print(f"{codes}, memory {growth:.3f} of the first third's")  # noqa: T201
            assert growth <= FLAT


def resident_bytes(process_id: int) -> float:
    lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    return next(1024 * float(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
