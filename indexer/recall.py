"""recall@k, the quality of an index: the only definition.

Never to be mixed with heldout_recall@k, the quality of a model, which is in ``trainer.metrics``.
"""

from __future__ import annotations

import numpy as np

from indexer.exact import Neighbors


def recall_at_k(found: Neighbors, exact: Neighbors) -> np.ndarray:
    """Return, per query, the share of the exact top k that an index returned.

    A candidate that ties with the k-th best of the exact answer counts as one of them: which of
    the tied ones is returned makes no difference to anybody. Scores come from one kernel, so they
    are compared without a tolerance.

    Args:
        found: what the index returned for some queries.
        exact: the exact answer to the same queries with the same k.

    Returns:
        (n_queries,) float64; 1 where there was nothing to find.

    Raises:
        ValueError: if the two answers differ in shape.
    """
    if found.rows.shape != exact.rows.shape:
        raise ValueError(
            f"both answers must have one shape (n_queries, k); found has {found.rows.shape}, "
            f"exact has {exact.rows.shape}"
        )
    n_exact = np.count_nonzero(exact.rows >= 0, axis=1)
    worst = np.min(exact.scores, axis=1, where=exact.rows >= 0, initial=np.inf)
    n_found = np.count_nonzero((found.rows >= 0) & (found.scores >= worst[:, None]), axis=1)
    return np.where(n_exact > 0, np.minimum(n_found, n_exact) / np.maximum(n_exact, 1), 1.0)


def mean_interval(recalls: np.ndarray) -> tuple[float, float, float]:
    """Return the mean of (n_queries,) recalls and the ends of its 95% confidence interval.

    The interval is the normal one of a mean over independent queries, cut to [0, 1].
    """
    mean = float(recalls.mean())
    half_width = 1.96 * standard_error(recalls)
    return mean, max(0.0, mean - half_width), min(1.0, mean + half_width)


def standard_error(recalls: np.ndarray) -> float:
    """Return the standard error of the mean of (n_queries,) recalls."""
    return float(recalls.std(ddof=1) / np.sqrt(len(recalls))) if len(recalls) > 1 else 0.0
