"""Fewer dimensions for the same scores.

Towers learn better wide than narrow, and what they learn has a low rank: of a wide score matrix
the truncated singular value decomposition keeps the best approximation that a given number of
dimensions allows (Eckart and Young, 1936), and it can be had from the embeddings alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


def compress(queries: Array, candidates: Array, dim: int) -> tuple[Array, Array]:
    """Find projections after which inner products are as close as possible to those before.

    Args:
        queries: (n_queries, width) float32, embeddings of the queries that matter.
        candidates: (n_candidates, width) float32.
        dim: dimensions to keep.

    Returns:
        Projections (width, dim) of the queries and of the candidates. Where fewer dimensions
        suffice, the rest is 0.
    """
    query_factor = _triangular_factor(queries)
    candidate_factor = _triangular_factor(candidates)
    left, singular, right = np.linalg.svd(query_factor @ candidate_factor.T)
    kept = int(np.sum(singular[:dim] > singular[0] * np.finfo(np.float32).eps))
    projections = np.zeros((2, queries.shape[1], dim), dtype=np.float32)
    projections[0, :, :kept] = candidate_factor.T @ right[:kept].T / np.sqrt(singular[:kept])
    projections[1, :, :kept] = query_factor.T @ left[:, :kept] / np.sqrt(singular[:kept])
    return projections[0], projections[1]


def _triangular_factor(embeddings: Array) -> npt.NDArray[np.float64]:
    return np.asarray(np.linalg.qr(embeddings.astype(np.float64), mode="r"))
