"""The parent of several workers: it loads, forks, watches and replaces them, and never serves.

The index is loaded once, before the fork, so that its memory is shared. gRPC does not survive a
fork, so the parent makes no gRPC object; each worker listens on the same port, and the kernel deals
connections out among them. A connection stays with its worker; so a worker closes connections that
have grown old (``max_connection_age_seconds``), and the client's next one may reach another.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn, Self

import structlog

from server.serve import (
    CHOOSE_ANOTHER,
    Loaded,
    PortTakenError,
    address,
    probe_port,
    run_event_loop,
    serve,
)

_log = structlog.get_logger(__name__)

_STOP = frozenset({signal.SIGTERM, signal.SIGINT})
_WATCHED = _STOP | {signal.SIGCHLD}
_READY = b"."
_MANY_BYTES = 4096
_KILL_AFTER_SECONDS = 5.0  # beyond the drain, for a worker that does not end by itself
_LOOK_SECONDS = 1.0
_SHORT_LIFE_SECONDS = 5.0  # a worker that ends sooner is replaced a little later each time
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 5.0
_PR_SET_PDEATHSIG = 1


class WorkerError(Exception):
    """The workers cannot serve; the message is meant for the user."""


def serve_with_workers(loaded: Loaded, on_ready: Callable[[str], None]) -> None:
    """Serve with several processes until SIGTERM or SIGINT, then drain.

    Args:
        loaded: what is served, and how many processes serve it.
        on_ready: called with the address once all workers answer searches.

    Raises:
        PortTakenError: if the address cannot be listened on.
        WorkerError: if a worker ends before it has served.
    """
    settings = loaded.settings
    with _held_port(settings.host, settings.port) as port, Signals() as signals:
        workers = Workers(loaded, port, signals)
        try:
            workers.start()
            on_ready(address(settings.host, port))
            workers.watch()
        finally:
            workers.stop()


@dataclass
class _Process:
    """A worker's process."""

    process_id: int
    started_at: float


class Signals:
    """The signals that a parent waits for, none of which is lost between two looks.

    They arrive through a pipe: waiting for them directly would need them blocked in every thread,
    and libraries start threads as they are imported.
    """

    def __enter__(self) -> Self:
        self._arrived, self._written = os.pipe()
        os.set_blocking(self._written, False)
        self._former_pipe = signal.set_wakeup_fd(self._written, warn_on_full_buffer=False)
        self._former = {one: signal.signal(one, _let_arrive) for one in _WATCHED}
        return self

    def __exit__(self, *_: object) -> None:
        self.forget()

    def wait(self, timeout_seconds: float) -> frozenset[int]:
        """Return the signals that arrived; none if there were none in time."""
        if not select.select([self._arrived], [], [], timeout_seconds)[0]:
            return frozenset()
        return frozenset(os.read(self._arrived, _MANY_BYTES))

    def forget(self) -> None:
        """Handle signals as before; a forked worker has its own ways."""
        signal.set_wakeup_fd(self._former_pipe)
        for number, handler in self._former.items():
            signal.signal(number, handler)
        os.close(self._arrived)
        os.close(self._written)


