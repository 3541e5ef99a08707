"""Checkpoints: a training that is killed goes on from the last one, to the same end.

Weights, optimiser and learning curve are saved after an epoch, by TensorFlow's checkpoint manager,
which makes a checkpoint visible when it is complete. Batches depend on nothing but the seed and the
number of the epoch (``trainer.batches.training_batches``), so nothing else needs to be kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainer.datasets import Dataset
from trainer.distribution import is_chief
from trainer.errors import TrainerError
from trainer.keras import tf
from trainer.model_config import TowersConfig
from trainer.towers import TwoTowers

Curve = list[dict[str, float]]
"""The metrics of every epoch, by name."""

_MAX_SHARE = 0.02
"""Of the time of a training that its checkpoints may take."""

_DIVERGED = "diverged"
"""A file beside the checkpoints of a training whose loss stopped being a number."""


class CheckpointError(TrainerError):
    """Why a checkpoint cannot be saved, or gone on from."""


class _CurveState(tf.train.experimental.PythonState):  # type: ignore[misc]
    """The learning curve, as what a checkpoint can hold beside variables."""

    def __init__(self) -> None:
        super().__init__()
        self.curve: Curve = []

    def serialize(self) -> str:
        """Return what ``deserialize`` reads."""
        return json.dumps(self.curve)

    def deserialize(self, string_value: str) -> None:
        """Take over the curve of a checkpoint."""
        self.curve = json.loads(string_value)


class Checkpoints:
    """The checkpoints of one training; of several workers' the chief saves, and all restore.

    Args:
        directory: holds nothing else; made if it is not there.
        model: compiled.

    Raises:
        CheckpointError: if the directory cannot be made.
    """

    def __init__(self, directory: Path, model: TwoTowers) -> None:
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"{directory} cannot be made to hold checkpoints: {error.strerror}"
            ) from error
        self._state = _CurveState()
        self._manager = tf.train.CheckpointManager(
            tf.train.Checkpoint(model=model, optimizer=model.optimizer, curve=self._state),
            str(directory),
            max_to_keep=1,
        )
        self._not_before = 0.0

    def restore(self) -> Curve:
        """Restore the last checkpoint, and return the curve up to it; empty if there is none.

        Raises:
            CheckpointError: if it does not fit the model.
        """
        last = latest(self.directory)
        try:
            restored = self._manager.checkpoint.restore(last)
            if last is not None:
                restored.assert_existing_objects_matched()
        except (AssertionError, ValueError, tf.errors.OpError) as error:
            raise CheckpointError(
                f"the checkpoint in {self.directory} is damaged or of another version of this "
                "program: remove that folder to begin anew"
            ) from error
        return self._state.curve

    def save(self, curve: Curve) -> None:
        """Save a checkpoint, unless that would take too much of the training's time.

        Raises:
            CheckpointError: if it cannot be written; the one before stays.
        """
        started = time.monotonic()
        if started < self._not_before or not is_chief(tf.distribute.get_strategy()):
            return
        self._state.curve = curve
        try:
            self._manager.save()
        except tf.errors.OpError as error:
            raise CheckpointError(
                f"no checkpoint can be written to {self.directory}: {error.message}"
            ) from error
        done = time.monotonic()
        self._not_before = done + (done - started) * (1 - _MAX_SHARE) / _MAX_SHARE


def directory_of(
    root: Path, dataset: Dataset, rows: np.ndarray, config: TowersConfig, seed: int, what: str
) -> Path:
    """Return the folder for the checkpoints of a training, named by all that its result depends on.

    The learning rate ends the name: from a training that diverged, one with a lower rate goes on.

    Args:
        root: holds the folders of all trainings.
        dataset: users, candidates and interactions.
        rows: (n,) int64, the interactions to learn from.
        config: how the towers are built and trained.
        seed: of the training.
        what: anything else.
    """
    digest = hashlib.sha256(config.model_dump_json(exclude={"learning_rate"}).encode())
    digest.update(f"{seed} {what}".encode())
    digest.update(_serialised(dataset.candidates))
    digest.update(_serialised(dataset.users))
    for values in (dataset.user_rows, dataset.candidate_rows, dataset.timestamps, rows):
        digest.update(b"" if values is None else np.ascontiguousarray(values).tobytes())
    return root / f"{digest.hexdigest()[:16]}-{config.learning_rate!r}"


def _serialised(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue()


def latest(directory: Path) -> str | None:
    """Return the checkpoint that a training goes on from; None if there is none.

    Its own last one, or else that of the same training with a higher learning rate, if it diverged.
    """
    checkpoints = (
        tf.train.latest_checkpoint(str(one)) for one in (directory, *_diverged(directory))
    )
    return next(filter(None, checkpoints), None)


def mark_diverged(directory: Path) -> None:
    """Let trainings with a lower learning rate go on from these checkpoints."""
    with contextlib.suppress(OSError):  # it would hide why the training ended
        (directory / _DIVERGED).touch()


def _diverged(directory: Path) -> list[Path]:
    """Return the folders of the same training with higher learning rates, if those diverged."""
    training, _, rate = directory.name.partition("-")
    marks = directory.parent.glob(f"{training}-*/{_DIVERGED}") if rate else ()
    higher = {
        other: one.parent
        for one in marks
        if (other := float(one.parent.name.partition("-")[2])) > float(rate)
    }
    return [higher[other] for other in sorted(higher)]


def remove(directories: list[Path]) -> None:
    """Remove the checkpoints of trainings that have done their part, and a root without others."""
    for directory in (one for each in directories for one in (each, *_diverged(each))):
        shutil.rmtree(directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            directory.parent.rmdir()
