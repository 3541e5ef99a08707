"""What the server costs beyond its floor: CPU a request, latency, and where the time goes.

The floor is what the stack costs without us: a null server on the same event loop that returns
ready-made bytes of the same size, plus the backend library's own search. Server, null server and
raw search run in the same minute, on the same index.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import NamedTuple

import numpy as np
from candidate_search.v1 import candidate_search_service_pb2 as pb
from pydantic import BaseModel, ConfigDict

from benchmarks.load import Load, put_load
from benchmarks.progress import OnStep
from benchmarks.timing import hash_files
from indexer.backends import SearchParams
from indexer.bundle import IndexBundle
from server.client import (
    Field,
    SearchClient,
    SearchFailedError,
    User,
    search_request,
)

COUNT = 100
IN_FLIGHT = 32
BATCH_SIZE = 64
HISTORY_LENGTH = 50
N_EXCLUDED = 100
RECALL_TARGET = 0.95
KNOWN, BARE = "known user", "known user, bare server"
STEADY, BESIDE_EXACT = "known user, 100/s", "known user, 100/s, beside exact searches"

_STEADY_RATE = 100.0
_EXACT_IN_FLIGHT = 4
_SERVICE = "/candidate_search.v1.CandidateSearchService"
SEARCH_METHOD, _BATCH_METHOD = f"{_SERVICE}/SearchCandidates", f"{_SERVICE}/BatchSearchCandidates"
_RAW_SEARCHES = 2_000
_ROUNDS = 5  # of two servers in turn, where a difference of a few percent is to be seen


class Scenario(BaseModel):
    """One kind of request under load."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    searches_per_request: int
    load: Load


class ServeReport(BaseModel):
    """The server beside its floor."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    index_version: str
    n_candidates: int
    dim: int
    backend: str
    expected_recall: float
    raw_search_us: float
    """CPU microseconds of the backend library's own search of one query, same params."""
    raw_batched_search_us: float
    """The same for each query of a batch."""
    start_seconds: float
    """From the start of the process until it serves."""
    hash_seconds: float
    """To read and hash the bundle's files, one after the other; the server hashes two at a time."""
    private_bytes: int
    """Memory that belongs to the server's process alone: what each further worker costs at most."""
    stages_us: dict[str, float]
    """Microseconds of the stages of one request, as ExplainSearch tells them."""
    scenarios: tuple[Scenario, ...]

    def load_of(self, name: str) -> Load:
        """Return what a scenario measured."""
        return next(scenario.load for scenario in self.scenarios if scenario.name == name)

    @property
    def floor_us(self) -> float:
        """CPU microseconds a request of the stack without us."""
        return self.load_of("null").cpu_us_per_request + self.raw_search_us

    @property
    def floor_ratio(self) -> float:
        """The floor's CPU per request, divided by the server's: 1 would be no cost of ours."""
        return self.floor_us / self.load_of(KNOWN).cpu_us_per_request

    @property
    def protection_ratio(self) -> float:
        """CPU a request, divided by that of a server that nothing protects or observes."""
        bare = self.load_of(BARE).cpu_us_per_request
        return self.load_of(KNOWN).cpu_us_per_request / bare

    def throughput_ratio(self, name: str) -> float:
        """Return how many requests of a scenario cost as much CPU as one of a known user."""
        known = self.load_of(KNOWN).cpu_us_per_request
        return known / self.load_of(name).cpu_us_per_request

    @property
    def batch_ratio(self) -> float:
        """The library's own batched search, divided by a search in one of our batches, in CPU."""
        ours = self.load_of("batch").cpu_us_per_request / BATCH_SIZE
        return self.raw_batched_search_us / ours

    @property
    def stall_us(self) -> float:
        """The 99th percentile of a search's latency beside exact ones, above that without them."""
        return self.load_of(BESIDE_EXACT).p99_us - self.load_of(STEADY).p99_us

    @property
    def added_latency_us(self) -> float:
        """Median latency with one request in flight, above that of null server plus search."""
        alone = self.load_of("known user, alone").p50_us
        return alone - self.load_of("null, alone").p50_us - self.raw_search_us


class ServerProcess(NamedTuple):
    """A server's process and where it listens."""

    pid: int
    target: str


