"""Waiting for signals among other things, by a process that forks."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

_STOP = frozenset({signal.SIGTERM, signal.SIGINT})
_WATCHED = _STOP | {signal.SIGCHLD}
_MANY_BYTES = 4096


class Signals:
    """The signals that a parent waits for, none of which is lost between two looks.

    They arrive through a pipe: waiting for them directly would need them blocked in every thread,
    and libraries start threads as they are imported.

    Attributes:
        stop_asked: whether this process was ever asked to stop.
    """

    stop_asked = False

    def __enter__(self) -> Self:
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.forget()

    def listen(self) -> None:
        """Have signals arrive here from now on."""
        self._arrived, self._written = os.pipe()
        os.set_blocking(self._written, False)
        self._former_pipe = signal.set_wakeup_fd(self._written, warn_on_full_buffer=False)
        self._former = {one: signal.signal(one, _let_arrive) for one in _WATCHED}

    def fileno(self) -> int:
        """Return what can be read from when a signal has arrived."""
        return self._arrived

    def wait(self, timeout_seconds: float) -> None:
        """Return when signals have arrived, or when the time is over."""
        if select.select([self._arrived], [], [], timeout_seconds)[0]:
            self.stop_asked |= not _STOP.isdisjoint(os.read(self._arrived, _MANY_BYTES))

    def fork(self) -> int:
        """Fork, as ``os.fork``; the new process ends by signals, as any process does at first.

        Until it does, those meant for it would reach this process through the pipe.
        """
        with self._held_back():
            process_id = os.fork()
            if process_id == 0:
                self.forget()
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
        return process_id

    def forget(self) -> None:
        """Handle signals as before."""
        signal.set_wakeup_fd(self._former_pipe)
        for number, handler in self._former.items():
            signal.signal(number, handler)
        os.close(self._arrived)
        os.close(self._written)

    @contextmanager
    def _held_back(self) -> Iterator[None]:
        """Have signals wait for the block to end."""
        former = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)


@contextmanager
def ending_when_asked(clean_up: Callable[[], None]) -> Iterator[None]:
    """End this process at once, as one that drained does, if it is asked to in the block.

    By itself Python tells of an interruption by a traceback, and waits for threads that hash what
    may be large; and Linux does not end the first process of a container by a signal that it does
    not handle.

    Args:
        clean_up: called before the end.
    """

    def end(number: int, frame: FrameType | None) -> None:
        del number, frame
        clean_up()
        os._exit(0)

    former = {one: signal.signal(one, end) for one in _STOP}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _let_arrive(number: int, frame: FrameType | None) -> None:
    """Do nothing: the signal has been written to the pipe."""
