"""What it costs to search among eligible candidates only, and what is found there.

Masked searches are timed beside the same searches without a mask, our scans of the eligible rows,
and such scans in plain NumPy: their cost is told as ratios to each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from time import process_time_ns
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from benchmarks.errors import BenchmarkError
from benchmarks.progress import OnStep
from indexer.backends import LocalIndex, SearchParams
from indexer.bundle import IndexBundle
from indexer.exact import ExactScorer
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


def benchmark_eligibility(
    bundle: IndexBundle, *, backend: str | None = None, on_step: OnStep = lambda _: None
) -> EligibilityReport:
    """Measure random masks, masks that a query's score decides, and exclusions of a query's best.

    Args:
        bundle: an open index bundle.
        backend: which backend; by default, the bundle's own choice.
        on_step: called with a line of progress.

    Raises:
        BenchmarkError: if the bundle has no such backend.
    """
    k = min(_K, bundle.manifest.n_candidates)
    name = backend or bundle.manifest.default_backend
    if name not in bundle.backend_names:
        known = ", ".join(bundle.backend_names)
        raise BenchmarkError(f"{bundle.directory} has no backend {name!r}; it has {known}")
    choice = bundle.choose(k, recall_target=_RECALL_TARGET, backend=name)
    index = bundle.index(name)
    scorer = ExactScorer(bundle.corpus.embeddings)
    queries = np.ascontiguousarray(bundle.tuning_queries[:_MAX_QUERIES])
    points = []
    for mask, make in _masks(scorer):
        on_step(f"{name}: {mask}")
        masks = [make(query) for query in queries]
        searches = zip(queries[:, None], masks, strict=True)
        points.append(_point(mask, index, choice.params, scorer, list(searches), k))
    return EligibilityReport(
        index_version=bundle.manifest.version,
        n_candidates=bundle.manifest.n_candidates,
        dim=bundle.manifest.dim,
        backend=name,
        k=k,
        recall=choice.point.recall,
        points=tuple(points),
    )


def _point(
    mask: str,
    index: LocalIndex[Any, Any],
    params: SearchParams,
    scorer: ExactScorer,
    searches: Sequence[tuple[np.ndarray, np.ndarray]],
    k: int,
) -> EligibilityPoint:
    """Measure searches, each a query (1, dim) and the eligible candidates (n_candidates,)."""
    unfiltered, _ = _timed(lambda query, _: index.search(query, k, params), searches)
    nanos, found = _timed(lambda query, mask: index.search(query, k, params, mask), searches)
    scan, exact = _timed(lambda query, mask: scorer.search(query, k, mask), searches)
    numpy_scan, _ = _timed(
        lambda query, mask: _scan_in_numpy(scorer.embeddings, query[0], k, mask), searches
    )
    recalls = map(recall_at_k, found, exact)
    return EligibilityPoint(
        mask=mask,
        recall=float(np.mean(list(recalls))),
        cpu_microseconds=float(np.median(nanos)) / 1e3,
        to_unfiltered=float(np.median(nanos / unfiltered)),
        to_scan=float(np.median(nanos / scan)),
        to_numpy_scan=float(np.median(nanos / numpy_scan)),
        methods=Counter(one.method.value for one in found),
    )


def _timed(
    search: Callable[[np.ndarray, np.ndarray], T], searches: Sequence[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, list[T]]:
    """Return the nanoseconds of CPU time (n,) of each of several searches, and their answers.

    One way of searching goes through all queries before the next does: so each finds of a query's
    candidates in the processor's caches what other queries have left there, as in a server.
    """
    search(*searches[0])
    nanos, answers = [], []
    for query, mask in searches:
        started = process_time_ns()
        answers.append(search(query, mask))
        nanos.append(process_time_ns() - started)
    return np.array(nanos), answers


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
