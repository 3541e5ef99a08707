"""The query tower, the candidate tower, and the ``tfrs.Model`` over them.

The query tower reads what a user has interacted with, not who they are, so a user nobody trained
on is served from the history in the request. It has two heads. *Taste* sums the history whatever
its order, and is trained to find interactions that were hidden from it, anywhere in the history.
*Sequence* sums it with the newest interactions ahead, and is trained to find what came next. The
candidate tower has the same heads over the candidate's id; the score is the sum of both.

Embeddings are scaled to a fixed length, so that popularity does not hide in their norm; it has a
place of its own, a dimension where a candidate keeps a bias and every query has a 1. When training
is over, both heads are compressed into ``dim`` dimensions. The score stays one inner product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from trainer.compression import compress
from trainer.features import CANDIDATE_ID, HISTORY, Feature, Features, encode_histories
from trainer.keras import tf, tfrs
from trainer.losses import SoftmaxRetrieval
from trainer.vocabulary import Vocabulary

_BATCH_SIZE = 4096


HEADS = ("taste", "sequence")


class TowersConfig(BaseModel):
    """How the towers are built and trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dim: int = Field(128, ge=2)
    """Dimension of the embeddings, the bias dimension included."""
    width: int = Field(128, ge=1)
    """Dimension of a head in training, before both are compressed into ``dim``."""
    max_history_length: int = Field(512, ge=1)
    """Interactions of a user that the query tower reads; the newest stay."""
    temperature: float = Field(0.2, gt=0)
    """Queries have length 1 / temperature, candidates length 1: lower is more peaked."""
    history_dropout: float = Field(0.4, gt=0, lt=1)
    """Share of a history that is hidden for the taste head to find, afresh in every epoch."""
    sequence_weight: float = Field(0.2, ge=0)
    """What the sequence head counts in the score; the taste head counts 1."""
    recency: float = Field(1.0, ge=0)
    """The n-th newest interaction weighs n to the power of minus this in the sequence head."""
    target_decay: float = Field(1.0, ge=0)
    """The n-th next interaction counts n to the power of minus this for the sequence head."""
    user_weight: float = Field(0.5, ge=0, le=1)
    """A user counts in the loss as the weight of their targets to this power."""
    learning_rate: float = Field(0.002, gt=0)
    """At the start; it falls linearly to 0."""
    batch_size: int = Field(128, ge=2)
    """Users in a training step, and half as many for the sequence head."""
    epochs: int = Field(120, ge=1)


class HistoryHead(tf.keras.layers.Layer):  # type: ignore[misc]
    """Embeds histories for one purpose.

    Args:
        n_candidates: size of the catalogue.
        recency: the n-th newest interaction weighs n to the power of minus this.
        config: how the towers are built.
        seed: of the initial weights.
    """

    def __init__(self, n_candidates: int, recency: float, config: TowersConfig, seed: int) -> None:
        super().__init__()
        self._recency = recency
        self._temperature = config.temperature
        self._embeddings = _token_embeddings(self, n_candidates, config.width, seed)

    def call(self, history: Any) -> Any:
        """Embed histories.

        Args:
            history: (n, length) int32 tokens, oldest first, padded on the right with 0; or ragged
                (n, None) without padding.

        Returns:
            (n, width + 1) float32; the last dimension is 1.
        """
        weights = tf.expand_dims(self._weights(history), -1)
        summed = tf.reduce_sum(tf.gather(self._embeddings, history) * weights, axis=1)
        direction = tf.math.l2_normalize(summed, axis=1) / self._temperature
        return tf.concat([direction, tf.ones_like(direction[:, :1])], axis=1)

    def _weights(self, history: Any) -> Any:
        if isinstance(history, tf.RaggedTensor):
            ranks = tf.ragged.range(history.row_lengths(), 0, -1)
            return tf.cast(ranks, tf.float32) ** -self._recency
        known = tf.cast(history > 0, tf.float32)
        lengths = tf.reduce_sum(known, axis=1, keepdims=True)
        ranks = lengths - tf.range(history.shape[1], dtype=tf.float32)
        return tf.maximum(ranks, 1.0) ** -self._recency * known


class CandidateHead(tf.keras.layers.Layer):  # type: ignore[misc]
    """Embeds candidates for one purpose.

    Args:
        n_candidates: size of the catalogue.
        config: how the towers are built.
        seed: of the initial weights.
    """

    def __init__(self, n_candidates: int, config: TowersConfig, seed: int) -> None:
        super().__init__()
        self._embeddings = _token_embeddings(self, n_candidates, config.width, seed)
        self._biases = self.add_weight("biases", (n_candidates + 1, 1), initializer="zeros")

    def call(self, candidate_id: Any) -> Any:
        """Embed candidates.

        Args:
            candidate_id: (n, 1) int32 tokens.

        Returns:
            (n, width + 1) float32; the last dimension is the candidate's bias.
        """
        tokens = candidate_id[:, 0]
        direction = tf.math.l2_normalize(tf.gather(self._embeddings, tokens), axis=1)
        return tf.concat([direction, tf.gather(self._biases, tokens)], axis=1)


