"""What the towers are trained to do: retrieval tasks over query and candidate embeddings."""

from __future__ import annotations

from typing import Any

from trainer.keras import tf, tfrs


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
    """

    def __init__(self, user_weight: float = 0.5, hard_negatives: int = 0) -> None:
        super().__init__()
        self._user_weight = user_weight
        self._hard_negatives = hard_negatives

    def call(
        self, queries: Any, candidates: Any, targets: Any, seen: Any, log_chances: Any = None
    ) -> Any:
        """Return the loss of a batch.

        Args:
            queries: (n_queries, dim) float32.
            candidates: (n_competing, dim) float32.
            targets: (n_queries, n_competing) float32 sparse: the candidates that each query should
                retrieve, and how much each counts; queries without targets do not count.
            seen: (n_queries, n_competing) sparse: the candidates that compete with no target.
            log_chances: (n_competing,) float32, the logarithm of each candidate's chance to
                compete in this step; none: all candidates do.

        Returns:
            The weighted mean over queries of the weighted mean negative log-likelihood of their
            targets.
        """
        scores = tf.matmul(queries, candidates, transpose_b=True)
        target_scores = tf.gather_nd(scores, targets.indices)
        competing = scores if log_chances is None else scores - log_chances
        lowest = tf.fill(tf.shape(seen.values), scores.dtype.min)
        competing = tf.tensor_scatter_nd_update(competing, seen.indices, lowest)
        normalizers = self._normalizers(competing, targets.indices, target_scores)
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

    def _normalizers(self, competing: Any, targets: Any, target_scores: Any) -> Any:
        """Return the logarithm (n_queries,) of each query's sum over what competes."""
        if not self._hard_negatives:
            # Who interacts twice has seen a target: it competes all the same.
            return tf.reduce_logsumexp(
                tf.tensor_scatter_nd_update(competing, targets, target_scores), axis=1
            )
        lowest = tf.fill(tf.shape(target_scores), competing.dtype.min)
        negatives = tf.tensor_scatter_nd_update(competing, targets, lowest)
        n_hard = tf.minimum(self._hard_negatives, tf.shape(negatives)[1])
        hard = tf.reduce_logsumexp(tf.math.top_k(negatives, n_hard, sorted=False).values, axis=1)
        own = tf.tensor_scatter_nd_update(
            tf.fill(tf.shape(competing), competing.dtype.min), targets, target_scores
        )
        return tf.reduce_logsumexp(tf.stack([hard, tf.reduce_logsumexp(own, axis=1)]), axis=0)
