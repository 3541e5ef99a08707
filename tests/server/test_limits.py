"""What is too much is refused at once, what is too late is not computed, and the rest is fitted."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from indexer.bundle import IndexBundle
from indexer.filters import IsNull, OneOf
from server import metrics
from server.client import Embedding, Like, SearchClient, SearchFailedError, search_request
from server.domain import EmbeddingQuery, Mmr, PerGroup, SearchRequest
from server.engine import Engine
from server.errors import OverloadedError
from server.limits import InFlight, fitted
from tests.server.processes import wait_for
from tests.server.published import copied, publish, publish_slow

QUERY = Embedding([1.0] * 8)
COSTS = {None: 10_000.0, 0.99: 500.0, 0.95: 100.0, 0.90: 20.0}  # microseconds by recall target


class Choice:
    def __init__(self, expected_micros: float) -> None:
        self.expected_micros = expected_micros


class FixedPlanner:
    """What a search costs, by its recall target alone."""

    recall_targets = (0.99, 0.95, 0.90)

    def choose(self, search: SearchRequest, k: int) -> Choice:
        del k
        return Choice(COSTS[search.recall_target])


def test_calls_beyond_the_limit_are_refused_until_others_leave() -> None:
    calls = InFlight(2)
    with calls:
        with calls, pytest.raises(OverloadedError, match=r"2 calls .* after 0\.1 seconds"), calls:
            pass
        assert (1, 1) == (calls.count, calls.n_ended)
    assert (0, 2) == (calls.count, calls.n_ended)


@pytest.mark.parametrize(
    ("milliseconds", "n_ahead", "expected"),
    [
        (21.0, 0, None),
        (19.0, 0, 0.99),
        (21.0, 1, 0.99),
        (0.9, 0, 0.95),
        (0.1, 0, 0.90),
        (0.001, 0, 0.90),  # nothing fits: the cheapest there is
    ],
)
def test_the_highest_recall_that_fits_is_searched_for(
    milliseconds: float, n_ahead: float, expected: float | None
) -> None:
    search = SearchRequest(EmbeddingQuery(np.ones(8, np.float32)), exact=True)
    planner: Any = FixedPlanner()
    made, notice = fitted(search, planner, milliseconds / 1e3, n_ahead)
    assert expected == made.recall_target
    assert (expected is None) == (notice is None) == made.exact


def test_what_a_filter_costs_is_not_known() -> None:
    search = SearchRequest(EmbeddingQuery(np.ones(8, np.float32)), filter=IsNull("year", True))
    planner: Any = FixedPlanner()
    assert (search, None) == fitted(search, planner, 1e-6, 0)


@pytest.fixture
def blocked(
    start: Callable[..., Any], vector_index: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Any, threading.Event, list[SearchRequest]]]:
    """A server whose searches are long and wait; what lets them go on; and those that began."""
    server = start(vector_index, max_calls_in_flight=2, long_search_floats=1)
    proceed, begun, search = threading.Event(), [], server.engine.search

    def wait_and_search(request: SearchRequest) -> Any:
        begun.append(request)
        assert proceed.wait(60)
        return search(request)

    monkeypatch.setattr(server.engine, "search", wait_and_search)
    yield server, proceed, begun
    proceed.set()


def test_overload_is_refused_at_once_with_a_hint_while_health_answers(blocked: Any) -> None:
    server, proceed, begun = blocked
    with SearchClient(server.address) as client, ThreadPoolExecutor() as threads:
        calls = [threads.submit(client.search, QUERY, exact=True) for _ in range(2)]
        wait_for(lambda: server.worker.servicer.in_flight.count == 2)
        n_counted = n_refused()
        with pytest.raises(SearchFailedError) as refused:
            client.search(QUERY, exact=True)
        wait_for(lambda: n_counted + 1 == n_refused())  # counted when the caller has its answer
        assert ("RESOURCE_EXHAUSTED", "OVERLOADED") == (refused.value.code, refused.value.reason)
        assert 0.1 == refused.value.retry_after_seconds
        with grpc.insecure_channel(server.address) as channel:
            health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health_pb2.HealthCheckResponse.SERVING == health.status
        proceed.set()
        assert [10, 10] == [len(call.result()) for call in calls]
        assert len(client.search(QUERY, exact=True)) == 10
    assert len(begun) == 3


def test_searches_that_wait_for_others_have_threads_of_their_own(
    start: Callable[..., Any], vector_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(vector_index, long_search_threads=1, remote_search_threads=3)
    all_there, search = threading.Barrier(3), server.engine.search

    def wait_for_the_others(request: SearchRequest) -> Any:
        all_there.wait(20)
        return search(request)

    monkeypatch.setattr(server.engine, "is_remote", True)
    monkeypatch.setattr(server.engine, "search", wait_for_the_others)
    with SearchClient(server.address) as client, ThreadPoolExecutor() as threads:
        calls = [threads.submit(client.search, QUERY) for _ in range(3)]
        assert [10, 10, 10] == [len(call.result()) for call in calls]


def test_a_batch_for_which_there_is_no_thread_is_refused_search_by_search(
    start: Callable[..., Any], vector_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(vector_index, remote_search_threads=1, long_search_queue=0)
    proceed, search = threading.Event(), server.engine.search

    def search_later(request: SearchRequest) -> Any:
        assert proceed.wait(20)
        return search(request)

    monkeypatch.setattr(server.engine, "is_remote", True)
    monkeypatch.setattr(server.engine, "search", search_later)
    batch = [search_request(QUERY) for _ in range(3)]
    batch[2].candidate_count = -1
    with SearchClient(server.address) as client, ThreadPoolExecutor() as threads:
        first = threads.submit(client.search, QUERY)
        wait_for(lambda: server.worker.servicer.threads_for(server.engine).count == 1)
        refused = client.search_batch(batch)
        proceed.set()
        assert len(first.result()) == 10
    assert ["OVERLOADED", "OVERLOADED", "COUNT_OUT_OF_RANGE"] == [
        one.reason for one in refused if isinstance(one, SearchFailedError)
    ]


def n_refused() -> float:
    """Return how many searches Prometheus would see refused."""
    labels = {"method": "SearchCandidates", "code": "RESOURCE_EXHAUSTED"}
    return metrics.REGISTRY.get_sample_value("candidate_search_requests_total", labels) or 0.0


def test_what_has_expired_is_not_computed(blocked: Any) -> None:
    server, proceed, begun = blocked
    with SearchClient(server.address) as client, ThreadPoolExecutor() as threads:
        first = threads.submit(client.search, QUERY, exact=True)
        wait_for(lambda: begun)
        with pytest.raises(SearchFailedError, match="DEADLINE_EXCEEDED"):
            client.search(QUERY, exact=True, timeout_seconds=0.2)
        wait_for(lambda: server.worker.servicer.in_flight.count == 1)
        proceed.set()
        assert len(first.result()) == 10
        assert len(client.search(QUERY, exact=True, count=7)) == 7
    assert [10, 7] == [request.count for request in begun]


@pytest.mark.parametrize("in_a_batch", [False, True])
def test_what_has_expired_is_not_computed_although_nobody_could_say_so(
    blocked: Any, in_a_batch: bool
) -> None:
    """The event loop is busy with others when the deadline passes, and cannot call work off."""
    server, proceed, begun = blocked
    request = search_request(QUERY, exact=True)
    with SearchClient(server.address) as client, ThreadPoolExecutor() as threads:
        first = threads.submit(client.search, QUERY, exact=True)
        wait_for(lambda: begun)
        if in_a_batch:
            late = threads.submit(client.search_batch, [request], timeout_seconds=0.3)
        else:
            late = threads.submit(client.search, QUERY, exact=True, timeout_seconds=0.3)
        wait_for(lambda: server.worker.servicer.threads_for(server.engine).count == 2)
        server.keep_busy(1.0)
        time.sleep(0.5)
        proceed.set()
        with pytest.raises(SearchFailedError, match="DEADLINE_EXCEEDED"):
            late.result()
        assert len(first.result()) == 10
        assert len(client.search(QUERY, exact=True, count=7)) == 7
    assert [10, 7] == [request.count for request in begun]


def test_a_batch_that_nobody_waits_for_any_more_is_given_up(
    start: Callable[..., Any], vector_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(vector_index)
    together, made = server.engine.search_together, []

    def search_slowly(requests: Sequence[SearchRequest]) -> Any:
        made.append(len(requests))
        time.sleep(0.4)
        return together(requests)

    monkeypatch.setattr(server.engine, "search_together", search_slowly)
    with SearchClient(server.address) as client:
        with pytest.raises(SearchFailedError, match="DEADLINE_EXCEEDED"):
            client.search_batch([search_request(QUERY)] * 200, timeout_seconds=1)
        wait_for(lambda: server.worker.servicer.in_flight.count == 0)
    assert 1 <= len(made) <= 3  # of the seven parts


@pytest.mark.parametrize(
    ("options", "is_long"),
    [
        ({}, False),
        ({"diversity": Mmr(pool=100)}, False),
        ({"diversity": Mmr(pool=126)}, True),  # 126 candidates of 8 dimensions, 10 times
        ({"filter": OneOf("year", (1990,))}, True),  # a test of 300 values takes longer
        ({"diversity": PerGroup("title")}, True),  # it may look through all of them for groups
        ({"exclusions": ["c0"] * 22}, False),
        ({"exclusions": ["c0"] * 23}, True),  # ids are looked up one by one
        ({"exact": True}, False),
    ],
)
def test_what_takes_long_is_made_beside(
    vector_index: Path, options: dict[str, Any], is_long: bool
) -> None:
    engine = Engine(IndexBundle.open(vector_index), long_search_floats=10_000)
    request = SearchRequest(EmbeddingQuery(np.ones(8, np.float32)), **options)
    assert is_long == engine.is_long(request)
    engine.search(request)
    assert (is_long and request.filter is None) == engine.is_long(request)  # its mask is kept


WITHOUT_YEAR = IsNull("year", expected=True)


@pytest.mark.parametrize(
    ("options", "n_floats"),  # of 300 candidates of 8 dimensions
    [
        ({"exact": True}, 2_400),
        ({"exact": True, "filter": WITHOUT_YEAR}, 240),  # a tenth of them
        ({"backend": "annoy", "filter": WITHOUT_YEAR}, 1_200),
    ],
)
def test_a_scan_of_many_is_made_beside(
    vector_index: Path, options: dict[str, Any], n_floats: int
) -> None:
    request = SearchRequest(EmbeddingQuery(np.ones(8, np.float32)), **options)
    for limit in (n_floats - 1, n_floats):
        engine = Engine(IndexBundle.open(vector_index), long_search_floats=limit)
        engine.search(request)  # a filter's mask, which may take longer, is kept then
        assert engine.is_long(request) == (limit < n_floats)


def test_a_search_that_would_come_too_late_is_degraded(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    publish(tmp_path / "original", 1, ("brute_force", "annoy"))
    link = copied(tmp_path / "original", tmp_path / "indexes")
    publish_slow(link, "brute_force", 1e6)
    with SearchClient(start(link).address) as client:
        in_time = client.search(QUERY, exact=True, timeout_seconds=60)
        assert (True, []) == (in_time.plan.exact, in_time.notices)
        degraded = client.search(QUERY, exact=True, timeout_seconds=1)
        assert "annoy" == degraded.plan.backend
        (notice,) = degraded.notices
        assert "DEGRADED" == notice.code
        assert "the search as asked for takes longer" in notice.message
        assert len(degraded) == 10
        assert not degraded.next_page_token  # which would go on in the search as it was asked for
        # Of candidates of unequal lengths, what is alike is looked for among all in any case.
        alike = client.search(Like("1-3"), exact=True, timeout_seconds=1)
        assert (True, []) == (alike.plan.exact, alike.notices)
        assert alike.next_page_token
