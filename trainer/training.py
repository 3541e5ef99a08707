"""Training: interactions -> histories -> batches -> fitted towers."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from trainer.datasets import Dataset
from trainer.features import (
    CANDIDATE_ID,
    HISTORY,
    Feature,
    Features,
    describe_column,
    encode_candidates,
)
from trainer.keras import tf
from trainer.towers import Towers, TowersConfig, TwoTowers
from trainer.vocabulary import Vocabulary

OnEpoch: TypeAlias = Callable[[int, dict[str, float]], None]

_INPUT_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)
_MAX_COMPRESSED = 20_000
"""Of more users than this, some stand for all when the embeddings are compressed."""


class TrainingError(Exception):
    """Why towers could not be trained, for the user."""


def fit(
    dataset: Dataset,
    train_rows: np.ndarray,
    config: TowersConfig,
    seed: int,
    on_epoch: OnEpoch | None = None,
    validation_rows: np.ndarray | None = None,
) -> Towers:
    """Train towers on some of a dataset's interactions.

    Args:
        dataset: users, candidates and interactions.
        train_rows: (n,) int64, the interactions to learn from.
        config: how the towers are built and trained.
        seed: of the initial weights, the batches and what is hidden in them: the same seed gives
            the same towers.
        on_epoch: called after every epoch with its number, from 1, and its metrics by name: the
            ``loss``, and ``val_...`` of the loss and TFRS's FactorizedTopK if there is anything to
            validate on.
        validation_rows: (n,) int64, interactions held out to watch the training by.

    Raises:
        TrainingError: if there is nothing to learn from, or the loss stopped being a number.
    """
    histories = collect_histories(dataset, train_rows, config.max_history_length)
    batches = training_batches(histories, config, seed)
    features, vocabularies = describe(dataset, config)
    corpus = encode_candidates(features, vocabularies, dataset.candidates)
    model = TwoTowers(features, corpus, config, seed)
    n_steps = config.epochs * int(batches.cardinality())
    learning_rate = tf.keras.optimizers.schedules.PolynomialDecay(
        config.learning_rate, n_steps, end_learning_rate=0.0
    )
    model.compile(optimizer=tf.keras.optimizers.Adam(learning_rate))
    model.fit(
        batches,
        epochs=config.epochs,
        validation_data=_validation_batches(dataset, histories, validation_rows, config),
        callbacks=[_EpochCallback(on_epoch)],
        verbose=0,
    )
    known = [history for history in histories if len(history)]
    model.finish(_ragged(known[:: 1 + len(known) // _MAX_COMPRESSED]) + 1)
    return Towers(model, config, features, vocabularies, corpus, histories)


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
        if feature.kind in config.content:
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


def training_batches(histories: list[np.ndarray], config: TowersConfig, seed: int) -> Any:
    """Make the batches of an epoch, with the users in random order.

    Args:
        histories: candidate rows of each user, oldest first.
        config: how the towers are trained.
        seed: of the order and of what the heads have to find; every epoch draws afresh.

    Returns:
        A ``tf.data.Dataset`` of what ``TwoTowers.compute_loss`` reads in training.

    Raises:
        TrainingError: if no user has an interaction.
    """
    learnable = [history for history in histories if len(history)]
    if not learnable:
        raise TrainingError("there is no interaction to learn from: the train rows are empty")
    interactions = _ragged(learnable)

    def stream(seed: int, batch_size: int, example: Callable[..., Any]) -> Any:
        users = tf.data.Dataset.range(len(learnable)).shuffle(len(learnable), seed=seed)
        draws = tf.data.Dataset.random(seed, rerandomize_each_iteration=True).batch(2)
        batches = tf.data.Dataset.zip(users.batch(batch_size), draws)
        return batches.map(lambda users, draw: example(tf.gather(interactions, users), draw))

    batches = {
        "taste": stream(
            2 * seed, config.batch_size, partial(_hide, dropout=config.history_dropout)
        ),
        "sequence": stream(
            2 * seed + 1,
            config.batch_size // 2,
            partial(_cut, decay=config.target_decay),
        ),
    }
    return tf.data.Dataset.zip(batches).prefetch(2)


def _hide(candidates: Any, draw: Any, dropout: float) -> dict[str, Any]:
    """Hide interactions anywhere in the histories, to be found by the rest.

    Args:
        candidates: ragged (n, None) candidate rows, oldest first.
        draw: (2,) seed of what is hidden.
        dropout: the share that is hidden.
    """
    hidden = tf.random.stateless_uniform(tf.shape(candidates.values), draw) < dropout
    return _examples(candidates, hidden, tf.ones_like(candidates.values, tf.float32))


def _cut(candidates: Any, draw: Any, decay: float) -> dict[str, Any]:
    """Cut the histories anywhere in time; what came later is to be found, the next first.

    Args:
        candidates: ragged (n, None) candidate rows, oldest first.
        draw: (2,) seed of the cuts.
        decay: the n-th next interaction counts n to the power of minus this.
    """
    lengths = tf.cast(candidates.row_lengths(), tf.float32)
    cuts = tf.floor(tf.random.stateless_uniform(tf.shape(lengths), draw) * (lengths - 1)) + 1
    positions = tf.cast(tf.ragged.range(candidates.row_lengths()).values, tf.float32)
    distances = positions - tf.gather(cuts, candidates.value_rowids()) + 1
    return _examples(candidates, distances > 0, tf.maximum(distances, 1.0) ** -decay)


def _examples(candidates: Any, is_target: Any, weights: Any) -> dict[str, Any]:
    """Part interactions, whose flat values are told apart, into histories and targets."""
    targets = candidates.with_values(is_target)
    return {
        "history": tf.ragged.boolean_mask(candidates, ~targets) + 1,
        "targets": tf.ragged.boolean_mask(candidates, targets),
        "target_weights": tf.ragged.boolean_mask(candidates.with_values(weights), targets),
    }


def _validation_batches(
    dataset: Dataset,
    histories: list[np.ndarray],
    validation_rows: np.ndarray | None,
    config: TowersConfig,
) -> Any:
    """Make batches of whole histories and the held-out interactions; None without any."""
    if validation_rows is None:
        return None
    held_out = collect_histories(dataset, validation_rows, len(validation_rows))
    examples = {
        "history": _ragged(histories) + 1,
        "targets": _ragged(held_out),
        "target_weights": tf.ones_like(_ragged(held_out), tf.float32),
    }
    return tf.data.Dataset.from_tensor_slices(examples).batch(config.batch_size)


def _ragged(lists: list[np.ndarray]) -> Any:
    return tf.RaggedTensor.from_row_lengths(np.concatenate(lists), [len(one) for one in lists])


class _EpochCallback(tf.keras.callbacks.Callback):  # type: ignore[misc]
    """Reports every epoch, and stops when the loss is not a number."""

    def __init__(self, on_epoch: OnEpoch | None) -> None:
        super().__init__()
        self._on_epoch = on_epoch

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        watched = ("loss", *(name for name in logs if name.startswith("val_")))
        metrics = {name: float(logs[name]) for name in watched}
        if not np.isfinite(metrics["loss"]):
            raise TrainingError(
                f"the loss became {metrics['loss']} in epoch {epoch + 1}: lower the learning rate "
                f"(now {float(self.model.optimizer.learning_rate):g}) or raise the temperature"
            )
        if self._on_epoch is not None:
            self._on_epoch(epoch + 1, metrics)
