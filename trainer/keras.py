"""TensorFlow with Keras 2, which TensorFlow Recommenders is written for.

Which Keras TensorFlow brings is settled by its first import, so whatever needs TensorFlow takes it
from here.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf
import tensorflow_recommenders as tfrs

# That a function is traced again for another shape is no news for who trains.
tf.get_logger().setLevel("ERROR")

__all__ = ["tf", "tfrs"]
