"""Quality on held-out interactions while the towers are being trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from trainer.batches import ages, ragged
from trainer.datasets import Dataset
from trainer.evaluation import Rankings, rank, user_metrics
from trainer.keras import tf
from trainer.metrics import PerUser
from trainer.splits import Split, SplitKind, validation_split
from trainer.splits import split as split_dataset
from trainer.towers import TwoTowers

WATCHED = ("ndcg@10", "heldout_recall@10")
"""Metrics that are measured after every epoch; the first decides when to stop."""

MONITOR = f"val_{WATCHED[0]}"

_MAX_SCORES = 20_000_000
"""After an epoch; where all users by all candidates are more, some users stand for all."""


class Validation:
    """Measures a model on the test rows of a split.

    Args:
        dataset: what was split.
        split: its train rows are what the model is trained on.
        histories: candidate rows of every user in the train rows, oldest first.
        context: what is read of every user beside them, by name (n_users, length).
    """

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        histories: Sequence[np.ndarray],
        context: Mapping[str, np.ndarray],
    ) -> None:
        self._dataset = dataset
        self._split = _thinned(dataset, split)
        self._histories = histories
        self._context = context

    def measure(self, model: TwoTowers) -> dict[str, float]:
        """Return the watched metrics, by their names after ``val_``."""
        values = user_metrics(self._rank(model, model.embed_corpus()))
        return {f"val_{name}": float(values[name].mean()) for name in WATCHED}

    def measure_weights(
        self, model: TwoTowers, sequence_weights: Iterable[float]
    ) -> dict[float, dict[str, PerUser]]:
        """Return each user's metrics (n_users,), by weight of the sequence head and by name."""
        corpus = model.embed_corpus()
        return {
            weight: user_metrics(self._rank(model, corpus, weight)) for weight in sequence_weights
        }

    def measure_shifts(
        self, model: TwoTowers, sequence_weight: float, shifts: Mapping[float, np.ndarray]
    ) -> dict[float, dict[str, PerUser]]:
        """Return each user's metrics, by what the biases (n_candidates,) are shifted for."""
        corpus = model.embed_corpus()
        return {
            name: user_metrics(self._rank(model, corpus, sequence_weight, shift))
            for name, shift in shifts.items()
        }

    def _rank(
        self,
        model: TwoTowers,
        corpus: tuple[Any, Any],
        sequence_weight: float | None = None,
        shift: np.ndarray | float = 0.0,
    ) -> Rankings:
        items, candidates = corpus

        def score_users(rows: np.ndarray) -> np.ndarray:
            histories = ages(
                ragged([self._histories[row] for row in rows]), self._dataset.n_candidates
            )
            context = {name: values[rows] for name, values in self._context.items()}
            queries = model.query_tower.wide(histories, items, context, sequence_weight)
            scores: np.ndarray = tf.matmul(queries, candidates, transpose_b=True).numpy()
            return scores + shift

        return rank(self._dataset, self._split, score_users)


def validation_of(dataset: Dataset, split: Split) -> Split:
    """Cut a validation part from the train rows of a split, in its manner.

    From a split that holds nothing out it is every user's last interaction.
    """
    if split.kind is SplitKind.NONE:
        return split_dataset(dataset, SplitKind.LEAVE_LAST_OUT)
    return validation_split(dataset, split)


def best_epoch(curve: list[dict[str, float]]) -> int:
    """Return the number, from 1, of the epoch that was best on validation, the first of equals."""
    return 1 + int(np.argmax([metrics[MONITOR] for metrics in curve]))


def _thinned(dataset: Dataset, split: Split) -> Split:
    """Return the split with the test rows of so many users that an epoch need not wait for them."""
    users = np.unique(dataset.user_rows[split.test])
    n_users = max(100, _MAX_SCORES // dataset.n_candidates)
    chosen = users[:: 1 + (len(users) - 1) // n_users]
    test = split.test[np.isin(dataset.user_rows[split.test], chosen)]
    return replace(split, test=test)
