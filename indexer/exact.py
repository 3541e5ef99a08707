"""Exact inner products and their order: every score that leaves an index is computed here.

There is one kernel, ``np.vecdot``: one dot product per pair of a query and a row, whose bits do
not depend on how many rows or queries are scored together. A matrix product is several times
faster over a whole corpus, but its rounding depends on the shapes; so it only proposes the rows
that can be among the best, within a bound on its rounding error, and the kernel decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np

_GATHERED_FLOATS = 1 << 18  # 1 MiB of gathered vectors stays in the second-level cache
_SCORED_FLOATS = 1 << 24  # scores held at once while a batch scans the corpus: 64 MiB
_SCORE_ALL_ABOVE = 0.25  # share of the rows from which scoring all beats gathering those rows
_GROUPS_PER_RESULT = 8  # groups of rows whose maxima bound the k-th best score from below...
_MIN_GROUPS = 1024  # ... and how many it takes for NumPy to reduce them at full speed
_NO_KEY = np.uint64(0xFFFFFFFFFFFFFFFF)  # sorts behind the key of every row


class SearchMethod(StrEnum):
    """How an answer was found."""

    INDEX = "index"
    OVER_FETCH = "over-fetch"
    MASKED_SCAN = "masked scan"
    EXACT = "exact"


@dataclass(frozen=True, slots=True)
class Neighbors:
    """The best candidates of each query, best first.

    Attributes:
        rows: (n_queries, k) int64, unique within a query; -1 where fewer were found.
        scores: (n_queries, k) float32, exact inner products, non-increasing, ties by lower row;
            -inf where the row is -1.
        method: how they were found.
    """

    rows: np.ndarray
    scores: np.ndarray
    method: SearchMethod = SearchMethod.INDEX

    @classmethod
    def none(cls, n_queries: int, k: int, method: SearchMethod = SearchMethod.INDEX) -> Neighbors:
        """Return the answer that holds no candidate."""
        rows = np.full((n_queries, k), -1, dtype=np.int64)
        return cls(rows, np.full((n_queries, k), -np.inf, dtype=np.float32), method)


class ExactScorer:
    """Exact scores over one corpus.

    Args:
        embeddings: (n_candidates, dim) float32 in C order, all norms finite; may be memory-mapped.
    """

    def __init__(self, embeddings: np.ndarray) -> None:
        # A plain view: every operation on a memory-mapped array makes another Python object.
        self.embeddings = embeddings.view(np.ndarray)

    @cached_property
    def max_norm(self) -> float:
        """The largest Euclidean norm of a candidate."""
        return float(np.sqrt(squared_norms(self.embeddings).max(initial=0.0)))

    def search(self, queries: np.ndarray, k: int, rows: np.ndarray | None = None) -> Neighbors:
        """Return the exact top k of each query among all candidates, or among ``rows``.

        Args:
            queries: (n_queries, dim) float32.
            k: candidates wanted per query.
            rows: (n,) int64, unique; the only rows to look at.
        """
        return self.rescore(queries, self.shortlist(queries, k, rows), k)

    def rescore(self, queries: np.ndarray, rows: np.ndarray, k: int) -> Neighbors:
        """Return the best k of the rows proposed for each query, repeated ones counted once.

        Args:
            queries: (n_queries, dim) float32.
            rows: (n_queries, n) integers, -1 where there is none.
            k: candidates wanted per query.
        """
        n_queries, width = rows.shape
        keys = np.empty((n_queries, width), dtype=np.uint64)
        step = max(1, _GATHERED_FLOATS // max(1, width * queries.shape[1]))
        for start in range(0, n_queries, step):
            part = slice(start, start + step)
            vectors = np.take(self.embeddings, rows[part], axis=0, mode="clip")
            keys[part] = _sort_keys(rows[part], np.vecdot(vectors, queries[part, None, :]))
        return _best(keys, k)

    def shortlist(self, queries: np.ndarray, k: int, rows: np.ndarray | None = None) -> np.ndarray:
        """Return rows that certainly hold the exact top k of each query, and few others.

        Args:
            queries: (n_queries, dim) float32.
            k: candidates wanted per query.
            rows: (n,) int64, unique; the only rows to look at.

        Returns:
            (n_queries, width) int64, -1 where a query has fewer than the others.
        """
        among = np.arange(len(self.embeddings)) if rows is None else rows
        if k >= len(among):
            return np.broadcast_to(among, (len(queries), len(among)))
        score_all = len(among) > _SCORE_ALL_ABOVE * len(self.embeddings)
        vectors = self.embeddings if score_all else np.take(self.embeddings, among, axis=0)
        slack = self._rounding_slack(queries)
        step = max(1, _SCORED_FLOATS // len(vectors))
        found: list[np.ndarray] = []
        for start in range(0, len(queries), step):
            scores = _products(queries[start : start + step], vectors)
            if score_all and rows is not None:
                scores = np.take(scores, rows, axis=1)
            found += [
                _near_top(line, k, margin)
                for line, margin in zip(scores, slack[start : start + step], strict=True)
            ]
        positions = _padded(found)
        return np.where(positions < 0, -1, among[positions])

    def _rounding_slack(self, queries: np.ndarray) -> np.ndarray:
        """Bound how far below the k-th best product a row of the exact top k can lie.

        A dot product in float32 errs by at most ``gamma`` times the norms, in whatever order it
        is summed (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). The
        kernel and the product err once each, and so do the row and the k-th best.
        """
        unit = queries.shape[1] * np.finfo(np.float32).eps / 2
        gamma = unit / (1 - unit)
        norms = np.sqrt(squared_norms(queries).astype(np.float64))
        return np.asarray(4 * gamma * norms * self.max_norm, dtype=np.float64)


def squared_norms(vectors: np.ndarray) -> np.ndarray:
    """Return the squared Euclidean norms (n,) float32 of vectors (n, dim) float32.

    One is not finite exactly where a vector holds a NaN or an infinity, or is so large (a norm
    above about 1.8e19) that a score could overflow.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        norms: np.ndarray = np.vecdot(vectors, vectors)
    return norms


