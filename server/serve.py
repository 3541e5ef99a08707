"""One worker: a gRPC server on one port, from warm-up to drain."""

from __future__ import annotations

import asyncio
import gc
import secrets
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from indexer.bundle import IndexBundle
from server.domain import CandidateQuery, EmbeddingQuery, Query, SearchRequest, UserQuery
from server.encoding import FoundEncoder
from server.engine import Engine
from server.servicer import SERVICE_NAME, CandidateSearchServicer
from server.settings import Settings

_log = structlog.get_logger(__name__)
_WARM_UP_ROUNDS = 3
CHOOSE_ANOTHER = "choose another address with --host and --port, or --port 0 for any that is free"


class PortTakenError(Exception):
    """The address cannot be listened on; the message is meant for the user."""


@dataclass(frozen=True)
class Loaded:
    """What a server has in memory, and what workers that are forked share."""

    settings: Settings
    engine: Engine
    encoder: FoundEncoder
    page_token_key: bytes


def load(settings: Settings) -> Loaded:
    """Verify and open the index bundle that the settings name.

    Raises:
        BundleError: if there is no bundle, or it is damaged.
        BackendUnavailableError: if its default backend's library is not installed.
    """
    engine = Engine(
        IndexBundle.open(settings.index),
        max_page_depth=settings.max_page_depth,
        filter_cache_bytes=settings.filter_cache_bytes,
        long_search_floats=settings.long_search_floats,
    )
    key = settings.page_token_key
    loaded = Loaded(
        settings=settings,
        engine=engine,
        encoder=FoundEncoder(engine.bundle.corpus.candidate_ids),
        page_token_key=secrets.token_bytes(32) if key is None else key.get_secret_value().encode(),
    )
    # What exists now lives as long as the process: the garbage collector need not look at it, which
    # takes milliseconds, and writes to pages that forked workers then no longer share.
    gc.collect()
    gc.freeze()
    return loaded


def address(host: str, port: int) -> str:
    """Return ``host:port`` as gRPC and people write it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


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
        loaded: what it serves.
        shares_port: whether other workers listen on the same port.
    """

    def __init__(self, loaded: Loaded, *, shares_port: bool = False) -> None:
        settings = loaded.settings
        self._engine = loaded.engine
        self._settings = settings
        self.servicer = CandidateSearchServicer(
            loaded.engine, loaded.encoder, settings, loaded.page_token_key
        )
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(options=_options(settings, shares_port=shares_port))
        self._server.add_generic_rpc_handlers((self.servicer.handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if settings.reflection:
            names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)

    async def start(self, port: int) -> int:
        """Listen, warm up, and report SERVING.

        Returns:
            The port, which is another than was asked for if that was 0.

        Raises:
            PortTakenError: if the address cannot be listened on.
        """
        await self._report(health_pb2.HealthCheckResponse.NOT_SERVING)
        where = address(self._settings.host, port)
        try:
            bound_port = self._server.add_insecure_port(where)
        except RuntimeError as error:
            raise PortTakenError(
                f"cannot listen on {where}: {_why_not(self._settings.host, port)}"
            ) from error
        await self._server.start()
        self._warm_up()
        self.servicer.is_serving = True
        await self._report(health_pb2.HealthCheckResponse.SERVING)
        return bound_port

    async def stop(self) -> None:
        """Report NOT_SERVING, let calls in flight end, and close."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(self._settings.drain_seconds)
        self.servicer.close()

    async def _report(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in (health.OVERALL_HEALTH, SERVICE_NAME):
            await self._health.set(service, status)

    def _warm_up(self) -> None:
        """Make searches of every kind that the index can answer, so that no caller waits for it."""
        for query in _warm_up_queries(self._engine.bundle):
            for _ in range(_WARM_UP_ROUNDS):
                self._engine.search(SearchRequest(query, rank=self._engine.has_ranker))


async def serve(
    loaded: Loaded, port: int, on_ready: Callable[[str], None], *, shares_port: bool = False
) -> None:
    """Serve until SIGTERM or SIGINT, then drain.

    Args:
        loaded: what is served.
        port: the port; 0 for any that is free.
        on_ready: called with the address once searches are answered.
        shares_port: whether other workers listen on the same port.

    Raises:
        PortTakenError: if the address cannot be listened on.
    """
    worker = Worker(loaded, shares_port=shares_port)
    bound_port = await worker.start(port)
    on_ready(address(loaded.settings.host, bound_port))
    await wait_for_stop_signal()
    _log.info("draining", seconds=loaded.settings.drain_seconds)
    await worker.stop()


async def wait_for_stop_signal() -> None:
    """Return when this process is asked to end."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()


def _options(settings: Settings, *, shares_port: bool) -> list[tuple[str, int]]:
    options = [
        # Without it a second server would take half of the connections without a word.
        ("grpc.so_reuseport", int(shares_port)),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
    ]
    if shares_port:
        # A connection stays on one worker: new ones are what spreads the load.
        options.append(("grpc.max_connection_age_ms", settings.max_connection_age_seconds * 1000))
    return options


def _warm_up_queries(bundle: IndexBundle) -> Iterator[Query]:
    corpus, assets = bundle.corpus, bundle.query
    some_ids = corpus.candidate_ids.tokens(np.arange(min(3, corpus.n_candidates)))
    yield CandidateQuery(some_ids[0])
    yield EmbeddingQuery(np.array(corpus.embeddings[0]))
    if assets is not None:
        yield UserQuery(history=some_ids)
        yield UserQuery()
        if assets.user_ids is not None:
            yield UserQuery(assets.user_ids.token(0))


def _why_not(host: str, port: int) -> str:
    """Return why an address cannot be listened on, and how to mend it."""
    try:
        probe_port(host, port).close()
    except OSError as error:
        return f"{error.strerror}; {CHOOSE_ANOTHER}"
    return CHOOSE_ANOTHER


def probe_port(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address, which fails where anybody listens on it.

    Raises:
        OSError: if the address is taken, or is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound
