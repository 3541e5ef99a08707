"""From interactions to fitted towers."""

import dataclasses
import datetime as dt

import numpy as np
import pyarrow as pa
import pytest

from trainer.datasets import Dataset
from trainer.towers import TowersConfig
from trainer.training import TrainingError, collect_histories, describe, fit, training_batches

SMALL = TowersConfig(dim=8, max_history_length=4, epochs=2, batch_size=2)


def dataset(
    user_rows: list[int], candidate_rows: list[int], timestamps: list[int] | None
) -> Dataset:
    return Dataset(
        name="small",
        users=pa.table({"user_id": ["a", "b", "c"]}),
        candidates=pa.table({"candidate_id": ["p", "q", "r", "s"]}),
        user_rows=np.array(user_rows, dtype=np.int32),
        candidate_rows=np.array(candidate_rows, dtype=np.int32),
        timestamps=None if timestamps is None else np.array(timestamps, dtype=np.int64),
    )


def two_tastes(n_users: int = 40) -> Dataset:
    """Half of the users like the first five candidates, the others the last five."""
    rng = np.random.default_rng(0)
    liked = np.stack([rng.permutation(5)[:3] + 5 * (user % 2) for user in range(n_users)])
    return Dataset(
        name="two tastes",
        users=pa.table({"user_id": [f"u{n:02}" for n in range(n_users)]}),
        candidates=pa.table({"candidate_id": [f"c{n}" for n in range(10)]}),
        user_rows=np.repeat(np.arange(n_users, dtype=np.int32), 3),
        candidate_rows=liked.reshape(-1).astype(np.int32),
    )


def as_lists(arrays: list[np.ndarray]) -> list[list[int]]:
    return [array.tolist() for array in arrays]


def test_histories_are_in_time_order_and_equal_times_in_row_order() -> None:
    data = dataset([1, 0, 1, 1, 0], [3, 2, 1, 0, 3], [30, 20, 10, 30, 10])
    assert as_lists(collect_histories(data, np.arange(5), 4)) == [[3, 2], [1, 3, 0], []]


def test_histories_without_times_are_in_row_order_whatever_the_order_of_the_rows_asked_for() -> (
    None
):
    data = dataset([1, 0, 1, 1, 0], [3, 2, 1, 0, 3], None)
    expected = [[2, 3], [3, 1, 0], []]
    assert expected == as_lists(collect_histories(data, np.array([4, 2, 0, 3, 1]), 4))


def test_of_a_long_history_the_newest_stay() -> None:
    data = dataset([0, 0, 0], [0, 1, 2], [1, 2, 3])
    assert as_lists(collect_histories(data, np.arange(3), 2)) == [[1, 2], [], []]


def test_only_the_rows_asked_for_count() -> None:
    data = dataset([0, 0, 1], [0, 1, 2], [1, 2, 3])
    assert as_lists(collect_histories(data, np.array([1, 2]), 4)) == [[1], [2], []]


def test_towers_learn_tastes() -> None:
    data = two_tastes()
    config = TowersConfig(dim=8, max_history_length=4, epochs=30, learning_rate=0.03, batch_size=10)
    losses: list[float] = []
    towers = fit(
        data, np.arange(120), config, seed=1, on_epoch=lambda _, logs: losses.append(logs["loss"])
    )
    assert len(losses) == 30
    assert losses[-1] < losses[0]
    scores = (
        towers.embed_queries([np.array([0, 1]), np.array([8, 9])]) @ towers.embed_candidates().T
    )
    best = np.argsort(-scores, axis=1)[:, :5]
    assert [{0, 1, 2, 3, 4}, {5, 6, 7, 8, 9}] == [set(line.tolist()) for line in best]


