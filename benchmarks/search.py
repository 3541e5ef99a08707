"""Recall and latency of a bundle's backends, in process, on its own queries.

Every figure has exact search of the same minute beside it: each contender is measured right after
the exact search that it is compared with. Recall is counted on exact scores that are computed
here from the vectors, whatever an index says its scores are.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from benchmarks.contenders import Contender, OwnBackend, Setting
from benchmarks.progress import OnStep
from benchmarks.timing import Latency, time_calls
from indexer.backends import Neighbors, available_backends
from indexer.bundle import EXHAUSTIVE, IndexBundle
from indexer.exact import ExactScorer
from indexer.recall import recall_at_k

BATCH_SIZE = 64
MAX_QUERIES = 1000

_SMALL_K, _LARGE_K = 10, 100
_ENOUGH_RECALL = 0.9995  # where a sweep ends: more effort costs and brings nothing
_RECALL_SECONDS, _MIN_RECALL_QUERIES = 10.0, 100  # slow searches count on fewer queries


class SearchPoint(BaseModel):
    """What one contender delivers with one set of search params."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    contender: str
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
    """Exact search's CPU time a query of the same minute, divided by this one's."""

    @property
    def promised_recall(self) -> float:
        """What the operating point promises; 0 of params that were swept here."""
        if self.name is None:
            return 0.0
        return 1.0 if self.name == EXHAUSTIVE else float(self.name)


class SearchReport(BaseModel):
    """The contenders over one corpus, measured."""

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
    """What each takes beside the embeddings: ours on disk, peers in memory, where they keep a copy
    of the embeddings as well."""
    points: tuple[SearchPoint, ...]

    def cost_of_asking(self, contender: str, recall: float) -> float | None:
        """Return what is chosen for a recall, in CPU time of the cheapest that delivers it here.

        None where no operating point promises it, or nothing that was measured delivers it.
        """
        points = [point for point in self.points if point.contender == contender]
        promised = [one for one in points if one.promised_recall >= recall]
        enough = [one.latency.cpu_us for one in points if one.recall_at_100 >= recall]
        if not promised or not enough:
            return None
        chosen = min(promised, key=lambda one: one.promised_recall)
        return chosen.latency.cpu_us / min(enough)


def benchmark_search(
    bundle: IndexBundle,
    *,
    peers: Iterable[Contender] = (),
    seconds_per_point: float = 0.5,
    on_step: OnStep = lambda _: None,
) -> SearchReport:
    """Measure all backends of a bundle that are installed here, and peers over the same vectors.

    Args:
        bundle: an open index bundle.
        peers: other libraries' indexes over the bundle's embeddings, built as they are taken.
        seconds_per_point: how long each set of search params is timed, once for single queries
            and once for batches.
        on_step: called with a line of progress before each measurement.
    """
    manifest = bundle.manifest
    queries = np.ascontiguousarray(bundle.tuning_queries[:MAX_QUERIES])
    k = min(_LARGE_K, manifest.n_candidates)
    bench = _Bench(bundle.corpus.embeddings, queries, k, seconds_per_point, on_step)
    build_seconds, size_bytes = {}, {}
    points: list[SearchPoint] = []
    for contender in _contenders(bundle, peers):
        build_seconds[contender.name] = contender.build_seconds
        size_bytes[contender.name] = contender.size_bytes
        points += bench.measure(contender)
    return SearchReport(
        index_version=manifest.version,
        n_candidates=manifest.n_candidates,
        dim=manifest.dim,
        k=k,
        n_queries=len(queries),
        queries_are=manifest.tuned_on,
        machine=f"{platform.machine()}, Python {platform.python_version()}, one thread",
        build_seconds=build_seconds,
        size_bytes=size_bytes,
        points=tuple(points),
    )


def _contenders(bundle: IndexBundle, peers: Iterable[Contender]) -> Iterator[Contender]:
    for name in bundle.manifest.backends:
        if name in available_backends():
            yield OwnBackend(bundle, name)
    yield from peers


class _Bench:
    """Measures contenders over one corpus, with one set of queries."""

    def __init__(
        self, embeddings: np.ndarray, queries: np.ndarray, k: int, seconds: float, on_step: OnStep
    ) -> None:
        self._scorer = ExactScorer(embeddings)
        self._queries = queries
        self._singles = [queries[i : i + 1] for i in range(len(queries))]
        self._k = k
        self._seconds = seconds
        self._on_step = on_step
        self._exact = self._scorer.search(queries, k)

    def measure(self, contender: Contender) -> Iterator[SearchPoint]:
        """Yield what a contender delivers with each of its settings."""
        self._on_step("exact search, to compare with")
        reference = self._time(lambda query: self._scorer.search(query, self._k))
        for ladder in contender.ladders(self._k):
            for setting in ladder:
                self._on_step(f"{contender.name} {setting.name or ''} {_brief(setting.params)}")
                point = self._measure(contender.name, setting, reference)
                yield point
                is_enough = point.recall_at_100 > _ENOUGH_RECALL or point.speedup < 1
                if setting.name is None and is_enough:
                    break

    def _measure(self, contender: str, setting: Setting, reference: Latency) -> SearchPoint:
        latency = self._time(setting.search)
        affordable = int(_RECALL_SECONDS / latency.mean_us * 1e6)
        recall_10, recall_100 = self._recalls(setting, max(_MIN_RECALL_QUERIES, affordable))
        return SearchPoint(
            contender=contender,
            name=setting.name,
            search_params=setting.params,
            recall_at_10=recall_10,
            recall_at_100=recall_100,
            latency=latency,
            batch_qps=self._batch_qps(setting),
            speedup=reference.cpu_us / latency.cpu_us,
        )

    def _recalls(self, setting: Setting, n_queries: int) -> tuple[float, float]:
        """Return the mean recall of the ten best and of all, on the first queries."""
        queries = self._queries[:n_queries]
        exact = Neighbors(self._exact.rows[:n_queries], self._exact.scores[:n_queries])
        found = self._scorer.rescore(queries, setting.search(queries), self._k)
        small = min(_SMALL_K, self._k)
        few = recall_at_k(found.best(small), exact.best(small))
        return float(few.mean()), float(recall_at_k(found, exact).mean())

    def _time(self, search: Callable[[np.ndarray], object]) -> Latency:
        return time_calls(search, self._singles, seconds=self._seconds)

    def _batch_qps(self, setting: Setting) -> float:
        """Return queries a second in batches."""
        starts = range(0, len(self._queries), BATCH_SIZE)
        batches = [self._queries[start : start + BATCH_SIZE] for start in starts]
        full = [batch for batch in batches if len(batch) == BATCH_SIZE] or batches[:1]
        latency = time_calls(setting.search, full, seconds=self._seconds)
        return len(full[0]) / latency.mean_us * 1e6


def _brief(params: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in params.items())
