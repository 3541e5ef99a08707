"""The search stage: the best eligible candidates for an embedded query, exclusions left out."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from indexer.backends import Neighbors
from indexer.corpus import Corpus
from server.domain import SearchMethod
from server.planning import IndexChoice
from server.similarity import Directions

_MAX_DROPPED = 1000  # exclusions up to which fetching more and dropping them beats a mask


@dataclass(slots=True)
class Wanted:
    """What is searched for, and among which candidates."""

    vector: np.ndarray | None
    """(dim,) float32; None for the most popular candidates."""
    by_cosine: bool
    """Whether candidates are compared by direction alone; the vector's length is then 1."""
    excluded: np.ndarray
    """(n,) integer rows that must not be found; they may repeat."""
    mask: np.ndarray | None
    """(n_candidates,) bool, read-only: what the filter lets through; None for all."""


@dataclass(slots=True)
class Found:
    """What was found, best first."""

    rows: np.ndarray
    """(n,) int64"""
    scores: np.ndarray
    """(n,) float32"""
    method: SearchMethod


class Retriever:
    """Searches one corpus.

    Args:
        corpus: the candidates.
        directions: their directions.
    """

    def __init__(self, corpus: Corpus, directions: Directions) -> None:
        self._popularity = corpus.popularity
        self._n_candidates = len(corpus.candidate_ids)
        self._directions = directions
        self._local = threading.local()

    def search(self, wanted: Wanted, choice: IndexChoice, k: int) -> Found:
        """Return the best k candidates, or all that are eligible if those are fewer."""
        if wanted.vector is None:
            return self._most_popular(wanted, k)
        if self.scans(wanted):
            return _first(self._directions.search(wanted.vector, k, self._eligible(wanted)))
        query = np.asarray(wanted.vector, dtype=np.float32)[None]
        if wanted.by_cosine:
            query = query / np.float32(self._directions.common_norm)
        if wanted.mask is None and len(wanted.excluded) <= _MAX_DROPPED:
            found = self._search_and_drop(query, wanted.excluded, choice, k)
            if len(found.rows) == k or not self.has_more_than(wanted, len(found.rows)):
                return found
        return _first(choice.index.search(query, k, choice.params, self._eligible(wanted)))

    def scans(self, wanted: Wanted) -> bool:
        """Whether the whole corpus is scanned whatever index was chosen."""
        return wanted.by_cosine and self._directions.common_norm is None

    def has_more_than(self, wanted: Wanted, n: int) -> bool:
        """Whether more than ``n`` candidates may be found."""
        if wanted.mask is None and self._n_candidates - len(wanted.excluded) > n:
            return True
        return self.n_eligible(wanted) > n

    def n_eligible(self, wanted: Wanted) -> int:
        """Return how many candidates may be found."""
        eligible = self._eligible(wanted)
        return self._n_candidates if eligible is None else int(np.count_nonzero(eligible))

    def _search_and_drop(
        self, query: np.ndarray, excluded: np.ndarray, choice: IndexChoice, k: int
    ) -> Found:
        """Fetch as many more as are excluded, and drop those; an index may find too few."""
        if len(excluded) == 0:
            return _first(choice.index.search(query, k, choice.params))
        n_fetched = k + len(excluded)
        params = choice.params.scaled(n_fetched / k)
        found = _first(choice.index.search(query, n_fetched, params))
        kept = self._not_excluded(found.rows, excluded)
        method = SearchMethod.OVER_FETCH if found.method is SearchMethod.INDEX else found.method
        return Found(found.rows[kept][:k], found.scores[kept][:k], method)

    def _not_excluded(self, rows: np.ndarray, excluded: np.ndarray) -> np.ndarray:
        """Return which of ``rows`` are not excluded, (n,) bool."""
        if not hasattr(self._local, "is_excluded"):
            self._local.is_excluded = np.zeros(self._n_candidates, dtype=bool)
        is_excluded: np.ndarray = self._local.is_excluded
        # Marked and unmarked again: an array of its own for each search would cost more.
        is_excluded[excluded] = True
        kept: np.ndarray = ~is_excluded[rows]
        is_excluded[excluded] = False
        return kept

    def _most_popular(self, wanted: Wanted, k: int) -> Found:
        rows = self._rows_by_popularity
        eligible = self._eligible(wanted)
        rows = rows[:k] if eligible is None else rows[eligible[rows]][:k]
        return Found(rows, self._popularity[rows], SearchMethod.POPULARITY)

    @cached_property
    def _rows_by_popularity(self) -> np.ndarray:
        """(n_candidates,) int64, the most popular first, ties by lower row."""
        return np.argsort(-self._popularity, kind="stable")

    def _eligible(self, wanted: Wanted) -> np.ndarray | None:
        """Return the candidates that may be found, (n_candidates,) bool; None for all."""
        if len(wanted.excluded) == 0:
            return wanted.mask
        if wanted.mask is None:
            eligible = np.ones(self._n_candidates, dtype=bool)
        else:
            eligible = wanted.mask.copy()
        eligible[wanted.excluded] = False
        return eligible


def _first(neighbors: Neighbors) -> Found:
    """Return what was found for the only query of a search, without the padding."""
    rows, scores = neighbors.rows[0], neighbors.scores[0]
    if len(rows) and rows[-1] < 0:
        n_found = int(np.count_nonzero(rows >= 0))
        rows, scores = rows[:n_found], scores[:n_found]
    return Found(rows, scores, SearchMethod(neighbors.method.value))