def test_one_seed_gives_one_result_and_another_seed_another() -> None:
    data = two_tastes()
    first, again, other = (
        fit(data, np.arange(120), SMALL, seed).embed_candidates() for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_taste_head_finds_what_is_hidden_and_other_interactions_in_every_epoch() -> None:
    batches = training_batches([np.arange(100, dtype=np.int32)], SMALL, seed=3)
    first, second = ([batch["taste"] for batch in batches] for _ in "ab")
    (examples,) = first
    history, targets = (examples[name].values.numpy() for name in ("history", "targets"))
    assert sorted([*(history - 1), *targets]) == list(range(100))
    assert examples["target_weights"].values.numpy().tolist() == [1] * len(targets)
    assert history.tolist() != second[0]["history"].values.numpy().tolist()


def test_the_sequence_head_finds_what_came_later_and_the_next_counts_most() -> None:
    batches = training_batches([np.arange(5, dtype=np.int32)], SMALL, seed=0)
    for _ in range(10):
        (batch,) = batches
        examples = batch["sequence"]
        (history,), (targets,) = (examples[name].to_list() for name in ("history", "targets"))
        assert [token - 1 for token in history] + targets == [0, 1, 2, 3, 4]
        assert history
        assert targets
        expected = [1 / n for n in range(1, len(targets) + 1)]
        assert examples["target_weights"].values.numpy().tolist() == pytest.approx(expected)


def test_validation_reports_factorized_top_k() -> None:
    data = two_tastes()
    reports: list[dict[str, float]] = []
    config = SMALL.model_copy(update={"epochs": 1})
    fit(
        data,
        np.flatnonzero(np.arange(120) % 3 < 2),
        config,
        seed=0,
        on_epoch=lambda _, logs: reports.append(logs),
        validation_rows=np.flatnonzero(np.arange(120) % 3 == 2),
    )
    expected = {
        "loss",
        "val_loss",
        "val_factorized_top_k/top_10_categorical_accuracy",
    }
    assert expected <= reports[0].keys()
    assert reports[0]["val_factorized_top_k/top_10_categorical_accuracy"] > 0.5


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(TrainingError, match="no interaction to learn from"):
        fit(dataset([0], [0], [1]), np.array([], dtype=np.int64), SMALL, seed=0)


def test_one_user_and_one_interaction_train() -> None:
    towers = fit(dataset([0], [2], [1]), np.array([0]), SMALL, seed=0)
    assert np.isfinite(towers.embed_queries(towers.histories)).all()
    assert np.isfinite(towers.embed_candidates()).all()


def test_a_loss_that_is_not_a_number_stops_training_and_says_how_to_mend_it() -> None:
    config = SMALL.model_copy(update={"learning_rate": float("inf")})
    with pytest.raises(TrainingError, match=r"loss became .* lower the learning rate"):
        fit(two_tastes(), np.arange(120), config, seed=0)


def with_columns(**columns: list[object]) -> Dataset:
    data = dataset([0, 1], [0, 1], None)
    candidates = data.candidates
    for name, values in columns.items():
        candidates = candidates.append_column(name, [values])
    return dataclasses.replace(data, candidates=candidates)


def test_the_towers_read_the_metadata_of_the_kinds_asked_for() -> None:
    data = with_columns(
        genres=[["x"], ["x", "y"], [], None], year=[1990, 1991, 1992, None], maker=["a", "b"] * 2
    )
    features, vocabularies = describe(
        data, SMALL.model_copy(update={"content": ("list", "number")})
    )
    assert [feature.name for feature in features.candidate] == ["candidate_id", "genres", "year"]
    assert vocabularies["genres"].tokens([0, 1]) == ["x", "y"]
    assert features.max_history_length == SMALL.max_history_length
    towers = fit(data, np.arange(2), SMALL, seed=0)
    assert np.isfinite(towers.embed_candidates()).all()


def test_without_content_the_towers_read_ids_alone() -> None:
    features, _ = describe(
        with_columns(year=[1, 2, 3, 4]), SMALL.model_copy(update={"content": ()})
    )
    assert [feature.name for feature in features.candidate] == ["candidate_id"]


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("release year", [1, 2, 3, 4], "'release year' cannot be an input.*rename"),
        ("added", [dt.date(2000, 1, 1)] * 4, "'added': a column of type"),
    ],
)
def test_a_column_that_no_tower_can_read_is_refused(
    name: str, values: list[object], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        describe(with_columns(**{name: values}), SMALL)
