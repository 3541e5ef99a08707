"""What is known of a candidate, as one vector: its id and its content.

Both towers read candidates, the one in histories, the other as answers. A candidate nobody
trained on has no id that says anything, but its content places it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.features import Feature
from trainer.keras import tf

_KNOT_DISTANCE = 0.1
_KNOTS = np.arange(-3, 3 + _KNOT_DISTANCE, _KNOT_DISTANCE, dtype=np.float32)
"""Where numbers are read, in standard deviations from their mean."""


class ItemEncoder(tf.keras.layers.Layer):  # type: ignore[misc]
    """Turns what is known of candidates, their ids and their content, into vectors.

    A feature's tokens are summed and divided by the square root of how many there are; a number is
    spread over knots, between which it is interpolated. The features' vectors are summed.

    Args:
        features: of the candidates.
        width: dimension of the vectors.
        deviation: standard deviation of the ids' initial weights; content starts from 0.
        seed: of the initial weights.
    """

    def __init__(
        self, features: Sequence[Feature], width: int, deviation: float, seed: int
    ) -> None:
        super().__init__()
        self._features = features
        of_ids = tf.keras.initializers.RandomNormal(stddev=deviation, seed=seed)
        self._tables = {
            feature.name: self.add_weight(
                feature.kind,
                (
                    len(_KNOTS) if feature.kind == "number" else feature.n_tokens + 1,
                    width,
                ),
                initializer=of_ids if feature.kind == "id" else "zeros",
            )
            for feature in features
        }

    def table(self, name: str) -> Any:
        """Return the weights of a feature, a line for each token from 0, or for each knot."""
        return self._tables[name]

    def call(self, inputs: dict[str, Any]) -> Any:
        """Encode candidates.

        Args:
            inputs: by feature (n, length) int32 tokens padded with 0, or float32 numbers; tokens
                may be ragged (n, None) without padding.

        Returns:
            (n, width) float32.
        """
        parts = [
            (self._number if feature.kind == "number" else self._tokens)(
                self._tables[feature.name], inputs[feature.name]
            )
            for feature in self._features
        ]
        return tf.add_n(parts)

    @staticmethod
    def _tokens(table: Any, tokens: Any) -> Any:
        known = tf.cast(tokens > 0, tf.float32)
        # The product makes the gradient dense, which the optimiser applies several times faster.
        summed = tf.reduce_sum(tf.gather(table * 1.0, tokens) * tf.expand_dims(known, -1), axis=1)
        counts = tf.reduce_sum(known, axis=1)
        return summed * tf.math.rsqrt(tf.maximum(counts, 1.0))[:, None]

    @staticmethod
    def _number(table: Any, numbers: Any) -> Any:
        closeness = tf.nn.softmax(-(((numbers - _KNOTS) / _KNOT_DISTANCE) ** 2))
        return tf.matmul(closeness, table)
