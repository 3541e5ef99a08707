"""How much the sequence head counts, and how fast popularity changes: what validation settles.

What a user has hidden and what a user does next are two questions, and each head answers one. Which
is asked the split says: a random one hides interactions anywhere, leave-last-out asks for the next.
The heads are trained apart and the score is their weighted sum, so the weight can be chosen after
training, on interactions that the heads have not seen. So can what is added to the biases for what
is popular now (``trainer.trend``), which helps where a split asks for what came later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from trainer.datasets import Dataset
from trainer.metrics import PerUser
from trainer.model_config import USUAL_SEQUENCE_WEIGHT, TowersConfig
from trainer.splits import Split
from trainer.towers import TwoTowers
from trainer.validation import Validation

_WEIGHTS = (0.0, 0.05, 0.1, 0.2, USUAL_SEQUENCE_WEIGHT, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)
METRIC = "ndcg@100"
"""What the heads are compared by: on lists as long as retrieval gives, chance counts for less than
on the first ten, whose best weights are the same."""

_FEWEST_USERS = 100
"""On fewer chance would choose."""

_SHARE, _FEWEST_STEPS = 0.3, 200
"""Of the epochs, and in any case: after fewer one head is ahead because it learns faster."""


class Balance(NamedTuple):
    """A weight of the sequence head, and what it is chosen for.

    Attributes:
        sequence_weight: beside the 1 of the taste head.
        quality: on validation, by ``METRIC``.
        usual_quality: the same with the usual weight.
    """

    sequence_weight: float
    quality: float
    usual_quality: float


def rehearsal(config: TowersConfig, n_users: int) -> TowersConfig:
    """Return towers that are trained for less long, enough to show how their heads compare.

    Fewer steps are made up for by a higher learning rate.

    Args:
        config: of the towers in question.
        n_users: to learn from.
    """
    n_steps = config.epochs * math.ceil(n_users / config.batch_size)
    share = min(max(_SHARE, _FEWEST_STEPS / n_steps), 1.0)
    return config.model_copy(
        update={
            "epochs": math.ceil(config.epochs * share),
            "learning_rate": config.learning_rate * share ** (-1 / 3),
        }
    )


def can_be_found(dataset: Dataset, validation: Split) -> bool:
    """Whether the users of a validation part tell more than chance."""
    return len(np.unique(dataset.user_rows[validation.test])) >= _FEWEST_USERS


def find_balance(model: TwoTowers, validation: Validation) -> Balance:
    """Choose the weight that finds most, or the usual one unless another is better beyond chance.

    Beyond chance is by more than a standard error of the paired difference over users.

    Args:
        model: trained on the train rows of the validation.
        validation: what the towers are asked.
    """
    by_weight = {
        weight: values[METRIC]
        for weight, values in validation.measure_weights(model, _WEIGHTS).items()
    }
    best = _best(by_weight, USUAL_SEQUENCE_WEIGHT)
    return Balance(
        best, float(by_weight[best].mean()), float(by_weight[USUAL_SEQUENCE_WEIGHT].mean())
    )


class Trend(NamedTuple):
    """How fast popularity is taken to change, and what it is chosen for.

    Attributes:
        half_life_days: after which an interaction counts half; 0: not at all.
        quality: on validation, by ``METRIC``.
        plain_quality: the same where it does not change.
    """

    half_life_days: float
    quality: float
    plain_quality: float


def find_trend(
    model: TwoTowers,
    validation: Validation,
    sequence_weight: float,
    shifts: Mapping[float, np.ndarray],
) -> Trend:
    """Choose the half-life that finds most, or none unless one is better beyond chance.

    Args:
        model: trained on the train rows of the validation.
        validation: what the towers are asked.
        sequence_weight: what their sequence head counts.
        shifts: by half-life in days, what it adds to the candidates' biases (n_candidates,).
    """
    plain = np.zeros_like(next(iter(shifts.values())))
    measured = validation.measure_shifts(model, sequence_weight, {0.0: plain, **shifts})
    by_half_life = {half_life: values[METRIC] for half_life, values in measured.items()}
    best = _best(by_half_life, 0.0)
    return Trend(best, float(by_half_life[best].mean()), float(by_half_life[0.0].mean()))


def _best(values: Mapping[float, PerUser], usual: float) -> float:
    """Return what is best in the mean over users, or the usual if it leads by no standard error."""
    best = max(values, key=lambda one: float(values[one].mean()))
    lead = values[best] - values[usual]
    return best if lead.mean() > lead.std() / np.sqrt(len(lead)) else usual
