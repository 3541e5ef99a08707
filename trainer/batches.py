"""Training examples: what the heads read of a history, what they have to find, what competes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from trainer.distribution import Share
from trainer.keras import tf, untuned
from trainer.model_config import TowersConfig
from trainer.towers import HEADS

_INTERACTIONS = ("history", "targets")
"""What of an example are interactions."""


def ragged(histories: Sequence[np.ndarray]) -> Any:
    """Return histories as one ragged tensor (n, None)."""
    return tf.RaggedTensor.from_row_lengths(
        np.concatenate(histories), [len(history) for history in histories]
    )


def ages(histories: Any, n_candidates: int) -> Any:
    """Return how old interactions are, the newest 1, as the query tower reads them in training.

    Args:
        histories: ragged (n, None) int32 candidate rows, oldest first.
        n_candidates: that there are.

    Returns:
        (n, n_candidates) float32 sparse.
    """
    return _sparse(histories, _ages(histories), n_candidates)


def training_batches(
    histories: list[np.ndarray],
    n_candidates: int,
    config: TowersConfig,
    seed: int,
    first_epoch: int = 0,
    share: Share = Share(),  # noqa: B008 - frozen
    context: Mapping[str, np.ndarray] | None = None,
) -> Any:
    """Make the batches of all epochs, with the users in random order.

    An epoch depends on the seed and its number alone: a training that goes on from a checkpoint
    sees what it would have seen.

    Args:
        histories: candidate rows of each user, oldest first.
        n_candidates: that there are.
        config: how the towers are trained.
        seed: of the order and of what the heads have to find; every epoch draws afresh.
        first_epoch: the number, from 0, of the epoch to begin with.
        share: what of every batch to make; all shares are of one size, for which some users of a
            batch may come in two of them.
        context: what is read of the users beside their histories, by name (n, length).

    Returns:
        A ``tf.data.Dataset`` of what ``TwoTowers.compute_loss`` reads in training.
    """
    learnable = np.flatnonzero([len(history) > 0 for history in histories])
    interactions = ragged([histories[user] for user in learnable])
    contexts = {name: values[learnable] for name, values in (context or {}).items()}
    hide = partial(_hide, dropout=config.history_dropout)
    cut = partial(_cut, decay=config.target_decay)
    hidden_share = config.context_dropout if "history" in config.query else 0.0
    make_examples = dict(zip(HEADS, (hide, cut), strict=True))
    compete = _all_compete
    if config.is_sampled(n_candidates):
        counts = np.bincount(interactions.values, minlength=n_candidates)
        popularity = counts / counts.sum()
        compete = partial(_some_compete, popularity=popularity, n_drawn=config.negatives)

    def stream(head: str, epoch: Any) -> Any:
        key = tf.stack([2 * seed + HEADS.index(head), epoch])
        order = tf.random.experimental.stateless_shuffle(tf.range(len(learnable)), key)
        batches = tf.data.Dataset.from_tensor_slices(order).batch(config.batch_size).enumerate(1)

        def examples(step: Any, users: Any) -> dict[str, Any]:
            chosen, draw = _shared(users, share), _draw(key, step, share)
            made = make_examples[head](tf.gather(interactions, chosen), draw, n_candidates)
            if contexts:
                made["context"] = _context(contexts, chosen, draw, hidden_share)
            return made

        return batches.map(examples)

    def epoch_batches(epoch: Any) -> Any:
        examples = tf.data.Dataset.zip({head: stream(head, epoch) for head in HEADS})
        # Negative, and so no other seed's order of users.
        key = tf.stack([-1 - seed, epoch])
        return examples.enumerate().map(lambda step, heads: compete(heads, _draw(key, step, share)))

    epochs = tf.data.Dataset.range(first_epoch, config.epochs)
    return untuned(epochs.flat_map(epoch_batches).prefetch(2))


def _shared(users: Any, share: Share) -> Any:
    """Return every n-th of a batch's users, counted on from the first after the last."""
    n_users = tf.size(users)
    n_shared = -(-n_users // share.count)
    return tf.gather(users, (tf.range(n_shared) * share.count + share.index) % n_users)


def _draw(key: Any, step: Any, share: Share) -> Any:
    """Return the (2,) seed of what is random in one share of a step."""
    return tf.random.experimental.stateless_fold_in(key, step * share.count + share.index)


def _hide(candidates: Any, draw: Any, n_candidates: int, dropout: float) -> dict[str, Any]:
    """Hide interactions anywhere in the histories, to be found by the rest.

    Args:
        candidates: ragged (n, None) candidate rows, oldest first.
        draw: (2,) seed of what is hidden.
        n_candidates: that there are.
        dropout: the share that is hidden.
    """
    hidden = tf.random.stateless_uniform(tf.shape(candidates.values), draw) < dropout
    counts = tf.ones_like(candidates.values, tf.float32)
    return _examples(candidates, hidden, counts, n_candidates)


def _cut(candidates: Any, draw: Any, n_candidates: int, decay: float) -> dict[str, Any]:
    """Cut the histories anywhere in time; what came later is to be found, the next first.

    Args:
        candidates: ragged (n, None) candidate rows, oldest first.
        draw: (2,) seed of the cuts.
        n_candidates: that there are.
        decay: the n-th next interaction counts n to the power of minus this.
    """
    lengths = tf.cast(candidates.row_lengths(), tf.float32)
    cuts = tf.floor(tf.random.stateless_uniform(tf.shape(lengths), draw) * (lengths - 1)) + 1
    positions = tf.cast(tf.ragged.range(candidates.row_lengths()).values, tf.float32)
    distances = positions - tf.gather(cuts, candidates.value_rowids()) + 1
    counts = tf.maximum(distances, 1.0) ** -decay
    return _examples(candidates, distances > 0, counts, n_candidates)


def _context(
    contexts: Mapping[str, np.ndarray], users: Any, draw: Any, hidden_share: float
) -> dict[str, Any]:
    """Return what is read of users beside their histories, each feature hidden from some of them.

    Args:
        contexts: of all users, by name (n_users, length).
        users: (n,) those of the batch.
        draw: (2,) seed of what is hidden.
        hidden_share: of the users, for each feature; what is hidden is 0, as if it were unknown.
    """
    shown = {}
    for i, (name, values) in enumerate(contexts.items()):
        key = tf.random.experimental.stateless_fold_in(draw, i)
        is_shown = tf.random.stateless_uniform((tf.size(users), 1), key) >= hidden_share
        shown[name] = tf.gather(values, users) * tf.cast(is_shown, values.dtype)
    return shown


def _examples(candidates: Any, is_target: Any, counts: Any, n_candidates: int) -> dict[str, Any]:
    """Part interactions, whose flat values are told apart, into histories and targets."""
    lines = candidates.value_rowids()

    def those(mask: Any) -> Any:
        return tf.RaggedTensor.from_value_rowids(
            tf.boolean_mask(candidates.values, mask),
            tf.boolean_mask(lines, mask),
            candidates.nrows(),
            validate=False,
        )

    targets = _sparse(those(is_target), tf.boolean_mask(counts, is_target), n_candidates)
    return {"history": ages(those(~is_target), n_candidates), "targets": targets}


def _all_compete(heads: dict[str, Any], draw: Any) -> dict[str, Any]:
    del draw
    return heads


def _some_compete(
    heads: dict[str, Any], draw: Any, popularity: np.ndarray, n_drawn: int
) -> dict[str, Any]:
    """Narrow the catalogue of a step to what its examples name and what competes with them.

    What competes is drawn half from the catalogue and half from the examples: what Yang et al.
    (2020) call mixed negatives, the ones as rare as candidates are, the others as popular.

    Args:
        heads: examples by head.
        draw: (2,) seed of what is drawn.
        popularity: (n_candidates,), the share of the interactions that are with each.
        n_drawn: how many, with replacement.

    Returns:
        The examples, their columns numbered anew; ``rows``, the candidates that the columns stand
        for, those that compete first; and ``log_chances`` of these to be drawn.
    """
    parts = [examples[name] for examples in heads.values() for name in _INTERACTIONS]
    named = tf.concat([part.indices[:, 1] for part in parts], axis=0)
    n_candidates, n_uniform = len(popularity), n_drawn // 2
    n_popular = n_drawn - n_uniform
    uniform = tf.random.stateless_uniform((n_uniform,), draw, 0, n_candidates, tf.int64)
    places = tf.random.stateless_uniform((n_popular,), draw + 1, 0, tf.size(named), tf.int32)
    drawn = tf.concat([uniform, tf.gather(named, places)], axis=0)
    rows, positions = tf.unique(tf.concat([drawn, named], axis=0), tf.int64)
    columns = iter(tf.split(positions[n_drawn:], [tf.size(part.values) for part in parts]))

    def narrowed(part: Any) -> Any:
        indices = tf.stack([part.indices[:, 0], next(columns)], axis=1)
        shape = tf.stack([part.dense_shape[0], tf.size(rows, tf.int64)])
        return tf.SparseTensor(indices, part.values, shape)

    competing = rows[: tf.reduce_max(positions[:n_drawn]) + 1]
    rates = n_uniform / n_candidates + n_popular * tf.gather(
        tf.constant(popularity, tf.float32), competing
    )
    return {
        **{
            head: examples | {name: narrowed(examples[name]) for name in _INTERACTIONS}
            for head, examples in heads.items()
        },
        "rows": tf.cast(rows, tf.int32),
        "log_chances": tf.math.log(-tf.math.expm1(-rates)),
    }


def _ages(histories: Any) -> Any:
    """Return the age of every interaction of ragged histories, flat: 1 is the newest."""
    ranks = tf.ragged.range(histories.row_lengths(), 0, -1)
    return tf.cast(ranks.values, tf.float32)


def _sparse(rows: Any, values: Any, n_candidates: int) -> Any:
    """Return a sparse matrix (n, n_candidates) from its ragged columns and flat values."""
    columns = tf.cast(rows.values, tf.int64)
    indices = tf.stack([rows.value_rowids(), columns], axis=1)
    return tf.SparseTensor(indices, values, (rows.nrows(), n_candidates))
