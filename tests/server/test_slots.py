"""Slots: one a process, and free when it has ended."""

import subprocess
import sys
from pathlib import Path

PRELUDE = """
import os, sys
from pathlib import Path
from server.slots import Slots
slots = Slots(Path(sys.argv[1]))
"""


def output_of(program: str, directory: Path) -> list[str]:
    """What a process that runs a program prints, and those that it forks."""
    command = [sys.executable, "-c", PRELUDE + program, str(directory)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def test_a_process_keeps_its_slot_and_leaves_it_when_it_ends(tmp_path: Path) -> None:
    for _ in range(2):
        assert ["0", "0"] == output_of("print(slots.mine(), slots.mine())", tmp_path)


def test_a_fork_takes_another_though_its_parent_has_ended(tmp_path: Path) -> None:
    # By the same number the library would not see that this is another process.
    program = """
slots.mine()
ended, held = os.pipe()
if os.fork() == 0:
    os.close(held)
    os.read(ended, 1)  # until the parent is gone
    print(slots.mine())
"""
    assert ["1"] == output_of(program, tmp_path)
    assert ["0"] == output_of("print(slots.mine())", tmp_path)


def test_only_what_ended_is_forgotten(tmp_path: Path) -> None:
    program = """
(Path(sys.argv[1]) / f"gauge_livesum_{slots.mine()}.db").touch()
if os.fork() == 0:
    (Path(sys.argv[1]) / f"gauge_livesum_{slots.mine()}.db").touch()
    os._exit(0)
os.wait()
slots.forget_ended()
print(*sorted(path.name for path in Path(sys.argv[1]).glob("*.db")))
"""
    assert ["gauge_livesum_0.db"] == output_of(program, tmp_path)
