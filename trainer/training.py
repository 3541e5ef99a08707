"""Training: interactions -> histories -> batches -> fitted towers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from trainer.batches import ages, ragged, training_batches
from trainer.bundle import TowerBundle
from trainer.checkpoints import Checkpoints, latest, mark_diverged
from trainer.datasets import Dataset
from trainer.distribution import Share, require_agreement, shared
from trainer.errors import TrainingError
from trainer.features import encode_candidates, encode_table
from trainer.inputs import collect_histories, describe, describe_users
from trainer.keras import tf
from trainer.model_config import TowersConfig
from trainer.monitoring import Monitor, OnEpoch
from trainer.optimizers import LazyAdam
from trainer.splits import Split
from trainer.towers import TwoTowers
from trainer.trained_towers import Towers
from trainer.trend import bias_shifts
from trainer.validation import Validation
from trainer.warm_start import warm_start

_MAX_COMPRESSED = 20_000
"""Of more users than this, some stand for all when the embeddings are compressed."""


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
    users = describe_users(dataset, train_rows, config)
    features, vocabularies = describe(dataset.candidates, users, config)
    corpus = encode_candidates(features, vocabularies, dataset.candidates)
    context = encode_table(features.context, vocabularies, users)
    model = TwoTowers(features, corpus, config, seed)
    if start_from is not None:
        warm_start(model, features, vocabularies, start_from)
    model.compile(optimizer=_optimizer(config, n_steps))
    model.optimizer.build(model.trainable_variables)  # or the first step is traced twice
    monitor = Monitor(
        on_epoch,
        None if validation is None else Validation(dataset, validation, histories, context),
        patience,
        None if checkpoints is None else Checkpoints(checkpoints, model),
    )
    first_epoch = monitor.restore()
    require_agreement(
        chain(
            [np.array(first_epoch)],
            histories,
            context.values(),
            (one.numpy() for one in model.variables),
        )
    )

    def make_batches(share: Share) -> Any:
        return training_batches(
            *(histories, dataset.n_candidates, config, seed, first_epoch, share), context=context
        )

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
    n_interactions = np.bincount(dataset.candidate_rows[train_rows], minlength=dataset.n_candidates)
    model.distil_ids_into_content(n_interactions)
    shifts = bias_shifts(dataset, train_rows, config.settled_trend_half_life_days)
    if shifts is not None:
        model.set_trend(shifts)
    _finish(model, histories, dataset.n_candidates, context)
    return Towers(model, config, features, vocabularies, corpus, histories, context)


def _optimizer(config: TowersConfig, n_steps: int) -> LazyAdam:
    """Return an optimizer whose learning rate falls to 0 over the epochs, of so many steps each."""
    learning_rate = tf.keras.optimizers.schedules.PolynomialDecay(
        config.learning_rate, config.epochs * n_steps, end_learning_rate=0.0
    )
    return LazyAdam(learning_rate)


def _finish(
    model: TwoTowers,
    histories: list[np.ndarray],
    n_candidates: int,
    context: dict[str, np.ndarray],
) -> None:
    """Compress the embeddings of a trained model for the users that it has learned from."""
    known = np.flatnonzero([len(history) > 0 for history in histories])
    some = known[:: 1 + (len(known) - 1) // _MAX_COMPRESSED]
    model.query_tower.forget_users_but(known)
    model.finish(
        ages(ragged([histories[user] for user in some]), n_candidates),
        {name: values[some] for name, values in context.items()},
    )


@contextmanager
def _advice_on_divergence(config: TowersConfig, checkpoints: Path | None) -> Iterator[None]:
    try:
        yield
    except FloatingPointError as error:
        advice = f"lower the learning rate (now {config.learning_rate:g}) or raise the temperature"
        if checkpoints is not None and (last := latest(checkpoints)):
            mark_diverged(Path(last).parent)
            advice += (
                f"; the last good checkpoint is kept in {Path(last).parent}, from where the same "
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
