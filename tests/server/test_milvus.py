"""The server over an index in Milvus: it answers as ever, or says that it cannot."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymilvus import MilvusClient

from indexer.backends.milvus import MilvusIndex
from indexer.build import BuildOptions, build_bundle
from indexer.bundle import IndexBundle
from indexer.engines.milvus import Collection
from indexer.engines.milvus_expressions import expression_for
from indexer.filters import AllOf, AnyOf, Contains, Filter, InRange, IsNull, Negated, OneOf
from server.client import (
    Embedding,
    Field,
    SearchClient,
    SearchFailedError,
    SearchResults,
    search_request,
)
from server.domain import SearchRequest
from server.engine import Engine
from server.filters import FilterMasks
from server.metadata import Metadata
from tests.milvus_server import MilvusServer
from tests.server.conftest import RunningServer, vector_corpus
from tests.server.processes import parent_of_workers, serving, wait_for, workers
from tests.server.test_contract import Oracle, requests
from trainer.publish import BundleError

QUERY = Embedding([1.0] * 8)


@pytest.fixture(scope="module")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusServer]:
    own = MilvusServer(tmp_path_factory.mktemp("milvus") / "data")
    own.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CANDIDATE_SEARCH_MILVUS_TIMEOUT_SECONDS", "2")
        yield own
    own.kill()


@pytest.fixture(scope="module")
def index(milvus: MilvusServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index of ``vector_index``, in Milvus alone."""
    options = BuildOptions(k=10, backends=("milvus",), milvus_uri=milvus.uri)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("indexer.build.MEASURED_K", (60,))
        patch.setattr("indexer.tuning._MAX_TIMED", 3)
        return build_bundle(vector_corpus(), None, tmp_path_factory.mktemp("vectors"), options)


@pytest.fixture(scope="module")
def engine(index: Path) -> Engine:
    return Engine(IndexBundle.open(index))


@pytest.fixture(scope="module")
def running(start: Callable[..., RunningServer], index: Path) -> RunningServer:
    return start(index, live_recall_share=0)  # whose searches would be counted with the tests'


@pytest.fixture(scope="module")
def client(running: RunningServer) -> Iterator[SearchClient]:
    with SearchClient(running.address) as connected:
        yield connected


@settings(max_examples=60)
@given(requests)
def test_every_search_keeps_the_promises(engine: Engine, request_: SearchRequest) -> None:
    request = replace(request_, backend=None, exact=False, diversity=None)
    oracle = Oracle(engine, request)
    for filters_there in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if filters_there:  # whatever a scan would cost
                patch.setattr(MilvusIndex, "cost", lambda *_: 0.0)
            result = engine.search(request)
        assert oracle.eligible[result.rows].all()
        assert len(result.rows) >= min(request.count, np.count_nonzero(oracle.surely))
        np.testing.assert_allclose(
            result.scores, oracle.best(request.count)[: len(result.rows)], rtol=1e-5, atol=1e-5
        )


