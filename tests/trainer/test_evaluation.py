"""Ranking all candidates for every test user, against the formulas of the reference."""

import dataclasses
import os

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from trainer import evaluation
from trainer.datasets import Dataset, load_dataset
from trainer.evaluation import (
    Evaluation,
    EvaluationError,
    evaluate,
    rank,
    ranked_order,
    rating_error,
    top_rows,
)
from trainer.splits import Split, SplitKind, split


def make_dataset(pairs: list[tuple[int, int]], genres: list[list[str]] | None = None) -> Dataset:
    users, candidates = zip(*pairs, strict=True)
    columns = {"candidate_id": ["a", "b", "c", "d"]} | ({} if genres is None else {"tags": genres})
    return Dataset(
        name="tiny",
        users=pa.table({"user_id": [f"u{row}" for row in range(max(users) + 1)]}),
        candidates=pa.table(columns),
        user_rows=np.array(users, np.int32),
        candidate_rows=np.array(candidates, np.int32),
    )


def make_split(train: list[int], test: list[int], kind: str = "random") -> Split:
    return Split(SplitKind(kind), np.array(train, np.int64), np.array(test, np.int64), "row")


def score_by_row(scores):
    return lambda user_rows: np.asarray(scores, np.float32)[user_rows]


def test_train_rows_are_left_out_and_hits_are_found():
    dataset = make_dataset([(0, 0), (0, 2), (1, 1), (1, 3)])

    rankings = rank(dataset, make_split([0, 2], [1, 3]), score_by_row([[9, 1, 5, 3], [1, 9, 5, 3]]))

    assert rankings.user_rows.tolist() == [0, 1]
    assert rankings.lists.tolist() == [[2, 3, 1, -1], [2, 3, 0, -1]]
    assert rankings.hits.tolist() == [[True, False, False, False], [False, True, False, False]]
    assert rankings.heldout_counts.tolist() == [1, 1]


def test_a_candidate_in_train_and_test_is_not_held_out():
    dataset = make_dataset([(0, 0), (0, 0), (0, 1)])

    rankings = rank(dataset, make_split([0], [1, 2]), score_by_row([[0, 0, 0, 0]]))

    assert rankings.heldout_counts.tolist() == [1]


def test_a_candidate_held_out_twice_counts_once():
    dataset = make_dataset([(0, 0), (0, 1), (0, 1)])

    rankings = rank(dataset, make_split([0], [1, 2]), score_by_row([[0, 0, 0, 0]]))

    assert rankings.heldout_counts.tolist() == [1]


@pytest.mark.parametrize(("kind", "expected"), [("random", [0, 1]), ("temporal", [0])])
def test_only_the_temporal_split_leaves_out_users_without_train_rows(kind, expected):
    dataset = make_dataset([(0, 0), (0, 1), (1, 2)])

    rankings = rank(dataset, make_split([0], [1, 2], kind), score_by_row(np.zeros((2, 4))))

    assert expected == rankings.user_rows.tolist()


def test_batches_change_nothing(monkeypatch):
    dataset = load_dataset("sample")
    parts = split(dataset, "random")
    scores = np.random.default_rng(0).random((dataset.n_users, dataset.n_candidates))

    whole = evaluate(dataset, parts, score_by_row(scores))
    monkeypatch.setattr(evaluation, "_MAX_SCORES", 7 * dataset.n_candidates)

    assert whole == evaluate(dataset, parts, score_by_row(scores))


def test_the_report_survives_json():
    dataset = make_dataset([(0, 0), (0, 1)], genres=[["x"], ["x", "y"], [], ["y"]])

    report = evaluate(dataset, make_split([0], [1]), score_by_row([[0, 3, 2, 1]]))

    assert report == Evaluation.model_validate_json(report.model_dump_json())
    assert (report.dataset, report.split, report.n_users) == ("tiny", "random", 1)
    assert report.metrics["heldout_recall@10"] == 1
    assert report.metrics["coverage@10"] == 3 / 4
    # One user, one candidate each: the three listed are known to nobody, which counts as one.
    assert report.metrics["novelty@10"] == 0
    # Of the pairs b-c, b-d, c-d only b-d shares a label: cosine 1/sqrt(2).
    assert report.metrics["diversity@10"] == pytest.approx(1 - 2**-0.5 / 3)


def test_without_lists_in_the_metadata_there_is_no_diversity():
    report = evaluate(
        make_dataset([(0, 0), (0, 1)]), make_split([0], [1]), score_by_row([[0, 0, 0, 0]])
    )

    assert not [name for name in report.metrics if name.startswith("diversity")]


def test_nobody_to_score_is_refused():
    dataset = make_dataset([(0, 0), (0, 1)])

    with pytest.raises(EvaluationError, match="none split of tiny leaves nobody to score"):
        evaluate(dataset, split(dataset, "none"), score_by_row([[0, 0, 0, 0]]))


def test_scores_that_are_not_numbers_are_refused():
    dataset = make_dataset([(0, 0), (0, 1)])

    with pytest.raises(EvaluationError, match="NaN"):
        evaluate(dataset, make_split([0], [1]), score_by_row([[0, np.nan, 0, 0]]))


@given(
    st_numpy.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 12)),
        elements=st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0]),
    ),
    st.integers(1, 15),
)
def test_top_rows_is_a_stable_sort_cut_short(scores, k):
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]

    np.testing.assert_array_equal(expected, top_rows(scores, k))


