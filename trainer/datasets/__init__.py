"""Where interactions and candidates come from: one module per source."""

from __future__ import annotations

import os
import sys

from trainer.datasets import sample
from trainer.datasets.dataset import Dataset, DatasetError, DatasetUnavailableError
from trainer.datasets.files import load as load_files

__all__ = [
    "DATASET_NAMES",
    "MOVIELENS_VERSIONS",
    "Dataset",
    "DatasetError",
    "DatasetUnavailableError",
    "load_dataset",
    "load_files",
]

MOVIELENS_VERSIONS = ("100k", "1m", "20m", "25m", "latest-small")
DATASET_NAMES = (*(f"movielens/{version}" for version in MOVIELENS_VERSIONS), "sample")


def load_dataset(
    name: str,
    *,
    min_rating: float | None = None,
    fallback_to_sample: bool = False,
) -> Dataset:
    """Load a dataset by its name.

    Args:
        name: one of ``DATASET_NAMES``.
        min_rating: keep only interactions rated at least so.
        fallback_to_sample: whether the built-in sample may stand in for a dataset that cannot be
            had here; it is announced on stderr, and the dataset returned is named ``sample``. Where
            ``TFDS_DATA_DIR`` is set, somebody expects the data to be there, and nothing stands in.

    Raises:
        DatasetError: if the name is unknown, or the dataset cannot be had or read.
    """
    if name not in DATASET_NAMES:
        raise DatasetError(
            f"there is no dataset {name!r}: choose one of {', '.join(DATASET_NAMES)}, "
            "or give your own --interactions FILE and --candidates FILE"
        )
    dataset = _load(name, fallback_to_sample and "TFDS_DATA_DIR" not in os.environ)
    return dataset if min_rating is None else dataset.with_min_rating(min_rating)


def _load(name: str, fallback_to_sample: bool) -> Dataset:
    if name == "sample":
        return sample.load()
    from trainer.datasets import movielens  # noqa: PLC0415 - brings TensorFlow with it

    try:
        return movielens.load(name.removeprefix("movielens/"))
    except DatasetUnavailableError as error:
        if not fallback_to_sample:
            raise
        sys.stderr.write(f"WARNING: using the built-in sample instead of {name}: {error}\n")
        return sample.load()
