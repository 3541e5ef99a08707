"""Interactions grouped by who made them, without a Python object per group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Grouped:
    """Values by group, kept end to end in one array (compressed sparse rows).

    Attributes:
        offsets: (n_groups + 1,) int64, where each group begins and ends.
        values: (n_values,) the values, those of one group in the order they were given in.
    """

    offsets: npt.NDArray[np.int64]
    values: npt.NDArray[Any]

    @classmethod
    def by(
        cls, groups: npt.NDArray[np.integer[Any]], values: npt.NDArray[Any], n_groups: int
    ) -> Grouped:
        """Group ``values`` (n,) by ``groups`` (n,), each in [0, ``n_groups``)."""
        counts = np.bincount(groups, minlength=n_groups)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        return cls(offsets, values[np.argsort(groups, kind="stable")])

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Number of values (n_groups,) of each group."""
        return np.diff(self.offsets)

    def of(self, group: int) -> npt.NDArray[Any]:
        """Return the values of one group."""
        return self.values[self.offsets[group] : self.offsets[group + 1]]

    def pairs(
        self, groups: npt.NDArray[np.integer[Any]]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
        """Return, for all values of ``groups``, the position in ``groups`` and the value."""
        counts = self.counts[groups]
        positions = np.repeat(np.arange(len(groups)), counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return positions, self.values[np.repeat(self.offsets[groups], counts) + within]
