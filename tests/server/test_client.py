"""The client, every kind of query, and that calls answer what the engine answers."""

import asyncio
import datetime as dt
import functools
import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from candidate_search.v1 import candidate_search_service_pb2 as pb
from candidate_search.v1.candidate_search_service_pb2_grpc import CandidateSearchServiceStub

from server.client import (
    AsyncSearchClient,
    Embedding,
    Examples,
    Field,
    Like,
    Mmr,
    PerGroup,
    Query,
    SearchClient,
    SearchFailedError,
    SearchResults,
    User,
    search_request,
)
from server.domain import (
    CandidateQuery,
    EmbeddingQuery,
    ExamplesQuery,
    SearchRequest,
    UserQuery,
)
from server.domain import Query as DomainQuery

VECTOR = np.linspace(-1, 1, 8, dtype=np.float32)


@pytest.fixture(scope="session")
def queries(bundle: Any) -> list[tuple[Query, DomainQuery]]:
    """Every kind of query, as the client and as the engine is asked."""
    assert bundle.query is not None
    known = bundle.query.user_ids.token(7)
    ids = bundle.corpus.candidate_ids.tokens(range(5))
    vector = np.array(bundle.query.query_embeddings[3])
    return [
        (User(known), UserQuery(known)),
        (User(known, history=ids[:2]), UserQuery(known, ids[:2])),
        (User(history=ids), UserQuery(history=ids)),
        (
            User(known, history=ids, history_replaces=True),
            UserQuery(known, ids, history_replaces=True),
        ),
        (User("nobody"), UserQuery("nobody")),
        (Like(ids[0]), CandidateQuery(ids[0])),
        (Embedding(vector), EmbeddingQuery(vector)),
        (Examples(ids[:2], ids[2:3]), ExamplesQuery(ids[:2], ids[2:3])),
    ]


def test_a_call_answers_what_the_engine_answers(
    client: SearchClient, server: Any, queries: list[tuple[Query, DomainQuery]]
) -> None:
    ids = server.engine.bundle.corpus.candidate_ids
    for query, domain_query in queries:
        for count in (1, 30):
            answered = client.search(query, count=count, exclude=[ids.token(9)], exact=True)
            request = SearchRequest(domain_query, count, [ids.token(9)], exact=True)
            result = server.engine.search(request)
            assert answered.ids == ids.tokens(result.rows)
            assert answered.scores == result.scores.tolist()


def test_a_batch_answers_one_by_one(
    client: SearchClient, queries: list[tuple[Query, DomainQuery]]
) -> None:
    requests = [search_request(query, count=5) for query, _ in queries]
    requests.insert(3, search_request(Like("nothing")))
    answers = client.search_batch(requests)
    failed = answers.pop(3)
    assert isinstance(failed, SearchFailedError)
    assert (failed.code, failed.reason) == ("NOT_FOUND", "CANDIDATE_UNKNOWN")
    assert failed.metadata == {"candidate_id": "nothing"}
    for (query, _), answer in zip(queries, answers, strict=True):
        assert client.search(query, count=5) == answer


def test_long_searches_answer_the_same(
    start: Callable[..., Any], vector_index: Path, vector_client: SearchClient
) -> None:
    server = start(vector_index, long_search_floats=1)
    queries = (Embedding(VECTOR), Like("c1"), Examples(["c2"]))
    options: list[dict[str, Any]] = [{"exact": True}, {"where": Field("tags").contains("b")}]
    with SearchClient(server.address) as client:
        for query in queries:
            for some in options:
                assert vector_client.search(query, **some).ids == client.search(query, **some).ids
        requests = [search_request(query, exact=True) for query in queries]
        answers = client.search_batch([*requests, search_request(Like("nothing"))])
        assert isinstance(answers.pop(), SearchFailedError)
        assert answers == [client.search(query, exact=True) for query in queries]


