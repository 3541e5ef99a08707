"""What the towers are trained to do: retrieval tasks over query and candidate embeddings."""

from __future__ import annotations

from typing import Any

from trainer.keras import tf, tfrs


class SoftmaxRetrieval(tf.keras.layers.Layer, tfrs.tasks.Task):  # type: ignore[misc]
    """Full softmax over the catalogue, for all targets of a query at once.

    ``tfrs.tasks.Retrieval`` pairs one query with one candidate and takes the rest of the batch for
    negatives. Here a query has many targets and every candidate is a negative, which needs no
    correction for how negatives were sampled: exact, and cheap while the catalogue is small.

    Args:
        metrics: how often a target is among the best candidates of its query.
        user_weight: a user counts as their number of targets to this power: 0 gives every user
            the same weight, 1 every interaction.
    """

    def __init__(
        self, metrics: tfrs.metrics.FactorizedTopK | None = None, user_weight: float = 0.5
    ) -> None:
        super().__init__()
        self.factorized_metrics = metrics
        self._user_weight = user_weight

    def call(
        self, queries: Any, candidates: Any, targets: Any, compute_metrics: bool = True
    ) -> Any:
        """Return the loss of a batch.

        Args:
            queries: (n_queries, dim) float32.
            candidates: (n_candidates, dim) float32, the whole catalogue in row order.
            targets: ragged (n_queries, None) candidate rows that each query should retrieve;
                queries without targets do not count.
            compute_metrics: whether to update the metrics, which costs more than the loss.

        Returns:
            The weighted mean over queries of the mean negative log-likelihood of their targets.
        """
        if compute_metrics and self.factorized_metrics is not None:
            self.factorized_metrics.update_state(
                tf.gather(queries, targets.value_rowids()), tf.gather(candidates, targets.values)
            )
        scores = tf.matmul(queries, candidates, transpose_b=True)
        normalizers = tf.reduce_logsumexp(scores, axis=1)
        of_targets = tf.gather(scores, targets, batch_dims=1)
        n_targets = tf.cast(targets.row_lengths(), tf.float32)
        sums = n_targets * normalizers - tf.reduce_sum(of_targets, axis=1)
        weights = tf.where(n_targets > 0, n_targets**self._user_weight, 0.0)
        return tf.math.divide_no_nan(
            tf.reduce_sum(tf.math.divide_no_nan(weights * sums, n_targets)), tf.reduce_sum(weights)
        )
