"""More like this: the cosine between candidates' embeddings, without their bias.

Raw inner products return whatever is popular, since popular candidates have the longest vectors
and the largest biases.
"""

from __future__ import annotations

import numpy as np

from indexer.backends import Neighbors, SearchMethod

_ALIKE = 1e-5  # relative spread of norms below which they count as equal: float32 rounding


class Directions:
    """The directions of a corpus's embeddings, their bias left out, kept as one norm a candidate.

    Args:
        embeddings: (n_candidates, dim) float32 in C order; may be memory-mapped.
        has_bias_dimension: whether the last dimension is the bias.
    """

    def __init__(self, embeddings: np.ndarray, *, has_bias_dimension: bool) -> None:
        self._embeddings = embeddings.view(np.ndarray)
        self._width = embeddings.shape[1] - has_bias_dimension
        vectors = self._embeddings[:, : self._width]
        norms = np.sqrt(np.vecdot(vectors, vectors))
        with np.errstate(divide="ignore"):
            self._inverse_norms = np.where(norms > 0, 1 / norms, 0).astype(np.float32)
        low, high = float(norms.min()), float(norms.max())
        self.common_norm = high if low > 0 and high - low <= _ALIKE * high else None
        """The norm that all candidates share: then cosine is an inner product, which every index
        can search. None if they differ."""

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        """Return the directions (n, dim) float32 of ``rows``, with 0 for the bias."""
        directions = np.zeros((len(rows), self._embeddings.shape[1]), dtype=np.float32)
        width = self._width
        directions[:, :width] = self._embeddings[rows, :width] * self._inverse_norms[rows, None]
        return directions

    def of_vector(self, vector: np.ndarray) -> np.ndarray:
        """Return the direction (dim,) float32 of a vector, with 0 for the bias."""
        return self.without_bias(vector) / np.float32(self.norm(vector) or 1.0)

    def norm(self, vector: np.ndarray) -> float:
        """Return the length of a vector (dim,), its bias left out."""
        return float(np.linalg.norm(vector[: self._width]))

    def without_bias(self, vector: np.ndarray) -> np.ndarray:
        """Return a copy of a vector (dim,) float32 with 0 for the bias."""
        copy = np.array(vector, dtype=np.float32)
        copy[self._width :] = 0
        return copy

    def search(self, direction: np.ndarray, k: int, eligible: np.ndarray | None) -> Neighbors:
        """Return the k candidates of largest cosine with a direction, by a scan of the corpus.

        Args:
            direction: (dim,) float32, of length 1, with 0 for the bias.
            k: candidates wanted.
            eligible: (n_candidates,) bool, the candidates that may be returned; None for all.

        Returns:
            Neighbors of one query, whose scores are cosines.
        """
        cosines = (self._embeddings @ direction) * self._inverse_norms
        rows = np.arange(len(cosines)) if eligible is None else np.flatnonzero(eligible)
        scores = cosines if eligible is None else cosines[rows]
        if k < len(rows):
            near = np.flatnonzero(scores >= np.partition(scores, len(scores) - k)[-k])
            rows, scores = rows[near], scores[near]
        best = np.lexsort((rows, -scores))[:k]
        found = Neighbors.none(1, k, SearchMethod.EXACT)
        found.rows[0, : len(best)] = rows[best]
        found.scores[0, : len(best)] = scores[best]
        return found
