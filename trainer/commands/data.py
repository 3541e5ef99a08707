"""The data of a command: from the flags that name them to the dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trainer.console import say
from trainer.splits import SplitKind, split

if TYPE_CHECKING:
    from trainer.config import DataConfig
    from trainer.datasets import Dataset


def source(
    dataset: str | None,
    interactions: Path | None,
    candidates: Path | None,
    users: Path | None,
    min_rating: float | None,
) -> dict[str, object]:
    """Return what the flags say of the data, in the structure of the configuration."""
    return {
        "dataset": dataset,
        "interactions": interactions,
        "candidates": candidates,
        "users": users,
        "min_rating": min_rating,
    }


def load(data: DataConfig) -> Dataset:
    """Load the data, and say so where their times do not tell what came first."""
    dataset = data.load()
    if split(dataset, SplitKind.NONE).ordered_by == "row":
        missing = "has no timestamps" if dataset.timestamps is None else "has one timestamp only"
        say(f"{dataset.name} {missing}: what is later in its rows counts as later in time")
    return dataset
