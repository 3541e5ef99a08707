"""The query tower, the candidate tower, and the ``tfrs.Model`` over them.

The query tower reads what a user has interacted with, and not who they are unless it is told to,
so a user nobody trained on is served from the history in the request. It has two heads. *Taste*
sums the history whatever its order, and is trained to find interactions that were hidden from it,
anywhere in the history. *Sequence* sums it with the newest interactions ahead, and is trained to
find what came next; how much it counts in the score is settled by what the towers are asked
(``trainer.balance``). What else is read of a query, its context, is added to either sum. The
candidate tower has the same heads over the candidate's id and content; the score is the sum of
both.

Embeddings are scaled to a fixed length, so that popularity does not hide in their norm; it has a
place of its own, a dimension where a candidate keeps a bias and every query has a 1. When training
is over, both heads are compressed into ``dim`` dimensions. The score stays one inner product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainer.compression import compress
from trainer.content import distil_ids_into_content
from trainer.encoder import Catalogue, FeatureEncoder, dense
from trainer.features import CANDIDATE_ID, HISTORY, USER_ID, Features
from trainer.keras import tf, tfrs
from trainer.losses import SoftmaxRetrieval
from trainer.model_config import MAX_FULL, TowersConfig
from trainer.precision import product

_BATCH_SIZE = 4096

HEADS = ("taste", "sequence")


def _by_head(wide: Any) -> dict[str, Any]:
    """Return the columns (n, n_columns / len(HEADS)) of each head, parted from (n, n_columns).

    The gradient of a split is one concatenation; slices would each be padded, and summed.
    """
    return dict(zip(HEADS, tf.split(wide, len(HEADS), axis=1), strict=True))


class QueryTower(tf.keras.layers.Layer):  # type: ignore[misc]
    """Embeds queries with both heads: their histories, and the context that is read beside them.

    Args:
        features: what the towers read.
        n_candidates: that there are.
        config: how the towers are built.
        seed: of the initial weights.
    """

    def __init__(
        self, features: Features, n_candidates: int, config: TowersConfig, seed: int
    ) -> None:
        super().__init__(name="query_tower")
        self._config = config
        self._features = features
        wide = len(HEADS) * (config.width + 1)
        self.encoder = FeatureEncoder(
            features.candidate, len(HEADS) * config.width, config.width**-0.5, seed
        )
        self.encoder.trainable = features.reads_history
        self.context = self._context_encoder(-1 - seed)
        # A table for each head: a part of a common one would be copied for every query.
        self.items = {
            name: self.add_weight(
                f"{name}_items", (n_candidates + 1, config.width), trainable=False
            )
            for name in HEADS
        }
        self.center = self.add_weight("center", (wide,), trainable=False)
        self.projection = self.add_weight("projection", (wide, config.dim - 1), trainable=False)

    def _context_encoder(self, seed: int) -> FeatureEncoder | None:
        """Return what adds the context to the sum of the history; None if there is none."""
        if not self._features.context:
            return None
        width = self._config.width
        return FeatureEncoder(self._features.context, len(HEADS) * width, width**-0.5, seed)

    def head(
        self, name: str, history: Any, items: Any, context: Mapping[str, Any] | None = None
    ) -> Any:
        """Embed queries with one head.

        Args:
            name: one of ``HEADS``.
            history: (n, n_candidates) float32 sparse, the age of every interaction: 1 the newest.
            items: (n_candidates, width) float32, what ``encoder`` made of them for this head.
            context: what is read beside the history, by name (n, length).

        Returns:
            (n, width + 1) float32; the last dimension is 1.
        """
        return self._directed(name, self._history_sum(name, history, items), context)

    def _history_sum(self, name: str, history: Any, vectors: Any) -> Any:
        weights = history.with_values(history.values ** -self._recency(name))
        n_columns = history.shape[1]  # unknown where a step is narrowed to some candidates
        if n_columns is None or n_columns > MAX_FULL:
            # Of many candidates each user has few; of few, a dense product is faster.
            return tf.sparse.sparse_dense_matmul(weights, vectors)
        return product(dense(weights), vectors, mixed=self._config.mixed_precision)

    def wide(
        self,
        history: Any,
        items: Mapping[str, Any],
        context: Mapping[str, Any] | None = None,
        sequence_weight: float | None = None,
    ) -> Any:
        """Embed queries, as ``head`` reads them, before compression: (n, wide) float32.

        ``items`` are by head.
        The sequence head counts ``sequence_weight``, by default what it counts in these towers.
        """
        heads = [self.head(name, history, items[name], context) for name in HEADS]
        return self._joined(heads, sequence_weight)

    def call(self, inputs: Mapping[str, Any]) -> Any:
        """Embed queries.

        Args:
            inputs: by feature; the history (n, length) int32 tokens, oldest first, padded on the
                right with 0 to any length.

        Returns:
            (n, dim) float32, whose last dimension is 1.
        """
        wide = self._joined([self._padded_head(name, inputs) for name in HEADS])
        compressed = tf.matmul(wide - self.center, self.projection)
        return tf.concat([compressed, tf.ones_like(compressed[:, :1])], axis=1)

    def _padded_head(self, name: str, inputs: Mapping[str, Any]) -> Any:
        history = self._padded_sum(name, inputs[HISTORY]) if self._features.reads_history else None
        return self._directed(name, history, inputs)

    def _padded_sum(self, name: str, history: Any) -> Any:
        weights = tf.cast(history > 0, tf.float32)
        if recency := self._recency(name):
            # Sums, not positions: so that LiteRT can be told of any length.
            ages = tf.cumsum(weights, axis=1, reverse=True)
            weights *= tf.maximum(ages, 1.0) ** -recency
        vectors = tf.gather(self.items[name], history)
        return tf.reduce_sum(vectors * tf.expand_dims(weights, -1), axis=1)

    def _recency(self, name: str) -> float:
        return self._config.recency if name == "sequence" else 0.0

    def _directed(self, name: str, history: Any, context: Mapping[str, Any] | None) -> Any:
        """Return what a head makes of the sum of the history and of the context beside it."""
        parts = [history] if self._features.reads_history else []
        if self.context is not None:
            parts.append(_by_head(self.context(context))[name])
        summed = tf.add_n(parts)
        direction = tf.math.l2_normalize(summed, axis=1) / self._config.temperature
        return tf.concat([direction, tf.ones_like(direction[:, :1])], axis=1)

    def _joined(self, heads: Sequence[Any], sequence_weight: float | None = None) -> Any:
        taste, sequence = heads
        if sequence_weight is None:
            sequence_weight = self._config.settled_sequence_weight
        return tf.concat([taste, sequence_weight * sequence], axis=1)

    def forget_users_but(self, trained: np.ndarray) -> None:
        """Make all other users than these rows (n,) unknown, whose ids were never trained."""
        if self.context is not None and self._features.reads_users:
            table = self.context.table(USER_ID)
            is_trained = np.isin(np.arange(table.shape[0]), trained + 1)
            table.assign(table * is_trained[:, None])


class CandidateTower(tf.keras.layers.Layer):  # type: ignore[misc]
    """Embeds candidates with both heads.

    Args:
        features: what the towers read.
        config: how the towers are built.
        seed: of the initial weights.
    """

    def __init__(self, features: Features, config: TowersConfig, seed: int) -> None:
        super().__init__(name="candidate_tower")
        self._config = config
        wide = len(HEADS) * (config.width + 1)
        self.encoder = FeatureEncoder(features.candidate, wide, config.width**-0.5, seed)
        self.center = self.add_weight("center", (wide,), trainable=False)
        self.projection = self.add_weight("projection", (wide, config.dim - 1), trainable=False)
        # Apart from the ids' own biases: a training that begins with those begins without it.
        self.trend = None
        if config.settled_trend_half_life_days and features.reads_candidate_ids:
            n_lines = self.encoder.table(CANDIDATE_ID).shape[0]
            self.trend = self.add_weight("trend", (n_lines, 1), "float32", "zeros", trainable=False)

    def heads(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Embed candidates with each head: (n, width + 1) float32, whose last is the bias."""
        answers = {}
        for name, part in _by_head(self.encoder(inputs)).items():
            direction, bias = tf.split(part, [self._config.width, 1], axis=1)
            answers[name] = tf.concat([tf.math.l2_normalize(direction, axis=1), bias], axis=1)
        return answers

    def set_trend(self, tokens: np.ndarray, shifts: np.ndarray) -> None:
        """Say what is added to the scores of candidates, if the configuration follows a trend.

        Args:
            tokens: (n,) int32, the candidates' ids as the tower reads them.
            shifts: (n,) float32.
        """
        if self.trend is not None:
            lines, values = tokens[:, None], shifts[:, None]
            self.trend.assign(tf.tensor_scatter_nd_update(self.trend, lines, values))

    def wide(self, inputs: dict[str, Any]) -> Any:
        """Embed candidates before compression: (n, wide) float32."""
        answers = self.heads(inputs)
        if self.trend is not None:
            shifts = self.encoder.read(CANDIDATE_ID, self.trend, inputs)
            answers["taste"] += tf.pad(shifts, [[0, 0], [self._config.width, 0]])
        return tf.concat(list(answers.values()), axis=1)

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
        self._n_candidates = len(next(iter(corpus.values())))
        self.query_tower = QueryTower(features, self._n_candidates, config, seed=2 * seed)
        self.candidate_tower = CandidateTower(features, config, seed=2 * seed + 1)
        self.task = SoftmaxRetrieval(
            config.user_weight, config.hard_negatives, mixed_precision=config.mixed_precision
        )
        self._dim = config.dim
        self._features = features.candidate
        self._ids = {name: corpus[name] for name in corpus if name == CANDIDATE_ID}
        self._catalogue = Catalogue(features.candidate, corpus)

    def compute_loss(self, inputs: dict[str, Any], training: bool = False) -> Any:
        """Return the loss of a batch, as ``trainer.batches`` makes them: of each head on its own.

        Args:
            inputs: by the name of a head its examples, ``history`` and ``targets``, both
                (n, n_candidates) float32 sparse, the ages of interactions and what each should
                count, and ``context`` if the query tower reads any; and where the step is narrowed
                to some candidates, ``rows``, their int32 rows, and ``log_chances``,
                (n_competing,) float32, of the first of them.
            training: for Keras, which passes it; nothing differs.
        """
        del training
        rows = inputs.get("rows")
        candidates = self._catalogue.all if rows is None else self._catalogue.some(rows)
        items = _by_head(self.query_tower.encoder(candidates))
        answers = self.candidate_tower.heads(candidates)
        losses = [
            self.task(
                self.query_tower.head(
                    *(name, inputs[name]["history"], items[name], inputs[name].get("context"))
                ),
                answers[name],
                targets=inputs[name]["targets"],
                seen=inputs[name]["history"],
                log_chances=inputs.get("log_chances"),
            )
            for name in HEADS
        ]
        # Keras sums the losses and the gradients of all workers.
        return tf.add_n(losses) / tf.distribute.get_strategy().num_replicas_in_sync

    def distil_ids_into_content(self, n_interactions: np.ndarray) -> None:
        """Have content say of candidates nobody knows what ids have learned of it; none changes.

        Args:
            n_interactions: (n_candidates,) in training.
        """
        if CANDIDATE_ID in self._ids:
            distil_ids_into_content(
                *(self.candidate_tower.encoder, self._features, self._catalogue),
                *(self._ids[CANDIDATE_ID][:, 0], n_interactions),
            )

    def set_trend(self, shifts: np.ndarray) -> None:
        """Add (n_candidates,) float32 to the scores of candidates that the towers know by ids."""
        if CANDIDATE_ID in self._ids:
            self.candidate_tower.set_trend(self._ids[CANDIDATE_ID][:, 0], shifts)

    def embed_corpus(self) -> tuple[dict[str, Any], Any]:
        """Embed all candidates before compression, as parts of histories and as answers.

        Returns:
            By head (n_candidates, width), and (n_candidates, len(HEADS) * (width + 1)) float32.
        """
        batches = [
            self._catalogue.some(tf.range(start, min(start + _BATCH_SIZE, self._n_candidates)))
            for start in range(0, self._n_candidates, _BATCH_SIZE)
        ]
        items = tf.concat([self.query_tower.encoder(batch) for batch in batches], axis=0)
        answers = tf.concat([self.candidate_tower.wide(batch) for batch in batches], axis=0)
        return _by_head(items), answers

    def finish(self, histories: Any, context: Mapping[str, Any] | None = None) -> None:
        """Settle, once the heads are trained, what the towers need to embed.

        Args:
            histories: (n, n_candidates) float32 sparse ages, the queries whose scores compression
                keeps.
            context: what these queries are read with beside their histories, by name (n, length).
        """
        items, candidates = self.embed_corpus()
        for name, table in self.query_tower.items.items():
            table.assign(tf.pad(items[name], [[1, 0], [0, 0]]))
        queries = self.query_tower.wide(histories, items, context).numpy()
        center = queries.mean(axis=0)
        towers: tuple[Any, Any] = (self.query_tower, self.candidate_tower)
        for tower, projection in zip(
            towers, compress(queries - center, candidates.numpy(), self._dim - 1), strict=True
        ):
            tower.center.assign(center)
            tower.projection.assign(projection)
