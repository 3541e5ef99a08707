"""Trying a version in a fork of the process that would load it, which goes on meanwhile.

Loading takes minutes for a large index, in native code that nothing interrupts, and that may crash
over what it reads. What a fork does of it, the process that forked can watch, and stop.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from typing import NoReturn, TypeVar

import structlog

from server.kinship import end_with_parent, outlive_parent
from server.signals import Signals
from trainer.publish import BundleError

_log = structlog.get_logger(__name__)
_LOOK_SECONDS = 0.02
_SOUND, _SUCCEEDED, _REFUSED = b"s", b"S", b"-"

R = TypeVar("R")


class Trial:
    """A fork of this process that tries a version; made, it is there in both processes.

    Args:
        signals: what arrives at the process that forks.

    Attributes:
        is_here: whether this process is the fork.
        verdict: can be read from when the fork has come to its end, or has succeeded.

    Raises:
        OSError: if there is no room for another process.
    """

    def __init__(self, signals: Signals) -> None:
        self.verdict, self._tell = Pipe(duplex=False)
        parent_id = os.getpid()
        try:
            self._process_id = signals.fork()
        except OSError:
            self.verdict.close()
            self._tell.close()
            raise
        self.is_here = self._process_id == 0
        if self.is_here:
            end_with_parent(parent_id)
            self.verdict.close()
        else:
            self._tell.close()

    def run(self, work: Callable[[], R]) -> R:
        """Do the work in the fork, which ends if the work is refused.

        Args:
            work: raises ``BundleError`` if the version is refused.
        """
        try:
            return work()
        except BundleError as error:
            self._end(_REFUSED + str(error).encode())
        except BaseException as error:  # noqa: BLE001 - nothing above may run a second time
            _log.error("trial fails", exc_info=error)
            self._end(_REFUSED + str(error).encode())

    def pass_on(self) -> NoReturn:
        """Have it known that the version is sound, and end the fork."""
        self._end(_SOUND)

    def succeed(self) -> None:
        """Have it known that the fork has taken the place of the process that forked it."""
        outlive_parent()
        with suppress(BrokenPipeError):
            self._tell.send_bytes(_SUCCEEDED)
        self._tell.close()

    def conclude(self) -> None:
        """Take note of how the fork ended, or of its success.

        Raises:
            BundleError: if the version is refused, or crashed the fork.
        """
        with self.verdict as pipe:
            try:
                verdict = pipe.recv_bytes()
            except (EOFError, OSError):  # it ended without one, or while it told
                verdict = b""
        if verdict == _SUCCEEDED:
            return
        _, status = os.waitpid(self._process_id, 0)
        if not verdict:
            raise BundleError(f"the process that tried it ended: {_how(status)}")
        if verdict != _SOUND:
            raise BundleError(verdict.removeprefix(_REFUSED).decode())

    def stop(self, patience_seconds: float) -> None:
        """Have the fork end, which it does at once while it loads; kill it if it does not."""
        self.verdict.close()
        os.kill(self._process_id, signal.SIGTERM)
        deadline = time.monotonic() + patience_seconds
        while os.waitpid(self._process_id, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                os.kill(self._process_id, signal.SIGKILL)
            time.sleep(_LOOK_SECONDS)

    def _end(self, verdict: bytes) -> NoReturn:
        with suppress(BrokenPipeError):
            self._tell.send_bytes(verdict)
        os._exit(0)


def _how(status: int) -> str:
    """Return in words how a process ended."""
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"exit status {os.waitstatus_to_exitcode(status)}"
