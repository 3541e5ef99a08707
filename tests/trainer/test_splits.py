"""Splits, row for row those that every published number here refers to."""

import hashlib
import os

import numpy as np
import pyarrow as pa
import pytest

from trainer.datasets import Dataset, load_dataset
from trainer.splits import SplitKind, split, validation_split


def make_dataset(users: list[int], timestamps: list[int] | None) -> Dataset:
    return Dataset(
        name="tiny",
        users=pa.table({"user_id": [f"u{row}" for row in range(max(users) + 1)]}),
        candidates=pa.table({"candidate_id": ["x"]}),
        user_rows=np.array(users, np.int32),
        candidate_rows=np.zeros(len(users), np.int32),
        timestamps=None if timestamps is None else np.array(timestamps),
    )


USERS = [0, 1, 0, 2, 1, 0, 2, 3, 0, 2]
TIMESTAMPS = [50, 10, 70, 30, 20, 70, 90, 40, 60, 80]


def test_random_takes_the_first_of_a_seeded_permutation():
    actual = split(make_dataset(USERS, TIMESTAMPS), "random")

    shuffled = np.random.default_rng(42).permutation(10)
    assert shuffled[:8].tolist() == actual.train.tolist()
    assert shuffled[8:].tolist() == actual.test.tolist()


def test_temporal_tests_on_the_latest_rows():
    actual = split(make_dataset(USERS, TIMESTAMPS), "temporal")

    assert actual.train.tolist() == [1, 4, 3, 7, 0, 8, 2, 5]
    assert actual.test.tolist() == [9, 6]
    assert actual.ordered_by == "timestamp"


def test_the_temporal_cut_can_be_moved():
    actual = split(make_dataset(USERS, TIMESTAMPS), "temporal", train_fraction=0.5)

    assert actual.train.tolist() == [1, 4, 3, 7, 0]


def test_leave_last_out_tests_on_the_last_row_of_each_user():
    actual = split(make_dataset(USERS, TIMESTAMPS), "leave-last-out")

    # User 0 has two rows at second 70: the later row of the source is the last.
    assert actual.test.tolist() == [5, 4, 6, 7]
    assert actual.train.tolist() == [0, 1, 2, 3, 8, 9]


def test_none_trains_on_everything():
    actual = split(make_dataset(USERS, TIMESTAMPS), "none")

    assert actual.train.tolist() == list(range(10))
    assert actual.test.tolist() == []


@pytest.mark.parametrize("timestamps", [None, [7] * 10])
def test_without_telling_timestamps_the_order_of_the_source_counts_and_the_split_says_so(
    timestamps,
):
    dataset = make_dataset(USERS, timestamps)

    actual = split(dataset, "leave-last-out")

    assert actual.test.tolist() == [8, 4, 9, 7]
    assert actual.ordered_by == "row"
    assert split(dataset, "temporal").test.tolist() == [8, 9]


def test_validation_is_cut_from_train_by_the_same_kind():
    dataset = make_dataset(USERS, TIMESTAMPS)

    actual = validation_split(dataset, split(dataset, "leave-last-out"))

    # Of the train rows 0, 1, 2, 3, 8, 9.
    assert actual.kind is SplitKind.LEAVE_LAST_OUT
    assert actual.test.tolist() == [2, 1, 9]
    assert actual.train.tolist() == [0, 3, 8]


@pytest.mark.parametrize("kind", ["random", "temporal", "leave-last-out"])
def test_validation_never_sees_what_is_held_out(kind):
    dataset = load_dataset("sample")
    outer = split(dataset, kind)

    inner = validation_split(dataset, outer)

    assert set(outer.train) == set(inner.train) | set(inner.test)
    assert not set(inner.train) & set(inner.test)
    assert not set(inner.test) & set(outer.test)


@pytest.mark.parametrize("kind", SplitKind)
def test_every_row_is_in_one_part(kind):
    dataset = load_dataset("sample")

    actual = split(dataset, kind)

    parts = np.concatenate([actual.train, actual.test])
    assert np.arange(len(dataset)).tolist() == np.sort(parts).tolist()


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'weekly' is not a valid SplitKind"):
        split(make_dataset(USERS, TIMESTAMPS), "weekly")


@pytest.mark.parametrize("train_fraction", [0, 1, -0.2, 1.5, float("nan")])
def test_a_fraction_outside_its_range_is_refused(train_fraction):
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        split(make_dataset(USERS, TIMESTAMPS), "random", train_fraction=train_fraction)


@pytest.mark.skipif("TFDS_DATA_DIR" not in os.environ, reason="TFDS_DATA_DIR is not set")
def test_the_splits_of_the_real_100k_are_those_of_the_reference():
    dataset = load_dataset("movielens/100k")

    digests = {}
    for kind in ("random", "temporal", "leave-last-out"):
        actual = split(dataset, kind)
        rows = np.concatenate([actual.train, actual.test])
        digests[kind] = (len(actual.test), hashlib.sha256(rows.astype("<i8")).hexdigest()[:16])

    assert digests == {
        "random": (20_000, "337067d090e589be"),
        "temporal": (20_000, "5426332fbe66c5d3"),
        "leave-last-out": (943, "63c48fada38af0e7"),
    }
