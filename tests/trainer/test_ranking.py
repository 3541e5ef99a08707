"""The ranking model: what it predicts, what it learns, and what it refuses."""

import dataclasses
import os

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from trainer.datasets import Dataset, load_dataset
from trainer.errors import TrainingError
from trainer.features import Feature, Features
from trainer.keras import tf
from trainer.metrics import rmse
from trainer.model_config import RankerConfig
from trainer.ranking import Part, Ranker, RankingModel, fit
from trainer.ranking_data import NoRatingsError, encode
from trainer.splits import split

SMALL = RankerConfig(dim=3, members=2, max_history_length=4, epochs=3)

# u1 likes what everybody dislikes; c3 has never been rated.
RATED = [("u0", "c0", 5), ("u0", "c1", 1), ("u1", "c0", 1), ("u1", "c1", 5), ("u2", "c2", 4)]


@pytest.fixture(scope="module")
def tiny() -> Dataset:
    users, candidates, ratings = zip(*RATED, strict=True)
    return Dataset(
        name="tiny",
        users=pa.table({"user_id": ["u0", "u1", "u2"], "age": [20, 30, 40]}),
        candidates=pa.table(
            {
                "candidate_id": ["c0", "c1", "c2", "c3"],
                "title": ["A long title", "A long name", "Not a short one", "What a title"],
                "genres": [["a"], ["a", "b"], [], ["b"]],
            }
        ),
        user_rows=np.array([int(user[1]) for user in users], np.int32),
        candidate_rows=np.array([int(candidate[1]) for candidate in candidates], np.int32),
        ratings=np.array(ratings, np.float32),
    )


@pytest.fixture(scope="module")
def ranker(tiny: Dataset) -> Ranker:
    return fit(tiny, np.arange(5), SMALL, seed=1)


def predicted(ranker: Ranker) -> np.ndarray:
    users, candidates = np.indices((3, 4)).reshape(2, -1)
    return ranker.predict(users, candidates)


def test_a_part_is_the_sum_of_its_tokens_over_the_root_of_their_number() -> None:
    part = Part(Feature(name="x", kind="list", length=4, n_tokens=9), width=2, seed=0)
    (weights,) = part.weights
    expected = [
        (weights[3] + weights[7]) / np.sqrt(2),
        weights[5],
        np.zeros(3),
    ]
    actual = part(np.array([[7, 3, 0, 0], [5, 0, 0, 0], [0, 0, 0, 0]], np.int32))
    np.testing.assert_allclose(expected, actual, atol=1e-7)


def test_a_number_is_a_multiple_of_its_part() -> None:
    part = Part(Feature(name="x", kind="number"), width=2, seed=0)
    (weights,) = part.weights
    actual = part(np.array([[2.0], [0.0]], np.float32))
    np.testing.assert_allclose([2 * weights[0], np.zeros(3)], actual, atol=1e-7)


def test_a_rating_is_the_mean_of_the_members() -> None:
    model = RankingModel(Features(query=(), candidate=()), SMALL, mean=3.0, deviation=2.0, seed=0)
    # Two members of three factors, then the bias.
    query = np.array([[1, 0, 0, 0, 2, 0, 0.5]], np.float32)
    candidates = np.array([[4, 9, 9, 9, 1, 9, 0.25], [0, 0, 0, 0, 0, 0, -1]], np.float32)
    expected = [3 + 2 * ((4 + 2) / 2 + 0.75), 3 + 2 * (0 + 0.5 - 1)]
    np.testing.assert_allclose(expected, model.rate(query, candidates))


def test_the_loss_is_the_error_of_each_member_and_the_price_of_the_parts(tiny: Dataset) -> None:
    config = SMALL.model_copy(update={"id_regularization": 0.0, "regularization": 0.0})
    data = encode(tiny, np.arange(5), config.max_history_length)
    model = RankingModel(data.description.features, config, mean=3.0, deviation=2.0, seed=0)
    for part in model.parts:
        part.weights[0].assign(np.zeros_like(part.weights[0]))
    biases = np.zeros_like(model.query.parts[1].weights[0])
    biases[:, -1] = 0.5
    model.query.parts[1].weights[0].assign(biases)
    inputs = {
        "query": data.queries(slice(1)),
        "candidate": [one[[0, 1]] for one in data.candidate_inputs],
        "rater": np.array([0, 0]),
        "rated": np.array([0, 1]),
        "rating": np.array([5.0, 1.0], np.float32),
    }
    # In deviations from the mean: 1 and -1 are wanted, 0.5 is said.
    expected = (0.5**2 + 1.5**2) / 2 + config.bias_regularization * 0.5**2
    np.testing.assert_allclose(expected, model.compute_loss(inputs), rtol=1e-6)


