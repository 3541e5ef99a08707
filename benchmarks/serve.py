"""What the server costs beyond its floor: CPU a request, latency, and where the time goes.

The floor is what the stack costs without us: a null server on the same event loop that returns
ready-made bytes of the same size, plus the backend library's own search. Server, null server and
raw search run in the same minute, on the same index.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from candidate_search.v1 import candidate_search_service_pb2 as pb
from pydantic import BaseModel, ConfigDict

from benchmarks.errors import BenchmarkError
from benchmarks.load import Load, LoadError, answer_of, put_load
from benchmarks.processes import private_bytes
from benchmarks.progress import OnStep
from benchmarks.search import BATCH_SIZE
from benchmarks.server_process import ServerProcess, server_process
from benchmarks.timing import hash_files, timed
from indexer.backends import LocalIndex, SearchParams
from indexer.bundle import IndexBundle
from server.client import (
    Condition,
    Field,
    SearchClient,
    SearchFailedError,
    User,
    search_request,
)

COUNT = 100
IN_FLIGHT = 32
HISTORY_LENGTH = 50
N_EXCLUDED = 100
_MOST_FAILED = 0.01  # of a scenario's requests
_FEWEST_CANDIDATES = 2 * (COUNT + N_EXCLUDED)
_SELECTIVITY = 0.1
RECALL_TARGET = 0.95
KNOWN, BARE = "known user", "known user, bare server"
TWO_WORKERS = "known user, 2 workers"
HALF, HALF_BESIDE = "known user, half in flight", "known user, half, beside another server"
STEADY, BESIDE_EXACT = "known user, 100/s", "known user, 100/s, beside exact searches"

_STEADY_RATE = 100.0
_EXACT_IN_FLIGHT = 4
_SERVICE = "/candidate_search.v1.CandidateSearchService"
SEARCH_METHOD, _BATCH_METHOD = f"{_SERVICE}/SearchCandidates", f"{_SERVICE}/BatchSearchCandidates"
_RAW_SEARCHES = 2_000


class Scenario(BaseModel):
    """One kind of request under load."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    searches_per_request: int
    load: Load


class Round(BaseModel):
    """What was measured in turn, within a minute: only that is set against one another."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    raw_search_us: float
    """CPU microseconds of the backend library's own search of one query, same params."""
    raw_batched_search_us: float
    """The same for each query of a batch."""
    loads: dict[str, Load]
    """By scenario."""

    def cpu_us(self, name: str) -> float:
        """Return the CPU microseconds of a scenario's request."""
        return self.loads[name].cpu_us_per_request

    @property
    def floor_us(self) -> float:
        """CPU microseconds a request of the stack without us."""
        return self.cpu_us("null") + self.raw_search_us


