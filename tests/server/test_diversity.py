"""Variety: maximal marginal relevance and groups."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from server.diversity import choose_by_mmr, choose_per_group, encode_groups

DIRECTIONS = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=np.float32)
SCORES = np.array([1.0, 0.9, 0.8, 0.0], dtype=np.float32)


def test_mmr_prefers_what_is_unlike_the_chosen() -> None:
    assert choose_by_mmr(SCORES, DIRECTIONS, 0.5, 4).tolist() == [0, 2, 1, 3]


def test_mmr_by_score_alone_keeps_the_order() -> None:
    assert choose_by_mmr(SCORES, DIRECTIONS, 1.0, 4).tolist() == [0, 1, 2, 3]


def test_mmr_of_equal_scores_and_of_nothing() -> None:
    assert choose_by_mmr(np.ones(4, np.float32), DIRECTIONS, 0.5, 2).tolist() == [0, 2]
    assert choose_by_mmr(np.empty(0, np.float32), DIRECTIONS[:0], 0.5, 2).tolist() == []


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.floats(0, 1))
def test_mmr_chooses_each_once_and_more_begins_with_fewer(seed: int, n: int, weight: float) -> None:
    rng = np.random.default_rng(seed)
    scores = np.sort(rng.normal(size=20).astype(np.float32))[::-1]
    directions = rng.normal(size=(20, 3)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    chosen = choose_by_mmr(scores, directions, weight, 20).tolist()
    assert list(range(20)) == sorted(chosen)
    assert chosen[:n] == choose_by_mmr(scores, directions, weight, n).tolist()


def test_groups_are_cut_to_size_and_nulls_are_groups_of_their_own() -> None:
    groups = np.array([0, 0, 0, 1, -1, -1, 1, 1])
    assert choose_per_group(groups, 2, 8).tolist() == [0, 1, 3, 4, 5, 6]
    assert choose_per_group(groups, 1, 3).tolist() == [0, 3, 4]


@given(st.lists(st.integers(-1, 5)), st.integers(1, 3), st.integers(0, 12))
def test_groups_are_cut_as_one_would_by_hand(groups: list[int], max_count: int, n: int) -> None:
    kept: list[int] = []
    for place, group in enumerate(groups):
        if group < 0 or [groups[other] for other in kept].count(group) < max_count:
            kept.append(place)
    found = choose_per_group(np.array(groups, dtype=np.int64), max_count, n)
    assert kept[:n] == found.tolist()


def test_groups_of_a_column() -> None:
    assert encode_groups(pa.array(["x", "y", None, "x"])).tolist() == [0, 1, -1, 0]
