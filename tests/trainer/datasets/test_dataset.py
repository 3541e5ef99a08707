"""The Dataset itself: rows, ids, and narrowing by rating."""

import numpy as np
import pyarrow as pa
import pytest

from trainer.datasets.dataset import Dataset, DatasetError, rows_of, sorted_unique


def make_dataset(ratings: list[float] | None) -> Dataset:
    return Dataset(
        name="tiny",
        users=pa.table({"user_id": ["a", "b"]}),
        candidates=pa.table({"candidate_id": ["x", "y", "z"]}),
        user_rows=np.array([0, 0, 1], np.int32),
        candidate_rows=np.array([0, 2, 1], np.int32),
        timestamps=np.array([10, 20, 30]),
        ratings=None if ratings is None else np.array(ratings, np.float32),
    )


def test_sizes_and_ids():
    dataset = make_dataset([5, 1, 3])

    assert (len(dataset), dataset.n_users, dataset.n_candidates) == (3, 2, 3)
    assert dataset.user_ids.row("b") == 1
    assert dataset.candidate_ids.row("z") == 2


def test_min_rating_keeps_users_candidates_and_the_order_of_interactions():
    narrowed = make_dataset([5, 1, 3]).with_min_rating(3)

    assert narrowed.user_rows.tolist() == [0, 1]
    assert narrowed.candidate_rows.tolist() == [0, 1]
    assert narrowed.timestamps.tolist() == [10, 30]
    assert narrowed.ratings.tolist() == [5.0, 3.0]
    assert (narrowed.n_users, narrowed.n_candidates) == (2, 3)


def test_min_rating_needs_ratings():
    with pytest.raises(DatasetError, match="tiny has no ratings"):
        make_dataset(None).with_min_rating(3)


def test_min_rating_above_every_rating_is_refused():
    with pytest.raises(DatasetError, match="its highest rating is 5"):
        make_dataset([5, 1, 3]).with_min_rating(5.5)


def test_rows_are_sorted_by_the_bytes_of_the_ids():
    ids = pa.chunked_array([["2", "10"], ["é", "z", "10"]])

    known = sorted_unique(ids)

    assert known.to_pylist() == ["10", "2", "z", "é"]
    assert rows_of(ids, known).tolist() == [1, 0, 3, 2, 0]
    assert rows_of(pa.chunked_array([["unknown"]]), known).tolist() == [-1]
