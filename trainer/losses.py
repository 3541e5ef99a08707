"""What the towers are trained to do: retrieval tasks over query and candidate embeddings."""

from __future__ import annotations

from typing import Any

from trainer.keras import tf, tfrs


class SoftmaxRetrieval(tf.keras.layers.Layer, tfrs.tasks.Task):  # type: ignore[misc]
    """Full softmax over the catalogue, for all targets of a query at once.

    ``tfrs.tasks.Retrieval`` pairs one query with one candidate and takes the rest of the batch for
    negatives. Here a query has many targets and every candidate is a negative, which needs no
    correction for how negatives were sampled: exact, and cheap while the catalogue is small. What
    the query has read is left out of the softmax, as it is left out of what users are shown.

    Args:
        metrics: how often a target is among the best candidates of its query.
        user_weight: a user counts as the weight of all their targets to this power: 0 gives every
            user the same weight, 1 every target its own.
    """

    def __init__(
        self, metrics: tfrs.metrics.FactorizedTopK | None = None, user_weight: float = 0.5
    ) -> None:
        super().__init__()
        self.factorized_metrics = metrics
        self._user_weight = user_weight

    def call(
        self,
        queries: Any,
        candidates: Any,
        targets: Any,
        target_weights: Any,
        seen: Any,
        compute_metrics: bool = True,
    ) -> Any:
        """Return the loss of a batch.

        Args:
            queries: (n_queries, dim) float32.
            candidates: (n_candidates, dim) float32, the whole catalogue in row order.
            targets: ragged (n_queries, None) candidate rows that each query should retrieve;
                queries without targets do not count.
            target_weights: ragged (n_queries, None) float32, how much each target counts.
            seen: ragged (n_queries, None) candidate rows that compete with no target.
            compute_metrics: whether to update the metrics, which costs more than the loss.

        Returns:
            The weighted mean over queries of the weighted mean negative log-likelihood of their
            targets.
        """
        if compute_metrics and self.factorized_metrics is not None:
            self.factorized_metrics.update_state(
                tf.gather(queries, targets.value_rowids()), tf.gather(candidates, targets.values)
            )
        scores = tf.matmul(queries, candidates, transpose_b=True)
        target_scores = tf.gather_nd(scores, cells(targets))
        unseen = tf.tensor_scatter_nd_update(
            scores, cells(seen), tf.fill(tf.shape(seen.values), scores.dtype.min)
        )
        # Who interacts twice has seen a target: it competes all the same.
        competing = tf.tensor_scatter_nd_update(unseen, cells(targets), target_scores)
        normalizers = tf.gather(tf.reduce_logsumexp(competing, axis=1), targets.value_rowids())
        losses = targets.with_values((normalizers - target_scores) * target_weights.values)
        totals = tf.reduce_sum(target_weights, axis=1)
        means = tf.math.divide_no_nan(tf.reduce_sum(losses, axis=1), totals)
        user_weights = tf.where(totals > 0, totals**self._user_weight, 0.0)
        return tf.math.divide_no_nan(
            tf.reduce_sum(means * user_weights), tf.reduce_sum(user_weights)
        )


def cells(rows: Any) -> Any:
    """Return where ragged candidate rows (n_queries, None) lie in a matrix with a line a query."""
    return tf.stack([tf.cast(rows.value_rowids(), rows.dtype), rows.values], axis=1)
