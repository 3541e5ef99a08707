"""The ranking stage: what ``rank`` changes in an answer, and what it leaves as it is."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from candidate_search.v1 import candidate_search_service_pb2 as pb
from candidate_search.v1.candidate_search_service_pb2_grpc import CandidateSearchServiceStub
from typer.testing import CliRunner

from indexer.bundle import IndexBundle
from indexer.filters import Contains
from server.client import Examples, Like, Mmr, SearchClient, User
from server.commands import app
from server.domain import (
    CandidateQuery,
    EmbeddingQuery,
    ExamplesQuery,
    PerGroup,
    Query,
    SearchRequest,
    UserQuery,
)
from server.engine import Engine
from server.errors import FieldUnknownError, NoRankerError
from server.ranking import _BATCH_SIZE, CandidateRanker


@pytest.fixture(scope="module")
def engine(bundle: IndexBundle) -> Engine:
    return Engine(bundle)


@pytest.fixture(scope="module")
def ranker(bundle: IndexBundle) -> CandidateRanker:
    assert bundle.query is not None
    assert bundle.query.ranker is not None
    return CandidateRanker(bundle.query, bundle.query.ranker, bundle.corpus)


def some_queries(bundle: IndexBundle) -> list[Query]:
    ids = bundle.corpus.candidate_ids.tokens(range(5))
    return [
        UserQuery("42"),
        UserQuery(history=ids),
        UserQuery(),
        CandidateQuery(ids[0]),
        ExamplesQuery(ids[:2], ids[2:]),
        EmbeddingQuery(np.array(bundle.corpus.embeddings[0])),
    ]


@pytest.mark.parametrize("position", range(6))
def test_ranking_orders_the_candidates_of_the_answer(
    engine: Engine, bundle: IndexBundle, position: int
) -> None:
    request = SearchRequest(
        some_queries(bundle)[position],
        count=30,
        filter=Contains("genres", "Drama"),
        exclusions=bundle.corpus.candidate_ids.tokens(range(200)),
    )
    retrieved, ranked = engine.search(request), engine.search(replace(request, rank=True))
    assert retrieved.ranking_scores is None
    assert ranked.ranking_scores is not None
    score_of = dict(zip(retrieved.rows.tolist(), retrieved.scores.tolist(), strict=True))
    assert score_of == dict(zip(ranked.rows.tolist(), ranked.scores.tolist(), strict=True))
    assert (np.diff(ranked.ranking_scores) <= 0).all()
    assert np.ptp(ranked.ranking_scores) > 0
    assert "rank" in ranked.stage_nanos
    assert "rank" not in retrieved.stage_nanos


def test_pages_partition_the_unranked_answer(engine: Engine) -> None:
    request = SearchRequest(UserQuery("42"), count=7, rank=True, diversity=PerGroup("year", 2))
    pages = [engine.search(replace(request, offset=offset)).rows for offset in (0, 7, 14)]
    whole = engine.search(replace(request, count=21, rank=False)).rows
    expected = [set(whole[start : start + 7].tolist()) for start in (0, 7, 14)]
    assert expected == [set(page.tolist()) for page in pages]


def test_many_candidates_are_rated_as_each_alone(ranker: CandidateRanker) -> None:
    rows = np.arange(2 * _BATCH_SIZE + 3)
    history = np.array([5, 3])
    together = ranker.ratings(UserQuery("42"), history, rows)
    alone = [ranker.ratings(UserQuery("42"), history, rows[i : i + 1])[0] for i in rows]
    np.testing.assert_array_equal(alone, together)
    assert len(ranker.ratings(UserQuery("42"), history, rows[:0])) == 0


def test_who_the_user_is_and_what_they_did_both_count(ranker: CandidateRanker) -> None:
    rows = np.arange(5)
    ratings = {
        (user, len(history)): ranker.ratings(UserQuery(user), history, rows).tolist()
        for user in ("42", "", "unknown")
        for history in (np.array([], np.int32), np.array([1, 2], np.int32))
    }
    assert ratings["", 0] == ratings["unknown", 0]
    assert ratings["", 2] == ratings["unknown", 2]
    assert len({tuple(one) for one in ratings.values()}) == 4


def test_other_queries_are_users_known_by_candidates_alone(
    bundle: IndexBundle, ranker: CandidateRanker
) -> None:
    ids, rows = bundle.corpus.candidate_ids, np.arange(5)
    nothing = np.array([], np.int64)

    def by_history(*history: int) -> list[float]:
        return ranker.ratings(UserQuery(), np.array(history, np.int64), rows).tolist()

    like, examples = CandidateQuery(ids.token(7)), ExamplesQuery(ids.tokens([7, 8]), ["unknown"])
    embedding = EmbeddingQuery(np.array(bundle.corpus.embeddings[0]))
    assert by_history(7) == ranker.ratings(like, nothing, rows).tolist()
    assert by_history(7, 8) == ranker.ratings(examples, nothing, rows).tolist()
    assert by_history() == ranker.ratings(embedding, nothing, rows).tolist()


def test_threads_do_not_disturb_each_other(ranker: CandidateRanker) -> None:
    rows = np.arange(300)
    users = [UserQuery(str(user)) for user in range(1, 40)]
    history = np.array([1, 2])

    def rate(user: UserQuery) -> list[float]:
        return ranker.ratings(user, history, rows).tolist()

    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(rate, users))
    assert [rate(user) for user in users] == together


def test_values_that_no_model_reads_are_refused(engine: Engine) -> None:
    with pytest.raises(FieldUnknownError, match="read no feature 'shoe size'"):
        engine.search(SearchRequest(UserQuery("42", features={"shoe size": 44.0}), rank=True))


def test_an_index_without_a_ranking_model_refuses(vector_index: Path) -> None:
    bundle = IndexBundle.open(vector_index)
    query = EmbeddingQuery(np.ones(8, np.float32))
    with pytest.raises(NoRankerError, match="leave rank out"):
        Engine(bundle).search(SearchRequest(query, rank=True))


def test_the_wire_carries_both_scores(
    client: SearchClient, stub: CandidateSearchServiceStub
) -> None:
    assert client.index_info().has_ranker
    results = client.search(User("42"), count=20, rank=True)
    assert sorted(results.ranking_scores, reverse=True) == results.ranking_scores
    assert [one.ranking_score for one in results] == results.ranking_scores
    assert len(results.scores) == 20
    for query in (Like(results.ids[0]), Examples(results.ids[:2])):
        assert len(client.search(query, rank=True, diversity=Mmr()).ranking_scores) == 10
    explained = stub.ExplainSearch(
        pb.ExplainSearchRequest(
            request=pb.SearchCandidatesRequest(query=pb.Query(user_id="42"), rank=True)
        )
    )
    assert [stage.stage for stage in explained.stages][-1] == "rank"


def test_without_rank_there_is_one_score(client: SearchClient) -> None:
    results = client.search(User("42"))
    assert results.ranking_scores == []
    assert [one.ranking_score for one in results] == [None] * 10


def test_the_wire_says_that_there_is_no_ranking_model(vector_client: SearchClient) -> None:
    assert not vector_client.index_info().has_ranker


def test_the_command_prints_both_scores(server: Any) -> None:
    command = ("search", "--user", "42", "--rank", "--address", server.address)
    table = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert table.exit_code == 0, table.output
    assert "ranking score" in table.output
    printed = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)["candidates"]
    assert {"id", "score", "ranking_score", "title", "genres"} == set(printed[0])