class ServeReport(BaseModel):
    """The server beside its floor."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    index_version: str
    n_candidates: int
    dim: int
    backend: str
    expected_recall: float
    start_seconds: float
    """From the start of the process until it serves."""
    hash_seconds: float
    """To read and hash the bundle's files, one after the other; the server hashes two at a time."""
    private_bytes: int
    """Memory that belongs to the server's process alone: what each further worker costs at most."""
    stages_us: dict[str, float]
    """Microseconds of the stages of one request, as ExplainSearch tells them."""
    scenarios: tuple[Scenario, ...]
    """Of what was measured in turn, the round of the median CPU time."""
    rounds: tuple[Round, ...]

    def load_of(self, name: str) -> Load:
        """Return what a scenario measured."""
        return next(scenario.load for scenario in self.scenarios if scenario.name == name)

    @property
    def floor_us(self) -> float:
        """CPU microseconds a request of the stack without us."""
        return self._median(lambda one: one.floor_us)

    @property
    def floor_ratio(self) -> float:
        """The floor's CPU per request, divided by the server's: 1 would be no cost of ours."""
        return self._median(lambda one: one.floor_us / one.cpu_us(KNOWN))

    @property
    def protection_ratio(self) -> float:
        """CPU a request, divided by that of a server that nothing protects or observes."""
        return self._median(lambda one: one.cpu_us(KNOWN) / one.cpu_us(BARE))

    def throughput_ratio(self, name: str) -> float:
        """Return how many requests of a scenario cost as much CPU as one of a known user."""
        return self._median(lambda one: one.cpu_us(KNOWN) / one.cpu_us(name))

    @property
    def company_ratio(self) -> float:
        """CPU a request of a server while another is loaded alike, divided by that without."""
        return self._median(lambda one: one.cpu_us(HALF_BESIDE) / one.cpu_us(HALF))

    @property
    def batch_ratio(self) -> float:
        """The library's own batched search, divided by a search in one of our batches, in CPU."""
        return self._median(
            lambda one: one.raw_batched_search_us / (one.cpu_us("batch") / BATCH_SIZE)
        )

    @property
    def stall_us(self) -> float:
        """The 99th percentile of a search's latency beside exact ones, above that without them."""
        return self.load_of(BESIDE_EXACT).p99_us - self.load_of(STEADY).p99_us

    @property
    def added_latency_us(self) -> float:
        """Median latency with one request in flight, above that of null server plus search."""
        return self._median(
            lambda one: (
                one.loads["known user, alone"].p50_us
                - one.loads["null, alone"].p50_us
                - one.raw_search_us
            )
        )

    def _median(self, figure: Callable[[Round], float]) -> float:
        return median(map(figure, self.rounds))


class _Turn(NamedTuple):
    """A scenario that is measured in turn with others."""

    name: str
    server: ServerProcess
    request: bytes
    in_flight: int = IN_FLIGHT
    searches: int = 1
    """A batch has several."""
    connections: int = 1
    beside: ServerProcess | None = None
    """Another server, loaded alike at the same time."""


