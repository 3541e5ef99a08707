"""Cosine without the bias dimension."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from server.similarity import Directions

EMBEDDINGS = np.array([[3, 0, 9], [0, 2, 9], [1, 1, 0], [0, 0, 5], [6, 0, 0]], dtype=np.float32)


def test_the_bias_and_the_length_count_for_nothing() -> None:
    directions = Directions(EMBEDDINGS, has_bias_dimension=True)
    found = directions.search(directions.of_rows(np.array([0]))[0], 5, None)
    assert found.rows[0].tolist() == [0, 4, 2, 1, 3]
    np.testing.assert_allclose([1, 1, 0.5**0.5, 0, 0], found.scores[0], atol=1e-6)


def test_without_a_bias_dimension_every_value_counts() -> None:
    directions = Directions(EMBEDDINGS, has_bias_dimension=False)
    found = directions.search(directions.of_rows(np.array([3]))[0], 2, None)
    assert found.rows[0].tolist() == [3, 1]


def test_only_eligible_rows_and_padding() -> None:
    directions = Directions(EMBEDDINGS, has_bias_dimension=True)
    eligible = np.array([False, True, True, False, False])
    found = directions.search(np.array([1, 0, 0], np.float32), 3, eligible)
    assert found.rows[0].tolist() == [2, 1, -1]


def test_a_norm_that_all_share_is_known() -> None:
    same = np.array([[0, 2, 1], [2, 0, 5]], dtype=np.float32)
    assert Directions(same, has_bias_dimension=True).common_norm == 2.0
    assert Directions(same, has_bias_dimension=False).common_norm is None


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_equals_a_sort_of_everything(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    embeddings = rng.integers(-2, 3, size=(30, 3)).astype(np.float32)
    directions = Directions(embeddings, has_bias_dimension=False)
    query = directions.of_vector(rng.normal(size=3).astype(np.float32))
    everything = directions.search(query, 30, None)
    found = directions.search(query, k, None)
    assert everything.rows[0, :k].tolist() == found.rows[0, : min(k, 30)].tolist()
    order = np.lexsort((everything.rows[0], -everything.scores[0]))
    assert list(range(30)) == order.tolist()
