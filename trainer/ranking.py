"""The ranking model: the second stage, which predicts how a user would rate a candidate.

    rating = mean + query's bias + candidate's bias + query's factors · candidate's factors

Query and candidate are sums of parts, and each part is a bag of tokens or a number: a query's are
who the user is, what they interacted with whether they rated it or not (SVD++: Koren 2008,
doi:10.1145/1401890.1401944) and what they are; a candidate's are its id and its metadata. An
unknown user or candidate is an empty part, that is, an average one: a user who is known by the
history alone is served from it.

Every part is held near zero in proportion to its use, so that few ratings say little. Several such
models, the members, differ in their initial weights only and are trained side by side; the mean of
their predictions is better than any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from trainer.datasets import Dataset
from trainer.errors import TrainingError
from trainer.features import Feature, Features
from trainer.keras import tf, tfrs
from trainer.model_config import RankerConfig
from trainer.monitoring import OnEpoch
from trainer.ranking_data import EncodedData, encode, learnable_ratings, training_batches

_BATCH_SIZE = 4096
_MAX_PAIRS = 100_000  # that are rated at once, each with two vectors of its own
_INITIAL_DEVIATION = 0.03


class Part(tf.keras.layers.Layer):  # type: ignore[misc]
    """What one feature adds to a query or a candidate: factors and a bias.

    Args:
        feature: what it reads.
        width: number of factors.
        seed: of the initial weights.
    """

    def __init__(self, feature: Feature, width: int, seed: int) -> None:
        super().__init__()
        self._is_number = feature.kind == "number"
        deviations = np.append(np.full(width, _INITIAL_DEVIATION), 0.0).astype(np.float32)
        shape = (1 if self._is_number else feature.n_tokens + 1, width + 1)
        normal = tf.random.stateless_normal(shape, seed=(seed, 0))
        self._weights = tf.Variable(normal * deviations, name="weights")

    def call(self, inputs: Any) -> Any:
        """Return the part (n, width + 1) float32 of each line, its last dimension the bias.

        Args:
            inputs: (n, 1) float32 numbers, or (n, length) int32 tokens in any order, of which 0
                stands for none.
        """
        if self._is_number:
            return inputs * self._weights
        known = tf.cast(inputs > 0, tf.float32)
        total = tf.reduce_sum(tf.gather(self._weights, inputs) * known[..., None], axis=1)
        counts = tf.reduce_sum(known, axis=1, keepdims=True)
        return total / tf.sqrt(tf.maximum(counts, 1.0))


class Side(tf.keras.layers.Layer):  # type: ignore[misc]
    """The sum of the parts of a query, or of a candidate.

    Args:
        features: what the parts read.
        config: how the model is built.
        seed: of the initial weights.
    """

    def __init__(self, features: tuple[Feature, ...], config: RankerConfig, seed: int) -> None:
        super().__init__()
        self._config = config
        self._is_id = [feature.kind == "id" for feature in features]
        width = config.dim * config.members
        self.parts = [Part(one, width, seed + i) for i, one in enumerate(features)]

    def call(self, inputs: Any) -> Any:
        """Return the sums (n, width + 1) float32 of the parts of each line."""
        return self.with_penalty(inputs)[0]

    def with_penalty(self, inputs: Any) -> tuple[Any, Any]:
        """Return the sums, and what their parts cost (n,) float32 in the loss."""
        parts = [part(one) for part, one in zip(self.parts, inputs, strict=True)]
        penalties = [
            self._penalty(part, is_id=is_id) for part, is_id in zip(parts, self._is_id, strict=True)
        ]
        return tf.add_n(parts), tf.add_n(penalties)

    def _penalty(self, part: Any, *, is_id: bool) -> Any:
        config = self._config
        weight = config.id_regularization if is_id else config.regularization
        factors, bias = _factors_and_bias(part)
        squares = tf.reduce_sum(factors**2, axis=1) / config.members
        return weight * squares + config.bias_regularization * tf.squeeze(bias, axis=1) ** 2


class RankingModel(tfrs.Model):  # type: ignore[misc]
    """Both sides and what they are trained to do.

    Args:
        features: what query and candidate are made of.
        config: how the model is built.
        mean: of the ratings.
        deviation: of the ratings, which the model is scaled by: the same configuration serves
            five stars and a hundred points.
        seed: of the initial weights.
    """

    def __init__(
        self, features: Features, config: RankerConfig, mean: float, deviation: float, seed: int
    ) -> None:
        super().__init__()
        first_seed = seed * (len(features.query) + len(features.candidate))
        self.query = Side(features.query, config, first_seed)
        self.candidate = Side(features.candidate, config, first_seed + len(features.query))
        self.task = tfrs.tasks.Ranking(loss=tf.keras.losses.MeanSquaredError())
        self._members = config.members
        self.mean, self.deviation = mean, deviation

    @property
    def parts(self) -> list[Part]:
        """Those of the query, then those of the candidate."""
        return [*self.query.parts, *self.candidate.parts]

    def rate(self, queries: Any, candidates: Any) -> Any:
        """Return the ratings (n,) that queries give to candidates, both (n or 1, width + 1)."""
        return self.mean + self.deviation * tf.reduce_mean(
            self._member_scores(queries, candidates), axis=1
        )

    def compute_loss(self, inputs: dict[str, Any], training: bool = False) -> Any:
        """Return the loss of a batch of users: every member's error, and the parts' penalty.

        Args:
            inputs: ``query``, the query features of each user; ``candidate``, the candidate
                features of what they rated, each candidate once; ``rater`` and ``rated``,
                (n_ratings,) the positions of a rating's user and of its candidate among them; and
                ``rating``, (n_ratings,) float32.
            training: unused; the loss is the same.
        """
        del training
        queries, query_penalty = self.query.with_penalty(inputs["query"])
        candidates, candidate_penalty = self.candidate.with_penalty(inputs["candidate"])
        scores = self._member_scores(
            tf.gather(queries, inputs["rater"]), tf.gather(candidates, inputs["rated"])
        )
        targets = (inputs["rating"] - self.mean) / self.deviation
        error = self.task(
            labels=tf.repeat(targets[:, None], self._members, axis=1), predictions=scores
        )
        penalty = tf.gather(query_penalty, inputs["rater"]) + tf.gather(
            candidate_penalty, inputs["rated"]
        )
        return error + tf.reduce_mean(penalty)

    def _member_scores(self, queries: Any, candidates: Any) -> Any:
        """Return what each member says, (n, members), in deviations from the mean."""
        of_queries, query_bias = _factors_and_bias(queries)
        of_candidates, candidate_bias = _factors_and_bias(candidates)
        products = of_queries * of_candidates
        by_member = tf.reshape(products, (-1, self._members, products.shape[1] // self._members))
        return tf.reduce_sum(by_member, axis=2) + query_bias + candidate_bias


def _factors_and_bias(part: Any) -> Any:
    """Part (n, width + 1) into (n, width) and (n, 1)."""
    return tf.split(part, [part.shape[1] - 1, 1], axis=1)


class RankerModule(tf.Module):  # type: ignore[misc]
    """The ranking model as it is exported: one query and its candidates in, ratings out.

    Inputs are named by side and position, since the columns they come from may have any name.
    """

    def __init__(self, model: RankingModel, features: Features) -> None:
        super().__init__(name="ranker")
        self.model = model
        self._n_query_features = len(features.query)
        query = [_spec(one, 1, f"query_{i}") for i, one in enumerate(features.query)]
        candidate = [_spec(one, None, f"candidate_{i}") for i, one in enumerate(features.candidate)]
        self.rank = tf.function(self._rank, input_signature=query + candidate)

    def _rank(self, *inputs: Any) -> dict[str, Any]:
        queries = self.model.query(inputs[: self._n_query_features])
        candidates = self.model.candidate(inputs[self._n_query_features :])
        return {"rating": self.model.rate(queries, candidates)}


class Ranker:
    """A trained ranking model, and the data it was trained on as it reads them.

    Args:
        model: the trained model.
        config: how it was built and trained.
        data: the users and candidates, encoded.
    """

    def __init__(self, model: RankingModel, config: RankerConfig, data: EncodedData) -> None:
        self.model = model
        self.config = config
        self.description = data.description
        self.module = RankerModule(model, data.description.features)
        self._data = data
        self._queries = _in_batches(model.query, len(data.histories), data.queries)
        candidates = data.candidate_inputs
        self._candidates = _in_batches(
            model.candidate, len(candidates[0]), lambda some: [one[some] for one in candidates]
        )

    def predict(self, user_rows: np.ndarray, candidate_rows: np.ndarray) -> np.ndarray:
        """Predict ratings.

        Args:
            user_rows: (n,) users of the dataset, as known from its train rows.
            candidate_rows: (n,) what they rate.

        Returns:
            (n,) float32.
        """
        ratings = np.empty(len(user_rows), dtype=np.float32)
        for start in range(0, len(ratings), _MAX_PAIRS):
            some = slice(start, start + _MAX_PAIRS)
            queries, candidates = self._queries[user_rows[some]], candidate_rows[some]
            ratings[some] = self.model.rate(queries, self._candidates[candidates])
        return ratings

    def without_users(self) -> Ranker:
        """Return the same model without anything about a single user: all are unknown to it."""
        data = self._data.without_users()
        model = RankingModel(
            data.description.features, self.config, self.model.mean, self.model.deviation, seed=0
        )
        for ours, theirs in zip(model.parts, self.model.parts, strict=True):
            ours.weights[0].assign(theirs.weights[0][: ours.weights[0].shape[0]])
        return Ranker(model, self.config, data)

    def example(self, n_candidates: int) -> dict[str, np.ndarray]:
        """Return the exported function's inputs, by name, for one user and some candidates."""
        query = {f"query_{i}": one for i, one in enumerate(self._data.queries(slice(1)))}
        query["query_0"] = _padded(query["query_0"], self.config.max_history_length)
        candidates = {
            f"candidate_{i}": one[:n_candidates]
            for i, one in enumerate(self._data.candidate_inputs)
        }
        return query | candidates


