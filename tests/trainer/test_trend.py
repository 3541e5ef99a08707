"""What is popular now."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from trainer.bundle import TowerBundle
from trainer.config import Config
from trainer.datasets import Dataset
from trainer.export import export
from trainer.model_config import TowersConfig
from trainer.splits import split
from trainer.training import fit
from trainer.trainings import Trainings
from trainer.trend import bias_shifts

DAY = 86_400
SMALL = TowersConfig(dim=8, width=8, epochs=30, learning_rate=0.02, content=())


def dataset_of(candidate_rows: np.ndarray, timestamps: np.ndarray | None) -> Dataset:
    """Users in lines, each with as many interactions."""
    n_users, n_each = candidate_rows.shape
    return Dataset(
        name="made",
        candidates=pa.table({"candidate_id": [f"c{i}" for i in range(candidate_rows.max() + 1)]}),
        users=pa.table({"user_id": [f"u{i}" for i in range(n_users)]}),
        user_rows=np.repeat(np.arange(n_users), n_each),
        candidate_rows=candidate_rows.ravel(),
        timestamps=None if timestamps is None else timestamps.ravel(),
    )


@pytest.fixture(scope="module")
def fashions() -> Dataset:
    """For a year everybody takes any of the first 20 of 40 candidates, then any of the others."""
    rng = np.random.default_rng(0)
    early = rng.permuted(np.tile(np.arange(20), (150, 1)), axis=1)[:, :12]
    late = 20 + rng.permuted(np.tile(np.arange(20), (150, 1)), axis=1)[:, :8]
    days = np.hstack([rng.integers(0, 360, (150, 12)), rng.integers(361, 381, (150, 8))])
    return dataset_of(np.hstack([early, late]), days * DAY)


def test_what_is_recent_counts_more() -> None:
    dataset = dataset_of(np.array([[0, 0, 0, 1]]), np.array([[0, 0, 0, 10]]) * DAY)
    shifts = bias_shifts(dataset, np.arange(4), half_life_days=10)
    # Recent: 3 halves of one and 1 of the other, and 0.2 for each, spread as 3.5 and 1.5 fifths.
    overall = np.array([0.7, 0.3])
    now = (np.array([1.5, 1.0]) + 0.4 * overall) / 2.9
    np.testing.assert_allclose(shifts, np.log(now / overall), rtol=1e-6)


def test_without_times_nothing_is_recent() -> None:
    rows = np.array([[0, 1]])
    assert bias_shifts(dataset_of(rows, None), np.arange(2), 7) is None
    assert bias_shifts(dataset_of(rows, np.full((1, 2), 5)), np.arange(2), 7) is None
    times = np.array([[0, DAY]])
    assert bias_shifts(dataset_of(rows, times), np.arange(2), 0) is None
    assert bias_shifts(dataset_of(rows, times), np.empty(0, np.int64), 7) is None


def test_the_scores_of_all_queries_are_shifted(fashions: Dataset) -> None:
    rows = split(fashions, "temporal").train
    config = SMALL.model_copy(update={"dim": 40, "epochs": 2})
    plain = fit(fashions, rows, config, seed=1)
    now = fit(fashions, rows, config.model_copy(update={"trend_half_life_days": 7.0}), seed=1)
    users = np.arange(fashions.n_users)
    scores = [towers.embed_users(users) @ towers.embed_candidates().T for towers in (plain, now)]
    shifts = bias_shifts(fashions, rows, 7)
    np.testing.assert_allclose(scores[1] - scores[0], np.tile(shifts, (150, 1)), atol=2e-3)


def test_what_begins_with_followed_towers_does_not_follow_twice(
    fashions: Dataset, tmp_path: Path
) -> None:
    rows = split(fashions, "temporal").train
    ids = []
    for half_life in (0.0, 7.0):
        config = SMALL.model_copy(update={"epochs": 2, "trend_half_life_days": half_life})
        before = fit(fashions, rows, config, seed=1)
        bundle = TowerBundle.open(export(before, fashions, rows, tmp_path, seed=1))
        towers = fit(fashions, rows, config, seed=1, start_from=bundle)
        ids.append(towers.model.candidate_tower.encoder.table("candidate_id").numpy())
    np.testing.assert_array_equal(*ids)
    trend = towers.model.candidate_tower.trend.numpy()[1:, 0]
    np.testing.assert_allclose(trend, bias_shifts(fashions, rows, 7), rtol=1e-6)


def test_where_popularity_changes_and_what_came_later_is_asked_it_is_followed(
    fashions: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    trainings = Trainings(fashions, Config(towers=SMALL))
    trainings.settle(split(fashions, "temporal", train_fraction=0.8))
    assert trainings.config.towers.settled_trend_half_life_days > 0
    said = " ".join(capsys.readouterr().err.split())
    assert "Popularity is that of the end, by a half-life of" in said


def test_where_anything_hidden_is_asked_for_it_is_not(fashions: Dataset) -> None:
    trainings = Trainings(fashions, Config(towers=SMALL))
    trainings.settle(split(fashions, "random"))
    assert trainings.config.towers.trend_half_life_days == 0


@pytest.mark.parametrize(
    "changes", [{"trend_half_life_days": 5.0}, {"candidate_ids": False, "content": ("category",)}]
)
def test_what_is_given_or_cannot_be_followed_stays(fashions: Dataset, changes: dict) -> None:
    kinds = pa.array([f"kind {i % 7}" for i in range(40)])
    dataset = replace(fashions, candidates=fashions.candidates.append_column("kind", kinds))
    trainings = Trainings(dataset, Config(towers=SMALL.model_copy(update=changes)))
    trainings.settle(split(dataset, "temporal", train_fraction=0.8))
    expected = changes.get("trend_half_life_days", 0.0)
    assert trainings.config.towers.trend_half_life_days == expected
