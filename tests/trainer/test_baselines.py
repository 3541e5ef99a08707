"""The baselines: their formulas on small data, their figures on real data."""

import os

import numpy as np
import pyarrow as pa
import pytest

from trainer import baselines
from trainer.baselines import (
    BASELINES,
    RATING_BASELINES,
    ease,
    ials,
    item_knn,
    popularity,
    rating_biases,
    tutorials_ranking_model,
)
from trainer.datasets import Dataset, load_dataset
from trainer.evaluation import EvaluationError, evaluate, rating_error
from trainer.splits import split

# Users u0..u3 by candidates a..d; candidate d has no interactions, user u3 neither.
INTERACTED = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]], np.float32)
EVERYBODY = np.arange(4)


@pytest.fixture
def tiny():
    users, candidates = np.nonzero(INTERACTED)
    # One interaction twice, and one that is not in train: neither may count.
    return Dataset(
        name="tiny",
        users=pa.table({"user_id": ["u0", "u1", "u2", "u3"]}),
        candidates=pa.table({"candidate_id": ["a", "b", "c", "d"]}),
        user_rows=np.append(users, [0, 3]).astype(np.int32),
        candidate_rows=np.append(candidates, [0, 3]).astype(np.int32),
    )


TRAIN = np.arange(8)


def test_popularity_counts_users(tiny):
    expected = np.tile([3, 2, 2, 0], (4, 1))

    np.testing.assert_array_equal(expected, popularity(tiny, TRAIN)(EVERYBODY))


def test_item_knn_sums_cosines(tiny):
    # Cosines: a-b and a-c are 2/sqrt(6), b-c is 1/2.
    cosine = 2 / np.sqrt(6)
    expected = [
        [cosine, cosine, cosine + 1 / 2, 0],
        [cosine, cosine + 1 / 2, cosine, 0],
        [2 * cosine, cosine + 1 / 2, cosine + 1 / 2, 0],
        [0, 0, 0, 0],
    ]

    np.testing.assert_allclose(expected, item_knn(tiny, TRAIN)(EVERYBODY), rtol=1e-6)


def test_item_knn_keeps_the_nearest_of_each_candidate(tiny):
    cosine = 2 / np.sqrt(6)

    scores = item_knn(tiny, TRAIN, n_neighbors=1)(EVERYBODY)

    # The nearest of b and of c is a; both are the nearest of a.
    np.testing.assert_allclose([cosine, cosine, cosine, 0], scores[0], rtol=1e-6)


def test_ease_is_the_constrained_ridge_regression(tiny):
    scores = ease(tiny, TRAIN, regularization=0.5)(EVERYBODY)

    # Each column, predicted from the others alone: the constraint that defines EASE.
    weights = np.zeros((4, 4))
    for column in range(4):
        others = [i for i in range(4) if i != column]
        x = INTERACTED[:, others].astype(np.float64)
        gram = x.T @ x + 0.5 * np.eye(3)
        weights[others, column] = np.linalg.solve(gram, x.T @ INTERACTED[:, column])
    np.testing.assert_allclose(INTERACTED @ weights, scores, atol=1e-6)


def test_ials_solves_each_user_given_the_candidates():
    """Alternating as the paper's formula says, one row at a time, from the same start."""
    dataset = load_dataset("sample")
    train = np.arange(0, len(dataset), 25)
    observed = np.zeros((dataset.n_users, dataset.n_candidates))
    observed[dataset.user_rows[train], dataset.candidate_rows[train]] = 1
    rng = np.random.default_rng(3)
    users = rng.normal(0, 0.1 / 2, (dataset.n_users, 4))
    candidates = rng.normal(0, 0.1 / 2, (dataset.n_candidates, 4))

    def solve(theirs, observed):
        rows = []
        for row in observed:
            seen = theirs[row > 0]
            weight = 0.02 * (len(seen) + 0.3 * len(theirs))
            left = seen.T @ seen + 0.3 * theirs.T @ theirs + weight * np.eye(4)
            rows.append(np.linalg.solve(left, seen.sum(axis=0)))
        return np.array(rows)

    for _ in range(2):
        users = solve(candidates, observed)
        candidates = solve(users, observed.T)

    actual = ials(
        dataset,
        train,
        dim=4,
        unobserved_weight=0.3,
        regularization=0.02,
        n_iterations=2,
        seed=3,
    )(np.arange(dataset.n_users))
    np.testing.assert_allclose(users @ candidates.T, actual, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "popularity"])
