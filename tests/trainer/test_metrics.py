"""Every metric against values worked out by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from trainer import metrics
from trainer.datasets.grouping import Grouped

# Three users: hits at ranks 1 and 3; at rank 4 only; none.
HITS = np.array([[1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]], dtype=bool)
HELDOUT = np.array([3, 1, 2])

# Two users' lists out of four candidates; the second list holds one candidate only.
LISTS = np.array([[0, 1, 2], [0, -1, -1]])


@pytest.mark.parametrize(
    ("k", "expected"),
    [(1, [1, 0, 0]), (2, [1 / 2, 0, 0]), (3, [2 / 3, 0, 0]), (4, [2 / 3, 1, 0])],
)
def test_heldout_recall(k, expected):
    np.testing.assert_allclose(expected, metrics.heldout_recall(HITS, HELDOUT, k))


def test_rmse():
    # Errors of 1, -2 and 0.
    actual = metrics.rmse(np.array([4, 1, 3], np.float32), np.array([3, 3, 3], np.float32))

    assert math.sqrt(5 / 3) == pytest.approx(actual)


def test_ndcg():
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    expected = [(1 + 1 / 2) / ideal, 1 / math.log2(5), 0]

    np.testing.assert_allclose(expected, metrics.ndcg(HITS, HELDOUT, 4))


def test_ndcg_of_a_list_full_of_hits_is_one():
    np.testing.assert_allclose([1.0], metrics.ndcg(np.ones((1, 2), bool), np.array([5]), 2))


def test_ndcg_of_a_catalogue_shorter_than_k():
    expected = (1 + 1 / 2) / (1 + 1 / math.log2(3) + 1 / 2)

    np.testing.assert_allclose(expected, metrics.ndcg(HITS, HELDOUT, 10)[0])


@pytest.mark.parametrize(("k", "expected"), [(3, [1, 0, 0]), (4, [1, 1 / 4, 0])])
def test_reciprocal_rank(k, expected):
    np.testing.assert_allclose(expected, metrics.reciprocal_rank(HITS, k))


@pytest.mark.parametrize(("k", "expected"), [(3, [1, 0, 0]), (4, [1, 1, 0])])
def test_hit_rate(k, expected):
    assert expected == metrics.hit_rate(HITS, k).tolist()


@pytest.mark.parametrize(("k", "expected"), [(1, 1 / 4), (2, 2 / 4), (3, 3 / 4)])
def test_coverage(k, expected):
    assert expected == metrics.coverage(LISTS, 4, k)


def test_gini_of_equal_shares_is_zero():
    assert metrics.gini(np.array([[0], [1], [2], [3]]), 4, 1) == 0


def test_gini_of_one_candidate_in_all_lists():
    # All of the lists to one of four candidates: 1 - 1/4.
    assert metrics.gini(np.array([[2], [2], [2]]), 4, 1) == pytest.approx(3 / 4)


def test_gini_by_its_definition():
    # Counts 2, 1, 1, 0: mean absolute difference over all ordered pairs / (2 * mean).
    counts = [2, 1, 1, 0]
    differences = sum(abs(a - b) for a in counts for b in counts) / 16

    assert metrics.gini(LISTS, 4, 3) == pytest.approx(differences / 2)


def test_gini_of_empty_lists_is_zero():
    assert metrics.gini(np.array([[-1]]), 4, 1) == 0


def test_intra_list_diversity(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = Grouped.by(np.array([0, 1, 1, 2]), np.array([0, 0, 1, 1]), n_groups=4)
    lists = np.array([[0, 1, 2], [0, 0, -1], [3, 0, -1], [1, -1, -1]])

    # Cosines: 0-1 and 1-2 are 1/sqrt(2), 0-2 is 0; a candidate and itself 1; one without labels 0.
    expected = [1 - 2 / math.sqrt(2) / 3, 0, 1, 0]
    np.testing.assert_allclose(expected, metrics.intra_list_diversity(lists, labels, 3), atol=1e-12)
    monkeypatch.setattr(metrics, "_MAX_SUMS", 5)  # two users at once
    np.testing.assert_allclose(expected, metrics.intra_list_diversity(lists, labels, 3), atol=1e-12)


def test_novelty():
    known_by = np.array([8, 2, 0, 4])

    # Of 8 users: 0 bits, 2 bits, and 3 for the one that nobody knows.
    np.testing.assert_allclose([5 / 3, 0], metrics.novelty(LISTS, known_by, 8, 3))


def test_paired_bootstrap_of_a_constant_difference_has_no_spread():
    ours = np.array([0.5, 0.7, 0.2])

    interval = metrics.paired_bootstrap(ours, ours - 0.1, n_resamples=50)

    assert interval.model_dump() == pytest.approx({"mean": 0.1, "low": 0.1, "high": 0.1})


def test_paired_bootstrap_matches_the_normal_approximation():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(0.3, 1, 400), rng.normal(0, 1, 400)

    interval = metrics.paired_bootstrap(ours, theirs)

    difference = ours - theirs
    error = difference.std() / math.sqrt(400)
    assert interval.mean == pytest.approx(difference.mean())
    assert interval.low == pytest.approx(difference.mean() - 1.96 * error, abs=0.1 * error)
    assert interval.high == pytest.approx(difference.mean() + 1.96 * error, abs=0.1 * error)
    assert interval == metrics.paired_bootstrap(ours, theirs)


@given(
    st_numpy.arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 8))),
    st.integers(1, 12),
    st.integers(0, 20),
)
def test_accuracy_lies_between_none_and_all(hits, k, more_heldout):
    heldout_counts = np.maximum(hits.sum(axis=1) + more_heldout, 1)

    for values in (
        metrics.heldout_recall(hits, heldout_counts, k),
        metrics.ndcg(hits, heldout_counts, k),
        metrics.reciprocal_rank(hits, k),
        metrics.hit_rate(hits, k),
    ):
        assert (values >= 0).all()
        assert (values <= 1 + 1e-12).all()


def test_chance_is_what_all_random_orders_find_on_average() -> None:
    is_heldout = np.array([True, True, True, False, False])
    orders = np.array(list(itertools.permutations(is_heldout)))
    found = metrics.heldout_recall(orders, np.full(len(orders), 3), 2).mean()
    assert found == pytest.approx(metrics.chance_recall(np.array([3]), 5, 2)[0])
