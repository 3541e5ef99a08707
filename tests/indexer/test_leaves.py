"""What is eligible in some leaves of a corpus."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer import _exact
from indexer.exact import ExactScorer
from indexer.leaves import Leaves, members_by_leaf


def in_leaves(embeddings: np.ndarray, leaf_of: np.ndarray, n_leaves: int) -> Leaves:
    """Put a corpus into leaves around the means of their members, in bytes as ScaNN would."""
    members = members_by_leaf(leaf_of)
    scales = np.maximum(np.abs(embeddings).max(axis=0), 1e-9) / 127
    coarse = np.rint(embeddings[members] / scales).astype(np.int8)
    centers = np.zeros((n_leaves, embeddings.shape[1]), np.float32)
    for leaf in np.unique(leaf_of):
        centers[leaf] = embeddings[leaf_of == leaf].mean(axis=0)
    return Leaves.of(centers, leaf_of, coarse, scales.astype(np.float32))


def test_members_of_a_leaf_are_together() -> None:
    embeddings = np.arange(5, dtype=np.float32)[:, None]
    leaves = in_leaves(embeddings, np.array([2, 0, 2, 0, 3]), n_leaves=4)
    assert [1, 3, 0, 2, 4] == leaves.members.tolist()
    assert [0, 2, 2, 4, 5] == leaves.starts.tolist()
    assert [[2.0], [0.0], [1.0], [4.0]] == leaves.centers.tolist()
    assert [32, 95, 0, 64, 127] == leaves.coarse[:, 0].tolist()


@pytest.mark.parametrize("leaf", [-1, 2])
def test_a_leaf_that_there_is_not(leaf: int) -> None:
    embeddings = np.ones((3, 1), np.float32)
    with pytest.raises(ValueError, match="a candidate is in none of the 2 leaves"):
        Leaves.of(embeddings[:2], np.array([0, leaf, 1]), embeddings, np.ones(1, np.float32))


def test_only_the_most_promising_leaves_are_looked_into() -> None:
    embeddings = np.array([[9], [1], [8], [2], [7], [3]], np.float32)
    leaves = in_leaves(embeddings, np.array([0, 1, 0, 1, 0, 1]), n_leaves=2)
    eligible = np.array([False, True, True, True, True, True])
    found, counts = ExactScorer(embeddings).search_leaves(
        np.array([[2], [-1]], np.float32), 3, eligible, leaves, n_searched=1, n_rescored=3
    )
    assert [[2, 4, -1], [1, 3, 5]] == found.rows.tolist()
    assert [[16.0, 14.0, -np.inf], [-1.0, -2.0, -3.0]] == found.scores.tolist()
    assert ([[3], [3]], [[2], [3]]) == (counts.n_seen.tolist(), counts.n_kept.tolist())


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(1, 700),
    dim=st.sampled_from([1, 3, 16, 20, 64]),
    n_leaves=st.integers(1, 9),
    k=st.integers(1, 40),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_in_all_leaves_it_is_an_exact_search(
    n: int, dim: int, n_leaves: int, k: int, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    embeddings = rng.standard_normal((n, dim), dtype=np.float32)
    queries = rng.standard_normal((3, dim), dtype=np.float32)
    leaf_of = rng.integers(0, n_leaves, n)
    eligible = rng.random(n) < share
    scorer = ExactScorer(embeddings)
    found, counts = scorer.search_leaves(
        *(queries, k, eligible, in_leaves(embeddings, leaf_of, n_leaves)),
        n_searched=n_leaves,
        n_rescored=max(n, k),
    )
    expected = scorer.search(queries, k, eligible)
    np.testing.assert_array_equal(expected.rows, found.rows)
    np.testing.assert_array_equal(expected.scores, found.scores)
    assert [n] * 3 == counts.n_seen[:, -1].tolist()
    assert [np.count_nonzero(eligible)] * 3 == counts.n_kept[:, -1].tolist()


@pytest.mark.parametrize("dim", [5, 64, 5000])
def test_what_seems_best_in_bytes_is_scored_exactly(dim: int) -> None:
    rng = np.random.default_rng(dim)
    embeddings = rng.standard_normal((2000, dim), dtype=np.float32)
    queries = rng.standard_normal((20, dim), dtype=np.float32)
    scorer = ExactScorer(embeddings)
    leaves = in_leaves(embeddings, rng.integers(0, 7, 2000), n_leaves=7)
    everything = np.ones(2000, bool)
    found, _ = scorer.search_leaves(queries, 20, everything, leaves, n_searched=7, n_rescored=40)
    np.testing.assert_array_equal(scorer.search(queries, 20).rows, found.rows)


TASK = [
    np.zeros((2, 4), np.float32),
    np.zeros((1, 4), np.float32),
    np.zeros((1, 2), np.int64),
    np.zeros((1, 2), np.float32),
    np.ones(2, np.bool_),
    np.zeros((3, 4), np.float32),
    np.array([0, 1], np.int32),
    np.array([0, 1, 2, 2]),
    np.zeros((2, 4), np.int8),
    np.ones(4, np.float32),
    np.zeros((1, 3), np.int64),
    np.zeros((1, 3), np.int64),
    np.zeros(2, np.int64),
]


@pytest.mark.parametrize(
    ("place", "array"),
    [
        (4, np.ones(3, np.bool_)),
        (4, np.ones(2, np.int8)),
        (5, np.zeros((3, 5), np.float32)),
        (6, np.array([0, 1])),
        (6, np.zeros(3, np.int32)),
        (7, np.array([0, 1, 2])),
        (7, np.array([0, 1, 2, 2], np.int32)),
        (8, np.zeros((2, 4), np.uint8)),
        (8, np.zeros((3, 4), np.int8)),
        (8, np.zeros((2, 5), np.int8)),
        (9, np.ones(5, np.float32)),
        (10, np.zeros((2, 3), np.int64)),
        (11, np.zeros((1, 2), np.int64)),
        (12, np.zeros(1, np.int64)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(place: int, array: np.ndarray) -> None:
    arrays: list[Any] = list(TASK)
    _exact.scan_leaves(*arrays)
    arrays[place] = array
    with pytest.raises(ValueError, match="do not fit"):
        _exact.scan_leaves(*arrays)


def test_more_leaves_than_there_are_are_refused() -> None:
    counts = [np.zeros((1, 4), np.int64), np.zeros((1, 4), np.int64)]
    with pytest.raises(ValueError, match="do not fit"):
        _exact.scan_leaves(*TASK[:10], *counts, TASK[12])
    with pytest.raises(TypeError, match="13 arguments, not 12"):
        _exact.scan_leaves(*TASK[:12])  # type: ignore[call-arg]
