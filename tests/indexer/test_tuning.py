import numpy as np
import pytest

from indexer.backends import BACKENDS, LocalIndex, SearchMethod
from indexer.backends.annoy import AnnoyBuildParams, AnnoySearchParams
from indexer.exact import ExactScorer
from indexer.tuning import TuningQueries, tune


@pytest.fixture(scope="module")
def embeddings() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3000, 12), dtype=np.float32)


@pytest.fixture(scope="module")
def queries(embeddings: np.ndarray) -> TuningQueries:
    drawn = np.random.default_rng(1).standard_normal((300, 12), dtype=np.float32)
    return TuningQueries.prepare(embeddings, drawn, max_k=20, seed=2)


@pytest.fixture(scope="module")
def annoy(embeddings: np.ndarray) -> LocalIndex:
    return BACKENDS["annoy"].build(embeddings, AnnoyBuildParams(metric="angular", n_trees=10))


def test_the_halves_share_no_query(queries: TuningQueries) -> None:
    assert (len(queries.choosing), len(queries.unseen)) == (150, 150)
    both = np.concatenate([queries.choosing, queries.unseen])
    assert len(np.unique(both, axis=0)) == 300


def test_a_single_query_serves_as_both_halves(embeddings: np.ndarray) -> None:
    one = TuningQueries.prepare(embeddings, embeddings[:1], max_k=5, seed=0)
    assert (len(one.choosing), len(one.unseen)) == (1, 1)


def test_points_deliver_what_they_promise(annoy: LocalIndex, queries: TuningQueries) -> None:
    points = tune(annoy, queries, 20, targets=(0.5, 0.8, 0.95))
    assert [point.name for point in points] == ["0.50", "0.80", "0.95", "exhaustive"]
    for point in points:
        assert point.k == 20
        assert point.recall_target - 0.03 <= point.recall
    effort = [point.search_params["search_k"] for point in points]
    assert sorted(effort) == effort


def test_the_cheapest_params_are_chosen(annoy: LocalIndex, queries: TuningQueries) -> None:
    """No rung of the ladder below the chosen one meets the target on the choosing half."""
    (point, _) = tune(annoy, queries, 20, targets=(0.8,))
    (ladder,) = annoy.effort_ladders(20)
    rungs = [params.search_k for params in ladder]
    below = ladder[rungs.index(point.search_params["search_k"]) - 1]
    found = annoy.search(queries.choosing, 20, below)
    shares = [
        len(np.intersect1d(rows, exact)) / 20
        for rows, exact in zip(found.rows, queries.exact_choosing.rows, strict=True)
    ]
    assert np.mean(shares) - np.std(shares, ddof=1) / np.sqrt(len(shares)) < 0.8


def test_params_that_propose_too_few_are_not_chosen(
    annoy: LocalIndex, queries: TuningQueries
) -> None:
    def method(params: AnnoySearchParams) -> SearchMethod:
        return annoy.search(queries.choosing, 20, params).method

    assert SearchMethod.INDEX is not method(annoy.effort_ladders(20)[0][0])
    (point, _) = tune(annoy, queries, 20, targets=(0.01,))
    assert SearchMethod.INDEX is method(AnnoySearchParams(**point.search_params))


@pytest.mark.parametrize(("fewest", "finds_the_best"), [(20, False), (1, True)])
def test_points_hold_for_the_fewest_results_too(
    annoy: LocalIndex,
    queries: TuningQueries,
    embeddings: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    fewest: int,
    finds_the_best: bool,
) -> None:
    """An index that misses the very best unless it tries hard has still most of the best 20."""
    search, exact, hard = annoy._search, ExactScorer(embeddings), 10_000

    def misses_the_best(several: np.ndarray, k: int, params: AnnoySearchParams) -> np.ndarray:
        rows = search(several, k, params)
        if params.search_k >= hard:
            return rows
        best, worst = exact.search(several, 1).rows, exact.search(-several, 1).rows
        return np.where(rows == best, worst, rows)

    monkeypatch.setattr(annoy, "_search", misses_the_best)
    (point, _) = tune(annoy, queries, 20, targets=(0.8,), fewest=fewest)
    assert finds_the_best is (point.search_params["search_k"] >= hard)
    assert point.recall >= 0.77


def test_a_recall_out_of_reach_has_no_point(
    annoy: LocalIndex, queries: TuningQueries, monkeypatch: pytest.MonkeyPatch
) -> None:
    ladders = [annoy.effort_ladders(20)[0][:1]]
    monkeypatch.setattr(annoy, "effort_ladders", lambda _: ladders)
    assert [point.name for point in tune(annoy, queries, 20, targets=(0.99,))] == ["exhaustive"]


def test_an_exact_index_needs_no_tuning(embeddings: np.ndarray, queries: TuningQueries) -> None:
    (point,) = tune(BACKENDS["brute_force"].build(embeddings), queries, 20)
    assert (point.name, point.recall, point.recall_low) == ("exhaustive", 1.0, 1.0)