def test_the_async_client_answers_the_same(
    client: SearchClient, server: Any, queries: list[tuple[Query, DomainQuery]]
) -> None:
    async def ask() -> list[SearchResults]:
        async with AsyncSearchClient(server.address) as asynchronous:
            assert (await asynchronous.index_info()) == client.index_info()
            answers = await asyncio.gather(*(asynchronous.search(query) for query, _ in queries))
            batch = await asynchronous.search_batch([search_request(q) for q, _ in queries])
            assert answers == batch
            explained = await asynchronous.explain(queries[0][0])
            assert explained.index_version == answers[0].index_version
            with pytest.raises(SearchFailedError, match="CANDIDATE_UNKNOWN"):
                await asynchronous.search(Like("nothing"))
            return answers

    assert asyncio.run(ask()) == [client.search(query) for query, _ in queries]


def test_results_are_lists_and_candidates(vector_client: SearchClient) -> None:
    fields = ["title", "year", "price", "is_new", "tags"]
    results = vector_client.search(Embedding(VECTOR), count=300, returned_fields=fields, exact=True)
    assert len(results) == 300
    by_id = {candidate.id: candidate for candidate in results}
    expected = {"title": "Beta", "year": 1951, "price": 0.25, "is_new": False, "tags": ["b"]}
    assert expected == by_id["c1"].fields
    assert (by_id["c0"].fields) == {
        "title": "Alpha",
        "year": None,
        "price": 0.0,
        "is_new": None,
        "tags": ["a", "b"],
    }
    assert by_id["c3"].fields["title"] is None
    assert by_id["c3"].fields["tags"] is None
    assert results.columns["year"] == [by_id[one].fields["year"] for one in results.ids]


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        (
            Field("title").equals("Alpha") & Field("year").between(2000, None),
            {row for row in range(0, 300, 6) if row % 70 >= 50 and row % 10},
        ),
        (Field("price").between(0.5, 1.0), {2, 3, 4}),
        (
            Field("year").one_of([1951, 1952]) & ~Field("is_new").equals(True),
            {1, 71, 141, 211, 281},
        ),
        (Field("tags").contains("a") & Field("price").between(None, 2), {0, 4, 8}),
        (Field("year").is_null() & Field("price").between(None, 3), {0, 10}),
        (Field("price").equals(1.0) | Field("title").equals("nothing"), {4}),
    ],
)
def test_filters(vector_client: SearchClient, where: Any, rows: set[int]) -> None:
    results = vector_client.search(Embedding(VECTOR), count=100, where=where)
    assert rows == {int(candidate_id[1:]) for candidate_id in results.ids}


def test_min_score_count_and_notices(vector_client: SearchClient) -> None:
    every = vector_client.search(Embedding(VECTOR), count=300, exact=True)
    bound = (every.scores[4] + every.scores[5]) / 2
    results = vector_client.search(
        Embedding(VECTOR), count=300, exact=True, min_score=bound, exclude=["x", "y"]
    )
    assert every.ids[:5] == results.ids
    assert [notice.code for notice in results.notices] == ["UNKNOWN_IDS", "FEWER_ELIGIBLE"]
    assert (results.notices[0].ids, results.notices[0].count) == (["x", "y"], 2)


def test_diversity(vector_client: SearchClient) -> None:
    grouped = vector_client.search(
        Embedding(VECTOR), count=5, diversity=PerGroup("title"), returned_fields=["title"]
    )
    titles = [title for title in grouped.columns["title"] if title is not None]
    assert sorted(set(titles)) == sorted(titles)
    by_score = vector_client.search(Embedding(VECTOR), count=20, exact=True)
    varied = vector_client.search(
        Embedding(VECTOR), count=20, exact=True, diversity=Mmr(weight=0.2, pool=100)
    )
    assert by_score.ids[0] == varied.ids[0]
    assert by_score.ids != varied.ids
    plain = vector_client.search(Embedding(VECTOR), count=20, exact=True, diversity=Mmr(1.0))
    assert by_score.ids == plain.ids


def test_pages(client: SearchClient) -> None:
    def pages() -> Iterator[SearchResults]:
        token = ""
        while True:
            page = client.search(User(history=["1"]), count=90, page_token=token)
            yield page
            token = page.next_page_token
            if not token:
                return

    ids = [candidate_id for page in pages() for candidate_id in page.ids]
    n_candidates = client.index_info().candidate_count
    assert len(set(ids)) == len(ids)
    assert n_candidates - 1 <= len(ids) <= n_candidates


