"""The result contract, for every kind of query and backend, against a masked exact oracle."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexer.build import BuildOptions, build_bundle
from indexer.bundle import IndexBundle
from indexer.corpus import Corpus
from indexer.filters import AllOf, Contains, Filter, InRange, IsNull, Negated, OneOf
from server.domain import (
    CandidateQuery,
    Diversity,
    EmbeddingQuery,
    ExamplesQuery,
    Mmr,
    NoticeCode,
    PerGroup,
    Query,
    SearchMethod,
    SearchRequest,
    SearchResult,
    UserQuery,
)
from server.engine import Engine
from server.errors import CandidateUnknownError
from trainer.vocabulary import Vocabulary

BACKENDS = ("brute_force", "annoy", "scann")
N_VECTORS = 300

FILTERS: tuple[Filter | None, ...] = (
    None,
    OneOf("title", ("Alpha",)),
    InRange("year", 1990, None),
    Negated(Contains("tags", "b")),
    AllOf((IsNull("year", True), OneOf("title", ("Alpha",)))),
    OneOf("title", ("Nothing",)),
)

vector_ids = st.integers(0, N_VECTORS - 1).map("c{}".format)
some_ids = st.lists(vector_ids | st.just("unknown"), max_size=40)
queries = st.one_of(
    st.builds(
        lambda seed: EmbeddingQuery(np.random.default_rng(seed).normal(size=8).astype(np.float32)),
        st.integers(0, 2**32 - 1),
    ),
    st.builds(CandidateQuery, vector_ids),
    st.builds(ExamplesQuery, st.lists(vector_ids, min_size=1, max_size=5), some_ids),
)
requests = st.builds(
    SearchRequest,
    query=queries,
    count=st.integers(1, 60),
    exclusions=some_ids,
    filter=st.sampled_from(FILTERS),
    min_score=st.none() | st.floats(-1, 1),
    diversity=st.none()
    | st.builds(Mmr, st.floats(0, 1), st.just(0))
    | st.builds(PerGroup, st.just("title"), st.integers(1, 3)),
    backend=st.none() | st.sampled_from(BACKENDS),
    exact=st.booleans(),
)
in_full = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="session")
def engine(vector_index: Path) -> Engine:
    return Engine(IndexBundle.open(vector_index))


@pytest.fixture(scope="session")
def tower_engine(bundle: IndexBundle) -> Engine:
    return Engine(bundle)


class Oracle:
    """Scores every candidate and sorts, in the plainest way there is."""

    def __init__(self, engine: Engine, request: SearchRequest) -> None:
        corpus = engine.bundle.corpus
        embeddings = corpus.embeddings.astype(np.float64)
        norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
        units = np.divide(embeddings, norms, out=np.zeros_like(embeddings), where=norms > 0)
        named = _named(request.query)
        rows = {corpus.candidate_ids.row(one) for one in [*named, *request.exclusions]} - {-1}
        match request.query:
            case EmbeddingQuery(vector):
                self.scores = embeddings @ vector
            case CandidateQuery(candidate_id):
                self.scores = units @ units[corpus.candidate_ids.row(candidate_id)]
            case ExamplesQuery(liked, disliked):
                vector = units[corpus.candidate_ids.rows(liked)].mean(axis=0)
                known = [row for row in corpus.candidate_ids.rows(disliked) if row >= 0]
                if known:
                    away = units[known].mean(axis=0)
                    away /= np.linalg.norm(away) or 1
                    vector = vector - np.linalg.norm(vector) / 2 * away
                self.scores = units @ (vector / (np.linalg.norm(vector) or 1))
        self.eligible = np.ones(len(embeddings), dtype=bool)
        self.eligible[list(rows)] = False
        if request.filter is not None:
            self.eligible &= _filtered(engine.bundle.corpus.candidates.to_pylist(), request.filter)
        if request.min_score is not None:
            # The engine's scores are float32: what is that close to the bound may go either way.
            self.surely = self.eligible & (self.scores >= request.min_score + 1e-5)
            self.eligible &= self.scores >= request.min_score - 1e-5
        else:
            self.surely = self.eligible

    def best(self, k: int) -> np.ndarray:
        order = np.argsort(-self.scores, kind="stable")
        best: np.ndarray = self.scores[order[self.eligible[order]]][:k]
        return best


def _named(query: Query) -> list[str]:
    match query:
        case CandidateQuery(candidate_id):
            return [candidate_id]
        case ExamplesQuery(liked, disliked):
            return [*liked, *disliked]
    return []


def _filtered(lines: list[dict[str, Any]], condition: Filter) -> np.ndarray:
    def holds(line: dict[str, Any], one: Filter) -> bool:
        match one:
            case AllOf(filters):
                return all(holds(line, inner) for inner in filters)
            case Negated(inner):
                return not holds(line, inner)
            case OneOf(field, values):
                return line[field] in values
            case InRange(field, minimum, None):
                return line[field] is not None and bool(line[field] >= minimum)
            case Contains(field, value):
                return value in (line[field] or ())
            case IsNull(field, expected):
                return (line[field] is None) == expected
        raise AssertionError(one)

    return np.array([holds(line, condition) for line in lines])


@given(requests)
@in_full
def test_the_contract(engine: Engine, request_: SearchRequest) -> None:
    result = engine.search(request_)
    oracle = Oracle(engine, request_)
    rows = result.rows
    assert len(set(rows.tolist())) == len(rows) <= request_.count
    assert oracle.eligible[rows].all()
    np.testing.assert_allclose(oracle.scores[rows], result.scores, rtol=1e-4, atol=1e-5)
    if not isinstance(request_.diversity, Mmr):
        _check_order(result)
    if not isinstance(request_.diversity, PerGroup):
        assert len(rows) >= min(request_.count, int(oracle.surely.sum()))
    if result.plan.exact and request_.diversity is None:
        best = oracle.best(request_.count)[: len(rows)]
        np.testing.assert_allclose(best, result.scores, rtol=1e-4, atol=1e-5)
    _check_groups(engine, request_.diversity, rows)
    _check_notices(request_, result)


def _check_order(result: SearchResult) -> None:
    order = np.lexsort((result.rows, -result.scores))
    assert list(range(len(result.rows))) == order.tolist()


def _check_groups(engine: Engine, diversity: Diversity | None, rows: np.ndarray) -> None:
    if isinstance(diversity, PerGroup):
        values = [value for value in engine.metadata.values("title", rows) if value is not None]
        assert max(map(values.count, values), default=0) <= diversity.max_count


def _check_notices(request: SearchRequest, result: SearchResult) -> None:
    codes = {notice.code for notice in result.notices}
    named = [*request.exclusions, *_named(request.query)]
    assert (NoticeCode.UNKNOWN_IDS in codes) == ("unknown" in named)
    assert (NoticeCode.FEWER_ELIGIBLE in codes) == (len(result.rows) < request.count)


@given(requests, st.integers(1, 7))
@in_full
def test_pages_never_repeat_and_together_are_the_whole(
    engine: Engine, request_: SearchRequest, count: int
) -> None:
    request = replace(request_, count=count, diversity=None, exact=True, backend=None)
    pages = [engine.search(request)]
    while pages[-1].has_more and len(pages) < 5:
        pages.append(engine.search(replace(request, offset=count * len(pages))))
    paged = np.concatenate([page.rows for page in pages])
    whole = engine.search(replace(request, count=count * len(pages)))
    assert whole.rows.tolist() == paged.tolist()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("diversity", [None, Mmr(0.7), PerGroup("title", 2)])
def test_pages_of_every_backend_do_not_repeat(
    engine: Engine, backend: str, diversity: Diversity | None
) -> None:
    vector = np.arange(8, dtype=np.float32)
    request = SearchRequest(EmbeddingQuery(vector), count=4, backend=backend, diversity=diversity)
    pages = [engine.search(replace(request, offset=offset)).rows for offset in range(0, 20, 4)]
    rows = np.concatenate(pages)
    assert len(set(rows.tolist())) == len(rows) >= 8
    _check_groups(engine, diversity, rows)


@given(st.lists(requests, max_size=12), st.sampled_from([*BACKENDS, None]))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_searches_together_answer_as_one_by_one(
    engine: Engine, several: list[SearchRequest], backend: str | None
) -> None:
    # Alike in what decides whether an index can search for them in one call.
    several = [replace(one, backend=backend, exact=False, count=10) for one in several]
    for request, together in zip(several, engine.search_together(several), strict=True):
        alone = engine.search(request)
        assert isinstance(together, SearchResult)
        assert together.rows.tolist() == alone.rows.tolist()
        assert together.scores.tolist() == alone.scores.tolist()
        assert together.plan is alone.plan


def test_a_search_that_is_refused_is_refused_alone(engine: Engine) -> None:
    good, bad = SearchRequest(CandidateQuery("c1")), SearchRequest(CandidateQuery("nothing"))
    first, second, third = engine.search_together([good, bad, good])
    assert isinstance(first, SearchResult)
    assert isinstance(second, CandidateUnknownError)
    assert isinstance(third, SearchResult)


def test_pages_end_at_the_configured_depth(vector_index: Path) -> None:
    shallow = Engine(IndexBundle.open(vector_index), max_page_depth=6)
    request = SearchRequest(CandidateQuery("c1"), count=4)
    first, second = shallow.search(request), shallow.search(replace(request, offset=4))
    assert (first.has_more, second.has_more) == (True, False)
    assert (len(first.rows), len(second.rows)) == (4, 2)


def test_a_page_may_be_larger_than_pages_reach(vector_index: Path) -> None:
    shallow = Engine(IndexBundle.open(vector_index), max_page_depth=6)
    found = shallow.search(SearchRequest(EmbeddingQuery(np.ones(8, np.float32)), count=9))
    assert (9, [], False) == (len(found.rows), found.notices, found.has_more)


def test_the_last_page_counts_what_was_eligible_with_the_pages_before(engine: Engine) -> None:
    n_candidates = engine.bundle.corpus.n_candidates
    excluded = engine.bundle.corpus.candidate_ids.tokens(range(10, n_candidates))
    request = SearchRequest(EmbeddingQuery(np.ones(8, np.float32)), count=4, exclusions=excluded)
    pages = [engine.search(replace(request, offset=offset)) for offset in (0, 4, 8)]
    assert [4, 4, 2] == [len(page.rows) for page in pages]
    assert [True, True, False] == [page.has_more for page in pages]
    assert [[], [], [10]] == [[notice.count for notice in page.notices] for page in pages]


def test_pages_that_vary_end_with_the_pool_they_are_chosen_from(engine: Engine) -> None:
    vector = EmbeddingQuery(np.ones(8, np.float32))
    request = SearchRequest(vector, count=4, diversity=Mmr(0.7, pool=10))
    pages = [engine.search(replace(request, offset=offset)) for offset in (0, 4, 8)]
    assert [(4, True), (4, True), (2, False)] == [(len(one.rows), one.has_more) for one in pages]
    assert not any(page.notices for page in pages)


def test_a_known_user_is_a_look_up_without_their_history(tower_engine: Engine) -> None:
    assets = tower_engine.bundle.query
    assert assets is not None
    assert assets.user_ids is not None
    assert assets.query_embeddings is not None
    for row in (0, 17, 499):
        query = UserQuery(assets.user_ids.token(row))
        result = tower_engine.search(SearchRequest(query, count=100, exact=True))
        scores = tower_engine.bundle.corpus.embeddings @ assets.query_embeddings[row]
        history = assets.history(row)
        scores[history] = -np.inf
        np.testing.assert_allclose(np.sort(scores)[::-1][:100], result.scores, rtol=1e-5, atol=1e-5)
        assert set() == set(result.rows.tolist()) & set(history.tolist())
        seen = tower_engine.search(SearchRequest(query, count=800, exclude_history=False))
        assert len(seen.rows) == 800


def test_the_tower_gives_known_users_the_embedding_they_have(tower_engine: Engine) -> None:
    assets = tower_engine.bundle.query
    assert assets is not None
    assert assets.user_ids is not None
    user_id = assets.user_ids.token(3)
    ids = tower_engine.bundle.corpus.candidate_ids
    known = UserQuery(user_id)
    retold = UserQuery(history=ids.tokens(assets.history(3)))
    replaced = UserQuery(user_id, history=retold.history, history_replaces=True)
    expected = tower_engine.search(SearchRequest(known, count=20, exact=True))
    for query in (retold, replaced):
        result = tower_engine.search(SearchRequest(query, count=20, exact=True))
        np.testing.assert_allclose(expected.scores, result.scores, rtol=1e-4, atol=1e-5)


def test_what_a_user_did_since_changes_the_answer_and_is_left_out(tower_engine: Engine) -> None:
    assets = tower_engine.bundle.query
    assert assets is not None
    assert assets.user_ids is not None
    user_id = assets.user_ids.token(3)
    before = tower_engine.search(SearchRequest(UserQuery(user_id), exact=True))
    liked = tower_engine.bundle.corpus.candidate_ids.tokens(before.rows[:3])
    after = tower_engine.search(SearchRequest(UserQuery(user_id, history=liked), exact=True))
    assert set() == set(before.rows[:3].tolist()) & set(after.rows.tolist())
    assert before.rows[3:].tolist() != after.rows[:7].tolist()
    history = set(assets.history(3).tolist())
    assert set() == history & set(after.rows.tolist())


def test_an_unknown_user_gets_what_is_popular(tower_engine: Engine) -> None:
    popularity = tower_engine.bundle.corpus.popularity
    order = np.argsort(-popularity, kind="stable")
    popular = tower_engine.bundle.corpus.candidate_ids.tokens(order)
    request = SearchRequest(UserQuery("nobody"), count=5, exclusions=popular[:2])
    result = tower_engine.search(request)
    assert order[2:7].tolist() == result.rows.tolist()
    assert popularity[order[2:7]].tolist() == result.scores.tolist()
    assert SearchMethod.POPULARITY is result.plan.method
    assert [notice.code for notice in result.notices] == [NoticeCode.COLD_START]


def test_an_unknown_user_with_a_history_is_no_stranger(tower_engine: Engine) -> None:
    ids = tower_engine.bundle.corpus.candidate_ids.tokens([1, 2])
    result = tower_engine.search(SearchRequest(UserQuery("nobody", history=[*ids, "unknown"])))
    assert [notice.code for notice in result.notices] == [NoticeCode.UNKNOWN_IDS]
    assert set() == {1, 2} & set(result.rows.tolist())


def test_a_disliked_candidate_lowers_what_is_like_it(tower_engine: Engine) -> None:
    ids = tower_engine.bundle.corpus.candidate_ids
    like_5 = tower_engine.search(SearchRequest(CandidateQuery(ids.token(5)), count=50, exact=True))
    every = SearchRequest(ExamplesQuery([ids.token(1)]), count=800, exact=True)
    without = tower_engine.search(every)
    disliking = ExamplesQuery([ids.token(1)], [ids.token(5)])
    with_dislike = tower_engine.search(replace(every, query=disliking))
    assert _mean_rank(with_dislike, like_5) > _mean_rank(without, like_5)


def _mean_rank(result: SearchResult, among: SearchResult) -> float:
    return float(np.flatnonzero(np.isin(result.rows, among.rows)).mean())


def test_recall_target_and_backend_choose_the_plan(engine: Engine) -> None:
    query = EmbeddingQuery(np.arange(8, dtype=np.float32))
    for target in (0.5, 0.9, 0.99, 1.0):
        plan = engine.search(SearchRequest(query, recall_target=target)).plan
        assert plan.expected_recall is not None
        assert plan.expected_recall >= target - 0.02
    assert engine.search(SearchRequest(query, recall_target=1.0)).plan.exact
    for backend in BACKENDS:
        assert backend == engine.search(SearchRequest(query, backend=backend)).plan.backend


def test_more_like_this_scans_where_no_index_can_search_by_cosine(engine: Engine) -> None:
    plan = engine.search(SearchRequest(CandidateQuery("c1"), backend="scann")).plan
    assert (plan.backend, plan.method, plan.exact) == ("", SearchMethod.EXACT, True)


def test_more_like_this_uses_an_index_where_all_have_one_length(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
    vectors *= 3 / np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = Vocabulary([f"c{row}" for row in range(500)])
    table = pa.table({"candidate_id": ids.array})
    corpus = Corpus(ids, vectors, table, np.zeros(500, dtype=np.float32))
    index = build_bundle(corpus, None, tmp_path, BuildOptions(k=10, backends=("scann",)))
    result = Engine(IndexBundle.open(index)).search(SearchRequest(CandidateQuery("c1")))
    assert (result.plan.backend, result.plan.expected_recall, result.plan.exact) == (
        "scann",
        None,
        False,
    )
    np.testing.assert_allclose(vectors[result.rows] @ vectors[1] / 9, result.scores, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_excluded", [5, 50])
def test_recall_holds_where_the_best_are_excluded(
    engine: Engine, backend: str, n_excluded: int
) -> None:
    ids, recalls = engine.bundle.corpus.candidate_ids, []
    for seed in range(50):
        vector = np.random.default_rng(seed).normal(size=8).astype(np.float32)
        request = SearchRequest(EmbeddingQuery(vector), count=n_excluded + 10, exact=True)
        rows = engine.search(request).rows
        excluding = replace(request, exclusions=ids.tokens(rows[:-10]), count=10)
        found = engine.search(replace(excluding, backend=backend, exact=False))
        recalls.append(np.isin(found.rows, rows[-10:]).mean())
    promised = engine.search(SearchRequest(EmbeddingQuery(vector), backend=backend)).plan
    assert promised.expected_recall is not None
    assert np.mean(recalls) >= promised.expected_recall - 0.03


def test_many_exclusions_leave_the_rest(engine: Engine) -> None:
    excluded = [f"c{row}" for row in range(295)]
    query = EmbeddingQuery(np.ones(8, dtype=np.float32))
    for backend in BACKENDS:
        request = SearchRequest(query, count=10, exclusions=excluded, backend=backend)
        assert {295, 296, 297, 298, 299} == set(engine.search(request).rows.tolist())
