"""One worker: a gRPC server on one port, from warm-up to drain."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import grpc
import structlog
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from server import admin, metrics
from server.admin import AdminServicer
from server.auth import TokenInterceptor, Tokens, check_exposure
from server.foreign_services import ForeignServices, Streams
from server.loading import IndexVersion
from server.ports import (
    CHOOSE_ANOTHER_FOR_METRICS,
    PortTakenError,
    address,
    why_not,
)
from server.servicer import SERVICE_NAME, CandidateSearchServicer
from server.settings import Settings, SettingsError
from server.tls import certificates
from server.versions import Served, Versions
from trainer.extras import missing

_log = structlog.get_logger(__name__)
LOOK_SECONDS = 1.0  # between looks at what no event tells
_LISTENING_SECONDS = 0.1  # the same, while nobody can connect

OnReady = Callable[[str], None]


def check(settings: Settings) -> None:
    """Refuse settings that no server can be started with, and warn of dangerous ones.

    It is done before an index is loaded, which takes long, and before workers are forked, which
    cannot tell the user.

    Raises:
        CertificateError: if the files of TLS cannot be used.
        SettingsError: if another setting cannot be used.
    """
    check_exposure(settings)
    certificates(settings)
    if settings.token_file is not None:
        Tokens(settings.token_file)
    if settings.trace_endpoint is not None:
        _tracing()


def run_event_loop(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on uvloop, or on asyncio's own loop where there is none."""
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


