"""The contract of an index, run over every backend of the registry."""

import os
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.backends import BACKENDS, LocalIndex, Neighbors, SearchMethod, SearchParams
from indexer.backends.annoy import AnnoyBuildParams, AnnoySearchParams
from indexer.backends.brute_force import BruteForceBuildParams, BruteForceSearchParams
from indexer.backends.milvus import MilvusBuildParams, MilvusSearchParams
from indexer.backends.scann import ScannBuildParams, ScannSearchParams
from indexer.recall import recall_at_k

AnyIndex = LocalIndex[Any, Any]


@dataclass(frozen=True)
class Case:
    """A way to build a backend, and what it must then deliver on the `corpus` fixture."""

    name: str
    build_params: Any
    efforts: tuple[Any, ...]
    """Search params, each harder than the one before, that find 10 without widening."""
    min_recall: float
    """Of recall@10, at the last effort."""


def scann_params(n: int, leaves: int | None = None) -> ScannSearchParams:
    return ScannSearchParams(
        leaves_to_search=leaves, pre_reorder_num_neighbors=n, final_num_neighbors=max(10, n // 4)
    )


CASES = {
    "brute_force": Case(
        "brute_force", BruteForceBuildParams(), (BruteForceSearchParams(),), min_recall=1.0
    ),
    "annoy-dot": Case(
        "annoy",
        AnnoyBuildParams(metric="dot", n_trees=20),
        tuple(AnnoySearchParams(search_k=n) for n in (20, 100, 500, 2000, 8000)),
        min_recall=0.95,
    ),
    "annoy-angular": Case(
        "annoy",
        AnnoyBuildParams(metric="angular", n_trees=20),
        tuple(AnnoySearchParams(search_k=n) for n in (20, 100, 500, 2000, 8000)),
        min_recall=0.9,
    ),
    "scann": Case(
        "scann",
        ScannBuildParams(),
        tuple(scann_params(n) for n in (10, 20, 40, 200)),
        min_recall=0.95,
    ),
    "scann-tree": Case(
        "scann",
        ScannBuildParams(num_leaves=40, avq=4.0),
        tuple(scann_params(200, leaves) for leaves in (2, 5, 10, 20)),
        min_recall=0.95,
    ),
    "scann-soar": Case(
        "scann",
        ScannBuildParams(num_leaves=40, soar_lambda=1.5),
        tuple(scann_params(200, leaves) for leaves in (2, 5, 10, 20)),
        min_recall=0.95,
    ),
    "milvus-flat": Case(
        "milvus", MilvusBuildParams(index_type="FLAT"), (MilvusSearchParams(),), min_recall=1.0
    ),
    "milvus-hnsw": Case(
        "milvus",
        MilvusBuildParams(index_type="HNSW", M=8),
        tuple(MilvusSearchParams(ef=n) for n in (10, 20, 80, 320)),
        min_recall=0.95,
    ),
}


def exact_answer(embeddings: np.ndarray, query: np.ndarray, k: int, eligible: np.ndarray) -> Any:
    """The oracle: plain float64 products, best first, ties by lower row."""
    scores = embeddings.astype(np.float64) @ query.astype(np.float64)
    rows = np.flatnonzero(eligible)
    order = np.lexsort((rows, -scores[rows]))[:k]
    return rows[order], scores[rows][order]


def make_vectors(n: int, dim: int, seed: int) -> np.ndarray:
    """Clustered vectors with unequal norms, as trained embeddings have."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((12, dim))
    vectors = centres[rng.integers(0, 12, n)] + 0.6 * rng.standard_normal((n, dim))
    vectors *= np.exp(0.4 * rng.standard_normal((n, 1)))
    return vectors.astype(np.float32)


def build(name: str, embeddings: np.ndarray, params: Any = None) -> AnyIndex:
    backend = BACKENDS[name]
    if reason := backend.unavailable():
        assert "CI" not in os.environ, reason  # what lands has been tested on every backend
        pytest.skip(reason)
    return backend.build(embeddings, params)


@pytest.fixture(scope="module")
def corpus() -> np.ndarray:
    return make_vectors(2000, 16, seed=1)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return make_vectors(1000, 16, seed=2)


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="module")
def index(case: Case, corpus: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> AnyIndex:
    built = build(case.name, corpus, case.build_params)
    built.save(tmp_path_factory.mktemp("saved"))  # what is searched has been saved or loaded
    return built


every_backend = pytest.mark.parametrize("name", BACKENDS)


def test_every_backend_has_a_case() -> None:
    assert set(BACKENDS) == {case.name for case in CASES.values()}


def test_it_knows_its_corpus(index: AnyIndex, case: Case) -> None:
    assert (case.name, 2000, 16) == (index.name, index.n_candidates, index.dim)
    assert case.build_params == index.build_params


def test_exhaustive_params_make_it_exact(
    index: AnyIndex, corpus: np.ndarray, queries: np.ndarray
) -> None:
    found = index.search(queries[:50], 20, index.exhaustive_params())
    for query, rows, scores in zip(queries, found.rows, found.scores, strict=False):
        expected_rows, expected = exact_answer(corpus, query, 20, np.ones(2000, dtype=bool))
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
        differing = expected_rows != rows
        np.testing.assert_allclose(scores[differing], expected[differing], rtol=1e-5, atol=1e-5)


def test_recall_is_as_declared(
    index: AnyIndex, case: Case, corpus: np.ndarray, queries: np.ndarray
) -> None:
    exact = BACKENDS["brute_force"].build(corpus).search(queries, 10)
    found = index.search(queries, 10, case.efforts[-1])
    assert recall_at_k(found, exact).mean() >= case.min_recall


def test_recall_never_falls_as_effort_rises(
    index: AnyIndex, case: Case, corpus: np.ndarray, queries: np.ndarray
) -> None:
    exact = BACKENDS["brute_force"].build(corpus).search(queries, 10)
    recalls = [
        recall_at_k(index.search(queries, 10, effort), exact).mean() for effort in case.efforts
    ]
    assert all(later >= earlier - 0.005 for earlier, later in pairwise(recalls))


def test_results_keep_their_promises(
    index: AnyIndex, case: Case, corpus: np.ndarray, queries: np.ndarray
) -> None:
    for effort in case.efforts:
        found = index.search(queries[:100], 30, effort)
        assert (np.dtype(np.int64), (100, 30)) == (found.rows.dtype, found.rows.shape)
        assert (np.dtype(np.float32), (100, 30)) == (found.scores.dtype, found.scores.shape)
        for query, rows, scores in zip(queries, found.rows, found.scores, strict=False):
            n_found = int(np.count_nonzero(rows >= 0))
            assert (rows[n_found:] == -1).all()
            assert np.isneginf(scores[n_found:]).all()
            there, exact = rows[:n_found], scores[:n_found]
            assert n_found == len(np.unique(there))
            assert (there < 2000).all()
            np.testing.assert_array_equal(np.lexsort((there, -exact)), np.arange(n_found))
            np.testing.assert_allclose(exact, corpus[there] @ query, rtol=1e-5, atol=1e-5)


def test_a_batch_equals_one_by_one(index: AnyIndex, queries: np.ndarray) -> None:
    batch = index.search(queries[:64], 10)
    for i in range(64):
        one = index.search(queries[i : i + 1], 10)
        np.testing.assert_array_equal(batch.rows[i], one.rows[0])
        np.testing.assert_array_equal(batch.scores[i], one.scores[0])


def without(index: AnyIndex, queries: np.ndarray, excluded: np.ndarray, params: Any) -> Neighbors:
    return index.search_without(queries, 10, excluded, 50, index.params_at(50, params, 10))


def test_exhaustive_params_make_a_search_without_the_excluded_exact(
    index: AnyIndex, corpus: np.ndarray, queries: np.ndarray
) -> None:
    best = BACKENDS["brute_force"].build(corpus).search(queries[:50], 36).rows
    excluded = np.where(np.arange(30) < np.arange(50)[:, None], best[:, :30], -1)  # 0 to 30 of them
    found = without(index, queries[:50], excluded, index.exhaustive_params())
    for query, rows, scores, dropped in zip(
        queries, *(found.rows, found.scores), excluded, strict=False
    ):
        eligible = ~np.isin(np.arange(2000), dropped)
        _, expected = exact_answer(corpus, query, 10, eligible)
        assert eligible[rows].all()
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)


def test_a_batch_without_the_excluded_equals_one_by_one(
    index: AnyIndex, queries: np.ndarray
) -> None:
    params = index.default_search_params(10)
    excluded = index.search(queries[:64], 10).rows[:, ::2]
    batch = without(index, queries[:64], excluded, params)
    assert not np.isin(batch.rows, -1).any()
    for i in range(64):
        one = without(index, queries[i : i + 1], excluded[i : i + 1], params)
        np.testing.assert_array_equal(batch.rows[i], one.rows[0])
        np.testing.assert_array_equal(batch.scores[i], one.scores[0])


def test_what_is_left_is_found_where_more_are_excluded_than_was_fetched_beyond(
    index: AnyIndex,
) -> None:
    query = make_vectors(1, 16, seed=3)
    excluded = index.search(query, 45, index.exhaustive_params()).rows
    found = without(index, query, excluded, index.exhaustive_params())
    rows = found.rows[found.rows >= 0]
    assert len(rows) in (5, 10)  # where it proposes more than it is asked for, there are enough
    assert not np.isin(rows, excluded).any()


@pytest.mark.parametrize("n_queries", [1, 3])
@pytest.mark.parametrize(
    ("name", "build_params", "least"),
    [
        ("annoy", None, AnnoySearchParams(search_k=1)),
        ("scann", ScannBuildParams(num_leaves=20), scann_params(1500, leaves=1)),
    ],
)
def test_what_proposes_fewer_than_it_is_asked_for_finds_nothing_without_a_mask(
    corpus: np.ndarray,
    queries: np.ndarray,
    name: str,
    build_params: Any,
    least: Any,
    n_queries: int,
) -> None:
    index = build(name, corpus, build_params)
    excluded = np.zeros((n_queries, 1), np.int64)
    found = index.search_without(queries[:n_queries], 10, excluded, 1500, least)
    assert (found.rows == -1).all()
    assert np.isneginf(found.scores).all()


def test_saved_and_loaded_it_answers_the_same(
    index: AnyIndex, case: Case, corpus: np.ndarray, queries: np.ndarray, tmp_path: Any
) -> None:
    index.save(tmp_path)
    moved = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}-moved"))
    loaded = BACKENDS[case.name].load(moved, corpus, case.build_params)
    before, after = index.search(queries, 10), loaded.search(queries, 10)
    np.testing.assert_array_equal(before.rows, after.rows)
    np.testing.assert_array_equal(before.scores, after.scores)


def test_the_same_seed_answers_the_same(
    index: AnyIndex, case: Case, corpus: np.ndarray, queries: np.ndarray
) -> None:
    if not index.is_deterministic:
        pytest.skip(f"{case.name} declares that it cannot")
    again = build(case.name, corpus, case.build_params).search(queries, 10, case.efforts[0])
    np.testing.assert_array_equal(index.search(queries, 10, case.efforts[0]).rows, again.rows)


@every_backend
@pytest.mark.parametrize("n", [1, 2, 15, 17])
def test_tiny_corpora_and_more_wanted_than_there_are(name: str, n: int) -> None:
    embeddings = make_vectors(n, 3, seed=n)
    index = build(name, embeddings)
    found = index.search(make_vectors(5, 3, seed=9), n + 3, index.exhaustive_params())
    assert [list(range(n))] * 5 == np.sort(found.rows[:, :n], axis=1).tolist()
    assert found.rows[:, n:].tolist() == [[-1] * 3] * 5
    assert np.isneginf(found.scores[:, n:]).all()


@every_backend
def test_zero_vectors_and_duplicates(name: str) -> None:
    embeddings = np.zeros((60, 4), dtype=np.float32)
    embeddings[10:40] = [1, 2, 3, 4]
    index = build(name, embeddings)
    query = np.array([[1, 0, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 0]], dtype=np.float32)
    found = index.search(query, 40, index.exhaustive_params())
    assert found.scores.tolist() == [[1.0] * 30 + [0.0] * 10, [0.0] * 30 + [-1.0] * 10, [0.0] * 40]
    if index.is_exact:
        assert list(range(10, 40)) + list(range(10)) == found.rows[0].tolist()


@every_backend
def test_one_dimension(name: str) -> None:
    embeddings = np.array([[3.0], [-1.0], [2.0]], dtype=np.float32)
    index = build(name, embeddings)
    found = index.search(np.array([[-2.0]], dtype=np.float32), 3, index.exhaustive_params())
    assert found.rows.tolist() == [[1, 2, 0]]
    assert found.scores.tolist() == [[2.0, -4.0, -6.0]]


def test_no_queries_have_no_answers(index: AnyIndex) -> None:
    found = index.search(np.empty((0, 16), dtype=np.float32), 5)
    assert (found.rows.shape, found.scores.shape) == ((0, 5), (0, 5))


@every_backend
def test_a_read_only_corpus_will_do(name: str, corpus: np.ndarray, tmp_path: Any) -> None:
    np.save(tmp_path / "embeddings.npy", corpus)
    mapped = np.load(tmp_path / "embeddings.npy", mmap_mode="r")
    index = build(name, mapped)
    found = index.search(corpus[7:8], 1, index.exhaustive_params())
    assert np.argmax(corpus @ corpus[7]) == found.rows[0, 0]


class TestRefusals:
    @pytest.mark.parametrize(
        ("queries", "message"),
        [
            (np.ones((1, 15), np.float32), "dimension 16, as the index has, not 15"),
            (np.ones((1, 16), np.float64), "float32 array, not float64 array"),
            (np.ones(16, np.float32), r"shape \(n, dim\), not \(16,\)"),
            ([[1.0] * 16], "float32 array, not list"),
            (np.full((2, 16), [[1.0], [np.nan]], np.float32), "row 1 of the queries holds a NaN"),
            (np.full((1, 16), np.inf, np.float32), "row 0 of the queries holds a NaN or an inf"),
            (np.full((1, 16), 1e30, np.float32), "row 0 of the queries is too large"),
        ],
    )
    def test_queries(self, index: AnyIndex, queries: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            index.search(queries, 5)

    @pytest.mark.parametrize(
        ("k", "message"),
        [
            (0, "k must be at least 1, not 0"),
            (-3, "k must be at least 1, not -3"),
            (2.5, "k must be a whole number of at least 1, not 2.5"),
        ],
    )
    def test_k(self, index: AnyIndex, queries: np.ndarray, k: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            index.search(queries[:1], k)

    @pytest.mark.parametrize(
        ("eligible", "message"),
        [
            (np.ones(1999, bool), r"shape \(2000,\), not \(1999,\)"),
            (np.ones(2000, np.int8), "bool array, not int8 array"),
        ],
    )
    def test_eligible(
        self, index: AnyIndex, queries: np.ndarray, eligible: Any, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            index.search(queries[:1], 5, eligible=eligible)

    def test_params_of_another_kind(self, index: AnyIndex, queries: np.ndarray) -> None:
        with pytest.raises(TypeError, match=r"search params must be \w+, not SearchParams"):
            index.search(queries[:1], 5, SearchParams())

    @every_backend
    @pytest.mark.parametrize(
        ("embeddings", "message"),
        [
            (np.ones((4, 2), np.float64), "float32 array, not float64 array"),
            (np.ones(4, np.float32), r"shape \(n, dim\), not \(4,\)"),
            (np.ones((0, 2), np.float32), r"must not be empty; their shape is \(0, 2\)"),
            (np.ones((2, 4), np.float32).T, "C order"),
            (np.full((3, 2), [[0], [1], [np.nan]], np.float32), "row 2 of the embeddings holds"),
        ],
    )
    def test_embeddings(self, name: str, embeddings: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            build(name, embeddings)

    @pytest.mark.parametrize("name", ["annoy", "scann"])
    def test_another_corpus(self, name: str, corpus: np.ndarray, tmp_path: Any) -> None:
        index = build(name, corpus)
        index.save(tmp_path)
        with pytest.raises(ValueError, match="holds 2000 vectors, the corpus 1999"):
            BACKENDS[name].load(tmp_path, corpus[:-1], index.build_params)


class TestEligibility:
    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_k_are_found_whenever_k_are_eligible(
        self, index: AnyIndex, corpus: np.ndarray, queries: np.ndarray, data: st.DataObject
    ) -> None:
        seed = data.draw(st.integers(0, 2**32 - 1))
        share = data.draw(st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0]))
        kind = data.draw(st.sampled_from(["random", "best", "worst"]))
        k = data.draw(st.integers(1, 200))
        some = queries[seed % 990 :][:3]
        eligible = make_mask(corpus, some[0], share, kind, seed)
        found = index.search(some, k, eligible=eligible)
        n_expected = min(k, np.count_nonzero(eligible))
        assert [n_expected] * 3 == np.count_nonzero(found.rows >= 0, axis=1).tolist()
        assert eligible[found.rows[found.rows >= 0]].all()
        assert [n_expected] * 3 == [len(np.unique(r[r >= 0])) for r in found.rows]

    @pytest.mark.parametrize("kind", ["random", "best", "worst"])
    @pytest.mark.parametrize("share", [0.005, 0.1, 0.5, 0.99])
    def test_under_exhaustive_params_it_is_exact(
        self, index: AnyIndex, corpus: np.ndarray, queries: np.ndarray, share: float, kind: str
    ) -> None:
        eligible = make_mask(corpus, queries[0], share, kind, seed=3)
        found = index.search(queries[:5], 10, index.exhaustive_params(), eligible)
        for query, scores in zip(queries, found.scores, strict=False):
            _, expected = exact_answer(corpus, query, 10, eligible)
            np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)

    def test_few_eligible_rows_are_scanned(self, index: AnyIndex, queries: np.ndarray) -> None:
        eligible = np.zeros(2000, dtype=bool)
        eligible[[3, 5, 8]] = True
        found = index.search(queries[:1], 5, eligible=eligible)
        expected = SearchMethod.EXACT if index.is_exact else SearchMethod.MASKED_SCAN
        assert expected == found.method
        assert found.rows[0, 3:].tolist() == [-1, -1]


def make_mask(
    corpus: np.ndarray, query: np.ndarray, share: float, kind: str, seed: int
) -> np.ndarray:
    """Make a share of the rows eligible: at random, or the query's best or worst ones."""
    n_eligible = round(share * len(corpus))
    order = {
        "random": np.random.default_rng(seed).permutation(len(corpus)),
        "best": np.argsort(-(corpus @ query)),
        "worst": np.argsort(corpus @ query),
    }[kind]
    eligible = np.zeros(len(corpus), dtype=bool)
    eligible[order[:n_eligible]] = True
    return eligible
