"""The query tower, the candidate tower, and the ``tfrs.Model`` over them.

The query tower reads what a user has interacted with, not who they are, so a user nobody trained
on is served from the history in the request. It has two heads. *Taste* sums the history whatever
its order, and is trained to find interactions that were hidden from it, anywhere in the history.
*Sequence* sums it with the newest interactions ahead, and is trained to find what came next. The
candidate tower has the same heads over the candidate's id and content; the score is the sum of
both.

Embeddings are scaled to a fixed length, so that popularity does not hide in their norm; it has a
place of its own, a dimension where a candidate keeps a bias and every query has a 1. When training
is over, both heads are compressed into ``dim`` dimensions. The score stays one inner product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.compression import compress
from trainer.encoder import Catalogue, ItemEncoder, dense
from trainer.features import CANDIDATE_ID, HISTORY, Feature, Features, encode_histories
from trainer.keras import tf, tfrs
from trainer.losses import SoftmaxRetrieval
from trainer.model_config import MAX_FULL, TowersConfig
from trainer.precision import product
from trainer.vocabulary import Vocabulary

_BATCH_SIZE = 4096

HEADS = ("taste", "sequence")


def _part(wide: Any, head: str) -> Any:
    """Return the columns (n, n_columns / len(HEADS)) of one head."""
    width = wide.shape[1] // len(HEADS)
    first = HEADS.index(head) * width
    return wide[:, first : first + width]


class QueryTower(tf.keras.layers.Layer):  # type: ignore[misc]
    """Embeds histories with both heads.

    Args:
        features: what the towers read.
        config: how the towers are built.
        seed: of the initial weights.
    """

    def __init__(self, features: Features, config: TowersConfig, seed: int) -> None:
        super().__init__(name="query_tower")
        self._config = config
        n_candidates = next(f.n_tokens for f in features.candidate if f.name == CANDIDATE_ID)
        wide = len(HEADS) * (config.width + 1)
        self.encoder = ItemEncoder(
            features.candidate, len(HEADS) * config.width, config.width**-0.5, seed
        )
        self.items = self.add_weight(
            "items", (n_candidates + 1, len(HEADS) * config.width), trainable=False
        )
        self.center = self.add_weight("center", (wide,), trainable=False)
        self.projection = self.add_weight("projection", (wide, config.dim - 1), trainable=False)

    def head(self, name: str, history: Any, items: Any) -> Any:
        """Embed histories with one head.

        Args:
            name: one of ``HEADS``.
            history: (n, n_candidates) float32 sparse, the age of every interaction: 1 the newest.
            items: (n_candidates, len(HEADS) * width) float32, what ``encoder`` made of them.

        Returns:
            (n, width + 1) float32; the last dimension is 1.
        """
        vectors = _part(items, name)
        weights = history.with_values(history.values ** -self._recency(name))
        n_columns = history.shape[1]  # unknown where a step is narrowed to some candidates
        if n_columns is None or n_columns > MAX_FULL:
            # Of many candidates each user has few; of few, a dense product is faster.
            return self._directed(tf.sparse.sparse_dense_matmul(weights, vectors))
        mixed = self._config.mixed_precision
        return self._directed(product(dense(weights), vectors, mixed=mixed))

    def wide(self, history: Any, items: Any) -> Any:
        """Embed histories, as ``head`` reads them, before compression: (n, wide) float32."""
        return self._joined([self.head(name, history, items) for name in HEADS])

    def call(self, history: Any) -> Any:
        """Embed histories.

        Args:
            history: (n, length) int32 tokens, oldest first, padded on the right with 0.

        Returns:
            (n, dim) float32, whose last dimension is 1.
        """
        wide = self._joined([self._padded_head(name, history) for name in HEADS])
        compressed = tf.matmul(wide - self.center, self.projection)
        return tf.concat([compressed, tf.ones_like(compressed[:, :1])], axis=1)

    def _padded_head(self, name: str, history: Any) -> Any:
        known = tf.cast(history > 0, tf.float32)
        lengths = tf.reduce_sum(known, axis=1, keepdims=True)
        ages = lengths - tf.range(history.shape[1], dtype=tf.float32)
        weights = tf.maximum(ages, 1.0) ** -self._recency(name) * known
        vectors = tf.gather(_part(self.items, name), history)
        return self._directed(tf.reduce_sum(vectors * tf.expand_dims(weights, -1), axis=1))

    def _recency(self, name: str) -> float:
        return self._config.recency if name == "sequence" else 0.0

    def _directed(self, summed: Any) -> Any:
        direction = tf.math.l2_normalize(summed, axis=1) / self._config.temperature
        return tf.concat([direction, tf.ones_like(direction[:, :1])], axis=1)

    def _joined(self, heads: Sequence[Any]) -> Any:
        taste, sequence = heads
        return tf.concat([taste, self._config.sequence_weight * sequence], axis=1)


class CandidateTower(tf.keras.layers.Layer):  # type: ignore[misc]
    """Embeds candidates with both heads.

    Args:
        features: what the towers read.
        config: how the towers are built.
        seed: of the initial weights.
    """

    def __init__(self, features: Features, config: TowersConfig, seed: int) -> None:
        super().__init__(name="candidate_tower")
        wide = len(HEADS) * (config.width + 1)
        self.encoder = ItemEncoder(features.candidate, wide, config.width**-0.5, seed)
        self.center = self.add_weight("center", (wide,), trainable=False)
        self.projection = self.add_weight("projection", (wide, config.dim - 1), trainable=False)

    def heads(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Embed candidates with each head: (n, width + 1) float32, whose last is the bias."""
        encoded = self.encoder(inputs)
        parts = {name: _part(encoded, name) for name in HEADS}
        return {
            name: tf.concat([tf.math.l2_normalize(part[:, :-1], axis=1), part[:, -1:]], axis=1)
            for name, part in parts.items()
        }

    def wide(self, inputs: dict[str, Any]) -> Any:
        """Embed candidates before compression: (n, wide) float32."""
        return tf.concat(list(self.heads(inputs).values()), axis=1)

    def call(self, inputs: dict[str, Any]) -> Any:
        """Embed candidates: (n, dim) float32, whose last dimension is the bias.

        The bias is the score of the average query, from which all queries are counted.
        """
        wide = self.wide(inputs)
        bias = tf.matmul(wide, self.center[:, None])
        return tf.concat([tf.matmul(wide, self.projection), bias], axis=1)