def reference_figures(dataset, train, test, scores, kind):
    """R@k and N@10 from dense matrices, independently of the package's code."""
    users, candidates = dataset.user_rows, dataset.candidate_rows
    in_train = np.zeros(scores.shape, bool)
    in_train[users[train], candidates[train]] = True
    relevant = np.zeros(scores.shape, bool)
    relevant[users[test], candidates[test]] = True
    relevant &= ~in_train
    recalls, gains = {k: [] for k in (10, 20, 50, 100)}, []
    for user in range(dataset.n_users):
        n_relevant = relevant[user].sum()
        if n_relevant == 0 or (kind == "temporal" and not in_train[user].any()):
            continue
        order = np.argsort(np.where(in_train[user], np.inf, -scores[user]), kind="stable")
        hits = relevant[user][order]
        for k, values in recalls.items():
            values.append(hits[:k].sum() / min(k, n_relevant))
        discounts = 1 / np.log2(np.arange(2, 12))
        gains.append((hits[:10] * discounts).sum() / discounts[: min(10, n_relevant)].sum())
    figures = {f"heldout_recall@{k}": np.mean(values) for k, values in recalls.items()}
    return figures | {"ndcg@10": np.mean(gains)}


@pytest.mark.parametrize("kind", ["random", "temporal", "leave-last-out"])
def test_the_figures_are_those_of_the_reference_formulas(kind):
    dataset = load_dataset("sample")
    parts = split(dataset, kind)
    popularity = np.bincount(dataset.candidate_rows[parts.train], minlength=dataset.n_candidates)
    scores = np.tile(popularity.astype(np.float32), (dataset.n_users, 1))

    report = evaluate(dataset, parts, score_by_row(scores))

    expected = reference_figures(dataset, parts.train, parts.test, scores, kind)
    assert {name: report.metrics[name] for name in expected} == pytest.approx(expected)


@pytest.mark.skipif("TFDS_DATA_DIR" not in os.environ, reason="TFDS_DATA_DIR is not set")
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("random", (941, 0.2116, 0.2174, 0.3023, 0.4293, 0.2164)),
        ("temporal", (109, 0.1492, 0.1866, 0.2639, 0.3483, 0.1463)),
        ("leave-last-out", (943, 0.0732, 0.1124, 0.2057, 0.3277, 0.0373)),
    ],
)
def test_popularity_on_the_real_100k_to_four_digits(kind, expected):
    dataset = load_dataset("movielens/100k")
    parts = split(dataset, kind)
    popularity = np.bincount(dataset.candidate_rows[parts.train], minlength=dataset.n_candidates)

    report = evaluate(
        dataset, parts, lambda rows: np.tile(popularity.astype(np.float32), (len(rows), 1))
    )

    names = [f"heldout_recall@{k}" for k in (10, 20, 50, 100)] + ["ndcg@10"]
    actual = (report.n_users, *(round(report.metrics[name], 4) for name in names))
    assert expected == actual


def test_ratings_are_predicted_for_all_test_rows():
    dataset = dataclasses.replace(
        make_dataset([(0, 0), (0, 1), (1, 2)]), ratings=np.array([5, 1, 4], np.float32)
    )
    # User 1 is new, and counts: errors of 10 - 1 and 12 - 4.
    actual = rating_error(
        dataset, make_split([0], [1, 2]), lambda users, candidates: 9.0 + users + candidates
    )

    assert np.sqrt((9**2 + 8**2) / 2) == pytest.approx(actual)


@pytest.mark.parametrize(
    ("ratings", "prediction", "sentence"),
    [(None, 3.0, "holds out no ratings"), ([5, 1, 4], np.nan, "NaN")],
)
def test_what_has_no_rating_error_is_refused(ratings, prediction, sentence):
    dataset = dataclasses.replace(
        make_dataset([(0, 0), (0, 1), (1, 2)]),
        ratings=None if ratings is None else np.array(ratings, np.float32),
    )

    with pytest.raises(EvaluationError, match=sentence):
        rating_error(dataset, make_split([0], [1, 2]), lambda *_: np.full(2, prediction))


def test_the_order_of_predicted_ratings_is_measured_against_that_of_retrieval():
    dataset = make_dataset([(0, 0), (0, 1), (1, 2), (1, 0)])
    rankings = rank(dataset, make_split([0, 2], [1, 3]), score_by_row([[9, 8, 7, 6], [7, 8, 9, 6]]))
    # Retrieved: 1, 2, 3 for user 0 (1 is held out), 1, 0, 3 for user 1 (0 is held out).
    actual = ranked_order(rankings, lambda *rows: rows[1] + 0.0, n_retrieved=2)

    # Ordered by falling row: 2, 1 and 1, 0. Only the first list changes.
    assert actual.n_retrieved == 2
    assert (1 / np.log2(3) + 1 / np.log2(3)) / 2 == pytest.approx(actual.ndcg)
    assert (1 / np.log2(3) - 1) / 2 == pytest.approx(actual.lead.mean)


def test_padding_stays_behind_what_was_retrieved():
    dataset = make_dataset([(0, 0), (0, 1)])
    rankings = rank(dataset, make_split([0], [1]), score_by_row([[9, 8, 7, 6]]))

    actual = ranked_order(rankings, lambda *rows: 0.0 - rows[1], n_retrieved=100)

    assert pytest.approx(1) == actual.ndcg
