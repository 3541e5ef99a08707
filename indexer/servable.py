"""Index bundle -> TensorFlow Serving: a SavedModel with the retrieval layers of TFRS.

The servable holds copies of the embeddings, the known users and their histories, and answers what
the server answers to a known user or to an embedding: no filters, no exclusions but the history,
and one set of search params that is fixed when it is written.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # TFRS is written for Keras 2
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
from pydantic import BaseModel, ConfigDict, Field

from indexer.backends import BackendUnavailableError
from indexer.bundle import IndexBundle
from indexer.corpus import CorpusError
from trainer.bundle import QueryAssets
from trainer.publish import staging
from trainer.vocabulary import Vocabulary

Layer = Literal["brute_force", "scann"]

BY_USER, BY_EMBEDDING = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY, "by_embedding"

_WARMUP = Path("assets.extra", "tf_serving_warmup_requests")
_WARMUP_COUNTS = (1, 10)
_LENGTH_DELIMITED = 2


class ServableOptions(BaseModel):
    """What to write."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layer: Layer = "brute_force"
    """Which layer of TFRS searches."""
    max_count: int = Field(default=100, ge=1)
    """The most candidates that a request is answered with."""
    recall_target: float = Field(default=0.95, gt=0, le=1)
    """The recall that the layer ``scann`` searches for."""


def export_servable(
    bundle: IndexBundle, root: Path, options: ServableOptions | None = None
) -> Path:
    """Write an index as the next version of a servable, ``root/<number>``.

    Args:
        bundle: an open index bundle.
        root: the servable's folder, whose name is the model's name in TensorFlow Serving.
        options: what to write; by default, exact search.

    Returns:
        The directory of the new version.

    Raises:
        BackendUnavailableError: if the layer's library cannot be used.
        BundleError: if ``root`` cannot be written to.
        CorpusError: if the layer cannot search these candidates.
    """
    servable = Servable(bundle, options or ServableOptions())
    with staging(root) as staged:
        tf.saved_model.save(servable, str(staged), signatures=servable.functions)
        _write_warmup(staged / _WARMUP, root.resolve().name, servable)
        numbers = [int(path.name) for path in root.iterdir() if path.name.isdecimal()]
        return staged.rename(root / str(max(numbers, default=0) + 1))


