"""The built-in sample: reproducible, complete, and with tastes worth learning."""

import numpy as np

from trainer.datasets import sample


def test_one_seed_gives_one_dataset():
    first, again, other = sample.load(seed=1), sample.load(seed=1), sample.load(seed=2)

    assert first.candidates.equals(again.candidates)
    np.testing.assert_array_equal(first.candidate_rows, again.candidate_rows)
    np.testing.assert_array_equal(first.timestamps, again.timestamps)
    assert not first.candidates.equals(other.candidates)


def test_size_and_columns():
    dataset = sample.load()

    assert (dataset.n_users, dataset.n_candidates) == (500, 800)
    assert 27_000 < len(dataset) < 33_000
    assert dataset.candidates.column_names == ["candidate_id", "title", "genres", "year"]
    assert dataset.candidates["candidate_id"].null_count == 0
    assert all(genres for genres in dataset.candidates["genres"].to_pylist())
    assert len(set(dataset.candidates["title"].to_pylist())) == 800
    assert {1, 2, 3, 4, 5} == set(dataset.ratings.tolist())


def test_ids_people_would_type_exist():
    assert sample.load().user_ids.row("42") >= 0


def test_nobody_interacts_twice_with_one_candidate_and_time_rises():
    dataset = sample.load()

    pairs = dataset.user_rows.astype(np.int64) * dataset.n_candidates + dataset.candidate_rows
    assert len(pairs) == len(np.unique(pairs))
    same_user = dataset.user_rows[1:] == dataset.user_rows[:-1]
    assert (np.diff(dataset.timestamps)[same_user] >= 0).all()


def test_popularity_has_a_long_tail():
    counts = np.sort(np.bincount(sample.load().candidate_rows, minlength=800))[::-1]

    assert counts[0] > 5 * np.median(counts)
    assert counts[:160].sum() > 0.4 * counts.sum()
