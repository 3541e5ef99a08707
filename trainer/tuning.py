"""Search for better options of the towers, on validation only, with Optuna.

Every trial trains on a part of the train rows and is measured on the rest after each epoch; one
that is behind the median of those before it at the same epoch is given up. What the split holds out
for the test is never looked at.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

import optuna
from pydantic import BaseModel, ConfigDict

from trainer.datasets import Dataset
from trainer.errors import TrainingError
from trainer.model_config import TowersConfig
from trainer.monitoring import OnEpoch
from trainer.splits import Split
from trainer.training import fit
from trainer.validation import MONITOR, WATCHED

SPACE: dict[str, optuna.distributions.FloatDistribution] = {
    "learning_rate": optuna.distributions.FloatDistribution(0.0005, 0.02, log=True),
    "temperature": optuna.distributions.FloatDistribution(0.05, 1.0, log=True),
    "history_dropout": optuna.distributions.FloatDistribution(0.1, 0.8),
    "sequence_weight": optuna.distributions.FloatDistribution(0.0, 3.0),
    "recency": optuna.distributions.FloatDistribution(0.0, 2.0),
    "target_decay": optuna.distributions.FloatDistribution(0.0, 2.0),
    "user_weight": optuna.distributions.FloatDistribution(0.0, 1.0),
}
"""What is searched, and as far as the configuration lies; the rest stays as that has it."""

_STATES = {True: optuna.trial.TrialState.COMPLETE, False: optuna.trial.TrialState.PRUNED}
_DIGITS = 4  # of the options that are tried
_WARM_UP_TRIALS, _WARM_UP_EPOCHS = 3, 5  # before any is given up


class Trial(BaseModel):
    """One choice of options and what it reached.

    Attributes:
        number: from 1; the first is the configuration as it was.
        options: by name.
        value: NDCG@10 on validation after the last epoch; of one given up, when it was; None
            if the training broke down.
        state: whether it was trained to its end.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int
    options: dict[str, float]
    value: float | None
    state: Literal["complete", "given up"]


class Tuning(BaseModel):
    """A search and what it found.

    Attributes:
        metric: what was compared.
        best: the best of the complete trials.
        trials: all of them in order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str
    best: Trial
    trials: list[Trial]


def tune(
    dataset: Dataset,
    validation: Split,
    config: TowersConfig,
    *,
    seed: int,
    n_trials: int,
    seconds: float | None = None,
    progress: Callable[[int], AbstractContextManager[OnEpoch]],
    on_trial: Callable[[Tuning], None],
) -> Tuning:
    """Search for options that do better on validation than a configuration's own.

    Args:
        dataset: users, candidates and interactions.
        validation: its train rows are trained on, its test rows measured on.
        config: where the search begins, and what it leaves alone.
        seed: of the search and of every training.
        n_trials: after how many trials to stop.
        seconds: after how long no further trial begins; None: when there are enough.
        progress: shows a trial, of the number from 1 that it is given.
        on_trial: called after every trial with what is known by then.

    Raises:
        TrainingError: if the configuration itself cannot be trained.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.MedianPruner(_WARM_UP_TRIALS, _WARM_UP_EPOCHS),
    )
    config = config.model_copy(update={"sequence_weight": config.settled_sequence_weight})
    own = {name: float(getattr(config, name)) for name in SPACE}
    space = _reaching(own)
    study.enqueue_trial(own)
    started = time.monotonic()
    trials: list[Trial] = []
    while len(trials) < n_trials and (
        not trials or seconds is None or time.monotonic() - started < seconds
    ):
        proposed = study.ask(space)
        options = _rounded(proposed.params) if trials else own
        with progress(len(trials) + 1) as show:
            values, is_complete = _train(
                *(dataset, validation, config.model_copy(update=options), seed),
                *(proposed, show),
            )
        study.tell(proposed, values[-1] if is_complete else None, state=_STATES[is_complete])
        trials.append(
            Trial(
                number=len(trials) + 1,
                options=options,
                value=values[-1] if values else None,
                state="complete" if is_complete else "given up",
            )
        )
        on_trial(_summary(trials))
    return _summary(trials)


def _reaching(own: dict[str, float]) -> dict[str, optuna.distributions.BaseDistribution]:
    """Return the space with a configuration's own options in it, or Optuna would not try them."""
    return {
        name: optuna.distributions.FloatDistribution(
            min(usual.low, own[name]), max(usual.high, own[name]), log=usual.log
        )
        for name, usual in SPACE.items()
    }


def _rounded(options: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.{_DIGITS}g}") for name, value in options.items()}


def _train(
    dataset: Dataset,
    validation: Split,
    config: TowersConfig,
    seed: int,
    trial: optuna.Trial,
    show: OnEpoch,
) -> tuple[list[float], bool]:
    """Return what was reached after every epoch, and whether there was an end to it."""
    values: list[float] = []

    def on_epoch(epoch: int, metrics: dict[str, float]) -> None:
        show(epoch, metrics)
        values.append(metrics[MONITOR])
        trial.report(values[-1], epoch)
        if trial.should_prune():
            raise optuna.TrialPruned

    try:
        fit(dataset, validation.train, config, seed, on_epoch, validation=validation)
    except optuna.TrialPruned:
        return values, False
    except TrainingError:
        if trial.number == 0:  # the configuration as it was
            raise
        return values, False
    return values, True


def _summary(trials: list[Trial]) -> Tuning:
    complete = (trial for trial in trials if trial.state == "complete")
    best = max(complete, key=lambda trial: (trial.value or 0.0, -trial.number))
    return Tuning(metric=WATCHED[0], best=best, trials=trials)
