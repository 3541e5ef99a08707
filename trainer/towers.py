"""The query tower, the candidate tower, and the ``tfrs.Model`` over them.

The query tower reads what a user has interacted with, not who they are: a weighted sum of the
history's embeddings, where a newer interaction weighs more. So a user nobody trained on is served
from the history in the request. The candidate tower reads the candidate's id. Both are scaled to a
fixed length, so that popularity does not hide in an embedding's norm; it has a place of its own,
the last dimension, where a candidate keeps a bias and every query has a 1. The score stays one
inner product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from trainer.features import CANDIDATE_ID, HISTORY, Feature, Features, encode_histories
from trainer.keras import tf, tfrs
from trainer.losses import SoftmaxRetrieval
from trainer.vocabulary import Vocabulary

_EMBEDDING_BATCH = 4096


class TowersConfig(BaseModel):
    """How the towers are built and trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dim: int = Field(128, ge=2)
    """Dimension of the embeddings, the bias dimension included."""
    max_history_length: int = Field(512, ge=1)
    """Interactions of a user that the query tower reads; the newest stay."""
    recency: float = Field(0.5, ge=0)
    """The n-th newest interaction of a history weighs n to the power of minus this."""
    temperature: float = Field(0.2, gt=0)
    """Queries have length 1 / temperature, candidates length 1: lower is more peaked."""
    history_dropout: float = Field(0.5, ge=0, lt=1)
    """Share of a history hidden from the query tower in training, afresh in every epoch."""
    user_weight: float = Field(0.5, ge=0, le=1)
    """A user counts in the loss as their number of interactions to this power."""
    learning_rate: float = Field(0.001, gt=0)
    batch_size: int = Field(128, ge=1)
    """Users in a training step."""
    epochs: int = Field(140, ge=1)


class QueryTower(tf.keras.layers.Layer):  # type: ignore[misc]
    """Embeds histories.

    Args:
        n_candidates: size of the catalogue.
        config: how the towers are built.
        seed: of the initial weights.
    """

    def __init__(self, n_candidates: int, config: TowersConfig, seed: int) -> None:
        super().__init__(name="query_tower")
        self._config = config
        self._embeddings = _token_embeddings(self, "history", n_candidates, config.dim - 1, seed)

    def call(self, history: Any) -> Any:
        """Embed histories.

        Args:
            history: (n, length) int32 tokens, oldest first, padded on the right with 0; or ragged
                (n, None) without padding.

        Returns:
            (n, dim) float32; the last dimension is 1.
        """
        weights = self._recency_weights(history)
        summed = tf.reduce_sum(
            tf.gather(self._embeddings, history) * tf.expand_dims(weights, -1), axis=1
        )
        direction = tf.math.l2_normalize(summed, axis=1) / self._config.temperature
        return tf.concat([direction, tf.ones_like(direction[:, :1])], axis=1)

    def _recency_weights(self, history: Any) -> Any:
        if isinstance(history, tf.RaggedTensor):
            ranks = tf.ragged.range(history.row_lengths(), 0, -1)
            return tf.cast(ranks, tf.float32) ** -self._config.recency
        known = tf.cast(history > 0, tf.float32)
        lengths = tf.reduce_sum(known, axis=1, keepdims=True)
        ranks = lengths - tf.range(history.shape[1], dtype=tf.float32)
        return tf.maximum(ranks, 1.0) ** -self._config.recency * known


class CandidateTower(tf.keras.layers.Layer):  # type: ignore[misc]
    """Embeds candidates.

    Args:
        n_candidates: size of the catalogue.
        config: how the towers are built.
        seed: of the initial weights.
    """

    def __init__(self, n_candidates: int, config: TowersConfig, seed: int) -> None:
        super().__init__(name="candidate_tower")
        self._embeddings = _token_embeddings(self, "id", n_candidates, config.dim - 1, seed)
        self._biases = self.add_weight("bias", (n_candidates + 1,), initializer="zeros")

    def call(self, candidate_id: Any) -> Any:
        """Embed candidates.

        Args:
            candidate_id: (n, 1) int32 tokens.

        Returns:
            (n, dim) float32; the last dimension is the candidate's bias.
        """
        tokens = candidate_id[:, 0]
        direction = tf.math.l2_normalize(tf.gather(self._embeddings, tokens), axis=1)
        return tf.concat([direction, tf.gather(self._biases, tokens)[:, None]], axis=1)


