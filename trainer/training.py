"""Training: interactions -> histories -> batches -> fitted towers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trainer.batches import ages, ragged, training_batches
from trainer.bundle import TowerBundle
from trainer.checkpoints import Checkpoints, is_there
from trainer.datasets import Dataset
from trainer.distribution import Share, require_agreement, shared
from trainer.errors import TrainerError
from trainer.features import (
    CANDIDATE_ID,
    HISTORY,
    Feature,
    Features,
    describe_column,
    encode_candidates,
)
from trainer.keras import tf
from trainer.model_config import TowersConfig
from trainer.monitoring import Monitor, OnEpoch
from trainer.optimizers import LazyAdam
from trainer.splits import Split
from trainer.towers import Towers, TwoTowers
from trainer.validation import Validation
from trainer.vocabulary import Vocabulary
from trainer.warm_start import warm_start

_INPUT_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)
_MAX_COMPRESSED = 20_000
"""Of more users than this, some stand for all when the embeddings are compressed."""


class TrainingError(TrainerError):
    """Why towers could not be trained, for the user."""


def fit(
    dataset: Dataset,
    train_rows: np.ndarray,
    config: TowersConfig,
    seed: int,
    on_epoch: OnEpoch | None = None,
    *,
    n_epochs: int | None = None,
    validation: Split | None = None,
    patience: int = 0,
    checkpoints: Path | None = None,
    tensorboard: Path | None = None,
    start_from: TowerBundle | None = None,
) -> Towers:
    """Train towers on some of a dataset's interactions.

    Args:
        dataset: users, candidates and interactions.
        train_rows: (n,) int64, the interactions to learn from.
        config: how the towers are built and trained.
        seed: of the initial weights, the batches and what is hidden in them: the same seed gives
            the same towers.
        on_epoch: called after every epoch with its number, from 1, and its metrics by name: the
            ``loss``, and with ``validation`` those that are watched; at once for epochs that were
            done before the training was killed.
        n_epochs: after how many of the ``config``'s epochs to stop.
        validation: whose test rows the towers are measured on after every epoch.
        patience: epochs without a better validation after which to stop; 0: never.
        checkpoints: a folder for this training's checkpoints, from the last of which it goes on.
        tensorboard: a folder for TensorBoard's logs.
        start_from: the bundle whose weights to begin with.

    Raises:
        TrainingError: if there is nothing to learn from, or the loss stopped being a number.
        BundleError: if these towers cannot begin with the bundle's weights.
        CheckpointError: if the training cannot go on from its checkpoint.
    """
    histories = collect_histories(dataset, train_rows, config.max_history_length)
    n_steps = steps_per_epoch(histories, config)
    features, vocabularies = describe(dataset, config)
    corpus = encode_candidates(features, vocabularies, dataset.candidates)
    model = TwoTowers(features, corpus, config, seed)
    if start_from is not None:
        warm_start(model, features, vocabularies, start_from)
    learning_rate = tf.keras.optimizers.schedules.PolynomialDecay(
        config.learning_rate, config.epochs * n_steps, end_learning_rate=0.0
    )
    model.compile(optimizer=LazyAdam(learning_rate))
    monitor = Monitor(
        on_epoch,
        None if validation is None else Validation(dataset, validation, histories),
        patience,
        None if checkpoints is None else Checkpoints(checkpoints, model),
    )
    first_epoch = monitor.restore()
    require_agreement(
        chain([np.array(first_epoch)], histories, (one.numpy() for one in model.variables))
    )

    def make_batches(share: Share) -> Any:
        n_candidates = dataset.n_candidates
        return training_batches(histories, n_candidates, config, seed, first_epoch, share)

    if not monitor.is_out_of_patience:
        with _advice_on_divergence(config, checkpoints):
            model.fit(
                shared(make_batches),
                initial_epoch=first_epoch,
                epochs=n_epochs or config.epochs,
                steps_per_epoch=n_steps,
                callbacks=[monitor, *_tensorboard(tensorboard)],
                verbose=0,
            )
    known = [history for history in histories if len(history)]
    some = ragged(known[:: 1 + (len(known) - 1) // _MAX_COMPRESSED])
    model.finish(ages(some, dataset.n_candidates))
    return Towers(model, config, features, vocabularies, corpus, histories)


@contextmanager
def _advice_on_divergence(config: TowersConfig, checkpoints: Path | None) -> Iterator[None]:
    try:
        yield
    except FloatingPointError as error:
        advice = f"lower the learning rate (now {config.learning_rate:g}) or raise the temperature"
        if checkpoints is not None and is_there(checkpoints):
            advice += (
                f"; the last good checkpoint is kept in {checkpoints}, from where the same "
                "training goes on with a lower learning rate"
            )
        raise TrainingError(f"{error}: {advice}") from error


def _tensorboard(directory: Path | None) -> list[Any]:
    if directory is None:
        return []
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(
            f"{directory} cannot be made for TensorBoard: {error.strerror}"
        ) from error
    return [tf.keras.callbacks.TensorBoard(str(directory), write_graph=False)]


def describe(dataset: Dataset, config: TowersConfig) -> tuple[Features, dict[str, Vocabulary]]:
    """Describe what the towers read: histories, candidate ids and the candidates' metadata.

    Returns:
        The features, and the vocabularies of those that have any.

    Raises:
        TrainingError: if a metadata column is of a type that no tower can read, or has a name that
            no input of a tower can have.
    """
    history = Feature(name=HISTORY, kind="history", length=config.max_history_length)
    candidate = [Feature(name=CANDIDATE_ID, kind="id", n_tokens=dataset.n_candidates)]
    vocabularies = {CANDIDATE_ID: dataset.candidate_ids}
    columns = dataset.candidates.column_names if config.content else []
    for name in columns:
        if name == CANDIDATE_ID:
            continue
        feature, vocabulary = _describe_content(name, dataset.candidates[name])
        is_shared = feature.kind == "number" or feature.n_tokens > 0
        if feature.kind in config.content and is_shared:
            candidate.append(feature)
            if vocabulary is not None:
                vocabularies[name] = vocabulary
    return Features(query=(history,), candidate=tuple(candidate)), vocabularies


def _describe_content(name: str, column: pa.ChunkedArray) -> tuple[Feature, Vocabulary | None]:
    if not _INPUT_NAME.fullmatch(name):
        raise TrainingError(
            f"the candidates' column {name!r} cannot be an input of a tower: rename it so that "
            "it begins with a letter and holds letters, digits and underscores only"
        )
    try:
        return describe_column(name, column)
    except ValueError as error:
        raise TrainingError(f"the candidates' column {name!r}: {error}") from error


def collect_histories(
    dataset: Dataset, train_rows: np.ndarray, max_history_length: int
) -> list[np.ndarray]:
    """Collect what every user has interacted with.

    Args:
        dataset: users, candidates and interactions.
        train_rows: (n,) int64, the interactions that count.
        max_history_length: how many of each user are kept, the newest.

    Returns:
        For every user of the dataset their candidate rows, int32, oldest first; equal times, or
        data without times, in the order of the rows.
    """
    rows = np.sort(train_rows)
    if dataset.timestamps is not None:
        rows = rows[np.argsort(dataset.timestamps[rows], kind="stable")]
    rows = rows[np.argsort(dataset.user_rows[rows], kind="stable")]
    ends = np.cumsum(np.bincount(dataset.user_rows[rows], minlength=dataset.n_users))
    histories = np.split(dataset.candidate_rows[rows].astype(np.int32), ends[:-1])
    return [history[-max_history_length:] for history in histories]


def steps_per_epoch(histories: list[np.ndarray], config: TowersConfig) -> int:
    """Return the batches of an epoch.

    Raises:
        TrainingError: if no user has an interaction.
    """
    n_users = sum(len(history) > 0 for history in histories)
    if not n_users:
        raise TrainingError(
            "there is no interaction to learn from: the train rows are empty; "
            "--split none holds nothing out"
        )
    return -(-n_users // config.batch_size)