class _Scenarios:
    """Measures one scenario after another."""

    def __init__(self, seconds: int, rounds: int, on_step: OnStep) -> None:
        self.measured: list[Scenario] = []
        self._seconds = seconds
        self._rounds = rounds
        self._on_step = on_step

    def measure(self, turn: _Turn, rate: float | None = None) -> Load:
        """Load a server with one request, over and over: closed loop, or at a rate."""
        self._on_step(turn.name)
        alike = turn._replace(server=turn.beside) if turn.beside else None
        with self.beside(alike) if alike else nullcontext():
            load = put_load(
                turn.server.target,
                SEARCH_METHOD if turn.searches == 1 else _BATCH_METHOD,
                turn.request,
                turn.server.pid,
                seconds=self._seconds,
                in_flight=turn.in_flight,
                rate=rate,
                connections=turn.connections,
            )
        if load.n_failed > _MOST_FAILED * load.n_requests:
            raise LoadError(
                f"{turn.name}: {load.n_failed:,} of {load.n_requests:,} requests were refused or "
                "failed, so their figures are not those of answers"
            )
        scenario = Scenario(name=turn.name, searches_per_request=turn.searches, load=load)
        self.measured.append(scenario)
        return load

    def measure_in_turn(self, turns: Sequence[_Turn], raw: _RawSearches) -> list[Round]:
        """Measure scenarios, and the library's own searches, in turn, several times."""
        measured = _Scenarios(self._seconds, 1, self._on_step)
        rounds = []
        for _ in range(self._rounds):
            raw_us, raw_batched_us = raw.cpu_us(1), raw.cpu_us(BATCH_SIZE)
            loads = {turn.name: measured.measure(turn) for turn in turns}
            rounds.append(
                Round(raw_search_us=raw_us, raw_batched_search_us=raw_batched_us, loads=loads)
            )
        for turn in turns:
            of_one = [scenario for scenario in measured.measured if scenario.name == turn.name]
            of_one.sort(key=lambda scenario: scenario.load.cpu_us_per_request)
            self.measured.append(of_one[self._rounds // 2])
        return rounds

    @contextmanager
    def beside(self, turn: _Turn) -> Iterator[None]:
        """Keep a server busy with a search for a scenario of the block, and some longer."""
        load = partial(
            put_load,
            seconds=self._seconds + 1,
            in_flight=turn.in_flight,
            connections=turn.connections,
        )
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(
                load, turn.server.target, SEARCH_METHOD, turn.request, turn.server.pid
            )
            yield
            other.result()


def benchmark_serve(
    bundle: IndexBundle, *, seconds: int = 5, rounds: int = 5, on_step: OnStep = lambda _: None
) -> ServeReport:
    """Load a server over a bundle, and a null server, and measure both.

    Args:
        bundle: an index bundle with a query tower and known users.
        seconds: how long each scenario lasts.
        rounds: how often what is set against one another is measured, in turn: a machine's speed
            changes within a minute.
        on_step: called with a line of progress.

    Raises:
        LoadError: if the load generator fails.
        BenchmarkError: if a server does not start, or the bundle cannot be measured.
        SearchFailedError: if the server refuses what it is to be loaded with.
    """
    known, history, selective, exact = _requests(bundle)
    many = [
        search_request(user, count=COUNT, recall_target=RECALL_TARGET)
        for user in _known_users(bundle, BATCH_SIZE)
    ]
    batch = pb.BatchSearchCandidatesRequest(requests=many).SerializeToString()
    scenarios = _Scenarios(seconds, rounds, on_step)
    arguments = ("server", "serve", "--index", str(bundle.directory), "--port", "0")
    hash_seconds, _ = timed(lambda: hash_files(bundle.directory, bundle.manifest.files))
    started = perf_counter()
    with server_process(arguments) as server, SearchClient(server.target) as client:
        start_seconds = perf_counter() - started
        # The load generators count answers, not what is in them: see first that all is well.
        for one in client.search_batch([known, history, selective, exact]):
            if isinstance(one, SearchFailedError):
                raise one
        (user,) = _known_users(bundle, 1)
        explained = client.explain(user, count=COUNT, recall_target=RECALL_TARGET)
        body = known.SerializeToString()
        raw = _RawSearches.of(bundle, explained.plan.backend)
        with (
            null_server(answer_of(server.target, SEARCH_METHOD, body)) as null,
            server_process(("benchmarks.bare_server", str(bundle.directory))) as bare,
            server_process((*arguments, "--workers", "2")) as two,
            server_process(arguments) as other,
            SearchClient(bare.target) as caller,
        ):
            caller.search(user, count=COUNT)
            # What each of two workers is loaded with.
            half_load = _Turn(HALF, server, body, IN_FLIGHT // 2, connections=8)
            turns = [
                _Turn("null", null, body),
                _Turn(KNOWN, server, body),
                _Turn(BARE, bare, body),
                _Turn("history", server, history.SerializeToString()),
                _Turn("filter and exclusions", server, selective.SerializeToString()),
                _Turn("batch", server, batch, in_flight=4, searches=BATCH_SIZE),
                _Turn(TWO_WORKERS, two, body, connections=16),
                half_load,
                half_load._replace(name=HALF_BESIDE, beside=other),
                _Turn("null, alone", null, body, in_flight=1),
                _Turn("known user, alone", server, body, in_flight=1),
            ]
            in_turn = scenarios.measure_in_turn(turns, raw)
        half = in_turn[0].loads["known user, alone"].requests_per_second / 2
        scenarios.measure(_Turn("known user, open loop", server, body), half)
        steady = _Turn(STEADY, server, body)
        scenarios.measure(steady, _STEADY_RATE)
        with scenarios.beside(_Turn("exact", server, exact.SerializeToString(), _EXACT_IN_FLIGHT)):
            scenarios.measure(steady._replace(name=BESIDE_EXACT), _STEADY_RATE)
        own_bytes = private_bytes(server.pid)
    return ServeReport(
        index_version=bundle.manifest.version,
        n_candidates=bundle.manifest.n_candidates,
        dim=bundle.manifest.dim,
        backend=explained.plan.backend,
        expected_recall=explained.plan.expected_recall,
        start_seconds=start_seconds,
        hash_seconds=hash_seconds,
        private_bytes=own_bytes,
        stages_us={stage.stage: stage.duration_micros for stage in explained.stages},
        scenarios=tuple(scenarios.measured),
        rounds=tuple(in_turn),
    )


def _known_users(bundle: IndexBundle, n: int) -> list[User]:
    """Return the first known users, over and over where there are fewer."""
    if bundle.query is None or bundle.query.user_ids is None:
        raise BenchmarkError(f"{bundle.directory} has no known users to search for")
    ids = bundle.query.user_ids
    return [User(ids.token(i % len(ids))) for i in range(n)]


def _requests(bundle: IndexBundle) -> list[pb.SearchCandidatesRequest]:
    """Return requests: a known user's, with a history, with a filter and exclusions, exact."""
    (known,) = _known_users(bundle, 1)
    ids = bundle.corpus.candidate_ids
    if len(ids) < _FEWEST_CANDIDATES:
        raise BenchmarkError(
            f"{bundle.directory} has {len(ids)} candidates; to search for {COUNT} and exclude "
            f"{N_EXCLUDED} others takes {_FEWEST_CANDIDATES} at least"
        )
    history = ids.tokens(np.arange(HISTORY_LENGTH) * (len(ids) // HISTORY_LENGTH))
    excluded = ids.tokens(np.arange(N_EXCLUDED) * (len(ids) // N_EXCLUDED) + 1)
    return [
        search_request(known, count=COUNT, recall_target=RECALL_TARGET),
        search_request(User(history=history), count=COUNT, recall_target=RECALL_TARGET),
        search_request(
            known,
            count=COUNT,
            recall_target=RECALL_TARGET,
            exclude=excluded,
            where=_tenth(bundle.corpus.candidates),
        ),
        search_request(known, count=COUNT, exact=True),
    ]


def _tenth(candidates: pa.Table) -> Condition:
    """Return a condition on a number that about a tenth of the candidates meet."""
    for name, column in zip(candidates.column_names, candidates.columns, strict=True):
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            bounds = pc.quantile(column, [0, _SELECTIVITY], interpolation="lower").to_pylist()
            return Field(name).between(*bounds)
    raise BenchmarkError("the candidates have no number in their metadata to filter by")


class _RawSearches:
    """The library's own searches for the users that the server is asked for, and nothing more.

    No checks, no rescoring, and nothing searched for in place of what is left out.
    """

    def __init__(
        self, index: LocalIndex[Any, Any], params: SearchParams, users: np.ndarray
    ) -> None:
        self._search = partial(index._search, k=COUNT, params=params)  # noqa: SLF001 - beneath ours
        self._users = users

    @classmethod
    def of(cls, bundle: IndexBundle, backend: str) -> _RawSearches:
        """Return those of a backend, at the params of the benchmark's recall."""
        params = bundle.choose(COUNT, recall_target=RECALL_TARGET, backend=backend).params
        assert bundle.query is not None  # noqa: S101 - there are known users
        embeddings = bundle.query.query_embeddings
        assert embeddings is not None  # noqa: S101
        rows = np.arange(BATCH_SIZE) % len(embeddings)
        return cls(bundle.index(backend), params, np.ascontiguousarray(embeddings[rows]))

    def cpu_us(self, batch_size: int) -> float:
        """Return the CPU microseconds of a query's search, in batches of so many."""
        batch = self._users[:batch_size]
        n_batches = _RAW_SEARCHES // batch_size
        self._search(batch)
        start = process_time()
        for _ in range(n_batches):
            self._search(batch)
        return (process_time() - start) / (n_batches * batch_size) * 1e6


@contextmanager
def null_server(answer: bytes) -> Iterator[ServerProcess]:
    """Run a null server that answers with these bytes, whatever it is asked."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "response")
        file.write_bytes(answer)
        with server_process(("benchmarks.null_server", str(file))) as started:
            yield started
