"""TensorFlow with Keras 2, which TensorFlow Recommenders is written for.

Which Keras TensorFlow brings is settled by its first import, so whatever needs TensorFlow takes it
from here.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf
import tensorflow_recommenders as tfrs

# That a function is traced again for another shape is no news for who trains.
tf.get_logger().setLevel("ERROR")

__all__ = ["tf", "tfrs", "untuned"]


def untuned(batches: Any) -> Any:
    """Return a ``tf.data.Dataset`` that TensorFlow does not tune while it is read.

    What tunes it sleeps for 10 ms, then 20, 40 and so on, and whoever has read to the end waits for
    it to wake: up to as long as the reading took, after each epoch.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.with_options(options)