def fit(
    dataset: Dataset,
    train_rows: np.ndarray,
    config: RankerConfig,
    seed: int,
    on_epoch: OnEpoch | None = None,
) -> Ranker:
    """Train a ranking model on the ratings of some of a dataset's interactions.

    Args:
        dataset: users, candidates and rated interactions.
        train_rows: (n,) int64, the interactions to learn from.
        config: how the model is built and trained.
        seed: of the initial weights and the batches: the same seed gives the same model.
        on_epoch: called after every epoch with its number, from 1, and the ``loss``.

    Raises:
        NoRatingsError: if there are no ratings, or they are all the same.
        TrainingError: if the loss stopped being a number.
    """
    rows = np.sort(train_rows)
    ratings = learnable_ratings(dataset, rows)
    data = encode(dataset, rows, config.max_history_length)
    batches = training_batches(dataset, rows, ratings, data, config.batch_size, seed)
    scale = np.float64(ratings)  # squares of large or tiny ratings would not fit into 32 bits
    model = RankingModel(
        data.description.features, config, float(scale.mean()), float(scale.std()), seed
    )
    learning_rate = tf.keras.optimizers.schedules.PolynomialDecay(
        config.learning_rate, config.epochs * int(batches.cardinality()), end_learning_rate=0.0
    )
    model.compile(optimizer=tf.keras.optimizers.Adam(learning_rate))
    model.optimizer.build(model.trainable_variables)  # or the first step is traced twice
    watch = tf.keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: _report(epoch + 1, float(logs["loss"]), on_epoch)
    )
    model.fit(batches, epochs=config.epochs, callbacks=[watch], verbose=0)
    return Ranker(model, config, data)


def _report(epoch: int, loss: float, on_epoch: OnEpoch | None) -> None:
    if not np.isfinite(loss):
        raise TrainingError(
            f"the loss of the ranking model became {loss} in epoch {epoch}: "
            "lower its learning rate, or raise its regularization"
        )
    if on_epoch is not None:
        on_epoch(epoch, {"loss": loss})


def _padded(tokens: np.ndarray, length: int) -> np.ndarray:
    return np.pad(tokens, [(0, 0), (0, length - tokens.shape[1])])


def _spec(feature: Feature, n: int | None, name: str) -> Any:
    dtype = tf.float32 if feature.kind == "number" else tf.int32
    return tf.TensorSpec((n, feature.length), dtype, name=name)


def _in_batches(side: Side, n: int, inputs: Callable[[slice], Sequence[np.ndarray]]) -> np.ndarray:
    """Return the sums (n, width + 1) float32 of all lines, of which ``inputs`` returns some."""
    batches = (inputs(slice(start, start + _BATCH_SIZE)) for start in range(0, n, _BATCH_SIZE))
    return np.concatenate([side(batch).numpy() for batch in batches])
