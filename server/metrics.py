"""What a server counts, and where Prometheus reads it.

With several workers each process counts into files that no other one counts into meanwhile
(``server.slots``), in the directory that the environment names, and the client library adds them
up: whichever process is asked answers for all. The variable must be set before this module is
imported.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
import threading
from functools import cache
from pathlib import Path
from time import process_time
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Summary,
    make_wsgi_app,
    multiprocess,
    values,
)
from prometheus_client.exposition import ThreadingWSGIServer

from server.domain import SearchResult
from server.slots import Slots

DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
STAGES_EVERY = 16  # searches: what a histogram tells of stages needs no more
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_STAGE_SECONDS = (0.00001, 0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)

_slots = None
if DIRECTORY_VARIABLE in os.environ:
    _slots = Slots(Path(os.environ[DIRECTORY_VARIABLE]))
    values.ValueClass = values.MultiProcessValue(_slots.mine)  # type: ignore[no-untyped-call]

REGISTRY = CollectorRegistry()
_PREFIX = "candidate_search"

REQUESTS = Counter(
    "requests", "Calls that ended.", ["method", "code"], namespace=_PREFIX, registry=REGISTRY
)
REQUEST_SECONDS = Histogram(
    "request_seconds",
    "From a call's arrival to its answer.",
    ["method"],
    namespace=_PREFIX,
    registry=REGISTRY,
    buckets=_SECONDS,
)
SEARCHES = Counter(
    "searches",
    "Searches that were answered.",
    ["backend", "search_method", "index_version"],
    namespace=_PREFIX,
    registry=REGISTRY,
)
STAGE_SECONDS = Histogram(
    "stage_seconds",
    f"The stages of one search in {STAGES_EVERY}.",
    ["stage"],  # not the version: so many series for each there has been are too many
    namespace=_PREFIX,
    registry=REGISTRY,
    buckets=_STAGE_SECONDS,
)
SEARCH_SECONDS = Summary(
    "search_seconds",
    f"All stages of one search in {STAGES_EVERY}.",
    ["index_version"],
    namespace=_PREFIX,
    registry=REGISTRY,
)
BATCH_REFUSALS = Counter(
    "batch_refusals",
    "Searches that were refused within batches.",
    ["code"],
    namespace=_PREFIX,
    registry=REGISTRY,
)
SEARCHES_GATHERED = Counter(
    "searches_gathered",
    "Searches that were answered in one go with others.",
    namespace=_PREFIX,
    registry=REGISTRY,
)
NOTICES = Counter(
    "notices", "What callers were told.", ["code"], namespace=_PREFIX, registry=REGISTRY
)
LIVE_RECALL = Summary(
    "live_recall",
    "Recall of sampled searches against exact search.",
    ["backend", "index_version"],
    namespace=_PREFIX,
    registry=REGISTRY,
)
LIVE_EXPECTED_RECALL = Summary(
    "live_expected_recall",
    "Recall that the same searches were promised, by the indexer's measurements.",
    ["backend", "index_version"],
    namespace=_PREFIX,
    registry=REGISTRY,
)
VERSION_CHANGES = Counter(
    "version_changes",
    "Index versions that took over or were refused.",
    ["outcome"],
    namespace=_PREFIX,
    registry=REGISTRY,
)
IN_FLIGHT = Gauge(
    "calls_in_flight",
    "Calls that are being answered.",
    namespace=_PREFIX,
    registry=REGISTRY,
    multiprocess_mode="livesum",
)
LONG_SEARCHES = Gauge(
    "long_searches",
    "Long searches that are being made or wait.",
    namespace=_PREFIX,
    registry=REGISTRY,
    multiprocess_mode="livesum",
)
CPU_SECONDS = Counter(
    "cpu_seconds",
    "Time that the workers have had on processors.",
    namespace=_PREFIX,
    registry=REGISTRY,
)
WORKERS = Gauge(
    "workers",
    "Processes that answer searches.",
    namespace=_PREFIX,
    registry=REGISTRY,
    multiprocess_mode="livesum",
)
PEAK_MEMORY_BYTES = Gauge(
    "peak_memory_bytes",
    "The most memory that the largest process has had resident.",
    namespace=_PREFIX,
    registry=REGISTRY,
    multiprocess_mode="livemax",
)


_cpu_seconds = 0.0  # that Prometheus has been told of
_counted: dict[Counter, int] = {}
_observed: list[tuple[Histogram, float]] = []


def count(counter: Counter) -> None:
    """Count one more, on the event loop; Prometheus reads of it after the next ``settle``."""
    _counted[counter] = _counted.get(counter, 0) + 1


def observe(histogram: Histogram, value: float) -> None:
    """Put a value into a histogram, on the event loop, with the next ``settle``."""
    _observed.append((histogram, value))


def settle() -> None:
    """Bring to Prometheus's library what was counted and observed since.

    Its locks, and files where there are several workers, cost a cheap search 2% of its
    time if they are used for every call on its own.
    """
    for counter, n in _counted.items():
        counter.inc(n)
    _counted.clear()
    for histogram, value in _observed:
        histogram.observe(value)
    _observed.clear()


class _SilentHandler(WSGIRequestHandler):
    """Logs nothing: scrapes are many and all alike."""

    timeout = 5.0  # for the next byte; each connection takes a thread

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Drop the line."""


class _Server(ThreadingWSGIServer):
    """Answers Prometheus; workers share the port, as they share what they count."""

    allow_reuse_port = _slots is not None
    request_queue_size = 128  # or a few that stall would keep others from connecting

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tell of what fails, but not of peers that hang up or stall."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _IPv6Server(_Server):
    """The same on an address of IPv6."""

    address_family = socket.AF_INET6


def listen(host: str, port: int) -> int:
    """Answer Prometheus on a thread of its own, until the process ends; return the port.

    Raises:
        OSError: if the address cannot be listened on.
    """
    registry = REGISTRY
    if _slots is not None:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    kind = _IPv6Server if ":" in host else _Server
    server = make_server(host, port, make_wsgi_app(registry), kind, _SilentHandler)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server.server_port


def forget_ended() -> None:
    """Count no longer as present what processes that ended had in flight."""
    if _slots is not None:
        _slots.forget_ended()


def observe_search(result: SearchResult, index_version: str, number: int) -> None:
    """Count what a search was told and, now and then, how long its stages took.

    Args:
        result: the answer.
        index_version: what gave it.
        number: how many searches were answered before it.
    """
    for notice in result.notices:
        NOTICES.labels(notice.code.name).inc()
    if number % STAGES_EVERY == 0:
        for stage, nanos in result.stage_nanos.items():
            _stage(stage).observe(nanos / 1e9)
        SEARCH_SECONDS.labels(index_version).observe(sum(result.stage_nanos.values()) / 1e9)


@cache
def _stage(name: str) -> Histogram:
    return STAGE_SECONDS.labels(name)


def observe_process(n_in_flight: int, n_long: int) -> None:
    """Note what a worker is doing now, and how much time and memory it has had."""
    global _cpu_seconds
    WORKERS.set(1)
    told, _cpu_seconds = _cpu_seconds, process_time()
    CPU_SECONDS.inc(_cpu_seconds - told)
    IN_FLIGHT.set(n_in_flight)
    LONG_SEARCHES.set(n_long)
    unit = 1 if sys.platform == "darwin" else 1024
    PEAK_MEMORY_BYTES.set(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