class TwoTowers(tfrs.Model):  # type: ignore[misc]
    """Both towers and what they are trained to do.

    Args:
        features: what the towers read.
        corpus: the candidates as ``trainer.features.encode_candidates`` encodes them.
        config: how the towers are built.
        seed: of the initial weights.
    """

    def __init__(
        self,
        features: Features,
        corpus: dict[str, np.ndarray],
        config: TowersConfig,
        seed: int,
    ) -> None:
        super().__init__()
        self.query_tower = QueryTower(features, config, seed=2 * seed)
        self.candidate_tower = CandidateTower(features, config, seed=2 * seed + 1)
        self.task = SoftmaxRetrieval(
            config.user_weight, config.hard_negatives, mixed_precision=config.mixed_precision
        )
        self._dim = config.dim
        self._n_candidates = len(corpus[CANDIDATE_ID])
        self._catalogue = Catalogue(features.candidate, corpus)

    def compute_loss(self, inputs: dict[str, Any], training: bool = False) -> Any:
        """Return the loss of a batch, as ``trainer.batches`` makes them: of each head on its own.

        Args:
            inputs: by the name of a head its examples, ``history`` and ``targets``, both
                (n, n_candidates) float32 sparse, the ages of interactions and what each should
                count; and where the step is narrowed to some candidates, ``rows``, their int32
                rows, and ``log_chances``, (n_competing,) float32, of the first of them.
            training: for Keras, which passes it; nothing differs.
        """
        del training
        rows = inputs.get("rows")
        candidates = self._catalogue.all if rows is None else self._catalogue.some(rows)
        items = self.query_tower.encoder(candidates)
        answers = self.candidate_tower.heads(candidates)
        losses = [
            self.task(
                self.query_tower.head(name, inputs[name]["history"], items),
                answers[name],
                targets=inputs[name]["targets"],
                seen=inputs[name]["history"],
                log_chances=inputs.get("log_chances"),
            )
            for name in HEADS
        ]
        # Keras sums the losses and the gradients of all workers.
        return tf.add_n(losses) / tf.distribute.get_strategy().num_replicas_in_sync

    def embed_corpus(self) -> tuple[Any, Any]:
        """Embed all candidates before compression, as parts of histories and as answers.

        Returns:
            (n_candidates, len(HEADS) * width) and (n_candidates, len(HEADS) * (width + 1)) float32.
        """
        batches = [
            self._catalogue.some(tf.range(start, min(start + _BATCH_SIZE, self._n_candidates)))
            for start in range(0, self._n_candidates, _BATCH_SIZE)
        ]
        items = tf.concat([self.query_tower.encoder(batch) for batch in batches], axis=0)
        return items, tf.concat([self.candidate_tower.wide(batch) for batch in batches], axis=0)

    def finish(self, histories: Any) -> None:
        """Settle, once the heads are trained, what the towers need to embed.

        Args:
            histories: (n, n_candidates) float32 sparse ages, the queries whose scores compression
                keeps.
        """
        items, candidates = self.embed_corpus()
        self.query_tower.items.assign(tf.pad(items, [[1, 0], [0, 0]]))
        queries = self.query_tower.wide(histories, items).numpy()
        center = queries.mean(axis=0)
        towers: tuple[Any, Any] = (self.query_tower, self.candidate_tower)
        for tower, projection in zip(
            towers, compress(queries - center, candidates.numpy(), self._dim - 1), strict=True
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
    """The candidate tower as it is exported: an array for each feature in, a dictionary out."""

    def __init__(self, tower: CandidateTower, features: Sequence[Feature]) -> None:
        super().__init__(name="candidate")
        self.tower = tower
        self._names = [feature.name for feature in features]
        signature = [
            tf.TensorSpec(
                (None, feature.length),
                tf.float32 if feature.kind == "number" else tf.int32,
                name=feature.name,
            )
            for feature in features
        ]
        self.embed = tf.function(self._embed, input_signature=signature)

    def _embed(self, *inputs: Any) -> dict[str, Any]:
        return {"embedding": self.tower(dict(zip(self._names, inputs, strict=True)))}


class Towers:
    """Trained towers, and the histories they were trained on.

    Args:
        model: the trained model.
        config: how it was built and trained.
        features: what the towers read.
        vocabularies: the tokens of each feature that has any.
        corpus: the candidates as ``trainer.features.encode_candidates`` encodes them.
        histories: candidate rows of every user in the data, oldest first; empty for a user
            without interactions in the train rows.
    """

    def __init__(
        self,
        model: TwoTowers,
        config: TowersConfig,
        features: Features,
        vocabularies: dict[str, Vocabulary],
        corpus: dict[str, np.ndarray],
        histories: Sequence[np.ndarray],
    ) -> None:
        self.model = model
        self.config = config
        self.features = features
        self.vocabularies = vocabularies
        self.corpus = corpus
        self.histories = histories
        self.query_module = QueryModule(model.query_tower, config.max_history_length)
        self.candidate_module = CandidateModule(model.candidate_tower, features.candidate)

    def embed_queries(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Embed users by what they have interacted with.

        Args:
            histories: candidate rows of each user, oldest first.

        Returns:
            (n, dim) float32.
        """
        encoded = encode_histories(histories, self.config.max_history_length)
        return in_batches(self.query_module.embed, [encoded])

    def embed_candidates(self, corpus: dict[str, np.ndarray] | None = None) -> np.ndarray:
        """Embed candidates.

        Args:
            corpus: as ``trainer.features.encode_candidates`` encodes them; the catalogue if none.

        Returns:
            (n_candidates, dim) float32, in row order.
        """
        corpus = self.corpus if corpus is None else corpus
        inputs = [corpus[feature.name] for feature in self.features.candidate]
        return in_batches(self.candidate_module.embed, inputs)


def in_batches(embed: Any, inputs: Sequence[np.ndarray]) -> np.ndarray:
    """Return the embeddings (n, dim) float32 that an exported function gives to its inputs.

    Args:
        embed: of tensors, in the order of ``inputs``; returns a dictionary.
        inputs: each (n, length).
    """
    starts = range(0, len(inputs[0]), _BATCH_SIZE)
    batches = ([values[start : start + _BATCH_SIZE] for values in inputs] for start in starts)
    return np.concatenate([embed(*batch)["embedding"].numpy() for batch in batches])
