"""Search among eligible candidates only: over-fetch or scan, whichever costs less.

An approximate index knows nothing of the mask, so one asks it for more than k and drops what is
not eligible. How many more depends on what the mask has to do with the query.

- Nothing: then one in ``n_candidates / n_eligible`` is wanted, and as many of the proposals are
  eligible as of all candidates.
- It hides the query's best candidates (a user's own history, say): then fewer of the proposals
  are eligible, and those come from the end of what the index looked at, where it misses most. How
  many fewer tells how many are hidden, so one asks again for as many more, if it can be afforded;
  at worst all hidden candidates come before the k-th eligible one.

Where neither will do, the eligible rows are scored exactly. So k are found whenever k are
eligible, also where everything is and an index has looked at too few candidates to find k.

Counting a mask takes nearly as long as scanning the few that it leaves; so a sample of it tells
first whether they are so few that nothing but a scan can be the cheapest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, lru_cache

import numpy as np

from indexer.exact import ExactScorer, Neighbors, SearchMethod, padded

Propose = Callable[[np.ndarray, int], np.ndarray]
"""(queries, n) -> rows (n_queries, at least n), -1 where none: an index's proposals."""

Cost = Callable[[int], float]
"""n -> the work of proposing n, in rows of a sequential exact scan."""

_GATHER_COST = 4.0  # scoring a row that has to be fetched, against the next in memory; measured
_AFFORDABLE = 0.25  # of the cost of a scan, which may yet have to follow
_DEVIATIONS = 2.0  # from what is to be expected that chance still explains
_LEAST_SHARE = 0.5  # of the eligible proposals to expect; fewer do not tell how many are hidden
_CLEAR_OF_THE_END = 2  # times the hidden to fetch past, as an index misses most at the end
_SAMPLE_SIZE = 2048  # candidates whose eligibility is looked at before all are counted


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

    @cached_property
    def n_eligible(self) -> int:
        """How many candidates are eligible."""
        if self._eligible is None:
            return self._n_candidates
        return int(np.count_nonzero(self._eligible))

    @property
    def scan_cost(self) -> float:
        """What scoring the eligible costs, in rows of a sequential exact scan."""
        return self._scan_cost(self.n_eligible)

    @property
    def includes_all(self) -> bool:
        """Whether every candidate is eligible."""
        return self._sampled_share == 1 and self.n_eligible == self._n_candidates

    def search(self, queries: np.ndarray) -> Neighbors:
        """Return the best k eligible candidates of each query (n_queries, dim) float32."""
        if self._is_surely_scanned():
            return self._scan(queries)
        neighbors = Neighbors.none(len(queries), self._k, SearchMethod.MASKED_SCAN)
        if self.n_eligible == 0:
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
        budget = _AFFORDABLE * self.scan_cost
        n_fetched = self._depth(0)
        # An index costs a row or more for each proposal, and asking it what it costs, some.
        while len(unanswered) and n_fetched <= budget and (cost := self._cost(n_fetched)) <= budget:
            budget -= cost
            found, n_hidden = self._over_fetch(queries[unanswered], n_fetched)
            neighbors = _fill(neighbors, unanswered, found)
            is_full = found.rows[:, min(self._k, self.n_eligible) - 1] >= 0
            is_deep = self._share * n_fetched >= self._k + _CLEAR_OF_THE_END * n_hidden
            is_answer = is_full & is_deep
            unanswered, n_hidden = unanswered[~is_answer], n_hidden[~is_answer]
            n_fetched = max(2 * n_fetched, self._depth(n_hidden.min(initial=self._n_candidates)))
        if len(unanswered):
            neighbors = _fill(neighbors, unanswered, self._scan(queries[unanswered]))
        return neighbors

    def _is_surely_scanned(self) -> bool:
        """Whether even the most that may be eligible, by the sample, leave no budget to fetch k."""
        n_seen = self._sampled_share * _SAMPLE_SIZE
        most = (n_seen + _DEVIATIONS * math.sqrt(n_seen) + _DEVIATIONS) / _SAMPLE_SIZE
        budget = _AFFORDABLE * self._scan_cost(most * self._n_candidates)
        n_fetched = math.ceil(self._k / min(most, 1.0))
        return n_fetched > budget or self._cost(n_fetched) > budget

    @cached_property
    def _sampled_share(self) -> float:
        """The share of a sample of the candidates that is eligible."""
        if self._eligible is None:
            return 1.0
        sample = self._eligible.take(_sampled_rows(self._n_candidates))
        return int(np.count_nonzero(sample)) / _SAMPLE_SIZE

    def _scan_cost(self, n_eligible: float) -> float:
        return min(_GATHER_COST * n_eligible, self._n_candidates)

    def _scan(self, queries: np.ndarray) -> Neighbors:
        """Score all that are eligible."""
        found = self._exact.search(queries, self._k, self._eligible)
        return replace(found, method=SearchMethod.MASKED_SCAN)

    @property
    def _share(self) -> float:
        """The share of the candidates that are eligible."""
        return self.n_eligible / self._n_candidates

    def _depth(self, n_hidden: float) -> int:
        """Return how many to fetch if so many of a query's best candidates are hidden."""
        spare = _DEVIATIONS * math.sqrt(self._k * (1 - self._share))
        wanted = self._k + spare + _CLEAR_OF_THE_END * n_hidden
        return min(math.ceil(wanted / self._share), self._n_candidates)

    def _over_fetch(self, queries: np.ndarray, n_fetched: int) -> tuple[Neighbors, np.ndarray]:
        """Return the best eligible proposals, and how many (n_queries,) the mask seems to hide."""
        proposed = self._propose(queries, n_fetched)
        kept = proposed >= 0
        n_proposed = np.count_nonzero(kept, axis=1)
        if self._eligible is not None:
            kept &= self._eligible.take(proposed, mode="clip")
        n_kept = np.count_nonzero(kept, axis=1)
        eligible_rows = padded([line[keep] for line, keep in zip(proposed, kept, strict=True)])
        found = self._exact.rescore(queries, eligible_rows, self._k)
        expected = self._share * n_proposed
        by_chance = _DEVIATIONS * np.sqrt(expected * (1 - self._share))
        n_hidden = np.maximum(expected - n_kept - by_chance, 0)
        # If most are hidden, those that are not proposed may be, too.
        n_hidden[n_kept < _LEAST_SHARE * expected] = self._n_candidates - self.n_eligible
        return replace(found, method=SearchMethod.OVER_FETCH), n_hidden


@lru_cache(maxsize=8)
def _sampled_rows(n_candidates: int) -> np.ndarray:
    """Return the rows (n,) int64 of the sample, in rising order; some may come twice."""
    return np.sort(np.random.default_rng(0).integers(n_candidates, size=_SAMPLE_SIZE))


def _fill(neighbors: Neighbors, lines: np.ndarray, found: Neighbors) -> Neighbors:
    """Put what was found for some of the queries, or for all, into their lines."""
    if len(lines) == len(neighbors.rows):
        return found
    neighbors.rows[lines], neighbors.scores[lines] = found.rows, found.scores
    return replace(neighbors, method=found.method)
