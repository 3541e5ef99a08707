"""Several workers that train one model, over ``tf.distribute``.

Every worker has the whole model, takes the gradients of its share of every batch, and takes the
same step by the mean of all gradients: so all end with the same weights, after as many steps as
one worker would need. What depends on the workers asks the strategy whose scope it runs in, as
TensorFlow does; outside of any scope a process is alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.errors import TrainerError
from trainer.keras import tf

_LONGEST_SENTENCE = 1000


class WorkersError(TrainerError):
    """Why the workers cannot train together, for the user."""


@dataclass(frozen=True)
class Share:
    """What of every batch falls to one worker: every ``count``-th user, from ``index``."""

    index: int = 0
    count: int = 1


def join_workers() -> Any:
    """Join the workers that ``TF_CONFIG`` names, to be called before any operation of TensorFlow.

    Returns:
        The ``tf.distribute.Strategy`` over all workers, as soon as all have come; without
        ``TF_CONFIG`` that of one process alone.

    Raises:
        WorkersError: if ``TF_CONFIG`` names no workers, or this process has several accelerators.
    """
    if "TF_CONFIG" not in os.environ:
        return tf.distribute.get_strategy()
    try:
        description = json.loads(os.environ["TF_CONFIG"])
        workers, task = description["cluster"]["worker"], description["task"]
        is_understood = task["type"] == "worker" and 0 <= task["index"] < len(workers)
    except (KeyError, TypeError, ValueError):
        is_understood = False
    if not is_understood:
        raise WorkersError(
            'TF_CONFIG should read like {"cluster": {"worker": ["host1:12345", "host2:12345"]}, '
            '"task": {"type": "worker", "index": 0}}, with an index for each worker: mend it, or '
            "unset it to train in one process"
        )
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.OpError as error:
        raise WorkersError(f"the workers did not find one another: {error.message}") from error
    if strategy.num_replicas_in_sync != len(workers):
        raise WorkersError(
            "a worker of several accelerators was found: start one worker for each, with "
            "CUDA_VISIBLE_DEVICES set"
        )
    return strategy


@contextmanager
def together(strategy: Any) -> Iterator[None]:
    """Run in the scope of a strategy.

    Raises:
        WorkersError: if another of its workers is gone, which ends what all do together.
    """
    try:
        with strategy.scope():
            yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        if strategy.num_replicas_in_sync == 1:
            raise
        raise WorkersError(
            "another worker is gone, and the training of all ends with it: start all of them "
            "again, and they go on from the last checkpoint"
        ) from error


def is_chief(strategy: Any) -> bool:
    """Whether this process measures, saves and publishes what all workers train: the first does."""
    resolver = strategy.cluster_resolver
    return resolver is None or resolver.task_id == 0


def shared(make_batches: Callable[[Share], Any]) -> Any:
    """Return the batches of this worker.

    Args:
        make_batches: of a ``Share``, a ``tf.data.Dataset``.
    """
    return tf.distribute.get_strategy().distribute_datasets_from_function(
        lambda context: make_batches(Share(context.input_pipeline_id, context.num_input_pipelines))
    )


def heard_from_chief(sentence: str) -> str:
    """Return what the chief says; all workers must call this at the same time.

    Args:
        sentence: what this process would say, if it is the chief; cut if it is long.
    """
    strategy = tf.distribute.get_strategy()
    if strategy.num_replicas_in_sync == 1:
        return sentence
    letters = np.zeros(_LONGEST_SENTENCE, dtype=np.int32)
    if is_chief(strategy):
        spoken = list(map(ord, sentence[:_LONGEST_SENTENCE]))
        letters[: len(spoken)] = spoken
    heard = strategy.run(tf.function(_all_summed), (tf.constant(letters),)).numpy()
    return "".join(map(chr, heard[heard > 0]))


def _all_summed(values: Any) -> Any:
    return tf.distribute.get_replica_context().all_reduce(
        tf.distribute.ReduceOp.SUM, tf.identity(values)
    )


def averaged(metrics: dict[str, float]) -> dict[str, float]:
    """Return the means over all workers, which must call this at the same time."""
    strategy = tf.distribute.get_strategy()
    if strategy.num_replicas_in_sync == 1:
        return metrics
    values = tf.constant(list(metrics.values()), tf.float64)
    means = strategy.run(tf.function(_all_averaged), (values,)).numpy()
    return dict(zip(metrics, means.tolist(), strict=True))


def _all_averaged(values: Any) -> Any:
    return tf.distribute.get_replica_context().all_reduce(
        tf.distribute.ReduceOp.MEAN, tf.identity(values)
    )


def require_agreement(arrays: Iterable[np.ndarray]) -> None:
    """Make sure that all workers, which must call this at the same time, hold the same.

    Args:
        arrays: what they should agree on; not read where a process is alone.

    Raises:
        WorkersError: if they do not.
    """
    strategy = tf.distribute.get_strategy()
    if strategy.num_replicas_in_sync == 1:
        return
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    ours = tf.constant([int.from_bytes(digest.digest()[:7])], tf.int64)
    all_of_them = strategy.run(tf.function(_all_gathered), (ours,)).numpy()
    if len(np.unique(all_of_them)) > 1:
        raise WorkersError(
            "the workers do not begin with the same: give each the same data, options and seed, "
            "and a folder for the checkpoints that all of them share"
        )


def _all_gathered(values: Any) -> Any:
    return tf.distribute.get_replica_context().all_gather(tf.identity(values), axis=0)