texts = st.sampled_from(["Alpha", "Alphabet", "Beta", "a", "b", "none", 'quo"te', "100%", "l_p"])
years = st.integers(1945, 2025)
prices = st.floats(-1, 80, allow_nan=False)
tests = st.one_of(
    st.builds(lambda v: OneOf("title", tuple(v)), st.lists(texts, min_size=1, max_size=3)),
    st.builds(lambda v: OneOf("year", tuple(v)), st.lists(years, min_size=1, max_size=3)),
    st.builds(lambda v: OneOf("is_new", (v,)), st.booleans()),
    st.builds(lambda low, high: InRange("year", low, high), st.none() | years, st.none() | years),
    st.builds(lambda low: InRange("price", low, None), prices),
    st.builds(lambda high: InRange("title", None, high), texts),
    st.builds(lambda v: Contains("tags", v), texts),
    st.builds(lambda v: Contains("title", v), texts),
    st.builds(IsNull, st.sampled_from(["title", "year", "tags", "is_new"]), st.booleans()),
)
filters = st.recursive(
    tests,
    lambda inner: st.one_of(
        st.builds(Negated, inner),
        st.builds(lambda f: AllOf(tuple(f)), st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda f: AnyOf(tuple(f)), st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=5,
)


def _is_plain(text: str) -> bool:
    return not any(character in text for character in '"%_')


def _can_be_said(condition: Filter) -> bool:
    match condition:
        case AllOf(parts) | AnyOf(parts):
            return all(map(_can_be_said, parts))
        case Negated(inner):
            return _can_be_said(inner)
        case OneOf(_, values):
            return all(_is_plain(str(value)) for value in values)
        case InRange(_, low, high):
            return _is_plain(str(low)) and _is_plain(str(high))
        case Contains(_, value):
            return _is_plain(str(value))
    return True


@settings(max_examples=150)
@given(filters)
def test_an_expression_lets_through_what_its_filter_does(engine: Engine, condition: Filter) -> None:
    index = engine.planner.indexes["milvus"]
    assert isinstance(index, MilvusIndex)
    expression = expression_for(condition, index._fields)
    mask = FilterMasks(Metadata(vector_corpus().candidates), 300, 1 << 20).mask(condition)
    if expression is None:
        assert not _can_be_said(condition)
        return
    found = index._collection._milvus.call(
        lambda one: one.query(index._entry.name, filter=expression, output_fields=["row"])
    )
    passed = np.zeros(300, dtype=bool)
    passed[[line["row"] for line in found]] = True
    assert passed[mask].all()
    if _can_be_said(condition):
        np.testing.assert_array_equal(mask, passed)


def test_it_answers_as_a_local_index_does(
    client: SearchClient, vector_client: SearchClient
) -> None:
    for options in ({}, {"where": Field("title").equals("Alpha")}, {"exclude": ["c3", "c5"]}):
        here = vector_client.search(QUERY, count=20, exact=True, **options)
        there = client.search(QUERY, count=20, **options)
        assert (here.ids, here.scores) == (there.ids, there.scores)
    assert there.plan.backend == "milvus"


def test_a_batch_is_one_search_in_milvus(
    client: SearchClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[int] = []
    original = Collection.search

    def spy(self: Collection, vectors: np.ndarray, *arguments: Any) -> np.ndarray:
        searched.append(len(vectors))
        return original(self, vectors, *arguments)

    monkeypatch.setattr(Collection, "search", spy)
    vectors = np.random.default_rng(1).normal(size=(9, 8)).tolist()
    found = client.search_batch([search_request(Embedding(vector)) for vector in vectors])
    assert [9] == searched
    assert [client.search(Embedding(vector)).ids for vector in vectors] == [
        one.ids for one in found if isinstance(one, SearchResults)
    ]


def test_an_outage_is_unavailable_and_ends(
    milvus: MilvusServer, index: Path, running: RunningServer, start: Callable[..., RunningServer]
) -> None:
    with SearchClient(running.address, timeout_seconds=20) as patient:
        before = patient.search(QUERY)
        milvus.kill()
        try:
            with pytest.raises(SearchFailedError) as caught:
                patient.search(QUERY)
            assert ("UNAVAILABLE", "ENGINE_UNREACHABLE") == (caught.value.code, caught.value.reason)
            assert str(milvus.port) not in str(caught.value)
            both = patient.search_batch([search_request(QUERY)] * 2)
            assert ["ENGINE_UNREACHABLE"] * 2 == [
                one.reason for one in both if isinstance(one, SearchFailedError)
            ]
            with pytest.raises(BundleError, match=r"Milvus at .* cannot be used"):
                start(index)
        finally:
            milvus.start()
        wait_for(lambda: _answers(patient))
        assert before.ids == patient.search(QUERY).ids


@pytest.mark.slow
def test_what_takes_too_long_is_unavailable_until_it_does_not(
    milvus: MilvusServer, client: SearchClient
) -> None:
    before = client.search(QUERY)
    with milvus.held_up(), pytest.raises(SearchFailedError) as caught:
        client.search(QUERY, timeout_seconds=20)
    assert ("UNAVAILABLE", "ENGINE_UNREACHABLE") == (caught.value.code, caught.value.reason)
    wait_for(lambda: _answers(client))
    assert before.ids == client.search(QUERY).ids


class TestPartialAnswers:
    """What a cluster may say while parts of it are away; milvus-lite always says all."""

    @pytest.fixture
    def cut(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], Any]], None]:
        """Has the answers to searches cut by a function."""
        search = MilvusClient.search

        def cut(how: Callable[[Any], Any]) -> None:
            monkeypatch.setattr(MilvusClient, "search", lambda *a, **kw: how(search(*a, **kw)))

        return cut

    @pytest.mark.parametrize("n_left", [0, 7])
    def test_too_few_candidates_are_completed(
        self, client: SearchClient, cut: Callable[..., None], n_left: int
    ) -> None:
        for options in ({}, {"where": Field("title").equals("Alpha")}, {"exclude": ["c3", "c5"]}):
            whole = client.search(QUERY, count=20, **options)
            cut(lambda answers: [SimpleNamespace(ids=hits.ids[:n_left]) for hits in answers])
            partly = client.search(QUERY, count=20, **options)
            assert (whole.ids, whole.scores) == (partly.ids, partly.scores)
            cut(lambda answers: answers)

    @pytest.mark.parametrize(
        "how",
        [
            lambda answers: answers[:-1],
            lambda answers: [SimpleNamespace(ids=[300]) for _ in answers],
        ],
        ids=["fewer than queries", "unknown rows"],
    )
    def test_answers_that_cannot_be_are_none(
        self, client: SearchClient, cut: Callable[..., None], how: Callable[[Any], Any]
    ) -> None:
        cut(how)
        both = client.search_batch([search_request(QUERY)] * 2)
        assert ["ENGINE_UNREACHABLE"] * 2 == [
            one.reason for one in both if isinstance(one, SearchFailedError)
        ]
        cut(lambda answers: answers)
        wait_for(lambda: _answers(client))

    def test_rows_that_are_gone_are_missed_by_the_next_connection(
        self, client: SearchClient, monkeypatch: pytest.MonkeyPatch, cut: Callable[..., None]
    ) -> None:
        monkeypatch.setattr("indexer.engines.milvus._PAUSE_SECONDS", 0.0)
        cut(lambda answers: answers[:-1])  # which ends the connection
        assert not _answers(client)
        cut(lambda answers: answers)
        with monkeypatch.context() as patch:
            patch.setattr(MilvusClient, "query", lambda *_, **__: [{"count(*)": 299}])
            with pytest.raises(SearchFailedError) as caught:
                client.search(QUERY)
        assert caught.value.reason == "ENGINE_UNREACHABLE"
        wait_for(lambda: _answers(client))


