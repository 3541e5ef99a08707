"""The search for options: what it begins with, gives up, writes and never sees."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from trainer import tuning
from trainer.datasets import Dataset, load_dataset
from trainer.errors import TrainingError
from trainer.model_config import TowersConfig
from trainer.splits import Split, split, validation_split
from trainer.tuning import SPACE, Tuning, tune
from trainer.validation import validation_of

CONFIG = TowersConfig(user_weight=0.5, sequence_weight=0.25, epochs=8)
Report = Callable[[int, dict[str, float]], None]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset("sample")


@pytest.fixture
def validation(dataset: Dataset) -> Split:
    return validation_split(dataset, split(dataset, "random"))


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[TowersConfig]:
    """The configurations that were tried; their quality is that of a made-up valley."""
    tried: list[TowersConfig] = []

    def fit(
        dataset: Dataset,
        train_rows: np.ndarray,
        config: TowersConfig,
        seed: int,
        report: Report,
        validation: Split,
    ) -> None:
        assert (True, 3) == (train_rows is validation.train, seed)
        assert len(dataset) > len(train_rows)
        tried.append(config)
        quality = 1 - abs(config.recency - 1.7) - abs(config.user_weight - 0.1)
        for epoch in range(1, config.epochs + 1):
            report(epoch, {"loss": 1.0, "val_ndcg@10": quality * epoch / config.epochs})

    monkeypatch.setattr(tuning, "fit", fit)
    return tried


@contextmanager
def silent(_: int) -> Iterator[Report]:
    yield lambda *_: None


def run(dataset: Dataset, validation: Split, **bounds: Any) -> tuple[Tuning, list[Tuning]]:
    seen: list[Tuning] = []
    given = {"config": CONFIG, "n_trials": 30} | bounds
    found = tune(dataset, validation, seed=3, progress=silent, on_trial=seen.append, **given)
    return found, seen


def test_the_search_begins_with_the_configuration_and_finds_better(
    dataset: Dataset, validation: Split, fitted: list[TowersConfig]
) -> None:
    found, seen = run(dataset, validation)
    assert CONFIG == fitted[0]
    first, best = found.trials[0], found.best
    assert {name: getattr(CONFIG, name) for name in SPACE} == first.options
    assert (first.value, first.state) == (pytest.approx(-0.1), "complete")
    assert best.value is not None
    assert best.value > 0.5
    assert list(range(1, 31)) == [trial.number for trial in found.trials]
    assert [len(one.trials) for one in seen] == list(range(1, 31))
    assert found == seen[-1]
    for config, trial in zip(fitted, found.trials, strict=True):
        assert config == CONFIG.model_copy(update=trial.options)


def test_a_configuration_outside_of_what_is_usual_is_tried_as_it_is(
    dataset: Dataset, validation: Split, fitted: list[TowersConfig]
) -> None:
    unusual = CONFIG.model_copy(update={"learning_rate": 0.123456, "recency": 2.5})
    run(dataset, validation, config=unusual, n_trials=1)
    assert [unusual] == fitted


def test_what_is_behind_is_given_up_and_never_the_best(
    dataset: Dataset, validation: Split, fitted: list[TowersConfig]
) -> None:
    del fitted
    found, _ = run(dataset, validation)
    given_up = [trial for trial in found.trials if trial.state == "given up"]
    assert 0 < len(given_up) < 30
    assert all("complete" == trial.state for trial in found.trials[:3])
    assert found.best.state == "complete"


def test_one_seed_gives_one_search(
    dataset: Dataset, validation: Split, fitted: list[TowersConfig]
) -> None:
    del fitted
    assert run(dataset, validation, n_trials=6) == run(dataset, validation, n_trials=6)


def test_time_bounds_the_search(
    dataset: Dataset, validation: Split, fitted: list[TowersConfig]
) -> None:
    found, _ = run(dataset, validation, seconds=0)
    assert 1 == len(found.trials) == len(fitted)


def test_a_trial_that_breaks_down_is_given_up_but_not_the_first(
    dataset: Dataset, validation: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(_: Any, __: Any, config: TowersConfig, *___: Any, **____: Any) -> None:
        if config != CONFIG:
            raise TrainingError("the loss became nan")
        ___[1](1, {"loss": 1.0, "val_ndcg@10": 0.5})

    monkeypatch.setattr(tuning, "fit", break_down)
    found, _ = run(dataset, validation, n_trials=3)
    assert [("complete", 0.5), ("given up", None), ("given up", None)] == [
        (trial.state, trial.value) for trial in found.trials
    ]
    monkeypatch.setattr(tuning, "fit", lambda *_, **__: break_down(0, 0, TowersConfig(dim=9)))
    with pytest.raises(TrainingError):
        run(dataset, validation)


def test_validation_is_cut_from_the_train_part(dataset: Dataset) -> None:
    outer = split(dataset, "leave-last-out")
    inner = validation_of(dataset, outer)
    assert sorted(outer.train) == sorted([*inner.train, *inner.test])
    assert not np.isin(inner.test, outer.test).any()


def test_validation_of_a_split_that_holds_nothing_out_is_everyones_last(dataset: Dataset) -> None:
    inner = validation_of(dataset, split(dataset, "none"))
    assert split(dataset, "leave-last-out").test.tolist() == inner.test.tolist()
