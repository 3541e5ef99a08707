import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from indexer import _exact
from indexer.exact import ExactScorer, Kernel, are_finite, padded, squared_norms

FLOATS = st.floats(-1e6, 1e6, width=32)


@st.composite
def scorers_and_queries(draw: st.DrawFn) -> tuple[ExactScorer, np.ndarray]:
    dim = draw(st.integers(1, 9))
    embeddings = draw(
        hnp.arrays(np.float32, st.tuples(st.integers(1, 40), st.just(dim)), elements=FLOATS)
    )
    queries = draw(
        hnp.arrays(np.float32, st.tuples(st.integers(1, 11), st.just(dim)), elements=FLOATS)
    )
    return ExactScorer(embeddings), queries


def kernel_order(scorer: ExactScorer, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All rows, best first, by scores computed one row at a time."""
    rows = range(len(scorer.embeddings))
    alone = [scorer.rescore(query[None], np.array([[row]]), 1).scores[0, 0] for row in rows]
    scores = np.array(alone, dtype=np.float32)
    order = np.lexsort((np.arange(len(scores)), -scores))
    return order, scores[order]


TINY = np.finfo(np.float32).tiny


@settings(max_examples=300, deadline=None)
@given(scorers_and_queries(), st.integers(1, 50))
@example((ExactScorer(np.full((9, 6), TINY)), np.full((1, 6), -TINY)), 1)
@example((ExactScorer(np.full((9, 6), 1e18, np.float32)), np.full((1, 6), TINY)), 1)
def test_search_is_exact_to_the_bit(case: tuple[ExactScorer, np.ndarray], k: int) -> None:
    scorer, queries = case
    found = scorer.search(queries, k)
    for query, rows, scores in zip(queries, found.rows, found.scores, strict=True):
        expected_rows, expected_scores = kernel_order(scorer, query)
        n = min(k, len(expected_rows))
        assert expected_rows[:n].tolist() == rows[:n].tolist()
        assert expected_scores[:n].tobytes() == scores[:n].tobytes()
        assert [-1] * (k - n) == rows[n:].tolist()


@settings(max_examples=100, deadline=None)
@given(scorers_and_queries(), st.integers(1, 50), st.data())
def test_search_among_some_rows(
    case: tuple[ExactScorer, np.ndarray], k: int, data: st.DataObject
) -> None:
    scorer, queries = case
    eligible = data.draw(hnp.arrays(np.bool_, len(scorer.embeddings)))
    found = scorer.search(queries, k, eligible)
    for query, rows in zip(queries, found.rows, strict=True):
        order, _ = kernel_order(scorer, query)
        assert order[eligible[order]][:k].tolist() == rows[rows >= 0].tolist()


def test_the_best_of_a_large_corpus_in_batches() -> None:
    rng = np.random.default_rng(0)
    scorer = ExactScorer(rng.standard_normal((50_000, 8), dtype=np.float32))
    queries = rng.standard_normal((12, 8), dtype=np.float32)
    found = scorer.search(queries, 10)
    for query, rows in zip(queries, found.rows, strict=True):
        assert kernel_order(scorer, query)[0][:10].tolist() == rows.tolist()


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_a_score_is_the_inner_product(dim: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scorer = ExactScorer(rng.standard_normal((3, dim), dtype=np.float32))
    query = rng.standard_normal((1, dim), dtype=np.float32)
    found = scorer.rescore(query, np.array([[1]]), 1)
    terms = scorer.embeddings[1].astype(np.float64) * query[0]
    allowed = dim * np.finfo(np.float32).eps / 2 * np.abs(terms).sum()
    assert abs(found.scores[0, 0] - terms.sum()) <= allowed


@pytest.mark.parametrize("row", [-1, -(2**40), 3, 2**31, 2**32, 2**40])
def test_what_is_no_row_is_left_out(row: int) -> None:
    scorer = ExactScorer(np.array([[1.0], [3.0], [2.0]], dtype=np.float32))
    found = scorer.rescore(np.ones((1, 1), np.float32), np.array([[row, 2]]), 2)
    assert [[2, -1]] == found.rows.tolist()


TASK = [
    np.zeros((2, 4), np.float32),
    np.zeros((1, 4), np.float32),
    np.zeros((1, 2), np.int64),
    np.zeros((1, 2), np.float32),
]
ROWS, ELIGIBLE = np.zeros((1, 5), np.int64), np.ones(2, np.bool_)
NONE_EXCLUDED = np.empty((1, 0), np.int64)
PROPOSED = (ROWS, NONE_EXCLUDED)


@pytest.mark.parametrize(
    ("kernel", "among"), [(_exact.rescore, PROPOSED), (_exact.scan, (ELIGIBLE,))]
)
@pytest.mark.parametrize(
    ("place", "array"),
    [
        (0, np.zeros((2, 3), np.float32)),
        (0, np.zeros(4, np.float32)),
        (0, np.zeros((2, 4), np.int32)),
        (0, np.zeros((2, 4), ">f4")),
        (1, np.zeros((1, 4), np.float64)),
        (1, np.zeros((1, 4), np.uint32)),
        (2, np.zeros((2, 2), np.int64)),
        (2, np.zeros((1, 2), np.int32)),
        (2, np.zeros((1, 2), np.uint64)),
        (3, np.zeros((1, 3), np.float32)),
        (3, np.zeros((1, 2), np.int32)),
        (4, np.zeros((2, 5), np.int64)),
        (4, np.zeros((1, 5), np.int32)),
        (4, np.zeros((1, 5), np.float64)),
        (4, np.ones(2, np.int8)),
        (4, np.ones(3, np.bool_)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    kernel: Kernel, among: tuple[np.ndarray, ...], place: int, array: np.ndarray
) -> None:
    arrays = [*TASK, *among]
    kernel(*arrays)
    arrays[place] = array
    with pytest.raises(ValueError, match="do not fit"):
        kernel(*arrays)


def test_whole_numbers_of_either_name_and_a_mask_of_bytes_are_taken() -> None:
    for kind in ("l", "q"):  # where both have 8 bytes, NumPy has two types
        if np.dtype(kind).itemsize == 8:
            _exact.rescore(*TASK, ROWS.astype(kind), *PROPOSED[1:])
    _exact.scan(*TASK, ELIGIBLE.astype(np.uint8))


def test_more_rows_than_results_can_tell_apart_are_refused() -> None:
    rows_of_nothing = np.empty((2**32 + 1, 0), np.float32)
    with pytest.raises(ValueError, match="do not fit"):
        _exact.rescore(rows_of_nothing, np.empty((1, 0), np.float32), *TASK[2:], *PROPOSED)


@pytest.mark.parametrize(
    ("kernel", "among"), [(_exact.rescore, PROPOSED), (_exact.scan, (ELIGIBLE,))]
)
def test_arrays_that_are_none_are_refused(kernel: Kernel, among: tuple[np.ndarray, ...]) -> None:
    with pytest.raises(TypeError, match=f"{4 + len(among)} arguments, not 4"):
        kernel(*TASK)
    with pytest.raises(TypeError, match="bytes-like"):
        kernel(*TASK, None, *among[1:])
    with pytest.raises(ValueError, match="contiguous"):
        kernel(*TASK[:1], np.zeros((4, 2), np.float32).T, *TASK[2:], *among)


@pytest.mark.parametrize(
    "excluded", [np.empty((2, 0), np.int64), np.zeros((1, 3), np.int32), np.zeros(1, np.int64)]
)
def test_excluded_rows_that_do_not_fit_are_refused(excluded: np.ndarray) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        _exact.rescore(*TASK, ROWS, excluded)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.5, 1.0])
def test_a_scan_of_sparse_and_dense_masks(share: float) -> None:
    rng = np.random.default_rng(3)
    scorer = ExactScorer(rng.standard_normal((20_003, 5), dtype=np.float32))
    queries = rng.standard_normal((9, 5), dtype=np.float32)
    eligible = rng.random(20_003) < share
    eligible[-2:] = share > 0
    together = scorer.search(queries, 30, eligible)
    for i, query in enumerate(queries):
        order, scores = kernel_order(scorer, query)
        best = np.flatnonzero(eligible[order])[:30]
        alone = scorer.search(query[None], 30, eligible)
        assert order[best].tolist() == alone.rows[0, : len(best)].tolist()
        assert scores[best].tobytes() == alone.scores[0, : len(best)].tobytes()
        assert [-1] * (30 - len(best)) == alone.rows[0, len(best) :].tolist()
        assert together.rows[i].tolist() == alone.rows[0].tolist()
        assert together.scores[i].tobytes() == alone.scores[0].tobytes()


def test_repeated_and_missing_proposals() -> None:
    scorer = ExactScorer(np.array([[1.0], [3.0], [2.0]], dtype=np.float32))
    proposed = np.array([[2, -1, 1, 2, 1], [0, 0, 0, 0, -1]])
    found = scorer.rescore(np.array([[1.0], [-1.0]], dtype=np.float32), proposed, 3)
    assert found.rows.tolist() == [[1, 2, -1], [0, -1, -1]]
    assert [[3.0, 2.0, -np.inf], [-1.0, -np.inf, -np.inf]] == found.scores.tolist()


@settings(max_examples=200, deadline=None)
@given(scorers_and_queries(), st.integers(1, 50), st.data())
def test_a_query_alone_is_answered_as_among_others(
    case: tuple[ExactScorer, np.ndarray], k: int, data: st.DataObject
) -> None:
    scorer, queries = case
    proposable = st.integers(-1, len(scorer.embeddings) - 1)
    shape = st.tuples(st.just(len(queries)), st.integers(0, 60))
    proposed = data.draw(hnp.arrays(np.int64, shape, elements=proposable, fill=proposable))
    together = scorer.rescore(queries, proposed, k)
    for i in range(len(queries)):
        alone = scorer.rescore(queries[i : i + 1], proposed[i : i + 1], k)
        assert together.rows[i].tolist() == alone.rows[0].tolist()
        assert together.scores[i].tobytes() == alone.scores[0].tobytes()


@settings(max_examples=50, deadline=None)
@given(scorers_and_queries(), st.integers(0, 2**32 - 1))
def test_proposals_are_rescored_alike_whatever_their_order_and_type(
    case: tuple[ExactScorer, np.ndarray], seed: int
) -> None:
    """An index proposes nearly in order, and short numbers; a scan in the order of rows."""
    scorer, queries = case
    n, k = len(scorer.embeddings), 40
    best_first = scorer.search(queries, n).rows
    nearly = best_first[:, np.minimum(np.arange(n) ^ 1, n - 1)]  # each with its neighbour
    shuffled = np.random.default_rng(seed).permuted(best_first, axis=1)
    expected = scorer.rescore(queries, best_first, k)
    for proposed in (nearly, shuffled, nearly.astype(np.uint32), shuffled.astype(np.int32)):
        found = scorer.rescore(queries, proposed, k)
        np.testing.assert_array_equal(expected.rows, found.rows)
        np.testing.assert_array_equal(expected.scores, found.scores)


def test_negative_zero_ties_with_zero() -> None:
    scorer = ExactScorer(np.array([[0.0], [-0.0], [0.0]], dtype=np.float32))
    assert scorer.search(np.array([[-1.0]], dtype=np.float32), 3).rows.tolist() == [[0, 1, 2]]


def test_squared_norms_are_finite_only_where_scores_are() -> None:
    vectors = np.array([[3, 4], [np.nan, 0], [np.inf, 0], [2e19, 0]], dtype=np.float32)
    assert np.isfinite(squared_norms(vectors)).tolist() == [True, False, False, False]


def test_vectors_are_finite_only_where_scores_are() -> None:
    sound = np.array([[3, 4], [1.7e19, 0]], np.float32)
    assert are_finite(sound, 2)
    assert are_finite(sound[:0], 2)
    assert not are_finite(sound, 3)
    for wrong in (np.nan, np.inf, 2e19):
        assert not are_finite(np.array([[3, 4], [wrong, 0]], np.float32), 2)
    for other in (sound[0], sound.astype(np.float64), sound.T, sound.tolist(), None):
        assert not are_finite(other, 2)


@given(
    rows=st.lists(st.integers(0, 60), unique=True, max_size=60),
    excluded=st.lists(st.integers(-1, 60), max_size=200),
    kind=st.sampled_from([np.int64, np.uint32]),
)
def test_of_what_is_proposed_the_excluded_are_left_out(
    rows: list[int], excluded: list[int], kind: type[np.generic]
) -> None:
    scorer = ExactScorer(np.arange(61, dtype=np.float32)[:, None])
    left_out = padded([np.array(excluded), np.empty(0)])
    found = scorer.rescore(np.ones((2, 1), np.float32), np.array([rows, rows], kind), 60, left_out)
    for line, dropped in zip(found.rows, (set(excluded), set()), strict=True):
        assert sorted(set(rows) - dropped, reverse=True) == line[line >= 0].tolist()
