"""Which interactions a model learns from, and which it is tested on.

random           a random share of the interactions is the test
temporal         the latest share of the interactions is the test; a user must be known from train
leave-last-out   each user's last interaction is the test
none             everything is train

Interactions of the same second keep the order of their source.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from trainer.datasets import Dataset

Rows = npt.NDArray[np.int64]


class SplitKind(StrEnum):
    """How interactions are split."""

    RANDOM = "random"
    TEMPORAL = "temporal"
    LEAVE_LAST_OUT = "leave-last-out"
    NONE = "none"


@dataclass(frozen=True, eq=False)
class Split:
    """Interactions to train on and to test on.

    Attributes:
        kind: how they were split.
        train: (n_train,) rows of interactions.
        test: (n_test,) rows of interactions, none of them in ``train``.
        ordered_by: what settled which interaction is later: ``timestamp``, or ``row`` where
            timestamps are missing or all the same, and the source's order stands in for them.
        train_fraction: what share of the interactions is trained on, where the kind leaves it open.
    """

    kind: SplitKind
    train: Rows
    test: Rows
    ordered_by: str
    train_fraction: float | None = None


def split(
    dataset: Dataset, kind: SplitKind | str, *, train_fraction: float = 0.8, seed: int = 42
) -> Split:
    """Split the interactions of a dataset.

    Args:
        dataset: whose interactions.
        kind: one of ``SplitKind``.
        train_fraction: share of the interactions to train on, for random and temporal.
        seed: of the random split.

    Raises:
        ValueError: if the kind is unknown or the fraction is not between 0 and 1.
    """
    rows = np.arange(len(dataset), dtype=np.int64)
    return _cut(dataset, SplitKind(kind), rows, train_fraction, seed)


def validation_split(
    dataset: Dataset, outer: Split, *, train_fraction: float = 0.8, seed: int = 42
) -> Split:
    """Split the train rows of ``outer`` once more, by the same kind, to tune on.

    Its test rows are rows of ``outer.train``: what ``outer`` holds out stays unseen.
    """
    return _cut(dataset, outer.kind, np.sort(outer.train), train_fraction, seed)


def _cut(dataset: Dataset, kind: SplitKind, rows: Rows, train_fraction: float, seed: int) -> Split:
    """Split ``rows``, which must rise."""
    if not 0 < train_fraction < 1:
        raise ValueError(f"the train fraction must lie between 0 and 1, not {train_fraction:g}")
    oldest_first, ordered_by = _in_time(dataset, rows)
    if kind is SplitKind.NONE:
        return Split(kind, rows, rows[:0], ordered_by)
    if kind is SplitKind.LEAVE_LAST_OUT:
        test = _last_of_each_user(dataset, oldest_first)
        return Split(kind, np.setdiff1d(rows, test, assume_unique=True), test, ordered_by)
    ordered = oldest_first
    if kind is SplitKind.RANDOM:
        ordered = rows[np.random.default_rng(seed).permutation(len(rows))]
    n_train = int(len(rows) * train_fraction)
    return Split(kind, ordered[:n_train], ordered[n_train:], ordered_by, train_fraction)


def _in_time(dataset: Dataset, rows: Rows) -> tuple[Rows, str]:
    """Return ``rows`` from the oldest to the newest, and what says so."""
    if dataset.timestamps is None:
        return rows, "row"
    timestamps = dataset.timestamps[rows]
    if len(rows) and timestamps.min() == timestamps.max():
        return rows, "row"
    return rows[np.argsort(timestamps, kind="stable")], "timestamp"


def _last_of_each_user(dataset: Dataset, oldest_first: Rows) -> Rows:
    """Return the newest row of each user that has one, in the order of users."""
    last = np.full(dataset.n_users, -1, dtype=np.int64)
    last[dataset.user_rows[oldest_first]] = oldest_first
    return last[last >= 0]
