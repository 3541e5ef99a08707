"""Inner products as angles: vectors get one dimension more, so that all have one norm.

Then the angle, and the distance, order them as the inner product does (Bachrach et al. 2014,
"Speeding up the Xbox recommender system using a Euclidean transformation for inner-product
spaces"). What finds neighbours in space finds the best by inner product so; graphs above all, in
which short vectors are otherwise nobody's neighbours.
"""

from __future__ import annotations

import numpy as np

from indexer.exact import squared_norms


def of_one_norm(vectors: np.ndarray, norm: float) -> np.ndarray:
    """Return (n, dim + 1) float64: vectors (n, dim) float32, made to have this norm.

    Args:
        vectors: none of them longer than ``norm``.
        norm: the largest of the corpus.
    """
    missing = norm**2 - squared_norms(vectors).astype(np.float64)
    return np.column_stack([vectors, np.sqrt(np.maximum(missing, 0))])


def with_added_zero(queries: np.ndarray) -> np.ndarray:
    """Return (n, dim + 1) float32: queries, whose products with such vectors stay as they were."""
    return np.column_stack([queries, np.zeros(len(queries), dtype=np.float32)])
