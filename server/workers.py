"""The parent of several workers: it loads, forks, watches and replaces them, and never serves.

An index is loaded once, before the fork, so that its memory is shared. gRPC does not survive a
fork, so the parent makes no gRPC object; each worker listens on the same port, and the kernel deals
connections out among them. A connection stays with its worker; so a worker closes connections that
have grown old (``max_connection_age_seconds``), and the client's next one may reach another.

Another version is loaded by a fork of the parent, which goes on watching meanwhile. If that is
refused, the fork ends. If not, it forks workers of its own and is the parent from then on; the one
before ends with its workers, which drain. Commands of the admin service reach the parent through a
pipe from the worker that was called.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import NoReturn

import structlog

from server import admin, metrics
from server.backoff import Backoff
from server.errors import NotServingError
from server.kinship import end_with_parent
from server.loading import IndexVersion, load_and_settle, settle_memory
from server.ports import (
    CHOOSE_ANOTHER,
    CHOOSE_ANOTHER_FOR_METRICS,
    PortTakenError,
    address,
    held_port,
)
from server.serve import LOOK_SECONDS, OnReady, Worker, run_event_loop, serve
from server.settings import Settings, SettingsError
from server.signals import Signals
from server.supervisor import Lifeline, WorkerError, supervise
from server.tls import CertificateError
from server.trial import Trial
from server.versions import Served, Versions
from trainer.publish import BundleError

_log = structlog.get_logger(__name__)

_READY = b"."
_KILL_AFTER_SECONDS = 5.0  # beyond the drain, for a worker that does not end by itself
_START_SECONDS = 60.0  # for a worker to serve, before what it was started for is given up
_SHORT_LIFE_SECONDS = 5.0  # a worker that ends sooner is replaced a little later each time
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 5.0
_NEVER = float("inf")


def serve_with_workers(settings: Settings, on_ready: OnReady) -> None:
    """Serve with several processes until SIGTERM or SIGINT, then drain.

    Args:
        settings: the index, where they listen, the limits, and how many processes serve.
        on_ready: called with the address once all workers answer searches.

    Raises:
        PortTakenError: if an address cannot be listened on.
        WorkerError: if the index cannot be loaded, or a worker ends before it has served.
    """
    with ExitStack() as stack:
        port = stack.enter_context(held_port(settings.host, settings.port, CHOOSE_ANOTHER))
        if settings.metrics_port is not None:
            held = held_port(settings.host, settings.metrics_port, CHOOSE_ANOTHER_FOR_METRICS)
            metrics_port = stack.enter_context(held)
            settings = settings.model_copy(update={"metrics_port": metrics_port})
        supervise(partial(_keep_workers, settings, port, on_ready))


def _keep_workers(settings: Settings, port: int, on_ready: OnReady, lifeline: Lifeline) -> None:
    """Be the parent of workers until they are to stop."""
    active = load_and_settle(settings)
    with Signals() as signals:
        workers = Workers(settings, active, port, signals, lifeline)
        del active  # or it would stay in memory after others have taken over
        try:
            workers.start()
            if not workers.are_to_stop:
                on_ready(address(settings.host, port))
            workers.watch()
        finally:
            workers.stop()


@dataclass(eq=False)
class _Process:
    """A worker's process."""

    process_id: int
    started_at: float
    ready: Connection
    """Tells once that the process serves."""
    commands: Connection
    """What the process is asked by the admin service, and the replies."""

    def close(self) -> None:
        """Close this process's ends of the pipes."""
        self.ready.close()
        self.commands.close()


