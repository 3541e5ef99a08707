"""Search among eligible candidates only: look for them with the index or scan them, by cost.

An index knows nothing of the mask, so it has to look deeper than for the best k (``indexer.ways``).
How deep depends on what the mask has to do with the query.

- The mask is independent of the query: what is looked at is eligible as often as all candidates
  are, so to find k one looks at ``k * n_candidates / n_eligible``.
- It hides the query's best candidates (a user's own history, say): then fewer are eligible, and
  those come from the end of what the index looked at, where it misses most. How many fewer tells
  how many are hidden, so one looks again for as many more, if it can be afforded; at worst all
  hidden candidates come before the k-th eligible one.

Where neither will do, the eligible rows are scored exactly. So k are found whenever k are
eligible, also where everything is and an index has looked at too few candidates to find k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from indexer.exact import ExactScorer, Neighbors, SearchMethod
from indexer.mask import Mask
from indexer.ways import Way

_GATHER_COST = 4.0  # scoring a row that has to be fetched, against the next in memory; measured
_AFFORDABLE = 0.25  # of the cost of a scan, which may yet have to follow
_DEVIATIONS = 2.0  # from what is to be expected that chance still explains
_CLEAR_OF_THE_END = 2  # times the hidden to look past, as an index misses most at the end
_DEPTHS_PER_DOUBLING = 16  # of which params are looked up, and remembered


class EligibleSearch:
    """Finds the best k eligible candidates of each query, always k where k are eligible.

    Args:
        exact: the exact scores of the corpus.
        k: candidates wanted per query.
        mask: what is eligible.
        ways: in which the index can look for them.
    """

    def __init__(self, exact: ExactScorer, k: int, mask: Mask, ways: Sequence[Way]) -> None:
        self._exact = exact
        self._k = k
        self._mask = mask
        self._ways = ways
        self._n_candidates = len(exact.embeddings)

    @property
    def scan_cost(self) -> float:
        """What scoring the eligible costs, in rows of a sequential exact scan."""
        return self._scan_cost(self._mask.share)

    def search(self, queries: np.ndarray) -> Neighbors:
        """Return the best k eligible candidates of each query (n_queries, dim) float32."""
        if not self._mask.is_sampled and self._is_surely_scanned():
            return self._scan(queries)  # without counting what is eligible, which takes as long
        neighbors = Neighbors.none(len(queries), self._k, SearchMethod.MASKED_SCAN)
        if self._mask.share == 0:
            return neighbors
        return self.complete(queries, neighbors, np.arange(len(queries)))

    def complete(
        self, queries: np.ndarray, neighbors: Neighbors, unanswered: np.ndarray
    ) -> Neighbors:
        """Answer the queries that have no answer yet.

        Args:
            queries: (n_queries, dim) float32.
            neighbors: where the answers go.
            unanswered: (n,) int64, the lines without an answer.
        """
        budget, depth = _AFFORDABLE * self.scan_cost, self._depth(0)
        n_wanted, ways = self._mask.wanted(self._k), self._ways
        while len(unanswered):
            cost, way = _cheapest(ways, depth, self._mask.share, budget)
            if way is None:
                return _fill(neighbors, unanswered, self._scan(queries[unanswered]))
            budget -= cost
            found, n_hidden = way.look(queries[unanswered], self._k, depth, self._mask)
            neighbors = _fill(neighbors, unanswered, found)
            enough = (self._mask.share * depth - self._k) / _CLEAR_OF_THE_END
            short = [
                i
                for i, hidden in enumerate(n_hidden)
                if hidden > enough or found.rows.item(i, n_wanted - 1) < 0
            ]
            unanswered = unanswered[short]
            if short:
                depth = max(2 * depth, self._depth(min(n_hidden[i] for i in short)))
                ways = [one for one in ways if one.looks_past_hidden]
        return neighbors

    def _is_surely_scanned(self) -> bool:
        """Whether even the most that may be eligible, by the sample, leave no budget to look."""
        most = self._mask.greatest_share
        depth = self._rounded(self._k / min(most, 1.0))
        _, way = _cheapest(self._ways, depth, most, _AFFORDABLE * self._scan_cost(most))
        return way is None

    def _scan_cost(self, share: float) -> float:
        return min(_GATHER_COST * share, 1.0) * self._n_candidates

    def _scan(self, queries: np.ndarray) -> Neighbors:
        """Score all that are eligible."""
        found = self._exact.search(queries, self._k, self._mask.eligible)
        return found.by(SearchMethod.MASKED_SCAN)

    def _depth(self, n_hidden: float) -> int:
        """Return how deep to look if so many of a query's best candidates are hidden."""
        share = self._mask.share
        spare = _DEVIATIONS * math.sqrt(self._k * (1 - share))
        return self._rounded((self._k + spare + _CLEAR_OF_THE_END * n_hidden) / share)

    def _rounded(self, depth: float) -> int:
        """Return a depth that is not less, of not too many different ones."""
        step = max(1, (1 << math.floor(math.log2(depth))) // _DEPTHS_PER_DOUBLING)
        return min(math.ceil(depth / step) * step, self._n_candidates)


def _cheapest(
    ways: Sequence[Way], depth: int, share: float, budget: float
) -> tuple[float, Way | None]:
    """Return the cheapest way to look so deep and its cost; None if none can be afforded."""
    least, cheapest = budget, None
    for way in ways:
        if way.least_cost(depth) <= least and (cost := way.cost(depth, share)) <= least:
            least, cheapest = cost, way
    return least, cheapest


def _fill(neighbors: Neighbors, lines: np.ndarray, found: Neighbors) -> Neighbors:
    """Put what was found for some of the queries, or for all, into their lines."""
    if len(lines) == len(neighbors.rows):
        return found
    neighbors.rows[lines], neighbors.scores[lines] = found.rows, found.scores
    return neighbors.by(found.method)
