"""What Linux does for processes when their parent is gone; elsewhere nothing is done."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def end_with_parent(parent_id: int) -> None:
    """Have the kernel ask this process to stop when its parent is gone, however that ended.

    Args:
        parent_id: the parent's; of one that was gone before, the kernel would say nothing.
    """
    _control(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent_id:
        os.kill(os.getpid(), signal.SIGTERM)


def outlive_parent() -> None:
    """Have this process go on when its parent is gone."""
    _control(_PR_SET_PDEATHSIG, 0)


def adopt_orphans() -> None:
    """Have the processes that descend from this one become its children when theirs are gone."""
    _control(_PR_SET_CHILD_SUBREAPER, 1)


def _control(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)
