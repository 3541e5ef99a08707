"""What is eligible, looked at no more than is needed to decide how to search.

Counting a mask takes nearly as long as scanning the few that it leaves, and as searching an index
for what it leaves of many. So a sample of it tells how many are eligible, unless those are few.
"""

from __future__ import annotations

import math
from functools import cached_property, lru_cache

import numpy as np

_SAMPLE_SIZE = 1024  # candidates whose eligibility is looked at before all are counted
_DEVIATIONS = 2.0  # from the sample's share that chance still explains
_ENOUGH = 64  # eligible ones in the sample that tell the share to an eighth


class Mask:
    """The eligible candidates of a corpus.

    Args:
        eligible: (n_candidates,) bool; None if all are.
        n_candidates: that there are.
    """

    def __init__(self, eligible: np.ndarray | None, n_candidates: int) -> None:
        self.eligible = eligible
        self.n_candidates = n_candidates

    @cached_property
    def n_eligible(self) -> int:
        """How many candidates are eligible, counted."""
        if self.eligible is None:
            return self.n_candidates
        return int(np.count_nonzero(self.eligible))

    @cached_property
    def share(self) -> float:
        """About the share of the candidates that are eligible; 0 only where none is."""
        if self.is_sampled:
            return self._sampled_share
        return self.n_eligible / self.n_candidates

    @cached_property
    def share_error(self) -> float:
        """The standard error of ``share``."""
        if self.is_sampled:
            return math.sqrt(self.share * (1 - self.share) / _SAMPLE_SIZE)
        return 0.0

    @property
    def includes_all(self) -> bool:
        """Whether every candidate is eligible."""
        return self._sampled_share == 1 and self.n_eligible == self.n_candidates

    @property
    def greatest_share(self) -> float:
        """The largest share that the sample leaves probable; it may be above 1."""
        n_seen = self._sampled_share * _SAMPLE_SIZE
        return (n_seen + _DEVIATIONS * math.sqrt(n_seen) + _DEVIATIONS) / _SAMPLE_SIZE

    def wanted(self, k: int) -> int:
        """Return k, or how many are eligible where the sample leaves it possible that fewer are."""
        return k if self.is_sampled else min(k, self.n_eligible)

    def keeps(self, rows: np.ndarray) -> np.ndarray:
        """Return which rows, of any shape, are eligible; -1, which is no row, is not."""
        kept: np.ndarray = rows >= 0
        if self.eligible is not None:
            kept &= self.eligible.take(rows, mode="clip")
        return kept

    @property
    def is_sampled(self) -> bool:
        """Whether the sample tells the share, and nothing has to be counted."""
        return self.eligible is not None and self._sampled_share * _SAMPLE_SIZE >= _ENOUGH

    @cached_property
    def _sampled_share(self) -> float:
        """The share of a sample of the candidates that is eligible."""
        if self.eligible is None:
            return 1.0
        sample = self.eligible.take(sampled_rows(self.n_candidates))
        return int(np.count_nonzero(sample)) / _SAMPLE_SIZE


@lru_cache(maxsize=8)
def sampled_rows(n_candidates: int) -> np.ndarray:
    """Return the rows (n,) int64 of the sample, in rising order; some may come twice."""
    return np.sort(np.random.default_rng(0).integers(n_candidates, size=_SAMPLE_SIZE))
