"""The process that was started, where several workers serve: it stays while their parents change.

Every version that takes over has a parent of workers of its own, forked from the one before, which
ends with its workers. The supervisor begins with the first parent, passes on that all are to stop,
and ends when the last of them has. It loads nothing, so that no replaced version stays in memory.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import NoReturn

import structlog

from indexer.backends import BackendUnavailableError
from server import metrics
from server.kinship import adopt_orphans
from server.signals import Signals
from trainer.publish import BundleError

_log = structlog.get_logger(__name__)
_DONE = b""


class WorkerError(Exception):
    """The workers cannot serve; the message is meant for the user."""


@dataclass(frozen=True)
class Lifeline:
    """What ties the parents of workers to the supervisor."""

    supervisor: Connection
    """Never written to; its other end closes when the supervisor ends, or wants them to."""
    outcome: Connection
    """Takes why there is no serving; closed by all when the last parent has ended."""

    @property
    def is_cut(self) -> bool:
        """Whether the supervisor wants the parents to stop, or is gone itself."""
        return self.supervisor.poll(0)

    def close(self) -> None:
        """Close this process's ends."""
        self.supervisor.close()
        self.outcome.close()


def supervise(work: Callable[[Lifeline], None]) -> None:
    """Do some work in a process of its own until SIGTERM or SIGINT.

    Args:
        work: what the process does; another that it forks may go on with it.

    Raises:
        WorkerError: if the work is refused, or ends by itself.
    """
    adopt_orphans()
    supervisor, hold = Pipe(duplex=False)
    outcome, tell = Pipe(duplex=False)
    with Signals() as signals, hold, outcome:
        process_id = signals.fork()
        if process_id == 0:
            hold.close()
            outcome.close()
            _do(work, Lifeline(supervisor, tell))
        supervisor.close()
        tell.close()
        _Watch(signals, process_id, hold, outcome).run()


def _do(work: Callable[[Lifeline], None], lifeline: Lifeline) -> NoReturn:
    """Do the work, tell how it ended, and end with the process."""
    reason = "the server failed; its log has the cause"
    try:
        work(lifeline)
        reason = ""
    except KeyboardInterrupt:
        reason = ""
    except (BackendUnavailableError, BundleError, WorkerError) as error:
        reason = str(error)
    except BaseException as error:  # noqa: BLE001 - nothing above may run a second time
        _log.error("server failed", exc_info=error)
    finally:
        with suppress(BrokenPipeError):  # the supervisor is gone
            lifeline.outcome.send_bytes(reason.encode())
        os._exit(1 if reason else 0)


class _Watch:
    """The supervisor's look at a process, and at those that go on with its work.

    Args:
        signals: what arrives at the supervisor.
        process_id: of the first process.
        hold: what is closed for all to stop.
        outcome: what they tell.
    """

    def __init__(
        self, signals: Signals, process_id: int, hold: Connection, outcome: Connection
    ) -> None:
        self._signals = signals
        self._first: int | None = process_id
        self._hold = hold
        self._outcome = outcome
        self._was_stopped = False

    def run(self) -> None:
        """Return when all have ended as they were asked to.

        Raises:
            WorkerError: if they end for another reason.
        """
        reason = b"the parent of the workers was killed; the log may say why"
        while True:
            readable = wait([self._signals.fileno(), self._outcome])
            self._signals.wait(0)
            if self._signals.stop_asked and not self._hold.closed:
                self._stop()
            self._reap(os.WNOHANG)
            if self._outcome not in readable:
                continue
            try:
                reason = self._outcome.recv_bytes()
            except EOFError:
                break
        self._reap()
        if reason != _DONE and not self._was_stopped:
            raise WorkerError(reason.decode())

    def _stop(self) -> None:
        """Have all end: by the closed pipe or, where one still loads and does not look, at once."""
        self._hold.close()
        if self._first is not None:
            os.kill(self._first, signal.SIGTERM)

    def _reap(self, flags: int = 0) -> None:
        """Take note of children that ended; those of parents that ended are among them."""
        with suppress(ChildProcessError):
            while True:
                process_id, status = os.waitpid(-1, flags)
                if process_id == 0:
                    return
                metrics.forget_ended()
                if process_id == self._first:
                    self._first = None
                    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM
                    self._was_stopped = killed and self._signals.stop_asked