class Workers:
    """The processes that serve one port, all from the same versions.

    Args:
        settings: the limits, and how many processes serve.
        active: the version that answers first.
        port: the port that they share.
        signals: what arrives at this process.
        lifeline: the supervisor's.
    """

    def __init__(
        self,
        settings: Settings,
        active: IndexVersion,
        port: int,
        signals: Signals,
        lifeline: Lifeline,
    ) -> None:
        self._settings = settings
        self._versions = Versions(settings, active, self)
        self._port = port
        self._signals = signals
        self._lifeline = lifeline
        self._processes: list[_Process] = []
        # Of the workers of the parent before, which may still wait for replies.
        self._inherited: list[Connection] = []
        self._backoff = Backoff(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)
        self._replace_at = _NEVER

    @property
    def are_to_stop(self) -> bool:
        """Whether this process was asked to end with its workers."""
        return self._signals.stop_asked or self._lifeline.is_cut

    def start(self) -> None:
        """Fork the workers; return when each of them answers searches, or they are to stop.

        Raises:
            WorkerError: if one of them does not come to serve.
        """
        self._start_all(self._versions.served)

    def verify(self, load: Callable[[], object]) -> None:
        """Load a version in a fork of this process, which then ends.

        Raises:
            BundleError: if it is refused.
            NotServingError: if this process was asked to stop meanwhile.
        """
        trial = self._begin_trial()
        if trial.is_here:
            trial.run(load)
            trial.pass_on()
        self._await(trial)

    def take_over(self, make: Callable[[], Served]) -> Served:
        """Have other versions answer, from a fork of this process; return in the fork alone.

        When its workers serve, this process ends with its own, and the fork is the parent.

        Args:
            make: loads the versions.

        Raises:
            BundleError: if they cannot be loaded, or a worker does not come to serve from them.
            NotServingError: if this process was asked to stop meanwhile.
        """
        trial = self._begin_trial()
        if not trial.is_here:
            self._await(trial)
            self.stop()
            os._exit(0)  # whatever follows, the fork does
        served = trial.run(partial(self._succeed, make))
        trial.succeed()
        return served

    @property
    def _patience_seconds(self) -> float:
        """How long what was asked to stop may take, before it is killed."""
        return self._settings.drain_seconds + _KILL_AFTER_SECONDS

    def process_ids(self) -> Sequence[int]:
        """Return the ids of the workers."""
        return [process.process_id for process in self._processes]

    def watch(self) -> None:
        """Replace workers that end, and versions, until this process is asked to stop."""
        while not self.are_to_stop:
            pipes = [*self._inherited, *(process.commands for process in self._processes)]
            for commands in self._wait(pipes):
                self._obey(commands)
            self._versions.follow_link()

    def stop(self) -> None:
        """Ask all workers to drain, wait until they have ended, and kill those that do not."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.kill(process.process_id, signal.SIGTERM)
        deadline = time.monotonic() + self._patience_seconds
        while self._processes:
            process = self._processes.pop()
            while not _has_ended(process):
                seconds_left = deadline - time.monotonic()
                if seconds_left <= 0:
                    os.kill(process.process_id, signal.SIGKILL)
                    seconds_left = LOOK_SECONDS
                self._signals.wait(seconds_left)

    def _start_all(self, served: Served) -> None:
        """Fork the workers; return when each of them answers searches, or they are to stop.

        Raises:
            WorkerError: if one of them does not come to serve.
        """
        n_workers = self._settings.workers
        try:
            for _ in range(n_workers):
                self._fork(served)
        except OSError as error:
            raise WorkerError(f"cannot start {n_workers} workers: {error}") from error
        deadline = time.monotonic() + _START_SECONDS
        for process in self._processes:
            self._await_ready(process, deadline)

    def _await_ready(self, process: _Process, deadline: float) -> None:
        """Return when a worker answers searches, or all are to stop.

        Raises:
            WorkerError: if it does not come to serve.
        """
        while not self.are_to_stop:
            sources: list[Connection | int] = [process.ready, *self._asked_by()]
            readable = wait(sources, max(0.0, deadline - time.monotonic()))
            self._signals.wait(0)
            if process.ready in readable:
                if _comes_to_serve(process):
                    return
                raise WorkerError("a worker ended before it could serve; the log says why")
            if not readable:
                raise WorkerError(f"a worker does not serve after {_START_SECONDS:g} seconds")

    def _begin_trial(self) -> Trial:
        try:
            return Trial(self._signals)
        except OSError as error:
            raise BundleError(f"no process to try it in can be started: {error}") from error

    def _await(self, trial: Trial) -> None:
        """Go on watching until a trial has come to its end, or has succeeded.

        Raises:
            BundleError: if the version is refused.
            NotServingError: if this process was asked to stop meanwhile.
        """
        while not self._wait([trial.verdict]):
            if self.are_to_stop:
                trial.stop(self._patience_seconds)
                raise NotServingError("the server is stopping")
        trial.conclude()

    def _succeed(self, make: Callable[[], Served]) -> Served:
        """Be the parent of workers that answer from other versions, in a fork of the parent.

        Raises:
            BundleError: if the versions cannot be loaded, or a worker does not come to serve.
        """
        served = make()
        settle_memory()
        self._inherited += [process.commands for process in self._processes]
        self._processes = []
        self._backoff.reset()
        self._replace_at = _NEVER
        self._signals.listen()
        try:
            self._start_all(served)
        except WorkerError as error:
            self.stop()
            raise BundleError(str(error)) from error
        return served

    def _asked_by(self) -> tuple[Connection | int, ...]:
        """Return what can be read from when this process is asked to stop, or workers end."""
        return (self._signals.fileno(), self._lifeline.supervisor)

    def _wait(self, sources: Sequence[Connection]) -> list[Connection]:
        """Wait a while or until something happens, and replace workers that ended.

        Returns:
            Those of the sources that can be read from.
        """
        timeout = min(LOOK_SECONDS, max(0.0, self._replace_at - time.monotonic()))
        readable = wait([*self._asked_by(), *sources], timeout)
        self._signals.wait(0)
        if not self.are_to_stop:
            for process in [one for one in self._processes if _has_ended(one)]:
                self._processes.remove(process)
                self._note_end(process)
            self._replace_missing()
        return [one for one in sources if one in readable]

    def _obey(self, commands: Connection) -> None:
        """Carry out a command that a worker was given by its caller."""
        try:
            command = commands.recv_bytes()
        except (EOFError, OSError):  # the worker has ended, which is noticed elsewhere
            if commands in self._inherited:
                self._inherited.remove(commands)
                commands.close()
            return
        reply = admin.reply_to(self._versions, command)
        with suppress(OSError):  # likewise
            commands.send_bytes(reply)

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
            for _ in range(self._settings.workers - len(self._processes)):
                self._fork(self._versions.served)
            self._replace_at = _NEVER
        except OSError as error:
            _log.error("no worker can be started", reason=str(error))
            self._replace_at = time.monotonic() + self._backoff.pause_seconds()

    def _fork(self, served: Served) -> None:
        """Start a worker."""
        ready, tell_ready = Pipe(duplex=False)
        commands, parent = Pipe()
        parent_id = os.getpid()
        process_id = self._signals.fork()
        if process_id == 0:
            end_with_parent(parent_id)
            ready.close()
            commands.close()
            self._work(served, tell_ready, parent)
        tell_ready.close()
        parent.close()
        self._processes.append(_Process(process_id, time.monotonic(), ready, commands))

    def _work(self, served: Served, tell_ready: Connection, parent: Connection) -> NoReturn:
        """Be a worker, and end with the process."""
        status = 1
        try:
            self._lifeline.close()
            for sibling in self._processes:
                sibling.close()
            for commands in self._inherited:
                commands.close()
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

        worker = Worker(served, self._settings, execute=admin.asking(parent), shares_port=True)
        await serve(worker, self._settings, self._port, on_ready)


def _comes_to_serve(process: _Process) -> bool:
    with suppress(EOFError):
        return process.ready.recv_bytes() == _READY
    return False


def _has_ended(process: _Process) -> bool:
    ended_id, _ = os.waitpid(process.process_id, os.WNOHANG)
    if ended_id == 0:
        return False
    process.close()
    metrics.forget_ended()
    return True
