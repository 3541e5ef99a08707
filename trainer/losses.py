"""What the towers are trained to do: retrieval tasks over query and candidate embeddings."""

from __future__ import annotations

from typing import Any

from trainer.keras import tf, tfrs
from trainer.precision import product


class SoftmaxRetrieval(tf.keras.layers.Layer, tfrs.tasks.Task):  # type: ignore[misc]
    """Softmax over the candidates that compete in a step, for all targets of a query at once.

    ``tfrs.tasks.Retrieval`` pairs one query with one candidate and takes the rest of the batch for
    negatives. Here a query has many targets, and all candidates of the step compete: the whole
    catalogue while it is small, which is exact, or a sample of it. A sampled candidate stands for
    as many as its chance to be sampled says (Horvitz and Thompson, 1952; the logQ correction of
    Yi et al., 2019, is the same for a sample drawn with replacement), so that the sum over the
    catalogue is estimated without bias. What the query has read is left out of the softmax, as it
    is left out of what users are shown, so that no target is its own query's negative.

    Args:
        user_weight: a user counts as the weight of all their targets to this power: 0 gives every
            user the same weight, 1 every target its own.
        hard_negatives: of the candidates that compete with a query's targets, only so many count,
            those that score highest; 0: all.
        mixed_precision: whether scores are multiplied in bfloat16; all else is float32 always.
    """

    def __init__(
        self, user_weight: float, hard_negatives: int = 0, *, mixed_precision: bool = False
    ) -> None:
        super().__init__()
        self._user_weight = user_weight
        self._hard_negatives = hard_negatives
        self._mixed_precision = mixed_precision

    def call(
        self, queries: Any, candidates: Any, targets: Any, seen: Any, log_chances: Any = None
    ) -> Any:
        """Return the loss of a batch.

        Args:
            queries: (n_queries, dim) float32.
            candidates: (n_candidates, dim) float32.
            targets: (n_queries, n_candidates) float32 sparse: the candidates that each query should
                retrieve, and how much each counts; queries without targets do not count.
            seen: (n_queries, n_candidates) sparse: the candidates that compete with no target.
            log_chances: (n_competing,) float32, the logarithm of the chance that each of the first
                candidates had to compete in this step; none: all compete.

        Returns:
            The weighted mean over queries of the weighted mean negative log-likelihood of their
            targets.
        """
        if log_chances is None and not self._hard_negatives:
            normalizers, target_scores = _exact(self._score(queries, candidates), targets, seen)
        else:
            normalizers, target_scores = self._sampled(
                queries, candidates, targets, seen, log_chances
            )
        queries_of_targets = targets.indices[:, 0]
        losses = targets.values * (tf.gather(normalizers, queries_of_targets) - target_scores)
        n_queries = tf.shape(queries)[0]
        sums, totals = (
            tf.math.unsorted_segment_sum(values, queries_of_targets, n_queries)
            for values in (losses, targets.values)
        )
        weights = tf.where(totals > 0, totals**self._user_weight, 0.0)
        means = tf.math.divide_no_nan(sums, totals)
        return tf.math.divide_no_nan(tf.reduce_sum(means * weights), tf.reduce_sum(weights))

    def _score(self, queries: Any, candidates: Any) -> Any:
        return product(queries, candidates, mixed=self._mixed_precision, transpose_b=True)

    def _sampled(
        self, queries: Any, candidates: Any, targets: Any, seen: Any, log_chances: Any
    ) -> tuple[Any, Any]:
        """Return what ``_exact`` does, where not all candidates count."""
        log_chances = tf.zeros(tf.shape(candidates)[:1]) if log_chances is None else log_chances
        n_competing = tf.size(log_chances)
        scores = self._score(queries, candidates[:n_competing]) - log_chances
        hidden = tf.concat([seen.indices, targets.indices], axis=0)
        negatives = _without(scores, hidden[hidden[:, 1] < tf.cast(n_competing, tf.int64)])
        if self._hard_negatives:
            n_hard = tf.minimum(self._hard_negatives, n_competing)
            negatives = tf.math.top_k(negatives, n_hard, sorted=False).values
        lines, columns = tf.unstack(targets.indices, axis=1)
        target_scores = tf.reduce_sum(
            tf.gather(queries, lines) * tf.gather(candidates, columns), axis=1
        )
        own = _segment_logsumexp(target_scores, lines, tf.shape(queries)[0])
        total = tf.reduce_logsumexp(tf.stack([tf.reduce_logsumexp(negatives, axis=1), own]), axis=0)
        return total, target_scores


def _exact(scores: Any, targets: Any, seen: Any) -> tuple[Any, Any]:
    """Return the logarithm (n_queries,) of each query's sum over what competes, and the scores.

    The scores (n_targets,) are those of the targets, in their order.
    """
    target_scores = tf.gather_nd(scores, targets.indices)
    # Who interacts twice has seen a target: it competes all the same.
    competing = tf.tensor_scatter_nd_update(
        _without(scores, seen.indices), targets.indices, target_scores
    )
    return tf.reduce_logsumexp(competing, axis=1), target_scores


def _without(scores: Any, cells: Any) -> Any:
    """Return scores of which some, at (n, 2) places, are too low to count."""
    return tf.tensor_scatter_nd_update(
        scores, cells, tf.fill(tf.shape(cells)[:1], scores.dtype.min)
    )


def _segment_logsumexp(values: Any, segments: Any, n_segments: Any) -> Any:
    """Return the logarithm of the sum of the exponentials in each segment, (n_segments,)."""
    highest = tf.stop_gradient(tf.math.unsorted_segment_max(values, segments, n_segments))
    sums = tf.math.unsorted_segment_sum(
        tf.exp(values - tf.gather(highest, segments)), segments, n_segments
    )
    return tf.where(sums > 0, tf.math.log(tf.where(sums > 0, sums, 1.0)) + highest, highest)
