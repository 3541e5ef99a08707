"""What it costs to search among eligible candidates only, and what is found there.

Each masked search is timed beside the same search without a mask, our scan of the eligible rows,
and such a scan in plain NumPy: its cost is told as ratios to each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from time import process_time_ns
from typing import NamedTuple, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from benchmarks.progress import OnStep
from indexer.bundle import IndexBundle
from indexer.exact import ExactScorer, Neighbors
from indexer.recall import recall_at_k

SHARES = (0.001, 0.01, 0.1, 0.5, 1.0)
N_EXCLUDED = (100, 1_000, 10_000)  # no exclusions are the mask that makes all eligible

_K = 100
_RECALL_TARGET = 0.95
_MAX_QUERIES = 100

T = TypeVar("T")

MakeMask = Callable[[np.ndarray], np.ndarray]
"""A query (dim,) -> the eligible candidates (n_candidates,) bool."""


class EligibilityPoint(BaseModel):
    """One kind of mask."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mask: str
    recall: float
    """Against an exact search among the eligible candidates."""
    cpu_microseconds: float
    """CPU time, in the median."""
    to_unfiltered: float
    """The median of its CPU time divided by that of the same search without a mask."""
    to_scan: float
    """The median of its CPU time divided by that of our exact scan of the eligible rows."""
    to_numpy_scan: float
    """The same for a scan in plain NumPy."""
    methods: dict[str, int]
    """How many searches were made in which way."""


class EligibilityReport(BaseModel):
    """One backend under masks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    index_version: str
    n_candidates: int
    dim: int
    backend: str
    k: int
    recall: float
    """Of the operating point, without a mask."""
    points: tuple[EligibilityPoint, ...]


class _Timed(NamedTuple):
    """One masked search, with nanoseconds of it and of what it is compared with."""

    found: Neighbors
    exact: Neighbors
    nanos: int
    unfiltered_nanos: int
    scan_nanos: int
    numpy_scan_nanos: int


def benchmark_eligibility(
    bundle: IndexBundle, *, backend: str | None = None, on_step: OnStep = lambda _: None
) -> EligibilityReport:
    """Measure random masks, masks that a query's score decides, and exclusions of a query's best.

    Args:
        bundle: an open index bundle.
        backend: which backend; by default, the bundle's own choice.
        on_step: called with a line of progress.

    Raises:
        ValueError: if the bundle has no such backend.
    """
    k = min(_K, bundle.manifest.n_candidates)
    name = backend or bundle.manifest.default_backend
    choice = bundle.choose(k, recall_target=_RECALL_TARGET, backend=name)
    index = bundle.index(name)
    scorer = ExactScorer(bundle.corpus.embeddings)
    queries = np.ascontiguousarray(bundle.tuning_queries[:_MAX_QUERIES])

    def timed(query: np.ndarray, eligible: np.ndarray) -> _Timed:
        unfiltered_nanos, _ = _warm(lambda: index.search(query, k, choice.params))
        nanos, found = _warm(lambda: index.search(query, k, choice.params, eligible))
        scan_nanos, exact = _warm(lambda: scorer.search(query, k, eligible))
        numpy_nanos, _ = _warm(lambda: _scan_in_numpy(scorer.embeddings, query[0], k, eligible))
        return _Timed(found, exact, nanos, unfiltered_nanos, scan_nanos, numpy_nanos)

    points = []
    for mask, make in _masks(scorer):
        on_step(f"{name}: {mask}")
        points.append(_point(mask, [timed(query[None], make(query)) for query in queries]))
    return EligibilityReport(
        index_version=bundle.manifest.version,
        n_candidates=bundle.manifest.n_candidates,
        dim=bundle.manifest.dim,
        backend=name,
        k=k,
        recall=choice.point.recall,
        points=tuple(points),
    )


def _warm(work: Callable[[], T]) -> tuple[int, T]:
    """Return the nanoseconds of CPU time that work takes after itself, and what it returns.

    What comes after other work finds other candidates in the processor's caches.
    """
    work()
    started = process_time_ns()
    result = work()
    return process_time_ns() - started, result


def _point(mask: str, searches: list[_Timed]) -> EligibilityPoint:
    nanos = np.array([one.nanos for one in searches])
    return EligibilityPoint(
        mask=mask,
        recall=float(np.mean([recall_at_k(one.found, one.exact) for one in searches])),
        cpu_microseconds=float(np.median(nanos)) / 1e3,
        to_unfiltered=float(np.median(nanos / [one.unfiltered_nanos for one in searches])),
        to_scan=float(np.median(nanos / [one.scan_nanos for one in searches])),
        to_numpy_scan=float(np.median(nanos / [one.numpy_scan_nanos for one in searches])),
        methods=Counter(one.found.method.value for one in searches),
    )


def _scan_in_numpy(
    embeddings: np.ndarray, query: np.ndarray, k: int, eligible: np.ndarray
) -> np.ndarray:
    """Return the best k eligible rows (k,) as one finds them in NumPy with few lines."""
    rows = np.flatnonzero(eligible)
    scores = embeddings[rows] @ query
    best = np.argpartition(-scores, min(k, len(rows)) - 1)[:k]
    found: np.ndarray = rows[best[np.argsort(-scores[best])]]
    return found


def _masks(scorer: ExactScorer) -> Iterator[tuple[str, MakeMask]]:
    n = len(scorer.embeddings)
    rng = np.random.default_rng(42)
    for share in SHARES:
        yield f"random, {share:.1%} eligible", _always(rng.random(n) < share)
    for share in SHARES[1:-1]:
        n_eligible = round(share * n)
        yield f"best {share:.1%} eligible", _best(scorer, n_eligible)
        yield f"worst {share:.1%} eligible", _all_but_best(scorer, n - n_eligible)
    for n_excluded in (one for one in N_EXCLUDED if one < n):
        yield f"best {n_excluded:,} excluded", _all_but_best(scorer, n_excluded)


def _always(eligible: np.ndarray) -> MakeMask:
    return lambda _: eligible


def _best(scorer: ExactScorer, n_best: int) -> MakeMask:
    def make(query: np.ndarray) -> np.ndarray:
        eligible = np.zeros(len(scorer.embeddings), dtype=bool)
        if n_best:
            scores = scorer.embeddings @ query
            eligible[np.argpartition(-scores, n_best - 1)[:n_best]] = True
        return eligible

    return make


def _all_but_best(scorer: ExactScorer, n_best: int) -> MakeMask:
    best = _best(scorer, n_best)
    return lambda query: ~best(query)