def test_tastes_beat_popularity_on_the_sample(name):
    dataset = load_dataset("sample")
    parts = split(dataset, "random")

    figures = {
        model: evaluate(dataset, parts, BASELINES[model](dataset, parts.train)).metrics
        for model in ("popularity", name)
    }

    popular, personal = figures["popularity"], figures[name]
    assert personal["heldout_recall@10"] > 1.3 * popular["heldout_recall@10"]
    assert personal["gini@10"] < popular["gini@10"]


@pytest.mark.parametrize("fit", [ease, item_knn])
def test_too_many_candidates_for_a_square_matrix_are_refused(tiny, monkeypatch, fit):
    monkeypatch.setattr(baselines, "_MAX_SQUARE_CANDIDATES", 3)

    with pytest.raises(EvaluationError, match="4 are too many for it: at most 3"):
        fit(tiny, TRAIN)


def test_biases_are_shrunk_means_of_what_the_others_leave(tiny):
    # u0 rates a and b, u1 rates a: the mean is 3, every mean is taken with one more of 0.
    ratings = np.array([5, 3, 1], np.float32)
    predict = rating_biases(tiny, np.array([0, 1, 2]), ratings, regularization=1, n_iterations=1)
    # First the candidates: a gets (2 - 2) / 3, b gets 0 / 2; then the users: 2 / 3 and -2 / 2.
    expected = [3 + 2 / 3, 3 - 1, 3]

    np.testing.assert_allclose(expected, predict(np.array([0, 1, 3]), np.array([0, 3, 1])))


@pytest.mark.parametrize("name", RATING_BASELINES)
def test_rating_baselines_beat_the_mean_on_the_sample(name):
    dataset = load_dataset("sample")
    parts = split(dataset, "random")
    ratings = dataset.ratings[parts.train]
    options = {} if name == "biases alone" else {"epochs": 20, "batch_size": 512}

    predict = RATING_BASELINES[name](dataset, parts.train, ratings, **options)

    assert rating_error(dataset, parts, predict) < 0.95 * dataset.ratings[parts.test].std()


@pytest.mark.skipif("TFDS_DATA_DIR" not in os.environ, reason="TFDS_DATA_DIR is not set")
@pytest.mark.parametrize(
    ("fit", "options", "expected"),
    [
        (rating_biases, {}, 0.940),
        (tutorials_ranking_model, {"epochs": 3}, 1.043),
        (tutorials_ranking_model, {"epochs": 23}, 0.936),
    ],
)
def test_the_rating_errors_of_the_reference_on_the_real_100k(fit, options, expected):
    dataset = load_dataset("movielens/100k")
    parts = split(dataset, "random")

    predict = fit(dataset, parts.train, dataset.ratings[parts.train], **options)

    assert expected == pytest.approx(rating_error(dataset, parts, predict), abs=0.02)


@pytest.mark.skipif("TFDS_DATA_DIR" not in os.environ, reason="TFDS_DATA_DIR is not set")
@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("random", "EASE", (0.4231, 0.4457, 0.5659, 0.7070, 0.4436)),
        ("random", "iALS", (0.3845, 0.4199, 0.5606, 0.7050, 0.3941)),
        ("temporal", "EASE", (0.1748, 0.1986, 0.2636, 0.3611, 0.1766)),
        ("leave-last-out", "EASE", (0.1548, 0.2365, 0.3987, 0.5610, 0.0761)),
        ("leave-last-out", "iALS", (0.1654, 0.2322, 0.3987, 0.5726, 0.0840)),
    ],
)
def test_the_figures_of_the_reference_on_the_real_100k(kind, name, expected):
    dataset = load_dataset("movielens/100k")
    parts = split(dataset, kind)

    report = evaluate(dataset, parts, BASELINES[name](dataset, parts.train))

    names = [f"heldout_recall@{k}" for k in (10, 20, 50, 100)] + ["ndcg@10"]
    tolerance = 5e-5 if name == "EASE" else 3e-3
    assert [report.metrics[metric] for metric in names] == pytest.approx(expected, abs=tolerance)
