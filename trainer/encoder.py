"""What is known of a candidate or a user, as one vector: the id, and what else there is.

Both towers read candidates, the one in histories, the other as answers. A candidate nobody
trained on has no id that says anything, but its content places it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.features import Feature
from trainer.keras import tf

_KNOT_DISTANCE = 0.1
_KNOTS = np.arange(-3, 3 + _KNOT_DISTANCE, _KNOT_DISTANCE, dtype=np.float32)
"""Where numbers are read, in standard deviations from their mean."""
_SEED_DISTANCE = 1_000_003
"""Between the seeds of two tables: one seed would give both the same weights."""
_MANY = 200
"""Tokens of a feature from which a sparse product is faster than a dense one."""
_TOO_MANY = 20_000
"""Tokens of which a step over some candidates reads so few that it gathers them."""


class FeatureEncoder(tf.keras.layers.Layer):  # type: ignore[misc]
    """Turns what is known of candidates, their ids and their content, or of users, into vectors.

    A feature's tokens are summed and divided by the square root of how many there are; a number is
    spread over knots, between which it is interpolated. The features' vectors are summed.

    Args:
        features: of the candidates, or of the users.
        width: dimension of the vectors.
        deviation: standard deviation of the ids' initial weights; all else starts from 0, or as
            the ids would if there are none.
        seed: of the initial weights.
    """

    def __init__(
        self, features: Sequence[Feature], width: int, deviation: float, seed: int
    ) -> None:
        super().__init__()
        self._features = features
        has_ids = any(feature.kind == "id" for feature in features)
        self._tables = {
            feature.name: self.add_weight(
                feature.kind,
                (
                    len(_KNOTS) if feature.kind == "number" else feature.n_tokens + 1,
                    width,
                ),
                initializer="zeros"
                if has_ids and feature.kind != "id"
                else tf.keras.initializers.RandomNormal(
                    stddev=deviation, seed=seed + _SEED_DISTANCE * i
                ),
            )
            for i, feature in enumerate(features)
        }

    def table(self, name: str) -> Any:
        """Return the weights of a feature, a line for each token from 0, or for each knot."""
        return self._tables[name]

    def call(self, inputs: dict[str, Any]) -> Any:
        """Encode candidates.

        Args:
            inputs: by feature (n, length) int32 tokens padded with 0, or (n, 1) float32 numbers;
                or either as ``Catalogue`` has them, the weights with which candidates read the
                lines of the feature's table, (n, n_lines) float32, sparse or not.

        Returns:
            (n, width) float32.
        """
        return tf.add_n([self.read(name, table, inputs) for name, table in self._tables.items()])

    def read(self, name: str, table: Any, inputs: dict[str, Any]) -> Any:
        """Return what candidates read of a table with as many lines as that of one feature.

        Args:
            name: of the feature.
            table: (n_lines, width) float32.
            inputs: as ``call`` takes them.

        Returns:
            (n, width) float32.
        """
        feature = next(one for one in self._features if one.name == name)
        values = inputs[name]
        if isinstance(values, tf.SparseTensor):
            return tf.sparse.sparse_dense_matmul(values, table)
        if feature.kind == "number" and values.shape[1] == 1:
            return tf.matmul(_closeness(values), table)
        if values.dtype == tf.float32:
            return tf.matmul(values, table)
        known = tf.cast(values > 0, tf.float32)
        if values.shape[1] == 1:
            return tf.gather(table, values[:, 0]) * known
        summed = tf.reduce_sum(tf.gather(table, values) * tf.expand_dims(known, -1), axis=1)
        counts = tf.reduce_sum(known, axis=1)
        return summed * tf.math.rsqrt(tf.maximum(counts, 1.0))[:, None]


def _closeness(numbers: Any) -> Any:
    """Return how close numbers (n, 1) are to each knot: (n, n_knots) float32, adding up to 1."""
    return tf.nn.softmax(-(((numbers - _KNOTS) / _KNOT_DISTANCE) ** 2))


class Catalogue:
    """The candidates as a training step reads them.

    What a candidate reads of a feature's table is a line of a matrix, and to encode is to multiply
    both: a table that is read as a whole is multiplied faster than gathered. Of the ids in a large
    catalogue, and of very many words, a step over some candidates reads few, and gathers them, so
    that it changes no more of the table than it reads.

    Args:
        features: of the candidates.
        corpus: by feature (n_candidates, length), as ``trainer.features.encode_candidates`` has
            them.
    """

    def __init__(self, features: Sequence[Feature], corpus: dict[str, np.ndarray]) -> None:
        self._features = features
        self._corpus = {name: tf.constant(values) for name, values in corpus.items()}

    @functools.cached_property
    def all(self) -> dict[str, Any]:
        """All candidates, for ``FeatureEncoder``."""
        with tf.init_scope():
            return {f.name: _weights(f, self._corpus[f.name]) for f in self._features}

    def some(self, rows: Any) -> dict[str, Any]:
        """Some candidates, (n,) int32 rows, for ``FeatureEncoder``."""
        gathered = {name: tf.gather(values, rows) for name, values in self._corpus.items()}
        return {
            f.name: gathered[f.name] if _is_gathered(f) else _weights(f, gathered[f.name])
            for f in self._features
        }


def _is_gathered(feature: Feature) -> bool:
    return feature.kind == "id" or feature.n_tokens > _TOO_MANY


def _weights(feature: Feature, values: Any) -> Any:
    """Return the weights of a feature's lines, (n, n_lines) float32, sparse if they are many."""
    if feature.kind == "number":
        return _closeness(values)
    cells = tf.where(values > 0)
    lines = cells[:, 0]
    counts = tf.reduce_sum(tf.cast(values > 0, tf.float32), axis=1)
    sparse = tf.SparseTensor(
        tf.stack([lines, tf.cast(tf.gather_nd(values, cells), tf.int64)], axis=1),
        tf.gather(tf.math.rsqrt(tf.maximum(counts, 1.0)), lines),
        (tf.shape(values, tf.int64)[0], feature.n_tokens + 1),
    )
    return dense(sparse) if feature.n_tokens < _MANY else sparse


def dense(sparse: Any) -> Any:
    """Return a sparse matrix as a dense one; what is at the same place adds up."""
    return tf.scatter_nd(sparse.indices, sparse.values, sparse.dense_shape)
