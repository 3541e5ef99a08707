"""Which index answers a search, and how hard it searches.

The operating points that the indexer measured decide; here they are only looked up, for the
backends whose libraries are installed, and remembered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import chain
from typing import Any

from indexer.backends import BackendUnavailableError, LocalIndex, SearchParams
from indexer.bundle import EXHAUSTIVE, IndexBundle, SearchChoice
from server.domain import SearchMethod, SearchPlan, SearchRequest
from server.errors import BackendUnknownError

_BRUTE_FORCE = "brute_force"
_SCANS = (SearchMethod.EXACT, SearchMethod.MASKED_SCAN)


@dataclass(slots=True, frozen=True, eq=False)
class IndexChoice:
    """An index, and how hard it is searched."""

    index: LocalIndex[Any, Any]
    k: int
    """Candidates wanted of the index."""
    params: SearchParams
    """Those that find ``k`` candidates."""
    exact: bool
    """Whether the search is exact whatever the method."""
    reason: str
    """Why this choice."""

    expected_micros: float
    """What the indexer measured one such search to take, at the median."""

    plans: Mapping[tuple[SearchMethod, bool], SearchPlan]
    """How a search was made, by the method that was come to, and by whether it was by cosine."""

    params_by_depth: dict[int, SearchParams] = field(default_factory=dict)
    """What ``params_at`` returned before."""

    def params_at(self, n: int) -> SearchParams:
        """Return the params that find ``n`` candidates at the recall of ``params``."""
        params = self.params_by_depth.get(n)
        if params is None:
            params = self.index.params_at(n, self.params, self.k)
            self.params_by_depth[n] = params
        return params


class Planner:
    """Chooses among the backends of one bundle that can be used here.

    Args:
        bundle: the index bundle; all its backends are opened.

    Attributes:
        recall_targets: what the backends were tuned for, the highest first.

    Raises:
        BackendUnavailableError: if the default backend's library is not installed.
        BundleError: if an index does not fit the corpus.
    """

    def __init__(self, bundle: IndexBundle) -> None:
        self.indexes = {
            bundle.manifest.default_backend: bundle.index(bundle.manifest.default_backend)
        }
        self.unavailable: dict[str, str] = {}
        for name in bundle.backend_names[1:]:
            try:
                self.indexes[name] = bundle.index(name)
            except BackendUnavailableError as error:
                self.unavailable[name] = str(error)
        self.recall_targets = _recall_targets(bundle, self.indexes)
        # Not of a method: such a cycle would keep a replaced index in memory.
        self._choose = lru_cache(maxsize=4096)(partial(_look_up, bundle, self.indexes))

    def choose(self, request: SearchRequest, k: int) -> IndexChoice:
        """Choose the index for a search, and how hard it searches.

        Args:
            request: the search.
            k: candidates wanted of the index.

        Raises:
            BackendUnknownError: if it asks for a backend that there is not.
        """
        if request.backend is not None and request.backend not in self.indexes:
            raise self._unknown(request.backend)
        return self._choose(k, request.backend, request.recall_target, request.exact)

    def _unknown(self, backend: str) -> BackendUnknownError:
        known = ", ".join(self.indexes)
        if backend in self.unavailable:
            return BackendUnknownError(
                f"backend {backend!r} cannot be used on this server, which has {known}: "
                f"{self.unavailable[backend]}",
                backend=backend,
                known=known,
            )
        return BackendUnknownError(
            f"unknown backend {backend!r}; this index has {known}", backend=backend, known=known
        )


def _look_up(
    bundle: IndexBundle,
    indexes: Mapping[str, LocalIndex[Any, Any]],
    k: int,
    backend: str | None,
    recall_target: float | None,
    exact: bool,
) -> IndexChoice:
    """Return the choice for k candidates, by what a request says of the search."""
    manifest = bundle.manifest
    if exact and _BRUTE_FORCE in indexes:
        choice = bundle.choose(k, backend=_BRUTE_FORCE)
        reason = "the request asks for an exact search"
    elif exact:
        choice = bundle.choose(k, recall_target=1.0, among=indexes)
        reason = "the request asks for an exact search; there is no brute_force index"
    elif backend is not None:
        choice = bundle.choose(k, backend=backend, recall_target=recall_target)
        reason = "the request names the backend"
    elif recall_target is not None:
        choice = bundle.choose(k, recall_target=recall_target, among=indexes)
        reason = f"the cheapest setting that promises a recall of {recall_target:g}"
    else:
        choice = bundle.choose(k, among=indexes)
        reason = f"the index's own choice: {manifest.default_reason}"
        if choice.backend != manifest.default_backend or choice.is_makeshift:
            target, own = manifest.default_recall_target, manifest.default_backend
            reason = (
                f"the cheapest setting that promises a recall of {target:g} for {k} results; the "
                f"index's own choice, {own}, does not"
            )
    index = indexes[choice.backend]
    return IndexChoice(
        index=index,
        k=k,
        params=choice.params,
        exact=_is_exact(choice, index),
        reason=reason,
        expected_micros=choice.point.p50_microseconds,
        plans={
            (method, by_cosine): _plan(choice, index, method, by_cosine=by_cosine)
            for method in SearchMethod
            for by_cosine in (False, True)
        },
    )


def _recall_targets(bundle: IndexBundle, backends: Iterable[str]) -> list[float]:
    points = chain.from_iterable(
        bundle.manifest.backends[name].operating_points for name in backends
    )
    return sorted({p.recall_target for p in points if p.name != EXHAUSTIVE}, reverse=True)


def _is_exact(choice: SearchChoice, index: LocalIndex[Any, Any]) -> bool:
    return index.is_exact or choice.point.name == EXHAUSTIVE


def _plan(
    choice: SearchChoice, index: LocalIndex[Any, Any], method: SearchMethod, *, by_cosine: bool
) -> SearchPlan:
    if method is SearchMethod.POPULARITY:
        return SearchPlan(backend="", method=method)
    if method is SearchMethod.EXACT and not index.is_exact:
        # The cosines of candidates of unequal length, which no index can search by.
        return SearchPlan(backend="", method=method, expected_recall=1.0, exact=True)
    exact = _is_exact(choice, index) or method in _SCANS
    # Recall was measured on queries, not on candidates that others are compared with.
    measured = None if by_cosine else choice.point.recall
    return SearchPlan(
        backend=choice.backend,
        method=method,
        search_params=_numbers(choice.params),
        expected_recall=1.0 if exact else measured,
        exact=exact,
    )


def _numbers(params: SearchParams) -> dict[str, float]:
    """Return search params by name; those left to the library's default are left out."""
    return {name: value for name, value in params.model_dump().items() if value is not None}
