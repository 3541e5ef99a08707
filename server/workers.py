"""The parent of several workers: it loads, forks, watches and replaces them, and never serves.

An index is loaded once, before the fork, so that its memory is shared. gRPC does not survive a
fork, so the parent makes no gRPC object; each worker listens on the same port, and the kernel deals
connections out among them. A connection stays with its worker; so a worker closes connections that
have grown old (``max_connection_age_seconds``), and the client's next one may reach another.

When another version takes over, new workers are forked from it beside the old ones, which drain as
soon as the new ones serve. Commands of the admin service reach the parent through a pipe from the
worker that was called.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import NoReturn, Self

import structlog
from google.protobuf.message import Message

from server import admin, metrics
from server.backoff import Backoff
from server.errors import NotServingError
from server.loading import IndexVersion, settle_memory
from server.serve import (
    CHOOSE_ANOTHER,
    CHOOSE_ANOTHER_FOR_METRICS,
    LOOK_SECONDS,
    OnReady,
    PortTakenError,
    Worker,
    address,
    probe_port,
    run_event_loop,
    serve,
)
from server.settings import Settings, SettingsError
from server.tls import CertificateError
from server.versions import Served, Versions
from trainer.publish import BundleError

_log = structlog.get_logger(__name__)

_STOP = frozenset({signal.SIGTERM, signal.SIGINT})
_WATCHED = _STOP | {signal.SIGCHLD}
_READY = b"."
_MANY_BYTES = 4096
_KILL_AFTER_SECONDS = 5.0  # beyond the drain, for a worker that does not end by itself
_START_SECONDS = 60.0  # for a worker to serve, before what it was started for is given up
_SHORT_LIFE_SECONDS = 5.0  # a worker that ends sooner is replaced a little later each time
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 5.0
_NEVER = float("inf")
_PR_SET_PDEATHSIG = 1


class WorkerError(Exception):
    """The workers cannot serve; the message is meant for the user."""


def serve_with_workers(settings: Settings, active: IndexVersion, on_ready: OnReady) -> None:
    """Serve with several processes until SIGTERM or SIGINT, then drain.

    Args:
        settings: where they listen, the limits, and how many processes serve.
        active: the version that answers first.
        on_ready: called with the address once all workers answer searches.

    Raises:
        PortTakenError: if an address cannot be listened on.
        WorkerError: if a worker ends before it has served.
    """
    with ExitStack() as stack:
        port = stack.enter_context(_held_port(settings.host, settings.port, CHOOSE_ANOTHER))
        if settings.metrics_port is not None:
            held = _held_port(settings.host, settings.metrics_port, CHOOSE_ANOTHER_FOR_METRICS)
            metrics_port = stack.enter_context(held)
            settings = settings.model_copy(update={"metrics_port": metrics_port})
        signals = stack.enter_context(Signals())
        workers = Workers(settings, active, port, signals)
        del active  # or it would stay in memory after others have taken over
        try:
            workers.start()
            on_ready(address(settings.host, port))
            workers.watch()
        finally:
            workers.stop()


@dataclass(eq=False)
class _Process:
    """A worker's process."""

    process_id: int
    generation: int
    """How often versions had taken over when it was started."""
    started_at: float
    ready: Connection
    """Tells once that the process serves."""
    commands: Connection
    """What the process is asked by the admin service, and the replies."""

    def close(self) -> None:
        """Close this process's ends of the pipes."""
        self.ready.close()
        self.commands.close()


