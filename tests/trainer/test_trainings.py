"""The trainings of one command; most of what they do is tested through the commands."""

from pathlib import Path

import pytest

from trainer.acceptance import WorseError
from trainer.config import Config
from trainer.datasets import Dataset, load_dataset
from trainer.model_config import TowersConfig
from trainer.splits import split
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
        return trainings._checkpoints_of(parts, given["name"])

    changes = [
        {"config": Config(patience=3)},
        {"config": Config(seed=1)},
        {"config": Config(towers=TowersConfig(dim=8))},
        *({"n_epochs": 14}, {"started_from": "a version"}, {"name": "train"}),
    ]
    assert folder() == folder(config=Config(towers=TowersConfig(learning_rate=0.1)))
    assert len({folder(), *(folder(**one) for one in changes)}) == 1 + len(changes)


def test_without_a_folder_nothing_is_kept(dataset: Dataset) -> None:
    trainings = Trainings(dataset, Config())
    assert trainings._checkpoints_of(split(dataset, "none"), "all") is None


def test_what_one_process_refuses_to_publish_it_refuses_in_its_own_words(dataset: Dataset) -> None:
    trainings = Trainings(dataset, Config())
    refusal = WorseError("worse")
    with pytest.raises(WorseError) as raised, trainings.chief_decides():
        raise refusal
    assert raised.value is refusal
    with trainings.chief_decides():
        pass
