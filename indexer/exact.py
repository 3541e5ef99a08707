"""Exact inner products and their order: every score that leaves an index is computed here.

There is one kernel, compiled (``_exact.cpp``): one inner product per pair of a query and a row,
whose bits do not depend on what else is scored with it. For many queries at once a matrix product
is faster, but its rounding depends on the shapes; so it only proposes the rows that can be among
the best, within a bound on its rounding error, and the kernel decides.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from trainer.extras import NotCompiledError

if TYPE_CHECKING:
    from indexer.cells import Cells

try:
    from indexer import _exact
except ImportError as error:
    raise NotCompiledError("indexer/_exact.cpp", error) from error

_FEW_QUERIES = 8  # up to so many are scanned for one by one: a matrix product is slower; measured
_GATHERED_FLOATS = 1 << 16  # 256 KiB of gathered vectors stay in the second-level cache
_SCORED_FLOATS = 1 << 24  # scores held at once while a batch scans the corpus: 64 MiB
_SCORE_ALL_ABOVE = 0.25  # share of the rows from which scoring all beats gathering those rows
_GROUPS_PER_RESULT = 4  # groups of rows whose maxima bound the k-th best score from below...
_MIN_GROUPS = 256  # ... but enough for NumPy to reduce them at full speed...
_MIN_GROUP_SIZE = 8  # ... and large enough to be worth it

_ALL = np.empty(0, dtype=bool)  # the mask of a scan that has none

Kernel = Callable[..., None]
"""(embeddings, queries, best rows, best scores, what to look at) -> nothing; writes the best."""


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
        rows = np.empty((n_queries, k), dtype=np.int64)
        scores = np.empty((n_queries, k), dtype=np.float32)
        rows.fill(-1)
        scores.fill(-np.inf)
        return cls(rows, scores, method)

    def best(self, k: int) -> Neighbors:
        """Return the first k of each query."""
        return Neighbors(self.rows[:, :k], self.scores[:, :k], self.method)

    def of_first(self, n: int | None) -> Neighbors:
        """Return those of the first n queries; None for all."""
        return Neighbors(self.rows[:n], self.scores[:n], self.method)

    def by(self, method: SearchMethod) -> Neighbors:
        """Return the same, found in another way."""
        return Neighbors(self.rows, self.scores, method)


class CellCounts(NamedTuple):
    """What was in the most promising cells, up to each of some numbers of them.

    Attributes:
        n_seen: (n_queries, n_steps) int64, the candidates in so many cells.
        n_kept: (n_queries, n_steps) int64, the eligible ones among them.
    """

    n_seen: np.ndarray
    n_kept: np.ndarray


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

    def search(self, queries: np.ndarray, k: int, eligible: np.ndarray | None = None) -> Neighbors:
        """Return the exact top k of each query among all candidates, or among the eligible.

        Args:
            queries: (n_queries, dim) float32.
            k: candidates wanted per query.
            eligible: (n_candidates,) bool; None for all.
        """
        if len(queries) > _FEW_QUERIES:
            rows = None if eligible is None else np.flatnonzero(eligible)
            return self.rescore(queries, self._shortlist(queries, k, rows), k)
        mask = _ALL if eligible is None else np.ascontiguousarray(eligible)
        return self._answered(_exact.scan, queries, k, mask)

    def search_cells(
        self,
        queries: np.ndarray,
        k: int,
        eligible: np.ndarray,
        cells: Cells,
        *,
        steps: np.ndarray,
        n_rescored: int,
    ) -> tuple[Neighbors, CellCounts]:
        """Return the best eligible candidates in the most promising cells, and what was there.

        Args:
            queries: (n_queries, dim) float32.
            k: candidates wanted per query.
            eligible: (n_candidates,) bool.
            cells: those of this corpus; what they say of rows is trusted.
            steps: (n_steps,) int64, rising numbers of cells; the last is how many to look into, at
                most all.
            n_rescored: how many of what is in them to score exactly, at least k.
        """
        n_seen = np.empty((len(queries), len(steps)), dtype=np.int64)
        counts = CellCounts(n_seen, np.empty_like(n_seen))
        room = np.empty(n_rescored, dtype=np.int64)
        among = (np.ascontiguousarray(eligible), *cells.arrays, steps, *counts, room)
        return self._answered(_exact.scan_cells, queries, k, *among), counts

    def rescore(
        self, queries: np.ndarray, rows: np.ndarray, k: int, excluded: np.ndarray | None = None
    ) -> Neighbors:
        """Return the best k of the rows proposed for each query, repeated ones counted once.

        Args:
            queries: (n_queries, dim) float32.
            rows: (n_queries, n) integers, -1 where there is none.
            k: candidates wanted per query.
            excluded: (n_queries, n_excluded) int64, the rows that are none of a query's, as
                ``padded`` has them; by default, none is excluded.
        """
        if rows.dtype != np.uint32:
            rows = rows.astype(np.int64, copy=False)
        if excluded is None:
            excluded = np.empty((len(queries), 0), np.int64)
        among = (np.ascontiguousarray(rows), np.ascontiguousarray(excluded))
        return self._answered(_exact.rescore, queries, k, *among)

    def _answered(
        self, kernel: Kernel, queries: np.ndarray, k: int, *among: np.ndarray
    ) -> Neighbors:
        """Return what a kernel finds among what it is to look at."""
        rows = np.empty((len(queries), k), dtype=np.int64)
        scores = np.empty((len(queries), k), dtype=np.float32)
        kernel(self.embeddings, np.ascontiguousarray(queries), rows, scores, *among)
        return Neighbors(rows, scores)

    def _shortlist(self, queries: np.ndarray, k: int, rows: np.ndarray | None) -> np.ndarray:
        """Return rows that certainly hold the exact top k of each query, and few others.

        Args:
            queries: (n_queries, dim) float32.
            k: candidates wanted per query.
            rows: (n,) int64, unique; the only rows to look at; None for all.

        Returns:
            (n_queries, width) int64, -1 where a query has fewer than the others.
        """
        n_rows = len(self.embeddings) if rows is None else len(rows)
        if k >= n_rows:
            everything = np.arange(n_rows) if rows is None else rows
            return np.broadcast_to(everything, (len(queries), n_rows))
        slack = self._rounding_slack(queries)
        step = max(1, _SCORED_FLOATS // len(self.embeddings))
        found: list[np.ndarray] = []
        for start in range(0, len(queries), step):
            scores = self._products(queries[start : start + step], rows)
            found += map(_near_top, scores, itertools.repeat(k), slack[start : start + step])
        return padded(found if rows is None else [rows[positions] for positions in found])

    def _products(self, queries: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
        """Return the inner products (n_queries, n) with all rows or with some, fast."""
        if rows is None:
            everything: np.ndarray = queries @ self.embeddings.T
            return everything
        if len(rows) > _SCORE_ALL_ABOVE * len(self.embeddings):
            return np.take(queries @ self.embeddings.T, rows, axis=1)
        products = np.empty((len(queries), len(rows)), dtype=np.float32)
        step = max(1, _GATHERED_FLOATS // queries.shape[1])
        vectors = np.empty((min(step, len(rows)), queries.shape[1]), dtype=np.float32)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            gathered = vectors[: len(part)]
            self.embeddings.take(part, axis=0, mode="clip", out=gathered)
            products[:, start : start + step] = queries @ gathered.T
        return products

    @cached_property
    def _slack_of_unit_query(self) -> float:
        """How far below the k-th best product a row of a unit query's exact top k can lie.

        A dot product in float32 errs by at most ``gamma`` times the norms, in whatever order it
        is summed (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). The
        kernel and the matrix product err once each, for the row and for the k-th best; the fifth
        is for the comparison.
        """
        dim: int = self.embeddings.shape[1]
        info = np.finfo(np.float32)
        unit = dim * float(info.eps) / 2
        max_norm: float = math.hypot(self.max_norm, math.sqrt(dim * info.tiny))
        return 5 * unit / (1 - unit) * max_norm

    def _rounding_slack(self, queries: np.ndarray) -> np.ndarray:
        # A square that underflows is missing from the sum, but it is below the smallest normal.
        missing = np.float32(queries.shape[1]) * np.finfo(np.float32).tiny
        slack: np.ndarray = np.sqrt(squared_norms(queries) + missing) * self._slack_of_unit_query
        return slack


def are_finite(vectors: object, dim: int) -> bool:
    """Whether vectors are (n, dim) float32 in C order, and all ``squared_norms`` of them finite."""
    return _exact.are_finite(vectors, dim)


def squared_norms(vectors: np.ndarray) -> np.ndarray:
    """Return the squared Euclidean norms (n,) float32 of vectors (n, dim) float32.

    One is not finite exactly where a vector holds a NaN or an infinity, or is so large (a norm
    above about 1.8e19) that a score could overflow.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        norms: np.ndarray = np.vecdot(vectors, vectors)
    return norms


def _near_top(scores: np.ndarray, k: int, slack: float) -> np.ndarray:
    """Return the positions whose score is less than ``slack`` below the k-th best, or better."""
    bound = _bound_below(scores, k)
    if bound is None:
        return np.flatnonzero(scores >= _kth_best(scores, k) - slack)
    found = np.flatnonzero(scores >= bound - slack)
    chosen = scores[found]
    near: np.ndarray = found[chosen >= _kth_best(chosen, k) - slack]
    return near


def _kth_best(scores: np.ndarray, k: int) -> np.float32:
    best: np.float32 = np.partition(scores, len(scores) - k)[len(scores) - k]
    return best


def _bound_below(scores: np.ndarray, k: int) -> np.float32 | None:
    """Return a bound the k-th best score does not fall below; None where that saves nothing.

    The k-th best of the maxima of disjoint groups is one, and finding it costs little more than
    reading the scores once. A group takes every n_groups-th row, since good rows often lie
    together.
    """
    n_groups = max(_GROUPS_PER_RESULT * k, _MIN_GROUPS)
    group_size = len(scores) // n_groups
    if group_size < _MIN_GROUP_SIZE:
        return None
    groups = scores[: group_size * n_groups].reshape(group_size, n_groups)
    return _kth_best(groups.max(axis=0), k)


def padded(lines: list[np.ndarray]) -> np.ndarray:
    """Stack rows of unequal number as (n_lines, longest) int64, with -1 at the ends."""
    padded = np.full((len(lines), max(map(len, lines), default=0)), -1, dtype=np.int64)
    for target, line in zip(padded, lines, strict=True):
        target[: len(line)] = line
    return padded