class Signals:
    """The signals that a parent waits for, none of which is lost between two looks.

    They arrive through a pipe: waiting for them directly would need them blocked in every thread,
    and libraries start threads as they are imported.

    Attributes:
        stop_asked: whether this process was ever asked to stop.
    """

    def __enter__(self) -> Self:
        self.stop_asked = False
        self._arrived, self._written = os.pipe()
        os.set_blocking(self._written, False)
        self._former_pipe = signal.set_wakeup_fd(self._written, warn_on_full_buffer=False)
        self._former = {one: signal.signal(one, _let_arrive) for one in _WATCHED}
        return self

    def __exit__(self, *_: object) -> None:
        self.forget()

    def fileno(self) -> int:
        """Return what can be read from when a signal has arrived."""
        return self._arrived

    def wait(self, timeout_seconds: float) -> None:
        """Return when signals have arrived, or when the time is over."""
        if select.select([self._arrived], [], [], timeout_seconds)[0]:
            self.stop_asked |= not _STOP.isdisjoint(os.read(self._arrived, _MANY_BYTES))

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Have signals wait for the block to end; a process forked in it has them wait as well."""
        former = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)

    def forget(self) -> None:
        """Handle signals as before, and hold none back; a forked worker has its own ways."""
        signal.set_wakeup_fd(self._former_pipe)
        for number, handler in self._former.items():
            signal.signal(number, handler)
        os.close(self._arrived)
        os.close(self._written)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)


class Workers:
    """The processes that serve one port.

    Args:
        settings: the limits, and how many processes serve.
        active: the version that answers first.
        port: the port that they share.
        signals: what arrives at this process.
    """

    def __init__(
        self, settings: Settings, active: IndexVersion, port: int, signals: Signals
    ) -> None:
        self._settings = settings
        self._versions = Versions(settings, active, self)
        self._port = port
        self._signals = signals
        self._processes: list[_Process] = []
        self._generation = 0
        self._backoff = Backoff(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)
        self._replace_at = _NEVER

    def start(self) -> None:
        """Fork the workers, and return when each of them answers searches.

        Raises:
            WorkerError: if one of them does not come to serve.
        """
        self._start_all(self._versions.served, self._generation)

    def take_over(self, served: Served) -> None:
        """Fork workers that answer from other versions; drain those before when they serve.

        Raises:
            BundleError: if one of the new ones does not come to serve; those before go on.
        """
        settle_memory()
        try:
            self._start_all(served, self._generation + 1)
        except WorkerError as error:
            self._end([one for one in self._processes if one.generation > self._generation])
            raise BundleError(str(error)) from error
        for process in self._current():
            _ask_to_drain(process)
        self._generation += 1

    def process_ids(self) -> Sequence[int]:
        """Return the ids of the workers that answer from what is served now."""
        return [process.process_id for process in self._current()]

    def watch(self) -> None:
        """Replace workers that end, and versions, until this process is asked to stop."""
        while True:
            self._wait_and_obey()
            if self._signals.stop_asked:
                return
            for process in [one for one in self._processes if _has_ended(one)]:
                self._processes.remove(process)
                if process.generation == self._generation:
                    self._note_end(process)
            self._replace_missing()
            self._versions.follow_link()

    def stop(self) -> None:
        """Ask all workers to drain, and wait until they have ended."""
        self._end(list(self._processes))

    def _current(self) -> list[_Process]:
        return [one for one in self._processes if one.generation == self._generation]

    def _start_all(self, served: Served, generation: int) -> None:
        """Fork the workers of a generation, and return when each of them answers searches.

        Raises:
            WorkerError: if one of them does not come to serve.
        """
        n_workers = self._settings.workers
        try:
            started = [self._fork(served, generation) for _ in range(n_workers)]
        except OSError as error:
            raise WorkerError(f"cannot start {n_workers} workers: {error}") from error
        deadline = time.monotonic() + _START_SECONDS
        if not all(_comes_to_serve(process, deadline) for process in started):
            raise WorkerError("a worker ended before it could serve; the log says why")

    def _wait_and_obey(self) -> None:
        """Wait for a while or until something happens; carry out the commands that came."""
        timeout = min(LOOK_SECONDS, max(0.0, self._replace_at - time.monotonic()))
        pipes = [process.commands for process in self._processes]
        for readable in wait([self._signals.fileno(), *pipes], timeout):
            if isinstance(readable, Connection):
                _obey(readable, self._versions)
        self._signals.wait(0)

    def _note_end(self, process: _Process) -> None:
        """Have a worker that ended replaced, after a pause if it did not live long."""
        lived_seconds = time.monotonic() - process.started_at
        _log.error("worker ended", process_id=process.process_id, lived_seconds=lived_seconds)
        self._replace_at = time.monotonic()
        if lived_seconds > _SHORT_LIFE_SECONDS:
            self._backoff.reset()
        else:
            self._replace_at += self._backoff.pause_seconds()

    def _replace_missing(self) -> None:
        """Start workers in the place of those that ended, if their pause is over."""
        if time.monotonic() < self._replace_at:
            return
        try:
            for _ in range(self._settings.workers - len(self._current())):
                self._fork(self._versions.served, self._generation)
            self._replace_at = _NEVER
        except OSError as error:
            _log.error("no worker can be started", reason=str(error))
            self._replace_at = time.monotonic() + self._backoff.pause_seconds()

    def _end(self, processes: Sequence[_Process]) -> None:
        """Ask workers to drain, wait until they have ended, and kill those that do not."""
        for process in processes:
            _ask_to_drain(process)
        deadline = time.monotonic() + self._settings.drain_seconds + _KILL_AFTER_SECONDS
        for process in processes:
            while not _has_ended(process):
                seconds_left = deadline - time.monotonic()
                if seconds_left <= 0:
                    os.kill(process.process_id, signal.SIGKILL)
                    os.waitpid(process.process_id, 0)
                    break
                self._signals.wait(seconds_left)
            self._processes.remove(process)

    def _fork(self, served: Served, generation: int) -> _Process:
        """Start a worker."""
        ready, tell_ready = Pipe(duplex=False)
        commands, parent = Pipe()
        # Until a worker forgets our pipe for signals, those meant for it would reach us through it.
        with self._signals.held_back():
            process_id = os.fork()
            if process_id == 0:
                ready.close()
                commands.close()
                self._work(served, tell_ready, parent)
        tell_ready.close()
        parent.close()
        process = _Process(process_id, generation, time.monotonic(), ready, commands)
        self._processes.append(process)
        return process

    def _work(self, served: Served, tell_ready: Connection, parent: Connection) -> NoReturn:
        """Be a worker, and end with the process."""
        status = 1
        try:
            self._signals.forget()
            _end_with_parent()
            for sibling in self._processes:
                sibling.close()
            self._versions.served = served  # what it takes over from would stay in memory
            run_event_loop(self._serve(served, tell_ready, parent))
            status = 0
        except (BundleError, CertificateError, PortTakenError, SettingsError) as error:
            _log.error("worker cannot serve", reason=str(error))
        except BaseException as error:  # noqa: BLE001 - nothing above may run a second time
            _log.error("worker failed", exc_info=error)
        finally:
            os._exit(status)

    async def _serve(self, served: Served, tell_ready: Connection, parent: Connection) -> None:
        def on_ready(_: str) -> None:
            with suppress(BrokenPipeError):  # nobody waits for a worker that replaces another
                tell_ready.send_bytes(_READY)
            tell_ready.close()

        worker = Worker(served, self._settings, execute=_asking(parent), shares_port=True)
        await serve(worker, self._settings, self._port, on_ready)


def _asking(parent: Connection) -> admin.Execute:
    """Return what has the parent carry out commands, one after the other."""
    thread = ThreadPoolExecutor(1, "admin")

    def ask(command: bytes) -> bytes:
        parent.send_bytes(command)
        return parent.recv_bytes()

    async def execute(name: str, request: Message) -> bytes:
        command = admin.write_command(name, request)
        try:
            reply = await asyncio.get_running_loop().run_in_executor(thread, ask, command)
        except (EOFError, OSError) as error:
            raise NotServingError("the server is stopping") from error
        return admin.read_reply(reply)

    return execute


def _let_arrive(number: int, frame: FrameType | None) -> None:
    """Do nothing: the signal has been written to the pipe."""


@contextmanager
def _held_port(host: str, port: int, advice: str) -> Iterator[int]:
    """Yield a port that nobody listens on, and that nobody else is given meanwhile.

    Workers that share a port would share it with a second server as well, without a word; so it is
    first asked for by a socket that does not share.

    Args:
        host: the address.
        port: the port; 0 for any that is free.
        advice: what to do if it is taken.

    Raises:
        PortTakenError: if it is taken.
    """
    with ExitStack() as stack:
        try:
            with probe_port(host, port) as probe:
                free_port: int = probe.getsockname()[1]
            held = stack.enter_context(socket.socket(probe.family))
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind((host, free_port))
        except OSError as error:
            where = address(host, port)
            raise PortTakenError(f"cannot listen on {where}: {error.strerror}; {advice}") from error
        yield free_port


def _obey(commands: Connection, versions: Versions) -> None:
    """Carry out a command that a worker was given by its caller."""
    try:
        command = commands.recv_bytes()
    except (EOFError, OSError):
        return  # the worker has ended, which is noticed elsewhere
    reply = admin.reply_to(versions, command)
    with suppress(OSError):  # likewise
        commands.send_bytes(reply)


def _comes_to_serve(process: _Process, deadline: float) -> bool:
    with suppress(EOFError):
        if process.ready.poll(max(0.0, deadline - time.monotonic())):
            return process.ready.recv_bytes() == _READY
    return False


def _ask_to_drain(process: _Process) -> None:
    with suppress(ProcessLookupError):
        os.kill(process.process_id, signal.SIGTERM)


def _has_ended(process: _Process) -> bool:
    ended_id, _ = os.waitpid(process.process_id, os.WNOHANG)
    if ended_id == 0:
        return False
    process.close()
    metrics.forget_process(process.process_id)
    return True


def _end_with_parent() -> None:
    """Have the kernel stop this process when its parent is gone, however that ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
