"""What processes take: CPU time and resident memory, as Linux counts them."""

from __future__ import annotations

import os
from pathlib import Path

_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> list[int]:
    """Return the living children of a process, and theirs."""
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found += [child, *descendants(child)]
    return found


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and its living descendants."""
    return sum(map(_own_cpu_seconds, (pid, *descendants(pid))))


def peak_bytes(pid: int) -> int:
    """Return the most memory that a process had resident at any time, mapped files included."""
    status = Path(f"/proc/{pid}/status").read_text()
    (kibibytes,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(kibibytes) * 1024


def title(pid: int) -> str:
    """Return what a process calls itself, its command line unless it chose another."""
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()


def _own_cpu_seconds(pid: int) -> float:
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / _CLOCK_TICKS