class TwoTowers(tfrs.Model):  # type: ignore[misc]
    """Both towers and what they are trained to do.

    Args:
        n_candidates: size of the catalogue.
        config: how the towers are built.
        seed: of the initial weights.
    """

    def __init__(self, n_candidates: int, config: TowersConfig, seed: int) -> None:
        super().__init__()
        self.query_tower = QueryTower(n_candidates, config, seed=2 * seed)
        self.candidate_tower = CandidateTower(n_candidates, config, seed=2 * seed + 1)
        self._tokens = np.arange(1, n_candidates + 1, dtype=np.int32)[:, None]
        corpus = tf.data.Dataset.from_tensor_slices(self._tokens).batch(_EMBEDDING_BATCH)
        self.task = SoftmaxRetrieval(
            tfrs.metrics.FactorizedTopK(corpus.map(self.candidate_tower), ks=(10, 100)),
            user_weight=config.user_weight,
        )

    def compute_loss(self, inputs: dict[str, Any], training: bool = False) -> Any:
        """Return the loss of a batch.

        Args:
            inputs: ``history``, ragged (n, None) int32 tokens, and ``targets``, ragged (n, None)
                int32 candidate rows.
            training: whether to leave out the metrics.
        """
        return self.task(
            self.query_tower(inputs["history"]),
            self.candidate_tower(self._tokens),
            inputs["targets"],
            compute_metrics=not training,
        )


class QueryModule(tf.Module):  # type: ignore[misc]
    """The query tower as it is exported: plain arrays in, a dictionary out."""

    def __init__(self, tower: QueryTower, max_history_length: int) -> None:
        super().__init__(name="query")
        self.tower = tower
        history = tf.TensorSpec((None, max_history_length), tf.int32, name=HISTORY)
        self.embed = tf.function(self._embed, input_signature=[history])

    def _embed(self, history: Any) -> dict[str, Any]:
        return {"embedding": self.tower(history)}


class CandidateModule(tf.Module):  # type: ignore[misc]
    """The candidate tower as it is exported: plain arrays in, a dictionary out."""

    def __init__(self, tower: CandidateTower) -> None:
        super().__init__(name="candidate")
        self.tower = tower
        candidate_id = tf.TensorSpec((None, 1), tf.int32, name=CANDIDATE_ID)
        self.embed = tf.function(self._embed, input_signature=[candidate_id])

    def _embed(self, candidate_id: Any) -> dict[str, Any]:
        return {"embedding": self.tower(candidate_id)}


class Towers:
    """Trained towers, and the histories they were trained on.

    Args:
        model: the trained model.
        config: how it was built and trained.
        candidate_ids: the catalogue in row order.
        histories: candidate rows of every user in the data, oldest first; empty for a user
            without interactions in the train rows.
    """

    def __init__(
        self,
        model: TwoTowers,
        config: TowersConfig,
        candidate_ids: Vocabulary,
        histories: Sequence[np.ndarray],
    ) -> None:
        self.model = model
        self.config = config
        self.histories = histories
        self.features = Features(
            query=(Feature(name=HISTORY, kind="history", length=config.max_history_length),),
            candidate=(Feature(name=CANDIDATE_ID, kind="id", n_tokens=len(candidate_ids)),),
        )
        self.vocabularies = {CANDIDATE_ID: candidate_ids}
        self.query_module = QueryModule(model.query_tower, config.max_history_length)
        self.candidate_module = CandidateModule(model.candidate_tower)

    def embed_queries(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Embed users by what they have interacted with.

        Args:
            histories: candidate rows of each user, oldest first.

        Returns:
            (n, dim) float32.
        """
        encoded = encode_histories(histories, self.config.max_history_length)
        return _in_batches(self.query_module.embed, encoded, self.config.dim)

    def embed_candidates(self) -> np.ndarray:
        """Embed the catalogue: (n_candidates, dim) float32, in row order."""
        n_candidates = len(self.vocabularies[CANDIDATE_ID])
        tokens = np.arange(1, n_candidates + 1, dtype=np.int32)[:, None]
        return _in_batches(self.candidate_module.embed, tokens, self.config.dim)


def _token_embeddings(layer: Any, name: str, n_tokens: int, dim: int, seed: int) -> Any:
    """Add weights (n_tokens + 1, dim) to a layer, token 0 first."""
    initializer = tf.keras.initializers.RandomNormal(stddev=dim**-0.5, seed=seed)
    return layer.add_weight(name, (n_tokens + 1, dim), initializer=initializer)


def _in_batches(embed: Any, inputs: np.ndarray, dim: int) -> np.ndarray:
    embeddings = np.empty((len(inputs), dim), dtype=np.float32)
    for start in range(0, len(inputs), _EMBEDDING_BATCH):
        batch = slice(start, start + _EMBEDDING_BATCH)
        embeddings[batch] = embed(inputs[batch])["embedding"]
    return embeddings
