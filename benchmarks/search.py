"""Recall and latency of a bundle's backends, in process, on its own queries.

Every figure has exact search of the same minute beside it: each backend is measured right after
the exact search that it is compared with.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from benchmarks.timing import Latency, time_calls
from indexer.backends import LocalIndex, Neighbors, SearchParams, available_backends
from indexer.bundle import IndexBundle
from indexer.recall import recall_at_k

BATCH_SIZE = 64
MAX_QUERIES = 1000
RECALL_TARGETS = (0.90, 0.95, 0.99, 1.0)

_EXACT = "brute_force"
_SWEPT_PER_LADDER = 8
_SMALL_K, _LARGE_K = 10, 100

AnyIndex = LocalIndex[Any, Any]
OnStep = Callable[[str], None]


class SearchPoint(BaseModel):
    """What one backend delivers with one set of search params."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: str
    name: str | None
    """The operating point's name in the bundle; None for params that were swept here."""
    search_params: dict[str, Any]
    recall_at_10: float
    recall_at_100: float
    latency: Latency
    """Of calls with one query."""
    batch_qps: float
    """Queries a second in batches of ``BATCH_SIZE``."""
    speedup: float
    """Exact search's median latency of the same minute, divided by this one's."""


class SearchReport(BaseModel):
    """The backends of one bundle, measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    index_version: str
    n_candidates: int
    dim: int
    k: int
    n_queries: int
    queries_are: str
    """``queries``, or ``candidates`` where the bundle has no queries."""
    machine: str
    build_seconds: dict[str, float]
    size_bytes: dict[str, int]
    """Bytes of each backend on disk, beside the embeddings that all of them share."""
    points: tuple[SearchPoint, ...]


def benchmark_search(
    bundle: IndexBundle, *, seconds_per_point: float = 0.5, on_step: OnStep = lambda _: None
) -> SearchReport:
    """Measure all backends of a bundle that are installed here.

    Args:
        bundle: an open index bundle.
        seconds_per_point: how long each set of search params is timed, once for single queries
            and once for batches.
        on_step: called with a line of progress before each measurement.
    """
    manifest = bundle.manifest
    queries = np.ascontiguousarray(bundle.tuning_queries[:MAX_QUERIES])
    k = min(_LARGE_K, manifest.n_candidates)
    exact_index = bundle.index(_EXACT)
    exact = exact_index.search(queries, k)
    points = []
    for name in manifest.backends:
        if name not in available_backends():
            continue
        singles = [queries[i : i + 1] for i in range(len(queries))]
        on_step("exact search, to compare with")
        reference = time_calls(
            lambda query: exact_index.search(query, k), singles, seconds=seconds_per_point
        )
        index = bundle.index(name)
        for label, params in _params_to_measure(bundle, index, k):
            on_step(f"{name} {label or ''} {_brief(params)}")
            recall_10, recall_100 = _recalls(index.search(queries, k, params), exact)
            latency, batch = _time_search(index, queries, k, params, seconds_per_point)
            points.append(
                SearchPoint(
                    backend=name,
                    name=label,
                    search_params=params.model_dump(),
                    recall_at_10=recall_10,
                    recall_at_100=recall_100,
                    latency=latency,
                    batch_qps=batch,
                    speedup=reference.p50_us / latency.p50_us,
                )
            )
    return SearchReport(
        index_version=manifest.version,
        n_candidates=manifest.n_candidates,
        dim=manifest.dim,
        k=k,
        n_queries=len(queries),
        queries_are=manifest.tuned_on,
        machine=f"{platform.machine()}, Python {platform.python_version()}, one thread",
        build_seconds={name: entry.build_seconds for name, entry in manifest.backends.items()},
        size_bytes={name: entry.size_bytes for name, entry in manifest.backends.items()},
        points=tuple(points),
    )


def _params_to_measure(
    bundle: IndexBundle, index: AnyIndex, k: int
) -> Iterator[tuple[str | None, SearchParams]]:
    """Yield the bundle's operating points for k results by name, then a sweep of other params.

    Params that serve several recall targets are named by the highest.
    """
    names: dict[SearchParams, str] = {}
    for target in RECALL_TARGETS:
        choice = bundle.choose(k, recall_target=target, backend=index.name)
        names[choice.params] = choice.point.name
    yield from ((name, params) for params, name in names.items())
    swept = chain.from_iterable(_thinned(ladder) for ladder in index.effort_ladders(k))
    yield from ((None, params) for params in swept if params not in names)


def _thinned(ladder: list[SearchParams]) -> list[SearchParams]:
    chosen = np.unique(np.linspace(0, len(ladder) - 1, _SWEPT_PER_LADDER).round().astype(int))
    return [ladder[i] for i in chosen]


def _recalls(found: Neighbors, exact: Neighbors) -> tuple[float, float]:
    """Return the mean recall of the ten best and of all."""
    small = slice(min(_SMALL_K, found.rows.shape[1]))
    few = Neighbors(found.rows[:, small], found.scores[:, small])
    few_exact = Neighbors(exact.rows[:, small], exact.scores[:, small])
    return float(recall_at_k(few, few_exact).mean()), float(recall_at_k(found, exact).mean())


def _time_search(
    index: AnyIndex, queries: np.ndarray, k: int, params: SearchParams, seconds: float
) -> tuple[Latency, float]:
    """Return the latency of calls with one query, and queries a second in batches."""
    singles = [queries[i : i + 1] for i in range(len(queries))]
    batches = [queries[i : i + BATCH_SIZE] for i in range(0, len(queries), BATCH_SIZE)]
    full = [batch for batch in batches if len(batch) == BATCH_SIZE] or batches[:1]
    latency = time_calls(lambda query: index.search(query, k, params), singles, seconds=seconds)
    batched = time_calls(lambda batch: index.search(batch, k, params), full, seconds=seconds)
    return latency, len(full[0]) / batched.mean_us * 1e6


def _brief(params: SearchParams) -> str:
    return ", ".join(f"{name} {value}" for name, value in params.model_dump().items())