class QueryTower(tf.keras.layers.Layer):  # type: ignore[misc]
    """Embeds histories with both heads.

    Args:
        n_candidates: size of the catalogue.
        config: how the towers are built.
        seed: of the initial weights.
    """

    def __init__(self, n_candidates: int, config: TowersConfig, seed: int) -> None:
        super().__init__(name="query_tower")
        recencies = (0.0, config.recency)
        self.heads = {
            name: HistoryHead(n_candidates, recency, config, seed + i)
            for i, (name, recency) in enumerate(zip(HEADS, recencies, strict=True))
        }
        self._weights = dict(zip(HEADS, (1.0, config.sequence_weight), strict=True))
        wide = len(HEADS) * (config.width + 1)
        self.center = self.add_weight("center", (wide,), trainable=False)
        self.projection = self.add_weight("projection", (wide, config.dim - 1), trainable=False)

    def wide(self, history: Any) -> Any:
        """Embed histories (n, length) before compression: (n, wide) float32."""
        return tf.concat(
            [self._weights[name] * head(history) for name, head in self.heads.items()], axis=1
        )

    def call(self, history: Any) -> Any:
        """Embed histories (n, length): (n, dim) float32, whose last dimension is 1."""
        compressed = tf.matmul(self.wide(history) - self.center, self.projection)
        return tf.concat([compressed, tf.ones_like(compressed[:, :1])], axis=1)


class CandidateTower(tf.keras.layers.Layer):  # type: ignore[misc]
    """Embeds candidates with both heads.

    Args:
        n_candidates: size of the catalogue.
        config: how the towers are built.
        seed: of the initial weights.
    """

    def __init__(self, n_candidates: int, config: TowersConfig, seed: int) -> None:
        super().__init__(name="candidate_tower")
        self.heads = {
            name: CandidateHead(n_candidates, config, seed + i) for i, name in enumerate(HEADS)
        }
        wide = len(HEADS) * (config.width + 1)
        self.center = self.add_weight("center", (wide,), trainable=False)
        self.projection = self.add_weight("projection", (wide, config.dim - 1), trainable=False)

    def wide(self, candidate_id: Any) -> Any:
        """Embed candidates (n, 1) before compression: (n, wide) float32."""
        return tf.concat([head(candidate_id) for head in self.heads.values()], axis=1)

    def call(self, candidate_id: Any) -> Any:
        """Embed candidates (n, 1): (n, dim) float32, whose last dimension is the bias.

        The bias is the score of the average query, from which all queries are counted.
        """
        wide = self.wide(candidate_id)
        bias = tf.matmul(wide, self.center[:, None])
        return tf.concat([tf.matmul(wide, self.projection), bias], axis=1)


class TwoTowers(tfrs.Model):  # type: ignore[misc]
    """Both towers and what they are trained to do.

    Args:
        n_candidates: size of the catalogue.
        config: how the towers are built.
        seed: of the initial weights.
    """

    def __init__(self, n_candidates: int, config: TowersConfig, seed: int) -> None:
        super().__init__()
        first_seed = 2 * len(HEADS) * seed
        self.query_tower = QueryTower(n_candidates, config, first_seed)
        self.candidate_tower = CandidateTower(n_candidates, config, first_seed + len(HEADS))
        self._dim = config.dim
        self._tokens = np.arange(1, n_candidates + 1, dtype=np.int32)[:, None]
        corpus = tf.data.Dataset.from_tensor_slices(self._tokens).batch(_BATCH_SIZE)
        self.task = SoftmaxRetrieval(
            tfrs.metrics.FactorizedTopK(corpus.map(self.candidate_tower.wide), ks=(10, 100)),
            user_weight=config.user_weight,
        )

    def compute_loss(self, inputs: dict[str, Any], training: bool = False) -> Any:
        """Return the loss of a batch.

        Args:
            inputs: ``history``, ragged (n, None) int32 tokens, ``targets``, ragged (n, None)
                int32 candidate rows, and ``target_weights``, ragged (n, None) float32; in training
                one such dictionary for each head, by its name.
            training: whether the heads are trained, each on its own examples, or their sum is
                measured.
        """
        if not training:
            return self._loss(self.query_tower.wide, self.candidate_tower.wide, inputs, True)
        return tf.add_n(
            [
                self._loss(
                    self.query_tower.heads[name], self.candidate_tower.heads[name], examples, False
                )
                for name, examples in inputs.items()
            ]
        )

    def _loss(
        self, embed_queries: Any, embed_candidates: Any, examples: Any, compute_metrics: bool
    ) -> Any:
        return self.task(
            embed_queries(examples["history"]),
            embed_candidates(self._tokens),
            targets=examples["targets"],
            target_weights=examples["target_weights"],
            seen=examples["history"] - 1,
            compute_metrics=compute_metrics,
        )

    def compress(self, histories: Any) -> None:
        """Settle how both heads become one embedding, once they are trained.

        Args:
            histories: ragged (n, None) int32 tokens, the queries whose scores should be kept.
        """
        queries = self.query_tower.wide(histories).numpy()
        candidates = self.candidate_tower.wide(self._tokens).numpy()
        center = queries.mean(axis=0)
        towers: tuple[Any, Any] = (self.query_tower, self.candidate_tower)
        for tower, projection in zip(
            towers, compress(queries - center, candidates, self._dim - 1), strict=True
        ):
            tower.center.assign(center)
            tower.projection.assign(projection)


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


def _token_embeddings(layer: Any, n_tokens: int, width: int, seed: int) -> Any:
    """Add weights (n_tokens + 1, width) to a layer, token 0 first."""
    initializer = tf.keras.initializers.RandomNormal(stddev=width**-0.5, seed=seed)
    return layer.add_weight("embeddings", (n_tokens + 1, width), initializer=initializer)


def _in_batches(embed: Any, inputs: np.ndarray, dim: int) -> np.ndarray:
    embeddings = np.empty((len(inputs), dim), dtype=np.float32)
    for start in range(0, len(inputs), _BATCH_SIZE):
        batch = slice(start, start + _BATCH_SIZE)
        embeddings[batch] = embed(inputs[batch])["embedding"]
    return embeddings
