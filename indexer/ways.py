"""The ways in which an index finds eligible candidates without scoring all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import ClassVar, Protocol

import numpy as np

from indexer.cells import Cells
from indexer.exact import ExactScorer, Neighbors, SearchMethod, padded
from indexer.mask import Mask

Propose = Callable[[np.ndarray, int], np.ndarray]
"""(queries, n) -> rows (n_queries, at least n), -1 where none: an index's proposals."""

_DEVIATIONS = 2.0  # from what is to be expected that chance still explains ...
_MOST_DEVIATIONS = 3.0  # ... and where it has many chances
_LEAST_SHARE = 0.5  # of the eligible ones to expect; fewer do not tell how many are hidden
# Of a cell's centre, of a candidate whose eligibility is looked at, and of one that is scored in
# bytes: against a row of a sequential scan; measured.
_CENTER_COST, _LOOKING_COST, _SCORING_COST = 0.3, 0.1, 1.0


class Way(Protocol):
    """How an index looks for eligible candidates, as deep as it is told to."""

    looks_past_hidden: ClassVar[bool]
    """Whether it can be trusted where the mask hides a query's best candidates."""

    def least_cost(self, depth: int) -> float:
        """Return what ``cost`` is not below, for which nothing has to be looked up."""

    def cost(self, depth: int, share: float) -> float:
        """Return the work per query, in rows of a sequential exact scan.

        Args:
            depth: how many of the best candidates are looked through, eligible or not.
            share: of the candidates that are eligible.
        """

    def look(
        self, queries: np.ndarray, k: int, depth: int, mask: Mask
    ) -> tuple[Neighbors, list[float]]:
        """Return the best k eligible candidates within a depth.

        Args:
            queries: (n_queries, dim) float32.
            k: candidates wanted per query.
            depth: as for ``cost``.
            mask: what is eligible.

        Returns:
            What was found, and for each query how many eligible candidates seem to be missing
            among the best, since the mask hides what they should have been.
        """


class OverFetch:
    """Asks an index, which knows nothing of the mask, for more, and drops what is not eligible.

    Args:
        exact: the exact scores of the corpus.
        propose: the index's own search.
        cost: n -> what ``propose`` costs per query.
    """

    looks_past_hidden: ClassVar[bool] = True

    def __init__(self, exact: ExactScorer, propose: Propose, cost: Callable[[int], float]) -> None:
        self._exact = exact
        self._propose = propose
        self._cost = cost

    def least_cost(self, depth: int) -> float:
        """Return a bound: an index costs a row or more for each proposal."""
        return depth

    def cost(self, depth: int, share: float) -> float:
        """Return the work per query; see ``Way``."""
        del share
        return self._cost(depth)

    def look(
        self, queries: np.ndarray, k: int, depth: int, mask: Mask
    ) -> tuple[Neighbors, list[float]]:
        """Return the best eligible proposals; see ``Way``."""
        proposed = self._propose(queries, depth)
        kept = mask.keeps(proposed)
        eligible_rows = [line[keep] for line, keep in zip(proposed, kept, strict=True)]
        found = self._exact.rescore(queries, padded(eligible_rows), k)
        n_hidden = [
            _hidden(mask, [int(np.count_nonzero(line >= 0))], [len(rows)], _DEVIATIONS)
            for line, rows in zip(proposed, eligible_rows, strict=True)
        ]
        return found.by(SearchMethod.OVER_FETCH), n_hidden


class CellScan:
    """Scores what is eligible in those cells of an index that a search would look into.

    Whether a candidate is eligible is known before it is scored: a tenth of a cell costs a tenth.
    Of the best so many, those that are not among the very best lie in other cells more often; so
    this is no way to find those alone.

    Args:
        exact: the exact scores of the corpus.
        cells: the index's.
        n_searched: depth -> how many cells hold the best so many, at the recall in question.
        n_rescored: k -> how many of the coarsely best hold the best k.
    """

    looks_past_hidden: ClassVar[bool] = False

    def __init__(
        self,
        exact: ExactScorer,
        cells: Cells,
        n_searched: Callable[[int], int],
        n_rescored: Callable[[int], int],
    ) -> None:
        self._exact = exact
        self._cells = cells
        self._n_searched = n_searched
        self._n_rescored = n_rescored

    def least_cost(self, depth: int) -> float:
        """Return a bound: all centres are compared."""
        del depth
        return _CENTER_COST * len(self._cells.centers)

    def cost(self, depth: int, share: float) -> float:
        """Return the work per query; see ``Way``."""
        n_cells = len(self._cells.centers)
        n_seen = len(self._cells.members) * self._n_searched(depth) / n_cells
        return self.least_cost(depth) + n_seen * (_LOOKING_COST + share * _SCORING_COST)

    def look(
        self, queries: np.ndarray, k: int, depth: int, mask: Mask
    ) -> tuple[Neighbors, list[float]]:
        """Return the best eligible candidates of the cells; see ``Way``.

        What hides a query's best candidates shows in the first cells, where most of those are,
        and is lost among all that the later ones hold.
        """
        eligible = np.ones(mask.n_candidates, bool) if mask.eligible is None else mask.eligible
        found, counts = self._exact.search_cells(
            *(queries, k, eligible, self._cells),
            steps=_doublings(self._n_searched(depth)),
            n_rescored=self._n_rescored(k),
        )
        n_hidden = [
            _hidden(mask, seen, kept, _MOST_DEVIATIONS)
            for seen, kept in zip(counts.n_seen.tolist(), counts.n_kept.tolist(), strict=True)
        ]
        return found, n_hidden


@cache
def _doublings(n: int) -> np.ndarray:
    """Return the numbers 1, 2, 4, 8 ... below n, and n."""
    return np.unique(np.minimum(2 ** np.arange(n.bit_length() + 1), n))


def _hidden(mask: Mask, seen: Sequence[int], kept: Sequence[int], deviations: float) -> float:
    """Return how many eligible candidates are missing among those that were looked at.

    Args:
        mask: what is eligible.
        seen: how many were looked at up to some steps, rising.
        kept: how many of them were eligible.
        deviations: by how much fewer than to be expected chance explains.
    """
    share, error = mask.share, mask.share_error
    # If most are hidden, those that were not looked at may be, too.
    if kept[-1] < _LEAST_SHARE * share * seen[-1]:
        return mask.n_candidates - mask.n_eligible
    n_hidden = 0.0
    for n_seen, n_kept in zip(seen, kept, strict=True):
        expected = share * n_seen
        by_chance = math.sqrt(expected * (1 - share) + (error * n_seen) ** 2)
        n_hidden = max(n_hidden, expected - n_kept - deviations * by_chance)
    return n_hidden