class _Scenarios:
    """Measures one scenario after another."""

    def __init__(self, seconds: int, on_step: OnStep) -> None:
        self.measured: list[Scenario] = []
        self._seconds = seconds
        self._on_step = on_step

    def measure(
        self,
        name: str,
        server: ServerProcess,
        request: bytes,
        *,
        in_flight: int = IN_FLIGHT,
        rate: float | None = None,
        searches: int = 1,
        connections: int = 1,
    ) -> Load:
        """Load a server with one request, over and over; a batch has several searches."""
        self._on_step(name)
        load = put_load(
            server.target,
            SEARCH_METHOD if searches == 1 else _BATCH_METHOD,
            request,
            server.pid,
            seconds=self._seconds,
            in_flight=in_flight,
            rate=rate,
            connections=connections,
        )
        self.measured.append(Scenario(name=name, searches_per_request=searches, load=load))
        return load

    def measure_in_turn(self, servers: Mapping[str, ServerProcess], request: bytes) -> None:
        """Measure servers by turns; of each, the round that took the median of CPU time counts."""
        rounds = _Scenarios(self._seconds, self._on_step)
        for _, (name, server) in itertools.product(range(_ROUNDS), servers.items()):
            rounds.measure(name, server, request)
        for name in servers:
            of_one = [scenario for scenario in rounds.measured if scenario.name == name]
            of_one.sort(key=lambda scenario: scenario.load.cpu_us_per_request)
            self.measured.append(of_one[_ROUNDS // 2])

    @contextmanager
    def beside(self, server: ServerProcess, request: bytes) -> Iterator[None]:
        """Keep a server busy with another request for a scenario of the block, and some longer."""
        seconds = self._seconds + 1
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(
                partial(put_load, seconds=seconds, in_flight=_EXACT_IN_FLIGHT),
                *(server.target, SEARCH_METHOD, request, server.pid),
            )
            yield
            other.result()


def benchmark_serve(
    bundle: IndexBundle, *, seconds: int = 5, on_step: OnStep = lambda _: None
) -> ServeReport:
    """Load a server over a bundle, and a null server, and measure both.

    Args:
        bundle: an index bundle with a query tower and known users.
        seconds: how long each scenario lasts.
        on_step: called with a line of progress.

    Raises:
        LoadError: if the load generator fails.
        RuntimeError: if a server does not start.
        SearchFailedError: if the server refuses what it is to be loaded with.
    """
    known, history, selective, exact = _requests(bundle)
    batch = pb.BatchSearchCandidatesRequest(requests=[known] * BATCH_SIZE).SerializeToString()
    scenarios = _Scenarios(seconds, on_step)
    arguments = ("server", "serve", "--index", str(bundle.directory), "--port", "0")
    hash_seconds = _seconds(lambda: hash_files(bundle.directory, bundle.manifest.files))
    started = perf_counter()
    with server_process(arguments) as server, SearchClient(server.target) as client:
        start_seconds = perf_counter() - started
        # The load generators count answers, not what is in them: see first that all is well.
        answer, *others = client.search_batch([known, history, selective, exact])
        for one in (answer, *others):
            if isinstance(one, SearchFailedError):
                raise one
        explained = client.explain(_known_user(bundle), count=COUNT, recall_target=RECALL_TARGET)
        body = known.SerializeToString()
        with _null_server(bundle) as null:
            scenarios.measure("null", null, body)
            scenarios.measure("null, alone", null, body, in_flight=1)
        with server_process(("benchmarks.bare_server", str(bundle.directory))) as bare:
            with SearchClient(bare.target) as caller:
                caller.search(_known_user(bundle), count=COUNT)
            scenarios.measure_in_turn({KNOWN: server, BARE: bare}, body)
        alone = scenarios.measure("known user, alone", server, body, in_flight=1)
        scenarios.measure("history", server, history.SerializeToString())
        scenarios.measure("filter and exclusions", server, selective.SerializeToString())
        scenarios.measure("batch", server, batch, in_flight=4, searches=BATCH_SIZE)
        half = alone.requests_per_second / 2
        scenarios.measure("known user, open loop", server, body, rate=half)
        scenarios.measure(STEADY, server, body, rate=_STEADY_RATE)
        with scenarios.beside(server, exact.SerializeToString()):
            scenarios.measure(BESIDE_EXACT, server, body, rate=_STEADY_RATE)
        private_bytes = _private_bytes(server.pid)
    with server_process((*arguments, "--workers", "2")) as two:
        scenarios.measure("known user, 2 workers", two, body, connections=16)
    plan = explained.plan
    params = bundle.choose(COUNT, recall_target=RECALL_TARGET, backend=plan.backend).params
    raw = partial(_raw_search_us, bundle, plan.backend, params)
    return ServeReport(
        index_version=bundle.manifest.version,
        n_candidates=bundle.manifest.n_candidates,
        dim=bundle.manifest.dim,
        backend=plan.backend,
        expected_recall=plan.expected_recall,
        raw_search_us=raw(1),
        raw_batched_search_us=raw(BATCH_SIZE),
        start_seconds=start_seconds,
        hash_seconds=hash_seconds,
        private_bytes=private_bytes,
        stages_us={stage.stage: stage.duration_micros for stage in explained.stages},
        scenarios=tuple(scenarios.measured),
    )


def _known_user(bundle: IndexBundle) -> User:
    if bundle.query is None or bundle.query.user_ids is None:
        raise RuntimeError(f"{bundle.directory} has no known users to search for")
    return User(bundle.query.user_ids.token(0))


def _requests(bundle: IndexBundle) -> list[pb.SearchCandidatesRequest]:
    """Return requests: a known user's, with a history, with a filter and exclusions, exact."""
    ids = bundle.corpus.candidate_ids
    history = ids.tokens(np.arange(HISTORY_LENGTH) * (len(ids) // HISTORY_LENGTH))
    excluded = ids.tokens(np.arange(N_EXCLUDED) * (len(ids) // N_EXCLUDED) + 1)
    known = _known_user(bundle)
    tenth = Field("year").between(1930, 1939)
    return [
        search_request(known, count=COUNT, recall_target=RECALL_TARGET),
        search_request(User(history=history), count=COUNT, recall_target=RECALL_TARGET),
        search_request(
            known, count=COUNT, recall_target=RECALL_TARGET, exclude=excluded, where=tenth
        ),
        search_request(known, count=COUNT, exact=True),
    ]


def _raw_search_us(
    bundle: IndexBundle, backend: str, params: SearchParams, batch_size: int
) -> float:
    """Return the CPU time a query of the library's own search, without checks and rescoring."""
    index = bundle.index(backend)
    queries = np.ascontiguousarray(bundle.tuning_queries[:_RAW_SEARCHES])
    starts = range(0, max(1, len(queries) - batch_size + 1), batch_size)
    batches = [queries[start : start + batch_size] for start in starts]

    def search_all() -> None:
        for batch in batches:
            index._search(batch, COUNT, params)  # noqa: SLF001 - what is beneath our own search

    search_all()
    start = process_time()
    search_all()
    return (process_time() - start) / sum(map(len, batches)) * 1e6


def _seconds(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


def _private_bytes(pid: int) -> int:
    """Return the memory of a process that no file and no other process is behind."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


@contextmanager
def _null_server(bundle: IndexBundle) -> Iterator[ServerProcess]:
    """Run a null server whose response has the size and content of a real one."""
    ids = bundle.corpus.candidate_ids.tokens(np.arange(COUNT))
    response = pb.SearchCandidatesResponse(candidate_ids=ids, scores=np.ones(COUNT))
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "response")
        file.write_bytes(response.SerializeToString())
        with server_process(("benchmarks.null_server", str(file))) as started:
            yield started


@contextmanager
def server_process(arguments: Sequence[str]) -> Iterator[ServerProcess]:
    """Run one of our servers; yields its process id and address."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        lines = process.stdout or ()
        found = (re.search(r"serving on (\S+:\d+)", line) for line in lines)
        match = next((one for one in found if one), None)
        if match is None:
            raise RuntimeError(f"python -m {' '.join(arguments)} did not start")
        yield ServerProcess(process.pid, match[1])
    finally:
        process.terminate()
        process.wait(30)
