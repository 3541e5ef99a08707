"""What the ranking model reads: users, candidates and ratings, as arrays and as batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from trainer.bundle import RankerDescription
from trainer.datasets import Dataset
from trainer.errors import TrainingError
from trainer.features import (
    CANDIDATE_ID,
    HISTORY,
    USER_ID,
    Feature,
    Features,
    describe_column,
    encode_table,
    encode_together,
)
from trainer.inputs import collect_histories
from trainer.keras import tf, untuned
from trainer.vocabulary import Vocabulary

Columns: TypeAlias = tuple[tuple[Feature, ...], dict[str, Vocabulary]]

_MAX_TOKENS_PER_LINE = 0.5  # of a feature; with more, most lines have one of their own


class NoRatingsError(TrainingError):
    """Why there is no ranking model: there are no ratings to learn from."""


@dataclass(frozen=True, eq=False)
class EncodedData:
    """Users and candidates as the ranking model reads them.

    Attributes:
        description: what it reads.
        histories: the candidate rows of each user, oldest first: padded, they would take memory
            for the longest of them as often as there are users.
        query_inputs: (n_users, length) of each query feature but the history, which is the first.
        candidate_inputs: (n_candidates, length) of each candidate feature.
    """

    description: RankerDescription
    histories: Sequence[np.ndarray]
    query_inputs: tuple[np.ndarray, ...]
    candidate_inputs: tuple[np.ndarray, ...]

    def queries(self, some: slice) -> tuple[np.ndarray, ...]:
        """Return the inputs (n, length) of some users, their histories as long as the longest."""
        length = self.description.features.max_history_length
        histories = encode_together(self.histories[some], length)
        return histories, *(one[some] for one in self.query_inputs)

    def without_users(self) -> EncodedData:
        """Return the same data with all users unknown."""
        features = self.description.features
        query = [
            one.model_copy(update={"n_tokens": 0}) if one.name == USER_ID else one
            for one in features.query
        ]
        inputs = [
            np.zeros_like(encoded) if one.name == USER_ID else encoded
            for one, encoded in zip(features.query[1:], self.query_inputs, strict=True)
        ]
        described = features.model_copy(update={"query": tuple(query)})
        return EncodedData(
            self.description.model_copy(update={"features": described}),
            self.histories,
            tuple(inputs),
            self.candidate_inputs,
        )


def encode(dataset: Dataset, train_rows: np.ndarray, max_history_length: int) -> EncodedData:
    """Describe and encode the users and candidates of a dataset.

    Args:
        dataset: whose users and candidates.
        train_rows: (n,) int64, the interactions that the histories are made of.
        max_history_length: interactions of a user that are read; the newest stay.
    """
    user_id = Feature(name=USER_ID, kind="id", n_tokens=dataset.n_users)
    history = Feature(
        name=HISTORY,
        kind="history",
        length=max_history_length,
        n_tokens=dataset.n_candidates,
    )
    candidate_id = Feature(name=CANDIDATE_ID, kind="id", n_tokens=dataset.n_candidates)
    (of_users, user_tokens), (of_candidates, candidate_tokens) = describe(dataset)
    users = encode_table(
        (user_id, *of_users), {USER_ID: dataset.user_ids, **user_tokens}, dataset.users
    )
    candidates = encode_table(
        (candidate_id, *of_candidates),
        {CANDIDATE_ID: dataset.candidate_ids, **candidate_tokens},
        dataset.candidates,
    )
    features = Features(
        query=(history, user_id, *of_users), candidate=(candidate_id, *of_candidates)
    )
    return EncodedData(
        RankerDescription.of(features, user_tokens, candidate_tokens),
        collect_histories(dataset, train_rows, max_history_length),
        tuple(users.values()),
        tuple(candidates.values()),
    )


def describe(dataset: Dataset) -> tuple[Columns, Columns]:
    """Describe what is read of users and of candidates beside ids and histories.

    Raises:
        TrainingError: if a model cannot read a column.
    """
    return _described(dataset.users), _described(dataset.candidates)


def learnable_ratings(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """Return the ratings (n,) of some interactions.

    Raises:
        NoRatingsError: if there are none, or they are all the same.
    """
    if dataset.ratings is None:
        raise NoRatingsError(
            f"{dataset.name} has no ratings, so there is no ranking model: "
            "add a rating column to have one"
        )
    ratings: np.ndarray = dataset.ratings[rows]
    if not len(ratings) or ratings.min() == ratings.max():
        raise NoRatingsError(
            f"the ratings of {dataset.name} are all the same, so there is no ranking model: "
            "it needs ratings that differ"
        )
    return ratings


def training_batches(
    dataset: Dataset,
    rows: np.ndarray,
    ratings: np.ndarray,
    data: EncodedData,
    batch_size: int,
    seed: int,
) -> Any:
    """Make batches of users in random order, each with all of their ratings.

    Args:
        dataset: users, candidates and rated interactions.
        rows: (n,) int64, the interactions to learn from.
        ratings: (n,) float32, how they were rated.
        data: the users and candidates, encoded.
        batch_size: users in a step.
        seed: of the order.

    Returns:
        A ``tf.data.Dataset`` of what ``RankingModel.compute_loss`` reads.
    """
    by_user = np.argsort(dataset.user_rows[rows], kind="stable")
    raters, counts = np.unique(dataset.user_rows[rows], return_counts=True)
    candidates = tf.RaggedTensor.from_row_lengths(dataset.candidate_rows[rows[by_user]], counts)
    rated_as = candidates.with_values(ratings[by_user])
    user_rows = tf.constant(raters)
    history_of = _padded(data.histories)
    query_inputs = [tf.constant(one) for one in data.query_inputs]
    candidate_inputs = [tf.constant(one) for one in data.candidate_inputs]

    def examples(chosen: Any) -> dict[str, Any]:
        users, rated = tf.gather(user_rows, chosen), tf.gather(candidates, chosen)
        candidate_rows, places = tf.unique(rated.values)
        return {
            "query": (history_of(users), *(tf.gather(one, users) for one in query_inputs)),
            "candidate": tuple(tf.gather(one, candidate_rows) for one in candidate_inputs),
            "rater": rated.value_rowids(),
            "rated": places,
            "rating": tf.gather(rated_as, chosen).values,
        }

    order = tf.data.Dataset.range(len(raters)).shuffle(len(raters), seed=seed)
    return untuned(order.batch(batch_size).map(examples).prefetch(2))


def _described(table: pa.Table) -> Columns:
    """Describe the columns, but the id, that say something of many lines: no texts, no names.

    Raises:
        TrainingError: if a model cannot read one of them.
    """
    features, vocabularies = [], {}
    for name in table.column_names[1:]:
        try:
            feature, vocabulary = describe_column(name, table.column(name))
        except ValueError as error:
            raise TrainingError(f"column {name!r}, read by the ranking model: {error}") from error
        if feature.kind == "text" or feature.n_tokens > _MAX_TOKENS_PER_LINE * len(table):
            continue
        features.append(feature)
        if vocabulary is not None:
            vocabularies[name] = vocabulary
    return tuple(features), vocabularies


def _padded(histories: Sequence[np.ndarray]) -> Callable[[Any], Any]:
    """Return what gathers the histories of some users (n,) as tokens (n, length of the longest).

    With a ragged tensor an epoch on MovieLens 100K was measured to take a quarter longer.
    """
    lengths = np.array([len(history) for history in histories])
    starts = tf.constant(np.cumsum(lengths) - lengths)
    tokens = tf.constant(np.append(np.concatenate(histories) + 1, 0))  # 0, the last, is none
    lengths = tf.constant(lengths)

    def gather(users: Any) -> Any:
        n_kept = tf.gather(lengths, users)
        places = tf.range(tf.reduce_max(n_kept))
        positions = tf.gather(starts, users)[:, None] + places
        is_kept = places < n_kept[:, None]
        return tf.gather(tokens, tf.where(is_kept, positions, tf.size(tokens, tf.int64) - 1))

    return gather