def test_what_it_reads_leaves_out_texts_and_what_names_a_line(tiny: Dataset) -> None:
    description = encode(tiny, np.arange(5), SMALL.max_history_length).description
    # Two genres are half of the four lines, which is just not too many.
    assert [one.name for one in description.features.query] == ["history", "user_id", "age"]
    assert [one.name for one in description.features.candidate] == ["candidate_id", "genres"]
    assert description.candidate_tokens == {"genres": ("a", "b")}
    assert description.query_tokens == {}


def test_a_column_that_it_cannot_read_is_refused(tiny: Dataset) -> None:
    users = pa.table({"user_id": ["u0", "u1", "u2"], "wealth": [1.0, 2.0, 1e300]})
    with pytest.raises(TrainingError, match="column 'wealth', read by the ranking model: 1e"):
        encode(dataclasses.replace(tiny, users=users), np.arange(5), SMALL.max_history_length)


def test_ratings_may_be_of_any_size(tiny: Dataset, ranker: Ranker) -> None:
    scale = 1e-30
    assert tiny.ratings is not None
    scaled = fit(
        dataclasses.replace(tiny, ratings=tiny.ratings * np.float32(scale)),
        np.arange(5),
        SMALL,
        seed=1,
    )
    np.testing.assert_allclose(predicted(ranker), predicted(scaled) / scale, rtol=1e-3)


def test_unknown_users_are_average_ones(ranker: Ranker) -> None:
    unknown = ranker.model.query([np.zeros((1, n), np.int32) for n in (4, 1)] + [np.zeros((1, 1))])
    np.testing.assert_array_equal(np.zeros_like(unknown), unknown)


def test_one_seed_gives_one_model(tiny: Dataset, ranker: Ranker) -> None:
    again, other = (fit(tiny, np.arange(5), SMALL, seed=seed) for seed in (1, 2))
    np.testing.assert_array_equal(predicted(ranker), predicted(again))
    assert not np.array_equal(predicted(ranker), predicted(other))


def test_many_pairs_are_rated_in_parts(ranker: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    users, candidates = np.arange(8) % 3, np.arange(8) % 4
    at_once = ranker.predict(users, candidates)
    monkeypatch.setattr("trainer.ranking._MAX_PAIRS", 3)
    np.testing.assert_allclose(at_once, ranker.predict(users, candidates), rtol=1e-6)


def test_the_exported_function_agrees_with_predict(tiny: Dataset, ranker: Ranker) -> None:
    data = encode(tiny, np.arange(5), SMALL.max_history_length)
    history = np.zeros((1, 4), np.int32)
    history[0, :2] = [1, 2]
    query = [tf.constant(history), *(tf.constant(one[1:2]) for one in data.query_inputs)]
    candidates = [tf.constant(one) for one in data.candidate_inputs]
    actual = ranker.module.rank(*query, *candidates)["rating"]
    np.testing.assert_allclose(ranker.predict(np.ones(4, int), np.arange(4)), actual, rtol=1e-6)


def test_it_learns_who_likes_what(tiny: Dataset) -> None:
    config = SMALL.model_copy(
        update={
            "epochs": 70,
            "batch_size": 1,
            "id_regularization": 0.001,
            "bias_regularization": 0.001,
        }
    )
    ranker = fit(tiny, np.arange(5), config, seed=1)
    likes = ranker.predict(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
    np.testing.assert_allclose([5, 1, 1, 5], likes, atol=0.5)


def test_progress_is_told_after_every_epoch(tiny: Dataset) -> None:
    told: list[tuple[int, dict[str, float]]] = []
    fit(tiny, np.arange(5), SMALL, 1, lambda epoch, logs: told.append((epoch, logs)))
    assert [epoch for epoch, _ in told] == [1, 2, 3]
    assert all(np.isfinite(logs["loss"]) for _, logs in told)


def test_without_ratings_there_is_no_ranking_model(tiny: Dataset) -> None:
    with pytest.raises(NoRatingsError, match="tiny has no ratings, so there is no ranking model"):
        fit(dataclasses.replace(tiny, ratings=None), np.arange(5), SMALL, seed=1)


def test_equal_ratings_teach_nothing(tiny: Dataset) -> None:
    with pytest.raises(NoRatingsError, match="all the same"):
        fit(tiny, np.array([0, 3]), SMALL, seed=1)


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match="dims"):
        RankerConfig.model_validate({"dims": 3})


@pytest.mark.skipif("TFDS_DATA_DIR" not in os.environ, reason="TFDS_DATA_DIR is not set")
def test_the_target_on_the_real_100k() -> None:
    dataset = load_dataset("movielens/100k")
    parts = split(dataset, "random")
    ranker = fit(dataset, parts.train, RankerConfig(), seed=42)
    assert dataset.ratings is not None
    test = parts.test
    found = ranker.predict(dataset.user_rows[test], dataset.candidate_rows[test])
    assert rmse(found, dataset.ratings[test]) <= 0.915
