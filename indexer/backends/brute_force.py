"""Exact search: every candidate is scored. The yardstick, and the best index for a small corpus."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from indexer.backends.base import LocalIndex
from indexer.backends.params import BuildParams, SearchParams
from indexer.exact import Neighbors


class BruteForceBuildParams(BuildParams):
    """There is nothing to choose."""


class BruteForceSearchParams(SearchParams):
    """There is nothing to choose."""


class BruteForceIndex(LocalIndex[BruteForceBuildParams, BruteForceSearchParams]):
    """Scores every candidate."""

    name: ClassVar[str] = "brute_force"
    is_exact: ClassVar[bool] = True
    build_params_type = BruteForceBuildParams
    search_params_type = BruteForceSearchParams

    @classmethod
    def default_build_params(cls, n_candidates: int, dim: int) -> BruteForceBuildParams:
        """Return the only build params there are."""
        del n_candidates, dim
        return BruteForceBuildParams()

    def default_search_params(self, k: int) -> BruteForceSearchParams:
        """Return the only search params there are."""
        del k
        return BruteForceSearchParams()

    def exhaustive_params(self) -> BruteForceSearchParams:
        """Return the only search params there are."""
        return BruteForceSearchParams()

    def effort_ladders(self, k: int) -> list[list[BruteForceSearchParams]]:
        """Return the only search params there are."""
        del k
        return [[BruteForceSearchParams()]]

    def cost(self, k: int, params: BruteForceSearchParams) -> float:
        """Return the number of candidates."""
        del k, params
        return float(self.n_candidates)

    def save(self, directory: Path) -> None:
        """Write nothing: the embeddings are the index."""

    def _build(self) -> None:
        """Build nothing."""

    def _load(self, directory: Path) -> None:
        """Open nothing."""

    def _search(self, queries: np.ndarray, k: int, params: BruteForceSearchParams) -> np.ndarray:
        return self._search_all(queries, k, params).rows

    def _search_all(self, queries: np.ndarray, k: int, params: BruteForceSearchParams) -> Neighbors:
        del params
        return self._exact.search(queries, k)