def _products(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return the (n_queries, n) inner products, as fast as one and as many queries allow."""
    products: np.ndarray = vectors @ queries[0] if len(queries) == 1 else queries @ vectors.T
    return products.reshape(len(queries), len(vectors))


def _near_top(scores: np.ndarray, k: int, slack: float) -> np.ndarray:
    """Return the positions whose score is less than ``slack`` below the k-th best, or better."""
    found = np.flatnonzero(scores >= _bound_below(scores, k) - slack)
    chosen = scores[found]
    threshold = np.partition(chosen, len(chosen) - k)[len(chosen) - k] - slack
    near: np.ndarray = found[chosen >= threshold]
    return near


def _bound_below(scores: np.ndarray, k: int) -> float:
    """Return a bound the k-th best score does not fall below.

    The k-th best of the maxima of disjoint groups is one, and finding it costs little more than
    reading the scores once. A group takes every n_groups-th row, since good rows often lie
    together.
    """
    n_groups = max(_GROUPS_PER_RESULT * k, _MIN_GROUPS)
    per_group = len(scores) // n_groups
    if per_group <= 1:
        return -np.inf
    maxima = scores[: per_group * n_groups].reshape(per_group, n_groups).max(axis=0)
    return float(np.partition(maxima, n_groups - k)[n_groups - k])


def _padded(lines: list[np.ndarray]) -> np.ndarray:
    padded = np.full((len(lines), max(map(len, lines), default=0)), -1, dtype=np.int64)
    for target, line in zip(padded, lines, strict=True):
        target[: len(line)] = line
    return padded


def _sort_keys(rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return one integer per row that sorts as the results must: best score, then lower row.

    The upper half holds the score's bits, turned so that they fall as the score rises; the lower
    half holds the row. One integer sort is far cheaper than a sort by two keys, and equal keys
    are repeated rows.
    """
    bits = (scores + np.float32(0)).view(np.int32)  # adding 0 makes -0 equal to 0
    keys = _descending(bits).view(np.uint32).astype(np.uint64) << np.uint64(32)
    keys |= rows.astype(np.uint32)
    keys[rows < 0] = _NO_KEY
    return keys


def _best(keys: np.ndarray, k: int) -> Neighbors:
    """Read the k best rows and their scores back from sort keys (n_queries, width)."""
    keys.sort(axis=1)
    repeated = (keys[:, 1:] == keys[:, :-1]) & (keys[:, 1:] != _NO_KEY)
    if repeated.any():
        keys[:, 1:][repeated] = _NO_KEY
        keys.sort(axis=1)
    best = keys[:, :k]
    neighbors = Neighbors.none(len(keys), k)
    rows, scores = neighbors.rows[:, : best.shape[1]], neighbors.scores[:, : best.shape[1]]
    present = best != _NO_KEY
    rows[present] = (best & np.uint64(0xFFFFFFFF)).astype(np.int64)[present]
    bits = (best >> np.uint64(32)).astype(np.uint32).view(np.int32)
    scores[present] = _descending(bits).view(np.float32)[present]
    return neighbors


def _descending(bits: np.ndarray) -> np.ndarray:
    """Map float32 bits to integers, unsigned, that fall as the number rises; and back again."""
    return np.where(bits < 0, bits, bits ^ np.int32(0x7FFFFFFF))