def test_index_info(client: SearchClient, vector_client: SearchClient, bundle: Any) -> None:
    info = client.index_info()
    manifest = bundle.manifest
    assert (info.index_version, info.tower_version) == (manifest.version, manifest.tower_version)
    assert (info.candidate_count, info.user_count) == (800, 500)
    assert (manifest.dim, True, True) == (
        info.embedding_dimension,
        info.has_bias_dimension,
        info.has_query_tower,
    )
    assert {"brute_force", "annoy", "scann"} == {backend.name for backend in info.backends}
    assert all(backend.operating_points for backend in info.backends)
    assert manifest.default_backend == info.default_backend
    assert info.limits.max_candidate_count == 1000
    own = vector_client.index_info()
    assert (own.has_query_tower, own.user_count, own.tower_version) == (False, 0, "")
    types = {field.name: pb.MetadataType.Name(field.type) for field in own.metadata_fields}
    assert types["tags"] == "METADATA_TYPE_STRING_LIST"
    assert types["year"] == "METADATA_TYPE_INTEGER"


def test_explain(vector_client: SearchClient) -> None:
    explained = vector_client.explain(
        Embedding(VECTOR), count=10, exclude=["c1"], recall_target=0.9
    )
    answers = {answer.name: answer for answer in explained.answers}
    assert {"brute_force", "annoy", "scann", "exact"} == set(answers)
    assert 1.0 == answers["exact"].overlap == answers["brute_force"].overlap
    assert answers["exact"].candidate_ids == answers["brute_force"].candidate_ids
    assert all(answer.duration_micros > 0 for answer in answers.values())
    assert [one.stage for one in explained.stages] == ["embed", "plan", "search", "diversify"]
    assert explained.eligible_count == 299
    assert "promises a recall of 0.9" in explained.plan_reason


def test_explaining_makes_the_search_on_every_backend_as_it_is_asked_for(
    vector_client: SearchClient,
) -> None:
    for target in (0.9, 1.0):
        asked = vector_client.explain(Embedding(VECTOR), count=10, recall_target=target)
        by_name = {one.name: one.plan for one in asked.answers}
        assert asked.plan == by_name[asked.plan.backend]
        expected = {plan.expected_recall for plan in by_name.values() if plan.expected_recall}
        assert min(expected) >= target


@pytest.mark.parametrize(
    ("query", "reason"),
    [(User("nobody"), "nothing is known of the user"), (Like("c1"), "by direction alone")],
)
def test_the_reason_of_a_plan_is_that_of_how_the_search_was_made(
    query: Query, reason: str, client: SearchClient, vector_client: SearchClient
) -> None:
    asked = client if isinstance(query, User) else vector_client
    assert reason in asked.explain(query).plan_reason


def test_a_column_is_returned_once(vector_server: Any) -> None:
    request = search_request(Embedding(VECTOR), returned_fields=["year", "title", "year"])
    batch = pb.BatchSearchCandidatesRequest(requests=[request])
    with grpc.insecure_channel(vector_server.address) as channel:
        stub = CandidateSearchServiceStub(channel)
        (in_batch,) = stub.BatchSearchCandidates(batch).results
        for response in (stub.SearchCandidates(request), in_batch.response):
            assert ["year", "title"] == [column.name for column in response.columns]


def test_many_conditions_are_as_deep_as_one() -> None:
    several = [Field("year").between(year) for year in range(30)]
    both = functools.reduce(operator.and_, several).message
    either = functools.reduce(operator.or_, several).message
    assert [one.message for one in several] == list(both.all_of.filters)
    assert [one.message for one in several] == list(either.any_of.filters)
    mixed = (several[0] & several[1]) | several[2]
    assert "all_of" == mixed.message.any_of.filters[0].WhichOneof("kind")


def test_a_text_is_no_list_of_its_letters() -> None:
    for query in (User(history="50"), Examples("50"), Examples(["50"], "51")):
        with pytest.raises(TypeError, match=r"takes several values: \['5"):
            search_request(query)
    with pytest.raises(TypeError, match=r"exclude takes several values: \['50'\] instead of '50'"):
        search_request(User("1"), exclude="50")
    with pytest.raises(TypeError, match="one_of takes several values"):
        Field("year").one_of("1990")


