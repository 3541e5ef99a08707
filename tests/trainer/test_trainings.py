"""The trainings of one command; most of what they do is tested through the commands."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from trainer.acceptance import WorseError
from trainer.bundle import TowerBundle
from trainer.config import Config
from trainer.datasets import Dataset, load_dataset
from trainer.errors import TrainingError
from trainer.evaluation import EvaluationError
from trainer.export import export
from trainer.model_config import TowersConfig
from trainer.publish import BundleError
from trainer.splits import split
from trainer.training import fit
from trainer.trainings import Trainings


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset("sample")


def test_what_changes_the_result_changes_the_folder_of_checkpoints(
    dataset: Dataset, tmp_path: Path
) -> None:
    parts = split(dataset, "none")
    usual = {"config": Config(), "n_epochs": 50, "started_from": None, "name": "all"}

    def folder(**changes: object) -> Path | None:
        given = usual | changes
        trainings = Trainings(dataset, given["config"], tmp_path)
        trainings.n_epochs, trainings.started_from = given["n_epochs"], given["started_from"]
        return trainings._checkpoints_of(given["config"].towers, parts, given["name"])

    changes = [
        {"config": Config(patience=3)},
        {"config": Config(seed=1)},
        {"config": Config(towers=TowersConfig(dim=8))},
        {"config": Config(towers=TowersConfig(learning_rate=0.1))},
        *({"n_epochs": 14}, {"started_from": "a version"}, {"name": "train"}),
    ]
    assert len({folder(), *(folder(**one) for one in changes)}) == 1 + len(changes)


def test_what_the_ranking_model_cannot_read_is_refused_before_any_training(
    dataset: Dataset,
) -> None:
    wealth = pa.array([1e300] + [1.0] * (dataset.n_users - 1))
    rich = dataclasses.replace(dataset, users=dataset.users.append_column("wealth", wealth))
    trainings = Trainings(rich, Config(patience=1))
    with pytest.raises(TrainingError, match="'wealth', read by the ranking model"):
        trainings.settle(split(rich, "random"))
    assert trainings.curve == []


def test_what_leaves_nobody_to_measure_is_refused_before_any_training(dataset: Dataset) -> None:
    sessions = np.arange(len(dataset), dtype=np.int32)  # a user for each interaction
    users = pa.table({"user_id": [f"s{n:05}" for n in sessions]})
    visits = dataclasses.replace(dataset, users=users, user_rows=sessions)
    trainings = Trainings(visits, Config(patience=1))
    with pytest.raises(EvaluationError, match=r"temporal split of .* leaves nobody to score"):
        trainings.settle(split(visits, "temporal"))
    assert trainings.curve == []


def test_what_the_towers_cannot_read_is_refused_once(
    dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config(towers=TowersConfig(query=("history", "demographics")))
    with pytest.raises(TrainingError, match="demographics"):
        Trainings(dataset, config).settle(split(dataset, "random"))
    assert capsys.readouterr().err == ""


def test_weights_that_cannot_be_begun_with_are_refused_before_any_training(
    dataset: Dataset, tmp_path: Path
) -> None:
    config = TowersConfig(dim=8, width=8, epochs=1)
    towers = fit(dataset, np.arange(len(dataset)), config, 0)
    bundle = TowerBundle.open(export(towers, dataset, np.arange(len(dataset)), tmp_path, seed=0))
    of_old = {**bundle.manifest.config, "trend_half_life_days": 7.0}  # which its ids hold
    old = TowerBundle(bundle.directory, bundle.manifest.model_copy(update={"config": of_old}))
    wider = Config(towers=config.model_copy(update={"width": 9}))
    same = Config(towers=config)
    for start, chosen, message in ((bundle, wider, "width"), (old, same, "another version")):
        trainings = Trainings(dataset, chosen, start_from=start)
        with pytest.raises(BundleError, match=message):
            trainings.settle(split(dataset, "random"))
        assert trainings.curve == []


def test_without_a_folder_nothing_is_kept(dataset: Dataset) -> None:
    trainings = Trainings(dataset, Config())
    assert trainings._checkpoints_of(TowersConfig(), split(dataset, "none"), "all") is None


@pytest.mark.parametrize("error", [WorseError, EvaluationError])
def test_what_one_process_refuses_to_publish_it_refuses_in_its_own_words(
    dataset: Dataset, error: type[Exception]
) -> None:
    trainings = Trainings(dataset, Config())
    refusal = error("worse")
    with pytest.raises(error) as raised, trainings.chief_decides():
        raise refusal
    assert raised.value is refusal
    with trainings.chief_decides():
        pass


@pytest.mark.parametrize(
    ("kind", "refit", "judged", "published"),
    [
        ("random", True, "random", "none"),
        ("random", False, "random", "random"),
        ("none", False, None, "none"),
    ],
)
def test_the_chief_judges_what_is_measured_and_all_train_what_is_published(
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    *,
    kind: str,
    refit: bool,
    judged: str | None,
    published: str,
) -> None:
    monkeypatch.setattr(Trainings, "fit_towers", lambda _, parts: parts.kind)
    towers = TowersConfig(sequence_weight=0.25)
    trainings = Trainings(dataset, Config(refit=refit, towers=towers))
    for is_chief, judgement in ((True, (judged,)), (False, None)):
        monkeypatch.setattr("trainer.trainings.is_chief", lambda _, answer=is_chief: answer)
        towers, seen, found = trainings.fit_all(split(dataset, kind), lambda towers: (towers,))
        assert (towers, seen.kind, found) == (published, published, judgement)
