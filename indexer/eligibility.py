"""Search among eligible candidates only: over-fetch, widen, or scan, whichever costs least.

An approximate index knows nothing of the mask, so one asks it for more than k and drops what is
not eligible. How many more depends on the mask: if eligibility has nothing to do with the query,
one in ``n_candidates / n_eligible`` is wanted. If the query's best candidates are the ineligible
ones (a user's own history), that was too few, and one asks again for more, until scoring the
eligible rows exactly costs less than asking. So k are found whenever k are eligible, also where
everything is and an index has looked at too small a part of the corpus to find k.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import numpy as np

from indexer.exact import ExactScorer, Neighbors, SearchMethod

Propose = Callable[[np.ndarray, int], np.ndarray]
"""(queries, n) -> rows (n_queries, at least n), -1 where none: an index's proposals."""

Cost = Callable[[int], float]
"""n -> the work of proposing n, in rows of a sequential exact scan."""

_GATHER_COST = 4.0  # scoring a row that has to be fetched, against the next in memory; measured
_WIDENING = 2  # how many times more is fetched when too few were eligible
_SPARE_DEVIATIONS = 3.0  # of the number of eligible rows among those fetched, if chance decides


class EligibleSearch:
    """Finds the best k eligible candidates of each query, always k where k are eligible.

    Args:
        exact: the exact scores of the corpus.
        k: candidates wanted per query.
        eligible: (n_candidates,) bool; None if all are.
        propose: the index's own search, which knows no mask.
        cost: what ``propose`` costs per query.
    """

    def __init__(
        self,
        exact: ExactScorer,
        k: int,
        eligible: np.ndarray | None,
        propose: Propose,
        cost: Cost,
    ) -> None:
        self._exact = exact
        self._k = k
        self._eligible = eligible
        self._propose = propose
        self._cost = cost
        self._n_candidates = len(exact.embeddings)
        self._n_eligible = (
            self._n_candidates if eligible is None else int(np.count_nonzero(eligible))
        )

    @cached_property
    def _rows(self) -> np.ndarray | None:
        """(n_eligible,) int64; None if all are eligible."""
        return None if self._eligible is None else np.flatnonzero(self._eligible)

    def search(self, queries: np.ndarray) -> Neighbors:
        """Return the best k eligible candidates of each query (n_queries, dim) float32."""
        if self._n_eligible == 0:
            return Neighbors.none(len(queries), self._k, SearchMethod.MASKED_SCAN)
        n_fetched = self._first_fetch()
        return self.complete(queries, self._fetch_or_scan(queries, n_fetched), n_fetched)

    def complete(self, queries: np.ndarray, neighbors: Neighbors, n_fetched: int) -> Neighbors:
        """Widen the search where fewer were found than there are.

        Args:
            queries: (n_queries, dim) float32.
            neighbors: what was found for them.
            n_fetched: how many proposals that took.
        """
        last = min(self._k, self._n_eligible) - 1
        while len(short := np.flatnonzero(neighbors.rows[:, last] < 0)):
            n_fetched = min(n_fetched * _WIDENING, self._n_candidates)
            found = self._fetch_or_scan(queries[short], n_fetched)
            neighbors.rows[short], neighbors.scores[short] = found.rows, found.scores
            neighbors = replace(neighbors, method=found.method)
        return neighbors

    def _first_fetch(self) -> int:
        """Return how many to fetch so that k of them are eligible, unless the mask is unlucky.

        If it hides the query's best candidates, at worst all hidden ones come before the k-th.
        """
        wanted = self._k + _SPARE_DEVIATIONS * math.sqrt(self._k)
        by_chance = math.ceil(wanted * self._n_candidates / self._n_eligible)
        at_worst = self._k + self._n_candidates - self._n_eligible
        return min(by_chance, at_worst, self._n_candidates)

    def _fetch_or_scan(self, queries: np.ndarray, n_fetched: int) -> Neighbors:
        """Return what the index finds, or the exact answer where that costs no more."""
        scan_cost = min(_GATHER_COST * self._n_eligible, self._n_candidates)
        if self._cost(n_fetched) >= scan_cost:
            found = self._exact.search(queries, self._k, self._rows)
            return replace(found, method=SearchMethod.MASKED_SCAN)
        proposed = self._propose(queries, n_fetched)
        if self._eligible is not None:
            proposed = np.where((proposed >= 0) & self._eligible[proposed], proposed, -1)
        found = self._exact.rescore(queries, proposed, self._k)
        return replace(found, method=SearchMethod.OVER_FETCH)
