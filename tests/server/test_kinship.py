import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a process that its parent is gone"
)


def status_of(program: str) -> int:
    """How a process ends that runs a program."""
    prelude = "import os; from server.kinship import end_with_parent; "
    return subprocess.run([sys.executable, "-c", prelude + program], check=False).returncode


def test_a_process_whose_parent_is_there_goes_on() -> None:
    assert status_of("end_with_parent(os.getppid())") == 0


def test_a_process_whose_parent_was_gone_before_it_could_ask_ends() -> None:
    assert status_of("end_with_parent(os.getppid() + 1)") == -signal.SIGTERM