class Workers:
    """The processes that serve one port.

    Args:
        loaded: what they serve.
        port: the port that they share.
        signals: what arrives at this process.
    """

    def __init__(self, loaded: Loaded, port: int, signals: Signals) -> None:
        self._loaded = loaded
        self._port = port
        self._signals = signals
        self._processes: list[_Process] = []
        self._pause_seconds = _FIRST_PAUSE_SECONDS

    def start(self) -> None:
        """Fork the workers, and return when each of them answers searches.

        Raises:
            WorkerError: if one of them ends before it has served.
        """
        pipes = [self._fork() for _ in range(self._loaded.settings.workers)]
        are_ready = [_wait_until_ready(pipe) for pipe in pipes]
        if not all(are_ready):
            raise WorkerError("a worker ended before it could serve; its message is above")

    def watch(self) -> None:
        """Replace workers that end, until this process is asked to stop."""
        # Looked at now and then as well: a pause below may swallow what another worker's end sends.
        while not _STOP & self._signals.wait(_LOOK_SECONDS):
            for process in [one for one in self._processes if _has_ended(one)]:
                self._processes.remove(process)
                if _STOP & self._signals.wait(self._pause_before_replacing(process)):
                    return
                os.close(self._fork())

    def stop(self) -> None:
        """Ask all workers to drain, and wait until they have ended."""
        for process in self._processes:
            os.kill(process.process_id, signal.SIGTERM)
        deadline = time.monotonic() + self._loaded.settings.drain_seconds + _KILL_AFTER_SECONDS
        for process in self._processes:
            while not _has_ended(process):
                seconds_left = deadline - time.monotonic()
                if seconds_left <= 0:
                    os.kill(process.process_id, signal.SIGKILL)
                    os.waitpid(process.process_id, 0)
                    break
                self._signals.wait(seconds_left)

    def _fork(self) -> int:
        """Start a worker; return the end of a pipe from which it can be read that it serves."""
        readable, writable = os.pipe()
        process_id = os.fork()
        if process_id == 0:
            os.close(readable)
            self._work(writable)
        os.close(writable)
        self._processes.append(_Process(process_id, time.monotonic()))
        return readable

    def _work(self, ready_pipe: int) -> NoReturn:
        """Be a worker, and end with the process."""
        status = 1
        try:
            _end_with_parent()
            self._signals.forget()
            run_event_loop(
                serve(
                    self._loaded,
                    self._port,
                    lambda _: _tell_ready(ready_pipe),
                    shares_port=True,
                )
            )
            status = 0
        except BaseException as error:  # noqa: BLE001 - nothing above may run a second time
            _log.error("worker failed", exc_info=error)
        finally:
            os._exit(status)

    def _pause_before_replacing(self, process: _Process) -> float:
        """Return for how many seconds to wait before a worker is replaced."""
        lived_seconds = time.monotonic() - process.started_at
        _log.error("worker ended", process_id=process.process_id, lived_seconds=lived_seconds)
        if lived_seconds > _SHORT_LIFE_SECONDS:
            self._pause_seconds = _FIRST_PAUSE_SECONDS
            return 0.0
        pause_seconds = self._pause_seconds
        self._pause_seconds = min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)
        return pause_seconds


def _let_arrive(number: int, frame: FrameType | None) -> None:
    """Do nothing: the signal has been written to the pipe."""


@contextmanager
def _held_port(host: str, port: int) -> Iterator[int]:
    """Yield a port that nobody listens on, and that nobody else is given meanwhile.

    Workers that share a port would share it with a second server as well, without a word; so it is
    first asked for by a socket that does not share.
    """
    try:
        with probe_port(host, port) as probe:
            free_port: int = probe.getsockname()[1]
        with socket.socket(probe.family) as held:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind((host, free_port))
            yield free_port
    except OSError as error:
        where = address(host, port)
        raise PortTakenError(
            f"cannot listen on {where}: {error.strerror}; {CHOOSE_ANOTHER}"
        ) from error


def _tell_ready(pipe: int) -> None:
    with suppress(BrokenPipeError):  # nobody waits for a worker that replaces another
        os.write(pipe, _READY)
    os.close(pipe)


def _wait_until_ready(pipe: int) -> bool:
    """Return whether a worker came to serve; it did not if its end of the pipe just closed."""
    try:
        return os.read(pipe, len(_READY)) == _READY
    finally:
        os.close(pipe)


def _has_ended(process: _Process) -> bool:
    ended_id, _ = os.waitpid(process.process_id, os.WNOHANG)
    return ended_id != 0


def _end_with_parent() -> None:
    """Have the kernel stop this process when its parent is gone, however that ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