class Servable(tf.Module):  # type: ignore[misc]
    """The functions of a servable: ids and scores for users or embeddings, best first.

    Both answer with ``candidate_ids`` (n, count) string and ``scores`` (n, count) float32; where
    fewer were found, the rest is empty ids and scores of minus infinity.

    Args:
        bundle: what is to be searched.
        options: how.

    Attributes:
        functions: by the names of their signatures.
        examples: for each signature, an input by name, of one query.
    """

    def __init__(self, bundle: IndexBundle, options: ServableOptions) -> None:
        super().__init__()
        corpus, assets = bundle.corpus, bundle.query
        self._n_candidates = corpus.n_candidates
        self._max_count = min(options.max_count, corpus.n_candidates)
        ids = corpus.candidate_ids.tokens(np.arange(corpus.n_candidates))
        self._candidate_ids = tf.Variable(ids, trainable=False)
        count = tf.TensorSpec([], tf.int32, name="candidate_count")
        embeddings = tf.TensorSpec([None, corpus.dim], tf.float32, name="embedding")
        by_embedding = tf.function(self._by_embedding, input_signature=[embeddings, count])
        self.functions = {BY_EMBEDDING: by_embedding}
        self.examples = {BY_EMBEDDING: {"embedding": tf.constant(corpus.embeddings[:1])}}
        n_excluded = 0
        if assets and assets.user_ids and assets.query_embeddings is not None:
            n_excluded = self._take_users(assets.user_ids, assets.query_embeddings, assets)
            popular = np.argsort(-corpus.popularity, kind="stable")[: self._max_count]
            self._popular_rows = tf.constant(popular, tf.int32)
            self._popularity = tf.constant(corpus.popularity[popular], tf.float32)
            users = tf.TensorSpec([None], tf.string, name="user_id")
            self.functions[BY_USER] = tf.function(self._by_user, input_signature=[users, count])
            self.examples[BY_USER] = {"user_id": tf.constant([assets.user_ids.token(0)])}
        # Of one width for all users: a width that depends on the request cannot be traced.
        self._n_fetched = min(self._max_count + n_excluded, corpus.n_candidates)
        self._layer = _layer(bundle, options, self._n_fetched)

    def _take_users(self, ids: Vocabulary, embeddings: np.ndarray, assets: QueryAssets) -> int:
        """Take the known users in; return the length of the longest history."""
        users = np.arange(len(ids))
        self._user_rows = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(ids.tokens(users), users), default_value=-1
        )
        self._user_embeddings = tf.Variable(embeddings, trainable=False)
        # A pair of user and candidate is one number, so that one sorted array holds all histories.
        histories = [np.unique(assets.history(user)).astype(np.int64) for user in users.tolist()]
        pairs = [user * self._n_candidates + rows for user, rows in enumerate(histories)]
        end = [np.iinfo(np.int64).max]
        self._histories = tf.Variable(np.concatenate([*pairs, end]), trainable=False)
        return max(map(len, histories), default=0)

    def _by_embedding(
        self, embedding: tf.Tensor, candidate_count: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        scores, rows = self._layer(embedding, k=self._n_fetched)
        return self._answer(scores, rows, candidate_count)

    def _by_user(self, user_id: tf.Tensor, candidate_count: tf.Tensor) -> dict[str, tf.Tensor]:
        user_rows = self._user_rows.lookup(user_id)
        is_known = user_rows[:, None] >= 0
        queries = tf.gather(self._user_embeddings, tf.maximum(user_rows, 0))
        scores, rows = self._layer(queries, k=self._n_fetched)
        pairs = user_rows[:, None] * self._n_candidates + tf.cast(rows, tf.int64)
        positions = tf.searchsorted(self._histories, tf.reshape(pairs, [-1]))
        in_history = tf.gather(self._histories, tf.reshape(positions, tf.shape(pairs))) == pairs
        scores = tf.where(in_history, -np.inf, scores)
        scores, order = tf.math.top_k(scores, k=self._max_count)
        rows = tf.gather(rows, order, batch_dims=1)
        # Who is not known gets what is popular, as from the server.
        scores = tf.where(is_known, scores, self._popularity)
        rows = tf.where(is_known, rows, self._popular_rows)
        return self._answer(scores, rows, candidate_count)

    def _answer(
        self, scores: tf.Tensor, rows: tf.Tensor, candidate_count: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Return the first of the candidates found, both (n, at least max_count)."""
        count = tf.clip_by_value(candidate_count, 0, self._max_count)
        scores, rows = scores[:, :count], rows[:, :count]
        ids = tf.where(tf.math.is_finite(scores), tf.gather(self._candidate_ids, rows), "")
        return {"candidate_ids": ids, "scores": scores}


def _layer(bundle: IndexBundle, options: ServableOptions, n_fetched: int) -> Any:
    """Return the layer of TFRS that finds rows for embeddings."""
    embeddings = tf.constant(bundle.corpus.embeddings)
    rows = tf.range(bundle.corpus.n_candidates, dtype=tf.int32)
    if options.layer == "brute_force":
        return tfrs.layers.factorized_top_k.BruteForce(k=n_fetched).index(embeddings, rows)
    n_leaves, n_searched, n_reordered = _scann_params(bundle, options.recall_target, n_fetched)
    try:
        layer = tfrs.layers.factorized_top_k.ScaNN(
            k=n_fetched,
            num_leaves=n_leaves,
            num_leaves_to_search=n_searched,
            num_reordering_candidates=n_reordered,
        )
        return layer.index(embeddings, rows)
    except ImportError as error:
        raise BackendUnavailableError(
            f"the layer scann needs ScaNN with its TensorFlow operations: {error}"
        ) from error
    except tf.errors.InvalidArgumentError as error:  # of less than 16 candidates
        raise CorpusError(
            f"the layer scann cannot search these candidates, brute_force can: {error.message}"
        ) from error


def _scann_params(
    bundle: IndexBundle, recall_target: float, n_fetched: int
) -> tuple[int, int, int]:
    """Return leaves, leaves searched and candidates reordered, by the bundle's measurements.

    Where nothing was measured, all leaves are searched.
    """
    n_candidates = bundle.corpus.n_candidates
    n_leaves, n_searched, n_reordered = 0, 0, 4 * n_fetched
    if entry := bundle.manifest.backends.get("scann"):
        choice = bundle.choose(n_fetched, recall_target=recall_target, backend="scann")
        params = choice.params.model_dump()
        n_leaves = entry.build_params["num_leaves"] or 0
        n_searched = params["leaves_to_search"] or 0
        n_reordered = params["pre_reorder_num_neighbors"]
    n_leaves = n_leaves or max(1, round(math.sqrt(n_candidates)))
    return n_leaves, n_searched or n_leaves, min(max(n_reordered, n_fetched), n_candidates)


def _write_warmup(path: Path, model: str, servable: Servable) -> None:
    """Write requests for TensorFlow Serving to make before it serves.

    They are records of ``tensorflow.serving.PredictionLog``, written field by field: the package
    that knows the message asks for another TensorFlow. The numbers are those of its fields.
    """
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, example in servable.examples.items():
            spec = _field(1, model.encode()) + _field(3, signature.encode())
            for count in _WARMUP_COUNTS:
                inputs = {**example, "candidate_count": tf.constant(count, tf.int32)}
                request = _field(1, spec) + _tensor_fields(inputs)
                writer.write(_field(6, _field(1, request)))


def _tensor_fields(inputs: Mapping[str, Any]) -> bytes:
    """Return tensors by name as the field ``inputs`` of a ``PredictRequest``."""
    tensors = {name: tf.make_tensor_proto(tensor) for name, tensor in inputs.items()}
    return b"".join(
        _field(2, _field(1, name.encode()) + _field(2, tensor.SerializeToString()))
        for name, tensor in tensors.items()
    )


def _field(number: int, content: bytes) -> bytes:
    """Return a field of a protocol buffer that says how long its content is."""
    return bytes([number << 3 | _LENGTH_DELIMITED]) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])