def test_workers_have_connections_of_their_own(milvus: MilvusServer, index: Path) -> None:
    with serving(index, "--workers", "2") as (process, address):
        before = set(workers(process.pid))
        assert len(before) == 2
        assert _n_connections(parent_of_workers(process.pid), milvus.port) == 0
        assert all(_n_connections(worker, milvus.port) for worker in before)
        with SearchClient(address) as connected:
            assert len(connected.search(QUERY)) == 10
        os.kill(min(before), signal.SIGKILL)
        wait_for(lambda: len(set(workers(process.pid)) & before) == 1)
        wait_for(lambda: _answers_all(address))


def _answers(client: SearchClient) -> bool:
    try:
        return len(client.search(QUERY)) == 10
    except SearchFailedError:
        return False


def _answers_all(address: str) -> bool:
    with SearchClient(address) as connected:
        return _answers(connected)


def _n_connections(process_id: int, port: int) -> int:
    """Return how many connections to a port of this machine a process has."""
    tables = [Path(f"/proc/{process_id}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    fields = [line.split() for table in tables for line in table.splitlines()[1:]]
    there = {f"socket:[{one[9]}]" for one in fields if one[2].endswith(f":{port:04X}")}
    links = (path.readlink() for path in Path(f"/proc/{process_id}/fd").iterdir())
    return len(there.intersection(map(str, links)))
