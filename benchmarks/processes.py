"""What processes take, CPU time and memory as Linux counts them, and work in one of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def run_alone(work: Callable[..., T], *arguments: object) -> T:
    """Do something in a process of its own, whose memory is then that of this alone.

    Args:
        work: a function of a module.
        arguments: what it is called with; they travel, as its result does.
    """
    context = multiprocessing.get_context("spawn")  # a fork would begin with our memory
    with ProcessPoolExecutor(1, context) as pool:
        try:
            return pool.submit(work, *arguments).result()
        except BaseException:
            for child in descendants(os.getpid()):  # which the pool would wait for
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGTERM)
            raise


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

    0 if it has ended. Not what ``getrusage`` tells, which includes the process whose program this
    was before.
    """
    lines = _told(_folder(pid) / "status").splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def private_bytes(pid: int) -> int:
    """Return the memory of a process that no file and no other process is behind."""
    lines = _told(_folder(pid) / "smaps_rollup").splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


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
