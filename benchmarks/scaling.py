"""How cost, memory and build time grow with the number of candidates and with their dimension."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from benchmarks.progress import OnStep
from benchmarks.search import BATCH_SIZE, MAX_QUERIES
from benchmarks.timing import Latency, time_calls
from benchmarks.workloads import synthetic_bundle
from indexer.bundle import IndexBundle
from indexer.exact import ExactScorer

_K = 100
_RECALL_TARGET = 0.95
_BACKENDS = ("brute_force", "scann")
_SECONDS = 0.5


class ScalingPoint(BaseModel):
    """One corpus, searched by the backend that its index chose."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_candidates: int
    dim: int
    backend: str
    recall: float
    latency: Latency
    """Of calls with one query."""
    batch_cpu_us: float
    """CPU microseconds a query in batches of ``BATCH_SIZE``."""
    speedup: float
    """Exact search's CPU time a query of the same minute, divided by this one's."""
    vectors_bytes: int
    index_bytes: int
    """What the backend takes beside the vectors."""
    build_seconds: float

    @property
    def exact_cpu_us(self) -> float:
        """Exact search's CPU microseconds a query, of the same minute."""
        return self.speedup * self.latency.cpu_us


def benchmark_scaling(
    root: Path, sizes: Iterable[tuple[int, int]], *, on_step: OnStep = lambda _: None
) -> list[ScalingPoint]:
    """Measure generated corpora of several sizes.

    Args:
        root: where their indexes are kept.
        sizes: numbers of candidates, each with a dimension.
        on_step: called with a line of progress.
    """
    return [
        _measure(synthetic_bundle(root, n, dim, backends=_BACKENDS, on_step=on_step), on_step)
        for n, dim in sizes
    ]


def _measure(bundle: IndexBundle, on_step: OnStep) -> ScalingPoint:
    manifest, corpus = bundle.manifest, bundle.corpus
    on_step(f"measuring {manifest.n_candidates:,} candidates of {manifest.dim} dimensions")
    k = min(_K, manifest.n_candidates)
    choice = bundle.choose(k, recall_target=_RECALL_TARGET)
    queries = np.ascontiguousarray(bundle.tuning_queries[:MAX_QUERIES])
    singles = [queries[i : i + 1] for i in range(len(queries))]
    batches = [queries[i : i + BATCH_SIZE] for i in range(0, len(queries), BATCH_SIZE)]
    search = partial(bundle.index(choice.backend).search, k=k, params=choice.params)
    exact = partial(ExactScorer(corpus.embeddings).search, k=k)
    reference = time_calls(exact, singles, seconds=_SECONDS)
    latency = time_calls(search, singles, seconds=_SECONDS)
    batched = time_calls(search, batches[:-1] or batches, seconds=_SECONDS)
    entry = manifest.backends[choice.backend]
    return ScalingPoint(
        n_candidates=manifest.n_candidates,
        dim=manifest.dim,
        backend=choice.backend,
        recall=choice.point.recall,
        latency=latency,
        batch_cpu_us=batched.cpu_us / len(batches[0]),
        speedup=reference.cpu_us / latency.cpu_us,
        vectors_bytes=corpus.embeddings.nbytes,
        index_bytes=entry.size_bytes,
        build_seconds=entry.build_seconds,
    )