@pytest.mark.parametrize("query", [User(42), User(history=[50]), Like(50), Examples([50])])  # type: ignore[arg-type, list-item]
def test_ids_are_texts(query: Query) -> None:
    with pytest.raises(TypeError, match=r": ids are texts, '(42|50)' and not (42|50)"):
        search_request(query)


def test_pythons_own_words_combine_no_conditions() -> None:
    first, second = Field("year").equals(1990), Field("new").equals(True)
    with pytest.raises(TypeError, match=r"combine conditions with &, \| and ~"):
        _ = first and second


def test_a_comparison_by_python_is_no_condition() -> None:
    with pytest.raises(TypeError, match=r"where takes a condition, such as Field.*, not False"):
        search_request(User("1"), where=Field("year") == 1990)  # type: ignore[arg-type]


def test_numpy_values_and_nothing_are_taken() -> None:
    numpy = search_request(
        User(history=np.array(["1", "2"]), features={"age": np.float32(3), "job": None}),
        where=Field("year").equals(np.int64(1990)) & Field("new").equals(np.bool_(True)),  # type: ignore[arg-type]
        exclude=np.array(["9"]),
    )
    plain = search_request(
        User(history=["1", "2"], features={"age": 3.0}),
        where=Field("year").equals(1990) & Field("new").equals(True),
        exclude=["9"],
    )
    assert plain == numpy
    nothing = search_request(User("1"), where=None, diversity=None, exclude=None)  # type: ignore[arg-type]
    assert nothing == search_request(User("1"))


def test_a_token_with_the_end_of_a_line_is_refused() -> None:
    with pytest.raises(ValueError, match=r"printable ASCII characters only; strip\(\) it"):
        SearchClient("localhost:1", token="secret\n")


def test_deadlines_and_absent_servers_are_errors_of_ours() -> None:
    with (
        SearchClient("127.0.0.1:1", timeout_seconds=0.2) as nowhere,
        pytest.raises(SearchFailedError) as caught,
    ):
        nowhere.search(User("1"))
    assert caught.value.code in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}
    assert caught.value.reason == ""


def test_what_cannot_be_asked_is_a_type_error(client: SearchClient) -> None:
    with pytest.raises(TypeError, match="a query is a User"):
        client.search("42")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no option colour; there are count"):
        client.search(User("1"), colour="red")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"diversity takes an Mmr or a PerGroup.*, not 'mmr'"):
        client.search(User("1"), diversity="mmr")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="features are values by name, not None"):
        client.search(User("1", features=None))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"one vector, not an array of shape \(1, 8\)"):
        client.search(Embedding(np.ones((1, 8))))
    with pytest.raises(
        TypeError, match="compared with texts, numbers and flags, not with datetime"
    ):
        Field("day").between(dt.date(2026, 11, 30))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="only one of backend, exact"):
        client.search(User("1"), backend="annoy", exact=True)
    with pytest.raises(ValueError, match="unknown_user must be 'fallback' or 'error', not 'eror'"):
        client.search(User("1"), unknown_user="eror")  # type: ignore[arg-type]
    with pytest.raises(SearchFailedError, match="recall_target must lie above 0"):
        client.search(User("1"), recall_target=0.0)


def test_a_slow_network_is_connected_to_once(server: Any) -> None:
    accepted = []

    async def through_the_proxy() -> None:
        host, port = server.address.rsplit(":", 1)

        async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while chunk := await reader.read(65_536):
                await asyncio.sleep(0.2)
                writer.write(chunk)
            writer.close()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted.append(writer)
            answers, requests = await asyncio.open_connection(host, int(port))
            await asyncio.gather(pass_on(reader, requests), pass_on(answers, writer))

        async with await asyncio.start_server(accept, "127.0.0.1", 0) as proxy:
            address = "{}:{}".format(*proxy.sockets[0].getsockname())
            async with AsyncSearchClient(address) as client:
                await client.search(User("nobody"))

    asyncio.run(through_the_proxy())
    assert 1 == len(accepted)
