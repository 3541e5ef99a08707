"""Annoy: a forest of random projection trees (Spotify, github.com/spotify/annoy).

Annoy has two ways to search by inner product, and each loses badly to the other on some data:
its own ``dot`` metric, and ``angular`` over vectors of one norm (``equal_norms``). Which to build
is decided by measuring both.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from annoy import AnnoyIndex as NativeAnnoyIndex
from pydantic import Field

from indexer.backends.base import LocalIndex
from indexer.backends.equal_norms import of_one_norm, with_added_zero
from indexer.backends.params import BuildParams, SearchParams, geometric

_FILE = "trees.ann"
_ROWS_AT_ONCE = 10_000
_EFFORT_STEP = 1.3
_MAX_SEARCH_K = 2**31 - 1
_INSPECTION_COST = 12.0  # inspecting a candidate, against a row of a sequential scan; measured


class AnnoyBuildParams(BuildParams):
    """How the forest is grown."""

    metric: Literal["dot", "angular"] = "dot"
    """``angular`` is over vectors with one added dimension, and so ranks by inner product too."""
    n_trees: int = Field(default=50, ge=1)
    n_jobs: int = Field(default=1, ge=-1)
    """Build threads; -1 uses all cores, and the forest then differs from build to build."""
    seed: int = Field(default=42, ge=0)


class AnnoySearchParams(SearchParams):
    """How much of the forest is searched."""

    search_k: int = Field(ge=1)
    """Candidates to inspect."""


class AnnoyIndex(LocalIndex[AnnoyBuildParams, AnnoySearchParams]):
    """A memory-mapped forest with its own copy of the vectors."""

    name: ClassVar[str] = "annoy"
    build_params_type = AnnoyBuildParams
    search_params_type = AnnoySearchParams

    _native: NativeAnnoyIndex

    @classmethod
    def default_build_params(cls, n_candidates: int, dim: int) -> AnnoyBuildParams:
        """Return the params for a corpus of any size."""
        del n_candidates, dim
        return AnnoyBuildParams()

    def default_search_params(self, k: int) -> AnnoySearchParams:
        """Return params that inspect twice as many candidates as Annoy would by itself."""
        return AnnoySearchParams(search_k=2 * k * self.build_params.n_trees)

    def exhaustive_params(self) -> AnnoySearchParams:
        """Return the params that inspect every leaf of every tree, as far as Annoy can count."""
        n_listed = self.n_candidates * self.build_params.n_trees
        return AnnoySearchParams(search_k=min(n_listed, _MAX_SEARCH_K))

    @classmethod
    def build_variants(cls, n_candidates: int, dim: int) -> list[AnnoyBuildParams]:
        """Return both ways to search by inner product."""
        del n_candidates, dim
        return [AnnoyBuildParams(metric="dot"), AnnoyBuildParams(metric="angular")]

    def effort_ladders(self, k: int) -> list[list[AnnoySearchParams]]:
        """Return rising numbers of candidates to inspect."""
        most = self.exhaustive_params().search_k
        return [[AnnoySearchParams(search_k=n) for n in geometric(k, most, _EFFORT_STEP)]]

    def cost(self, k: int, params: AnnoySearchParams) -> float:
        """Return the cost of the candidates inspected."""
        return _INSPECTION_COST * max(params.search_k, k)

    def save(self, directory: Path) -> None:
        """Write the forest."""
        self._native.save(str(directory / _FILE))

    def _build(self) -> None:
        params = self.build_params
        self._native = self._new()
        self._native.set_seed(params.seed)
        for start in range(0, self.n_candidates, _ROWS_AT_ONCE):
            vectors = self._stored_vectors(start, start + _ROWS_AT_ONCE)
            for row, vector in enumerate(vectors.tolist(), start):
                self._native.add_item(row, vector)
        self._native.build(params.n_trees, params.n_jobs)

    def _load(self, directory: Path) -> None:
        self._native = self._new()
        self._native.load(str(directory / _FILE))
        found = self._native.get_n_items()
        if found != self.n_candidates:
            raise ValueError(
                f"{directory / _FILE} holds {found} vectors, the corpus {self.n_candidates}"
            )

    def _search(self, queries: np.ndarray, k: int, params: AnnoySearchParams) -> np.ndarray:
        search_k = min(params.search_k, self.exhaustive_params().search_k)
        rows = np.full((len(queries), k), -1, dtype=np.int64)
        for line, vector in zip(rows, self._stored_queries(queries).tolist(), strict=True):
            found = self._native.get_nns_by_vector(vector, k, search_k)
            line[: len(found)] = found
        return rows

    def _new(self) -> NativeAnnoyIndex:
        added = 1 if self.build_params.metric == "angular" else 0
        return NativeAnnoyIndex(self.dim + added, self.build_params.metric)

    def _stored_vectors(self, start: int, stop: int) -> np.ndarray:
        """Return some rows as Annoy gets them: (n, dim), or (n, dim + 1) of one norm."""
        vectors = self.embeddings[start:stop]
        if self.build_params.metric == "dot":
            return vectors
        return of_one_norm(vectors, self._exact.max_norm)

    def _stored_queries(self, queries: np.ndarray) -> np.ndarray:
        """Return queries as Annoy gets them; an added dimension is 0 and changes no product."""
        if self.build_params.metric == "dot":
            return queries
        return with_added_zero(queries)
