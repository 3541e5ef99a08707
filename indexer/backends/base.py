"""The interface of an index, and what all indexes on this machine share.

Nothing above ``Index`` may assume that vectors or rescoring are local. A local backend writes
only how it builds, saves, loads and proposes rows; checking, exact scores, order, eligibility and
padding are the same for all and live here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import ClassVar, Generic, Self, TypeVar

import numpy as np
import pyarrow as pa

from indexer.backends.checks import (
    check_eligible,
    check_embeddings,
    check_k,
    check_queries,
    check_type,
)
from indexer.backends.params import (
    BuildParams,
    SearchParams,
    Series,
    params_as_good,
    params_chosen_alike,
)
from indexer.eligibility import EligibleSearch
from indexer.exact import ExactScorer, Neighbors, SearchMethod
from indexer.filters import Restriction
from indexer.mask import Mask
from indexer.ways import OverFetch, Way


class BackendUnavailableError(Exception):
    """The library of a backend is not installed here; the message says how to mend it."""


class IndexUnreachableError(Exception):
    """An index outside of this process did not answer; the message says where it is, and why."""


@dataclass(frozen=True)
class BuildContext:
    """What a build may use beside the embeddings.

    Attributes:
        metadata: what filters test, a line for each candidate, for a backend that filters itself.
        location: where an index outside of this process is to be, in its library's words.
        announce: told, in a few words, what is being done now.
    """

    metadata: pa.Table | None = None
    location: str | None = None
    announce: Callable[[str], None] = lambda _: None


B = TypeVar("B", bound=BuildParams)
S = TypeVar("S", bound=SearchParams)


class Index(ABC, Generic[S]):
    """Finds the candidates whose embeddings have the largest inner products with a query's."""

    name: ClassVar[str]
    is_exact: ClassVar[bool] = False
    """Whether every search is exact, whatever its params."""
    is_remote: ClassVar[bool] = False
    """Whether searches leave this process, wait, and may find nobody there."""

    @property
    @abstractmethod
    def n_candidates(self) -> int:
        """The number of candidates."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """The dimension of the embeddings."""

    @abstractmethod
    def search(
        self,
        queries: np.ndarray,
        k: int,
        params: S | None = None,
        eligible: np.ndarray | None = None,
        restriction: Restriction | None = None,
    ) -> Neighbors:
        """Return the best k eligible candidates of each query.

        Args:
            queries: (n_queries, dim) float32, finite.
            k: candidates wanted per query, at least 1; more than there are is allowed.
            params: how hard to search; by default, ``default_search_params(k)``.
            eligible: (n_candidates,) bool, the candidates that may be returned; by default, all.
                k are found whenever k are eligible.
            restriction: why others are not eligible, for a backend that can make use of it;
                ``eligible`` decides.

        Raises:
            IndexUnreachableError: if the index is outside of this process and does not answer.
            ValueError: if an array has the wrong dtype or shape or is not finite, or if k is not a
                whole number of at least 1.
            TypeError: if the params are another backend's.
        """

    @abstractmethod
    def default_search_params(self, k: int) -> S:
        """Return params that suit most corpora, for want of a measured operating point."""

    @abstractmethod
    def exhaustive_params(self) -> S:
        """Return the params under which a search is exact, but for ties."""


class LocalIndex(Index[S], Generic[B, S]):
    """An index whose vectors are on this machine; made by ``build`` or ``load``.

    What proposes rows may be elsewhere; scores, order and eligibility are decided here.

    Args:
        embeddings: (n_candidates, dim) float32 in C order, finite; may be memory-mapped.
        build_params: how the index is or was built.
    """

    build_params_type: ClassVar[type[BuildParams]]
    search_params_type: ClassVar[type[SearchParams]]
    variants_scale: ClassVar[bool] = True
    """Whether the best of ``build_variants`` on a sample is the best on the whole corpus."""

    def __init__(self, embeddings: np.ndarray, build_params: B) -> None:
        self.build_params = build_params
        self._exact = ExactScorer(embeddings)
        self._n_candidates: int
        self._dim: int
        self._n_candidates, self._dim = embeddings.shape
        self.calibrate(())

    @classmethod
    def build(
        cls,
        embeddings: np.ndarray,
        params: B | None = None,
        context: BuildContext = BuildContext(),
    ) -> Self:
        """Build an index.

        Args:
            embeddings: (n_candidates, dim) float32 in C order; at least one, all finite.
            params: how to build it; by default, ``default_build_params`` for this many.
            context: what the backend may use beside them.

        Raises:
            ValueError: if the embeddings do not fit.
            TypeError: if the params are another backend's.
            BackendUnavailableError: if the backend's library is not installed.
            IndexUnreachableError: if the index is to be outside of this process, and nobody
                answers there.
        """
        check_embeddings(embeddings)
        chosen = cls.default_build_params(*embeddings.shape) if params is None else params
        check_type("build params", chosen, cls.build_params_type)
        index = cls(embeddings, chosen)
        index._build_in(context)
        return index

    @classmethod
    def load(cls, directory: Path, embeddings: np.ndarray, params: B) -> Self:
        """Load an index that ``save`` wrote.

        Args:
            directory: its folder, whose files have been verified: native code opens them.
            embeddings: the embeddings it was built from.
            params: the params it was built with.

        Raises:
            ValueError: if the files were not built from so many embeddings.
            BackendUnavailableError: if the backend's library is not installed.
        """
        index = cls(embeddings, params)
        index._load(directory)
        return index

    def calibrate(self, series: Iterable[Series[S]]) -> None:
        """Tell which params deliver one recall at several depths, from operating points.

        Args:
            series: for each recall, from low to high, the params for rising numbers of results.
        """
        several = tuple(series)
        # Not of a method: such a cycle would keep a replaced index in memory.
        self._params_as_good = lru_cache(maxsize=1024)(partial(params_as_good, several))
        self._params_chosen_alike = lru_cache(maxsize=1024)(partial(params_chosen_alike, several))

    def params_at(self, n: int, params: S, k: int) -> S:
        """Return the params that find n results at nearly the recall at which ``params`` finds k.

        An index that was never calibrated takes the effort to grow as the number of results.
        """
        return self._params_as_good(n, params, k)

    @classmethod
    def unavailable(cls) -> str | None:
        """Return why the backend cannot be used here and how to mend it; None if it can."""
        return None

    @classmethod
    @abstractmethod
    def default_build_params(cls, n_candidates: int, dim: int) -> B:
        """Return build params that suit a corpus of this size."""

    @classmethod
    def build_variants(cls, n_candidates: int, dim: int) -> list[B]:
        """Return build params of which only measuring tells the best; by default, just one."""
        return [cls.default_build_params(n_candidates, dim)]

    @abstractmethod
    def effort_ladders(self, k: int) -> list[list[S]]:
        """Return lists of search params, along each of which effort and recall rise."""

    @abstractmethod
    def cost(self, k: int, params: S) -> float:
        """Return roughly the work of one search, in rows of a sequential exact scan."""

    def prepared_for_masks(
        self, params: S, queries: np.ndarray, exact: Neighbors, recall: float
    ) -> S:
        """Return search params with what a search among eligible candidates takes beside them.

        Args:
            params: an operating point's.
            queries: (n_queries, dim) float32.
            exact: the exact answers to them.
            recall: the share of those answers that is to be looked at.
        """
        del queries, exact, recall
        return params

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write what ``load`` needs, without the embeddings, into an existing folder."""

    def _build_in(self, context: BuildContext) -> None:
        """Build the native index; most backends need no more than the embeddings."""
        del context
        self._build()

    @abstractmethod
    def _build(self) -> None:
        """Build the native index from ``self.embeddings`` and ``self.build_params``."""

    @abstractmethod
    def _load(self, directory: Path) -> None:
        """Open what ``save`` wrote."""

    @abstractmethod
    def _search(self, queries: np.ndarray, k: int, params: S) -> np.ndarray:
        """Propose rows (n_queries, n) for at least one query, in any order, -1 at the end if fewer.

        The best k of them by exact score become the answer. ``k`` is at most n_candidates.
        """

    @property
    def is_deterministic(self) -> bool:
        """Whether one build thread and one seed always build the same index."""
        return True

    @property
    def embeddings(self) -> np.ndarray:
        """(n_candidates, dim) float32."""
        return self._exact.embeddings

    @property
    def n_candidates(self) -> int:
        """The number of candidates."""
        return self._n_candidates

    @property
    def dim(self) -> int:
        """The dimension of the embeddings."""
        return self._dim

    def search(
        self,
        queries: np.ndarray,
        k: int,
        params: S | None = None,
        eligible: np.ndarray | None = None,
        restriction: Restriction | None = None,
    ) -> Neighbors:
        """Return the best k eligible candidates of each query; see ``Index.search``."""
        k = check_k(k)
        check_queries(queries, self._dim)
        chosen = self.default_search_params(k) if params is None else params
        check_type("search params", chosen, self.search_params_type)
        if len(queries) == 0:
            return Neighbors.none(0, k)
        if eligible is None:
            neighbors = self._search_all(queries, k, chosen)
        else:
            check_eligible(eligible, self.n_candidates)
            neighbors = self._search_eligible(queries, k, chosen, eligible, restriction)
        return neighbors.by(SearchMethod.EXACT) if self.is_exact else neighbors

    def search_without(
        self, queries: np.ndarray, k: int, excluded: np.ndarray, n_fetched: int, params: S
    ) -> Neighbors:
        """Return the best k candidates of each query that are not excluded, or fewer.

        So many are fetched, and the excluded ones dropped: faster than a search with a mask where
        few are excluded. What was fetched may hold fewer than k others, and where the index
        finds fewer than it is asked for, nothing is returned; ``search`` with a mask finds k.

        Args:
            queries: (n_queries, dim) float32, finite.
            k: candidates wanted per query.
            excluded: (n_queries, n_excluded) int64 rows that must not be returned, -1 where a query
                has fewer than others.
            n_fetched: how many to fetch, at least k.
            params: how hard to search for so many.

        Raises:
            IndexUnreachableError: if the index is outside of this process and does not answer.
            ValueError: if the queries have the wrong dtype or shape or are not finite.
        """
        check_queries(queries, self._dim)
        n_wanted = min(n_fetched, self._n_candidates)
        proposed = self._search(queries, n_wanted, params)
        if proposed.shape[1] < n_wanted:
            return Neighbors.none(len(queries), k)
        # All that were fetched are scored: where the best are excluded, an index may propose the
        # next ones in no certain order.
        found = self._exact.rescore(queries, proposed, k, excluded)
        if proposed.dtype != np.uint32:
            is_short = proposed[:, n_wanted - 1] < 0
            found.rows[is_short], found.scores[is_short] = -1, -np.inf
        return found.by(SearchMethod.EXACT if self.is_exact else SearchMethod.OVER_FETCH)

    def _search_all(self, queries: np.ndarray, k: int, params: S) -> Neighbors:
        n_wanted = min(k, self._n_candidates)
        neighbors = self._exact.rescore(queries, self._search(queries, n_wanted, params), k)
        # Of one query an item tells it, for a tenth of what looking at a column takes.
        if len(queries) == 1 and neighbors.rows.item(n_wanted - 1) >= 0:
            return neighbors
        (short,) = (neighbors.rows[:, n_wanted - 1] < 0).nonzero()
        if len(short) == 0:
            return neighbors
        everything = Mask(None, self.n_candidates)
        return self._eligible_search(k, params, everything).complete(queries, neighbors, short)

    def _search_eligible(
        self,
        queries: np.ndarray,
        k: int,
        params: S,
        eligible: np.ndarray,
        restriction: Restriction | None,
    ) -> Neighbors:
        """Search among some; a backend that filters itself overrides this."""
        del restriction
        mask = Mask(eligible, self.n_candidates)
        if mask.includes_all:
            return self._search_all(queries, k, params)
        return self._eligible_search(k, params, mask).search(queries)

    def _eligible_search(self, k: int, params: S, mask: Mask) -> EligibleSearch:
        return EligibleSearch(self._exact, k, mask, self._ways(k, params))

    def _ways(self, k: int, params: S) -> list[Way]:
        """Return how the index can look deeper than k at the recall of ``params``."""
        return [
            OverFetch(
                self._exact,
                propose=lambda queries, n: self._search(queries, n, self.params_at(n, params, k)),
                cost=lambda n: self.cost(n, self.params_at(n, params, k)),
            )
        ]
