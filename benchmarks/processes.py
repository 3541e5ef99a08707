"""What processes take: CPU time and resident memory, as Linux counts them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> list[int]:
    """Return the living children of a process, and theirs."""
    found = []
    for thread in _threads(pid):
        for child in map(int, _told(thread / "children").split()):
            found += [child, *descendants(child)]
    return found


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and its living descendants."""
    return sum(map(_own_cpu_seconds, (pid, *descendants(pid))))


def peak_bytes(pid: int) -> int:
    """Return the most memory that a process had resident at any time, mapped files included.

    0 if it has ended.
    """
    lines = _told(_folder(pid) / "status").splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def title(pid: int) -> str:
    """Return what a process calls itself, its command line unless it chose another."""
    return _told(_folder(pid) / "cmdline").replace("\0", " ").strip()


def _own_cpu_seconds(pid: int) -> float:
    stat = _told(_folder(pid) / "stat").rpartition(")")[2].split()
    return sum(map(int, stat[11:13])) / _CLOCK_TICKS


def _threads(pid: int) -> list[Path]:
    with suppress(OSError):
        return list(_folder(pid).joinpath("task").iterdir())
    return []


def _told(file: Path) -> str:
    """Return what a file of ``/proc`` says; nothing of a process that has just ended."""
    with suppress(OSError):
        return file.read_text()
    return ""


def _folder(pid: int) -> Path:
    return Path(f"/proc/{pid}")
