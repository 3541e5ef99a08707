"""Which files a process counts into, where several count together.

Prometheus's client library gives every process files of its own, and reads the files of all there
have ever been for every answer: with each worker that is replaced, and each version that takes
over, that would take longer (prometheus/client_python, issue 509). Here a process counts on in the
files of one that has ended. Files go by slots; each is held by a lock, of which the kernel lets go
however a process ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import BinaryIO

from prometheus_client import multiprocess

_SUFFIX = ".slot"


class Slots:
    """The slots of a directory.

    Args:
        directory: where the library keeps its files.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._mine = -1
        self._lock: BinaryIO | None = None
        os.register_at_fork(after_in_child=self._leave)

    def mine(self) -> int:
        """Return the slot of this process: the first that was free when it was first asked for."""
        if self._lock is None:
            # Never the number of the process that this was forked from, even if that has ended:
            # the library tells by a changed number that it is in another process.
            self._mine, self._lock = next(self._free(n for n in count() if n != self._mine))
            self._forget(self._mine)
        return self._mine

    def forget_ended(self) -> None:
        """Count no longer as present what processes that ended had in flight."""
        known = sorted(int(path.stem) for path in self._directory.glob(f"*{_SUFFIX}"))
        for slot, lock in self._free(iter(known)):
            with lock:
                self._forget(slot)

    def _leave(self) -> None:
        """Let go of the slot of the process that this was forked from, which keeps it."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _free(self, slots: Iterator[int]) -> Iterator[tuple[int, BinaryIO]]:
        """Lock one slot after another, but those that somebody holds."""
        for slot in slots:
            lock = (self._directory / f"{slot}{_SUFFIX}").open("wb")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
            else:
                yield slot, lock

    def _forget(self, slot: int) -> None:
        multiprocess.mark_process_dead(slot, str(self._directory))  # type: ignore[no-untyped-call]
