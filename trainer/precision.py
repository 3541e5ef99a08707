"""Products of matrices in a lower precision than what they are made of."""

from __future__ import annotations

from typing import Any

from trainer.keras import tf


def product(left: Any, right: Any, *, mixed: bool, transpose_b: bool = False) -> Any:
    """Multiply float32 matrices, of which the product is float32 too.

    Args:
        left: (n, m) float32.
        right: (m, k) float32, or (k, m) with ``transpose_b``.
        mixed: multiply in bfloat16, which has the range of float32 and so needs no scaling of the
            loss; the gradients are multiplied alike.
        transpose_b: whether ``right`` is transposed first.
    """
    inner = tf.bfloat16 if mixed else tf.float32
    return tf.cast(
        tf.matmul(tf.cast(left, inner), tf.cast(right, inner), transpose_b=transpose_b), tf.float32
    )