class Worker:
    """One gRPC server.

    Args:
        served: the versions that answer.
        settings: where it listens, and the limits.
        execute: what carries out commands of the admin service, if it is answered.
        shares_port: whether other workers listen on the same port.

    Raises:
        CertificateError: if the files of TLS cannot be used.
        SettingsError: if the file of tokens cannot be used.
    """

    def __init__(
        self,
        served: Served,
        settings: Settings,
        *,
        execute: admin.Execute | None = None,
        shares_port: bool = False,
    ) -> None:
        self._settings = settings
        self._warm: tuple[IndexVersion, ...] = ()
        self._shares_port = shares_port
        self._interceptors: list[grpc.aio.ServerInterceptor] = []
        self._tracer = None
        if settings.trace_endpoint is not None:
            tracing = _tracing()
            self._tracer = tracing.Tracer(settings.trace_endpoint, settings.trace_share)
            self._interceptors.append(tracing.TraceInterceptor())
        self.servicer = CandidateSearchServicer(served, settings, self._tracer)
        self._health = health.aio.HealthServicer()
        self._streams = Streams()
        self._certificates = certificates(settings)
        self._tokens = Tokens(settings.token_file) if settings.token_file else None
        if self._tokens is not None:
            self._interceptors.append(TokenInterceptor(self._tokens))
        self._admin = AdminServicer(execute) if settings.admin and execute is not None else None
        self._server = self._new_server()
        self._stopping: set[asyncio.Task[None]] = set()  # servers that listen no longer

    async def start(self, port: int) -> int:
        """Listen, warm up, and report SERVING.

        Returns:
            The port, which is another than was asked for if that was 0.

        Raises:
            PortTakenError: if the address cannot be listened on.
        """
        await self._report(health_pb2.HealthCheckResponse.NOT_SERVING)
        bound_port = self._listen(port)
        if self._settings.metrics_port is not None:
            self._listen_for_prometheus(self._settings.metrics_port)
        await self._server.start()
        self._listening = asyncio.create_task(self._keep_listening(bound_port))
        await self.take_over(self.servicer.served)
        self.servicer.is_serving = True
        self._observing = asyncio.create_task(self._observe())
        await self._report(health_pb2.HealthCheckResponse.SERVING)
        return bound_port

    async def stop(self) -> None:
        """Report NOT_SERVING, end streams, let calls in flight end, and close."""
        self._streams.end()
        await self._health.enter_graceful_shutdown()
        self._listening.cancel()
        await asyncio.gather(self._server.stop(self._settings.drain_seconds), *self._stopping)
        self._observing.cancel()
        if self._tracer is not None:
            self._tracer.close()
        self.servicer.close()

    async def take_over(self, served: Served) -> None:
        """Have these versions answer instead of those before; calls in flight end on theirs."""
        for version in served.versions():
            if version not in self._warm:
                version.warm_up()  # here, since what it warms is of this thread alone
        self._warm = served.versions()
        self.servicer.served = served

    def _new_server(self) -> grpc.aio.Server:
        """Return a server of all services, which does not listen yet."""
        server = grpc.aio.server(
            options=_options(self._settings, shares_port=self._shares_port),
            interceptors=self._interceptors,
        )
        server.add_generic_rpc_handlers((self.servicer.handler(),))
        foreign: Any = ForeignServices(server, self._streams)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, foreign)
        names = [SERVICE_NAME, health.SERVICE_NAME]
        if self._admin is not None:
            server.add_generic_rpc_handlers((self._admin.handler(),))
            names.append(admin.SERVICE_NAME)
        if self._settings.reflection:
            described = reflection.aio.ReflectionServicer((*names, reflection.SERVICE_NAME))
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server(described, foreign)
        return server

    async def _keep_listening(self, port: int) -> None:
        """Listen anew whenever gRPC stops by itself.

        It does when a caller names a method in bytes that are no text (grpcio 1.85). Calls that
        were begun are answered.
        """
        while True:
            try:
                await self._server.wait_for_termination(_LISTENING_SECONDS)
            except Exception as error:  # noqa: BLE001 - whatever it is, others want to be answered
                _log.error("gRPC stopped, listening anew", reason=str(error))
                stopping = asyncio.create_task(self._server.stop(self._settings.drain_seconds))
                self._stopping.add(stopping)
                stopping.add_done_callback(self._stopping.discard)
                await self._listen_anew(port)

    async def _listen_anew(self, port: int) -> None:
        self._server = self._new_server()
        while True:
            try:
                self._listen(port)
                break
            except PortTakenError as error:
                _log.error("not listening, trying again", reason=str(error))
                await asyncio.sleep(LOOK_SECONDS)
        await self._server.start()

    def _listen(self, port: int) -> int:
        where = address(self._settings.host, port)
        try:
            if self._certificates is None:
                return self._server.add_insecure_port(where)
            return self._server.add_secure_port(where, self._certificates.credentials())
        except RuntimeError as error:
            raise PortTakenError(
                f"cannot listen on {where}: {why_not(self._settings.host, port)}"
            ) from error

    def _listen_for_prometheus(self, port: int) -> None:
        host = self._settings.host
        try:
            bound_port = metrics.listen(host, port)
        except OSError as error:
            raise PortTakenError(
                f"cannot listen on {address(host, port)}: {error.strerror}; "
                f"{CHOOSE_ANOTHER_FOR_METRICS}"
            ) from error
        _log.info("metrics", address=f"http://{address(host, bound_port)}/metrics")

    async def _observe(self) -> None:
        while True:
            try:
                self.servicer.observe()
                if self._tokens is not None:
                    self._tokens.refresh()
            except Exception:  # noqa: BLE001 - a full disk, say, that may be mended
                _log.exception("cannot tell Prometheus, or read the tokens")
            await asyncio.sleep(LOOK_SECONDS)

    async def _report(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in (health.OVERALL_HEALTH, SERVICE_NAME):
            await self._health.set(service, status)


async def serve(worker: Worker, settings: Settings, port: int, on_ready: OnReady) -> None:
    """Serve until SIGTERM or SIGINT, then drain.

    Args:
        worker: what serves.
        settings: where it listens.
        port: the port; 0 for any that is free.
        on_ready: called with the address once searches are answered.

    Raises:
        PortTakenError: if the address cannot be listened on.
    """
    stop = stop_signal()  # from now on: whoever reads that this serves may end it
    bound_port = await worker.start(port)
    on_ready(address(settings.host, bound_port))
    await stop.wait()
    _log.info("draining", seconds=settings.drain_seconds)
    await worker.stop()
    in_flight = worker.servicer.in_flight
    _log.info("drained", ended=in_flight.n_ended, cut_off=in_flight.count)


async def serve_alone(settings: Settings, active: IndexVersion, on_ready: OnReady) -> None:
    """Serve from this process, which changes versions as well, until SIGTERM or SIGINT.

    Args:
        settings: where it listens, and the limits.
        active: the version that answers first.
        on_ready: called with the address once searches are answered.

    Raises:
        PortTakenError: if the address cannot be listened on.
    """
    loop = asyncio.get_running_loop()
    # Versions are loaded on one thread, beside the event loop.
    thread = ThreadPoolExecutor(1, "versions")

    async def execute(name: str, request: Message) -> bytes:
        return await loop.run_in_executor(thread, admin.execute, versions, name, request)

    async def follow_link() -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await loop.run_in_executor(thread, versions.follow_link)

    worker = Worker(Served(active), settings, execute=execute)
    versions = Versions(settings, active, _Alone(worker, loop))
    del active  # or it would stay in memory after others have taken over
    following = loop.create_task(follow_link())
    try:
        await serve(worker, settings, settings.port, on_ready)
    finally:
        following.cancel()
        thread.shutdown(wait=False, cancel_futures=True)


class _Alone:
    """The crew of one process: versions take over on its event loop."""

    def __init__(self, worker: Worker, loop: asyncio.AbstractEventLoop) -> None:
        self._worker = worker
        self._loop = loop

    def verify(self, load: Callable[[], object]) -> None:
        """Load a version, and let it go again; called on another thread than the loop's."""
        load()

    def take_over(self, make: Callable[[], Served]) -> Served:
        """Have other versions answer; called on another thread than the loop's."""
        served = make()
        asyncio.run_coroutine_threadsafe(self._worker.take_over(served), self._loop).result()
        return served

    def process_ids(self) -> Sequence[int]:
        """Return the id of this process."""
        return [os.getpid()]


def stop_signal() -> asyncio.Event:
    """Return what is set when this process is asked to end."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def _tracing() -> ModuleType:
    """Return the module that traces, which needs an extra.

    Raises:
        SettingsError: if that is not installed.
    """
    try:
        return importlib.import_module("server.tracing")
    except ImportError as error:
        raise SettingsError(f"trace_endpoint: {missing(str(error.name), 'trace')}") from error


def _options(settings: Settings, *, shares_port: bool) -> list[tuple[str, int]]:
    return [
        # Without it a second server would take half of the connections without a word.
        ("grpc.so_reuseport", int(shares_port)),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_metadata_size", settings.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_metadata_bytes),
        ("grpc.max_concurrent_streams", settings.max_calls_per_connection),
        ("grpc.server.max_pending_requests", settings.max_waiting_calls),
        ("grpc.server.max_pending_requests_hard_limit", 2 * settings.max_waiting_calls),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.server_handshake_timeout_ms", settings.handshake_timeout_seconds * 1000),
        ("grpc.max_connection_idle_ms", settings.max_connection_idle_seconds * 1000),
        # A connection stays on one worker, and with a call that stalls for ever: new ones are what
        # spreads the load.
        ("grpc.max_connection_age_ms", settings.max_connection_age_seconds * 1000),
        ("grpc.max_connection_age_grace_ms", settings.connection_grace_seconds * 1000),
    ]
