"""More calls than a server can answer: it answers what it can, refuses the rest, and recovers."""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pyarrow as pa
import pytest
from candidate_search.v1 import candidate_search_service_pb2 as pb
from grpc_health.v1 import health_pb2, health_pb2_grpc

from indexer.build import BuildOptions, build_bundle
from indexer.corpus import Corpus
from server.client import Embedding, SearchClient
from tests.server.processes import serving
from trainer.vocabulary import Vocabulary

DIM = 64
TIMEOUT_SECONDS = 5.0
CONNECTIONS = 4
REFUSED = "RESOURCE_EXHAUSTED"


@dataclass
class Measured:
    """What became of the calls."""

    codes: Counter[str]
    ok_per_second: float
    refused_p99_ms: float
    """From when the call was due, the generator's own lateness included."""
    refused_p99_from_start_ms: float
    """From when the generator started the call."""
    late_p99_ms: float
    """How late the generator started calls."""


def make_index(root: Path, n: int) -> Path:
    ids = Vocabulary([str(row) for row in range(n)])
    vectors = np.random.default_rng(0).normal(size=(n, DIM)).astype(np.float32)
    candidates = pa.table({"candidate_id": ids.array})
    corpus = Corpus(ids, vectors, candidates, np.zeros(n, np.float32))
    options = BuildOptions(k=10, backends=("brute_force",))
    return build_bundle(corpus, vectors[:50], root, options)


def request(*, exact: bool) -> bytes:
    embedding = pb.Embedding(values=np.ones(DIM, np.float32))
    return pb.SearchCandidatesRequest(
        query=pb.Query(embedding=embedding), candidate_count=10, exact=exact
    ).SerializeToString()


def put_load(
    address: str,
    body: bytes,
    seconds: float,
    rate: float = 0.0,
    method: str = "SearchCandidates",
) -> Measured:
    numbers = map(str, (seconds, rate, CONNECTIONS, TIMEOUT_SECONDS))
    command = [sys.executable, "-m", "tests.reliability.open_loop", address, method, *numbers]
    made = subprocess.run(command, input=body, check=True, capture_output=True)
    lines = [line.split() for line in made.stdout.decode().splitlines()]
    codes = Counter(code for code, _, _ in lines)
    refused = [(float(taken), float(late)) for code, taken, late in lines if code == REFUSED]
    return Measured(
        codes,
        codes["OK"] / seconds,
        p99_ms(taken for taken, _ in refused),
        p99_ms(taken - late for taken, late in refused),
        p99_ms(float(late) for _, _, late in lines),
    )


def p99_ms(seconds: Iterable[float]) -> float:
    """Return the 99th percentile; 0 of nothing."""
    return 1e3 * float(np.percentile(list(seconds) or [0.0], 99))


@contextmanager
def health_answers(address: str) -> Iterator[None]:
    """Ask for health before and after the block, while the server is still at work."""
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        updates = stub.Watch(health_pb2.HealthCheckRequest())
        assert health_pb2.HealthCheckResponse.SERVING == next(updates).status
        yield
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert health_pb2.HealthCheckResponse.SERVING == answer.status
        updates.cancel()


def assert_recovers(address: str) -> None:
    """Within five seconds a call is answered as if nothing had been."""
    deadline = time.monotonic() + 5
    with SearchClient(address) as client:
        while True:
            start = time.monotonic()
            client.search(Embedding(np.ones(DIM)), timeout_seconds=5)
            if time.monotonic() - start < 1.0:
                return
            assert time.monotonic() < deadline


def test_exact_searches_beyond_what_can_wait_are_refused(tmp_path: Path) -> None:
    index, body = make_index(tmp_path, 400_000), request(exact=True)
    flags = ("--long-search-floats", "1", "--long-search-queue", "8")
    with serving(index, *flags) as (_, address), health_answers(address):
        capacity = put_load(address, body, 1.0).ok_per_second
        measured = put_load(address, body, 3.0, rate=5 * capacity)
        assert measured.codes["OK"] > 0
        assert measured.codes[REFUSED] > 0
        assert measured.codes.keys() <= {"OK", REFUSED, "UNAVAILABLE"}
        assert_recovers(address)


@pytest.mark.slow
# Fewer candidates would be searched faster than one core can ask for.
@pytest.mark.parametrize(("n", "exact", "factor"), [(1_000_000, True, 5.0), (30_000, False, 1.3)])
def test_goodput_holds_under_overload(tmp_path: Path, n: int, exact: bool, factor: float) -> None:
    index, body = make_index(tmp_path, n), request(exact=exact)
    with serving(index) as (_, address), health_answers(address):
        capacity = put_load(address, body, 10.0).ok_per_second
        measured = put_load(address, body, 60.0, rate=factor * capacity)
        goodput = measured.ok_per_second / capacity
        print(f"{n} rows: capacity {capacity:.0f}/s, goodput {goodput:.2f}, {measured}")  # noqa: T201
        assert measured.late_p99_ms < 100  # the generator held its rate
        assert goodput >= 0.8
        assert measured.refused_p99_ms < 20
        assert_recovers(address)


@pytest.mark.slow
def test_refusing_cheap_calls_would_cost_most_of_the_goodput(tmp_path: Path) -> None:
    """Why they are not refused; if gRPC for Python comes to refuse for less, they can be.

    A method that there is not costs what no refusal can do without: no line of ours is run.
    """
    index, body = make_index(tmp_path, 1_000), request(exact=False)
    with serving(index) as (process, address):
        put_load(address, body, 2.0)
        answer = cpu_seconds_per_call(process.pid, address, body, "SearchCandidates")
        refusal = cpu_seconds_per_call(process.pid, address, body, "NoSuchMethod")
    print(f"a refusal takes at least {refusal / answer:.2f} of the CPU time of an answer")  # noqa: T201
    # At 1.3 times capacity c, answers a and refusals r at this cost: a + r = 1.3 c, a + cost r = c.
    assert 1.3 - 0.3 / (1 - refusal / answer) < 0.8


def cpu_seconds_per_call(process_id: int, address: str, body: bytes, method: str) -> float:
    """Return the CPU time that a server takes for a call."""

    def taken_seconds() -> float:
        fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before = taken_seconds()
    n_calls = put_load(address, body, 10.0, method=method).codes.total()
    return (taken_seconds() - before) / n_calls
