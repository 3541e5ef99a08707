"""Training speed: the towers beside the tutorials' model, on generated catalogues of any size.

Both are trained by Keras's ``fit`` without metrics, at the same dimension, in the same run, and
timed when the first steps are over. An interaction counts once an epoch for either, however often
the towers read it.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
from pydantic import BaseModel

from benchmarks.errors import BenchmarkError
from benchmarks.processes import peak_bytes, run_alone
from benchmarks.progress import OnStep
from benchmarks.workloads import generate_dataset
from trainer.batches import training_batches
from trainer.datasets import Dataset
from trainer.features import encode_candidates
from trainer.inputs import collect_histories, describe
from trainer.keras import tf, untuned
from trainer.model_config import TowersConfig
from trainer.optimizers import LazyAdam
from trainer.towers import TwoTowers
from trainer.tutorials import compiled, interactions

TOWERS = "towers"
TUTORIALS = "tutorials' model"

_PER_USER = 50
_BATCH_SIZES = {TOWERS: (64, 128, 256), TUTORIALS: (256, 512, 1024)}
"""Around the best of each on two cores."""
_INTERACTIONS = {TOWERS: _PER_USER, TUTORIALS: 1}
"""For each that a batch size counts."""
_SEED = 42
_WARM_STEPS = 8
_MIN_STEPS = 4
_MAX_STEPS = 1_000_000  # more than the clock lets pass


class Speed(BaseModel):
    """How fast a model trained."""

    model: str
    batch_size: int
    """Users of the towers, interactions of the tutorials' model."""
    batch_interactions: int
    interactions_per_second: float


class CatalogueReport(BaseModel):
    """What training over one catalogue took."""

    n_candidates: int
    n_interactions: int
    speeds: list[Speed]
    peak_bytes: int
    """Resident memory of the process, the generated data included."""

    def best(self, model: str) -> Speed:
        """Return a model's speed at its best batch size."""
        return max(
            (speed for speed in self.speeds if speed.model == model),
            key=lambda speed: speed.interactions_per_second,
        )

    @property
    def ratio(self) -> float:
        """Interactions a second of the towers, as a multiple of the tutorials' model's."""
        towers, tutorials = self.best(TOWERS), self.best(TUTORIALS)
        return towers.interactions_per_second / tutorials.interactions_per_second


class TrainReport(BaseModel):
    """Training speed by catalogue, from the smallest to the largest."""

    dim: int
    catalogues: list[CatalogueReport]

    @property
    def scaling(self) -> float:
        """Speed of the towers over the largest catalogue, as a share of that over the smallest."""
        smallest, largest = (self.catalogues[i].best(TOWERS) for i in (0, -1))
        return largest.interactions_per_second / smallest.interactions_per_second


def benchmark_train(
    sizes: list[int], n_interactions: int, dim: int, seconds: float, on_step: OnStep
) -> TrainReport:
    """Measure how fast the towers and the tutorials' model train.

    Args:
        sizes: candidates of each generated catalogue.
        n_interactions: of each; every user has 50.
        dim: of the embeddings of both models.
        seconds: for which each batch size is timed.
        on_step: called with what is being done.

    Raises:
        BenchmarkError: if there are fewer interactions than a step reads.
    """
    fewest = max(_BATCH_SIZES[TOWERS]) * _PER_USER
    if n_interactions < fewest:
        raise BenchmarkError(f"a step reads {fewest:,} interactions: measure over more than that")
    reports = []
    for n_candidates in sorted(sizes):
        on_step(f"training over {n_candidates:,} candidates")
        reports.append(run_alone(_measure, n_candidates, n_interactions, dim, seconds))
    return TrainReport(dim=dim, catalogues=reports)


def _measure(n_candidates: int, n_interactions: int, dim: int, seconds: float) -> CatalogueReport:
    n_users = max(2, n_interactions // _PER_USER)
    dataset = generate_dataset(n_users, n_candidates, _PER_USER, _SEED)
    speeds = [
        Speed(
            model=model,
            batch_size=batch_size,
            batch_interactions=batch_size * _INTERACTIONS[model],
            interactions_per_second=measure(dataset, dim, batch_size, seconds),
        )
        for model, measure in ((TUTORIALS, _tutorials_speed), (TOWERS, _towers_speed))
        for batch_size in _BATCH_SIZES[model]
    ]
    return CatalogueReport(
        n_candidates=n_candidates,
        n_interactions=len(dataset),
        speeds=speeds,
        peak_bytes=peak_bytes(os.getpid()),
    )


def _towers_speed(dataset: Dataset, dim: int, batch_size: int, seconds: float) -> float:
    config = TowersConfig(dim=dim, width=dim, batch_size=batch_size)
    features, vocabularies = describe(dataset.candidates, dataset.users, config)
    corpus = encode_candidates(features, vocabularies, dataset.candidates)
    model = TwoTowers(features, corpus, config, _SEED)
    model.compile(optimizer=LazyAdam(config.learning_rate))
    histories = collect_histories(dataset, np.arange(len(dataset)), config.max_history_length)
    batches = training_batches(histories, dataset.n_candidates, config, _SEED)
    return _speed(model, batches, batch_size * _PER_USER, seconds)


def _tutorials_speed(dataset: Dataset, dim: int, batch_size: int, seconds: float) -> float:
    model = compiled(dataset.n_users, dataset.n_candidates, dim, _SEED)
    pairs = interactions(dataset, np.arange(len(dataset))).shuffle(100_000, seed=_SEED)
    return _speed(model, pairs.batch(batch_size).repeat().prefetch(2), batch_size, seconds)


def _speed(model: Any, batches: Any, n_interactions: int, seconds: float) -> float:
    """Return the interactions a second of a model, ``n_interactions`` in a step."""
    clock = _Clock(seconds)
    model.fit(untuned(batches), steps_per_epoch=_MAX_STEPS, callbacks=[clock], verbose=0)
    return n_interactions * clock.steps_per_second


class _Clock(tf.keras.callbacks.Callback):  # type: ignore[misc]
    """Counts the steps of so many seconds after the first few, and then ends the training."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self._ends: list[float] = []

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        """Look at the time; see Keras."""
        del batch, logs
        self._ends.append(time.perf_counter())
        timed = self._ends[_WARM_STEPS:]
        if len(timed) > _MIN_STEPS and timed[-1] - timed[0] >= self._seconds:
            self.model.stop_training = True

    @property
    def steps_per_second(self) -> float:
        """How many steps a second took, once the first were done."""
        timed = self._ends[_WARM_STEPS:]
        return (len(timed) - 1) / (timed[-1] - timed[0])
