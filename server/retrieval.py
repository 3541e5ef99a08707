"""The search stage: the best eligible candidates for an embedded query, exclusions left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from indexer.backends import IndexUnreachableError, Neighbors
from indexer.backends import SearchMethod as IndexSearchMethod
from indexer.corpus import Corpus
from indexer.exact import padded
from indexer.filters import Filter, Restriction
from server.domain import SearchMethod
from server.errors import EngineUnreachableError
from server.planning import IndexChoice
from server.similarity import Directions

_MAX_DROPPED = 1000  # up to these, fetching more and dropping the excluded beats a mask
# An index that is not exact misses most at the end of what it fetches, and the answer comes from
# there if the excluded are the query's best, as a user's own history is; so it fetches some more.
_SPARE_PER_DROPPED = 1.5
_FETCH_STEP = 32  # so that many searches fetch as many, and can be made together
_FIRST_PART = 1 << 16  # of a mask, where most filters let enough through to count no further
_NO_ANSWER = "the engine that keeps the index does not answer; try again later"

_METHODS = {method: SearchMethod(method.value) for method in IndexSearchMethod}


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
    filter: Filter | None = None
    """What ``mask`` was made from."""


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

    def search(self, wanted: Wanted, choice: IndexChoice) -> Found:
        """Return the best ``choice.k`` candidates, or all that are eligible if those are fewer."""
        k = choice.k
        if wanted.vector is None:
            return self._most_popular(wanted, k)
        if self.scans(wanted):
            return _line(self._directions.search(wanted.vector, k, self._eligible(wanted)), 0)
        n_fetched = self.n_fetched(wanted, choice)
        if n_fetched is None:
            return self._search_eligible(wanted, choice)
        return self.search_together([wanted], choice, n_fetched)[0]

    def n_fetched(self, wanted: Wanted, choice: IndexChoice) -> int | None:
        """Return how many to fetch so that the excluded can be dropped.

        None if that is no way to search for this. Searches of one choice that fetch as many can be
        made together.
        """
        n_excluded = len(wanted.excluded)
        if wanted.vector is None or wanted.mask is not None or self.scans(wanted):
            return None
        if n_excluded > _MAX_DROPPED:
            return None
        n_spare = n_excluded if choice.exact else _SPARE_PER_DROPPED * n_excluded
        return choice.k + math.ceil(n_spare / _FETCH_STEP) * _FETCH_STEP

    def search_together(
        self, several: Sequence[Wanted], choice: IndexChoice, n_fetched: int
    ) -> list[Found]:
        """Return what ``search`` finds for each of several, all with the same ``n_fetched``."""
        if len(several) == 1:
            queries = self._query(several[0])[None]
        else:
            queries = np.array([self._query(wanted) for wanted in several])
        try:
            if n_fetched == choice.k:  # nothing is excluded
                neighbors = choice.index.search(queries, choice.k, choice.params)
            else:
                excluded = padded([wanted.excluded for wanted in several])
                params = choice.params_at(n_fetched)
                neighbors = choice.index.search_without(
                    queries, choice.k, excluded, n_fetched, params
                )
        except IndexUnreachableError as error:
            raise EngineUnreachableError(_NO_ANSWER) from error
        return [
            self._completed(_line(neighbors, i), wanted, choice) for i, wanted in enumerate(several)
        ]

    def scans(self, wanted: Wanted) -> bool:
        """Whether the whole corpus is scanned whatever index was chosen."""
        return wanted.by_cosine and self._directions.common_norm is None

    def has_more_than(self, wanted: Wanted, n: int) -> bool:
        """Whether more than ``n`` candidates may be found."""
        enough = n + len(wanted.excluded)  # however many of them the filter lets through
        if wanted.mask is None:
            is_clear = self._n_candidates > enough
        else:
            is_clear = int(np.count_nonzero(wanted.mask[:_FIRST_PART])) > enough
        return is_clear or self.n_eligible(wanted) > n

    def n_eligible(self, wanted: Wanted) -> int:
        """Return how many candidates may be found."""
        eligible = self._eligible(wanted)
        return self._n_candidates if eligible is None else int(np.count_nonzero(eligible))

    def _query(self, wanted: Wanted) -> np.ndarray:
        """Return the vector (dim,) float32 whose inner products are the scores."""
        vector = np.asarray(wanted.vector, dtype=np.float32)
        return vector / np.float32(self._directions.common_norm) if wanted.by_cosine else vector

    def _completed(self, found: Found, wanted: Wanted, choice: IndexChoice) -> Found:
        """Search once more, with a mask, if an index found too few."""
        if len(found.rows) < choice.k and self.has_more_than(wanted, len(found.rows)):
            return self._search_eligible(wanted, choice)
        return found

    def _search_eligible(self, wanted: Wanted, choice: IndexChoice) -> Found:
        query = self._query(wanted)[None]
        eligible = self._eligible(wanted)
        why = Restriction(wanted.filter, wanted.excluded)
        try:
            found = choice.index.search(query, choice.k, choice.params, eligible, why)
        except IndexUnreachableError as error:
            raise EngineUnreachableError(_NO_ANSWER) from error
        return _line(found, 0)

    def _most_popular(self, wanted: Wanted, k: int) -> Found:
        rows = self._rows_by_popularity
        if wanted.mask is not None:
            rows = rows[wanted.mask[rows]]
        # Of so many of the first, enough are not excluded.
        rows = rows[: k + len(wanted.excluded)]
        rows = rows[~np.isin(rows, wanted.excluded)][:k]
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


def _line(neighbors: Neighbors, i: int) -> Found:
    """Return what was found for one query of a search, without the padding."""
    rows, scores = neighbors.rows[i], neighbors.scores[i]
    if rows[-1] < 0:
        n_found = int(np.count_nonzero(rows >= 0))
        rows, scores = rows[:n_found], scores[:n_found]
    return Found(rows, scores, _METHODS[neighbors.method])
