"""The retrieval model of the TensorFlow Recommenders tutorials, which the towers must beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from trainer.datasets import Dataset
from trainer.keras import tf, tfrs


class TutorialsModel(tfrs.Model):  # type: ignore[misc]
    """One embedding a user and one a candidate, trained on in-batch softmax.

    Args:
        n_users: that there are.
        n_candidates: that there are.
        dim: of the embeddings.
        seed: of the initial weights.
    """

    def __init__(self, n_users: int, n_candidates: int, dim: int, seed: int) -> None:
        super().__init__()
        initializers = [tf.keras.initializers.RandomUniform(seed=seed + i) for i in range(2)]
        self.query = tf.keras.layers.Embedding(n_users, dim, initializers[0])
        self.candidate = tf.keras.layers.Embedding(n_candidates, dim, initializers[1])
        self.task = tfrs.tasks.Retrieval()

    def compute_loss(self, features: Mapping[str, Any], training: bool = False) -> Any:
        """Return the loss of a batch of ``user`` and ``candidate`` rows, (n,) each."""
        del training
        return self.task(self.query(features["user"]), self.candidate(features["candidate"]))


def compiled(n_users: int, n_candidates: int, dim: int, seed: int) -> TutorialsModel:
    """Make the model, with the tutorials' optimiser."""
    model = TutorialsModel(n_users, n_candidates, dim, seed)
    model.compile(optimizer=tf.keras.optimizers.Adagrad(0.1))
    return model


def interactions(dataset: Dataset, train_rows: np.ndarray) -> Any:
    """Return interactions as a ``tf.data.Dataset`` of ``user`` and ``candidate`` rows."""
    return tf.data.Dataset.from_tensor_slices(
        {
            "user": dataset.user_rows[train_rows],
            "candidate": dataset.candidate_rows[train_rows],
        }
    )
