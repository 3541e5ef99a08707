"""What the search benchmark compares: our backends and, optionally, other libraries.

A contender offers ladders of settings, along each of which effort rises; a setting is search
params, ready to be called. Everything else, timing and recall, is the same for all.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np

from benchmarks.progress import OnStep
from indexer.backends import BackendUnavailableError, LocalIndex, SearchParams
from indexer.backends.scann import ScannIndex
from indexer.bundle import IndexBundle

RECALL_TARGETS = (0.90, 0.95, 0.99, 1.0)


_SWEPT_PER_LADDER = 8
_TOO_SLOW_MICROSECONDS = 100_000  # to be of interest, as an exhaustive search of a large index is


@dataclass(frozen=True)
class Setting:
    """Search params of a contender.

    Attributes:
        name: the operating point's name in the bundle; None for params that are only swept.
        params: by name, as the library names them.
        search: queries (n_queries, dim) -> rows (n_queries, n), -1 where there is none.
    """

    name: str | None
    params: dict[str, Any]
    search: Callable[[np.ndarray], np.ndarray]


class Contender(ABC):
    """An index that is to be measured; built when it is made.

    Attributes:
        name: the library, and which of its indexes.
        build_seconds: how long building took, tuning apart.
        size_bytes: what it saves, in which a peer has the vectors as well.
    """

    name: str
    build_seconds: float
    size_bytes: int

    @abstractmethod
    def ladders(self, k: int) -> Iterator[Iterable[Setting]]:
        """Yield ladders of search params for k results."""


class OwnBackend(Contender):
    """One backend of an index bundle: its operating points, then a sweep of other params.

    Args:
        bundle: an open index bundle.
        name: the backend.
    """

    def __init__(self, bundle: IndexBundle, name: str) -> None:
        entry = bundle.manifest.backends[name]
        self.name = name
        self.build_seconds = entry.build_seconds
        self.size_bytes = entry.size_bytes
        self._bundle = bundle
        self._index: LocalIndex[Any, Any] = bundle.index(name)

    def ladders(self, k: int) -> Iterator[Iterable[Setting]]:
        """Yield the operating points for k results, then what is swept."""
        names = operating_points(self._bundle, self.name, k)
        yield [self._setting(name, params, k) for params, name in names.items()]
        for ladder in self._index.effort_ladders(k):
            swept = (params for params in _thinned(ladder) if params not in names)
            yield (self._setting(None, params, k) for params in swept)

    def _setting(self, name: str | None, params: SearchParams, k: int) -> Setting:
        index = self._index
        return Setting(
            name, params.model_dump(), lambda queries: index.search(queries, k, params).rows
        )


def build_scann_alone(bundle: IndexBundle, on_step: OnStep) -> Iterator[Contender]:
    """Build the library ScaNN by itself, when it is asked for.

    Raises:
        BackendUnavailableError: if ScaNN is not installed, or is not in the bundle.
    """
    if ScannIndex.name not in bundle.manifest.backends:
        raise BackendUnavailableError(
            "the index has no ScaNN index to measure the library beside; build it with --backend "
            "scann, or leave --scann-alone out"
        )
    on_step(f"building {ScannAlone.name}")
    yield ScannAlone(bundle)


class ScannAlone(Contender):
    """The library ScaNN by itself, built and searched as our index is.

    It reorders its proposals by its own copy of the embeddings, as we rescore them.

    Args:
        bundle: an open index bundle with a ScaNN index.
    """

    name = "ScaNN alone"

    def __init__(self, bundle: IndexBundle) -> None:
        index = cast("ScannIndex", bundle.index(ScannIndex.name))
        start = time.perf_counter()
        builder = index._builder()  # noqa: SLF001 - what is beneath our own index
        self._searcher: Any = builder.reorder(1).build()
        self.build_seconds = time.perf_counter() - start
        self.size_bytes = _saved_bytes(self._searcher)
        self._bundle = bundle
        self._num_leaves = index.build_params.num_leaves or 1

    def ladders(self, k: int) -> Iterator[Iterable[Setting]]:
        """Yield our operating points for k results."""
        points = operating_points(self._bundle, ScannIndex.name, k)
        yield [
            Setting(
                name, params.model_dump(), partial(self._search, effort=self._effort(params, k))
            )
            for params, name in points.items()
        ]

    def _effort(self, params: SearchParams, k: int) -> dict[str, int]:
        """Return how hard to search, in the library's words."""
        effort = params.model_dump()
        return {
            "final_num_neighbors": k,
            "pre_reorder_num_neighbors": effort["pre_reorder_num_neighbors"],
            "leaves_to_search": effort["leaves_to_search"] or self._num_leaves,
        }

    def _search(self, queries: np.ndarray, effort: dict[str, int]) -> np.ndarray:
        if len(queries) == 1:
            return np.asarray(self._searcher.search(queries[0], **effort)[0])[None]
        return np.asarray(self._searcher.search_batched(queries, **effort)[0])


def _saved_bytes(searcher: Any) -> int:
    with TemporaryDirectory() as directory:
        searcher.serialize(directory)
        return sum(path.stat().st_size for path in Path(directory).iterdir())


def operating_points(bundle: IndexBundle, backend: str, k: int) -> dict[SearchParams, str]:
    """Return a backend's operating points for k results, as search params with their names.

    Params that serve several recall targets are named by the highest; what is far too slow is left
    out.
    """
    names: dict[SearchParams, str] = {}
    for target in RECALL_TARGETS:
        choice = bundle.choose(k, recall_target=target, backend=backend)
        if choice.point.p50_microseconds <= _TOO_SLOW_MICROSECONDS:
            names[choice.params] = choice.point.name
    return names


def _thinned(ladder: list[SearchParams]) -> list[SearchParams]:
    chosen = np.unique(np.linspace(0, len(ladder) - 1, _SWEPT_PER_LADDER).round().astype(int))
    return [ladder[i] for i in chosen]
