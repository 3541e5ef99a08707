"""Operating points: the cheapest search params that deliver a recall, found by measuring.

Half of the queries choose the params, the other half, unseen, tells what they deliver. The
choosing half must show the target by more than its standard error, or the luckiest of the params
that were tried would be promised and not delivered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from indexer.backends import LocalIndex, SearchParams
from indexer.bundle import EXHAUSTIVE, OperatingPoint
from indexer.exact import ExactScorer, Neighbors, SearchMethod
from indexer.recall import mean_interval, recall_at_k, standard_error

TARGETS = (0.90, 0.95, 0.99)

_MAX_QUERIES = 800  # a standard error of 0.0025 for each half where recalls deviate by 0.05
_MAX_ANSWERS, _MIN_CHOOSING = 40_000, 100  # deep answers take long, and deviate less
_EXHAUSTIVE_QUERIES = 20  # an exhaustive search is slow, and there is nothing to estimate ...
_EXHAUSTIVE_ROWS = 50_000_000  # ... so no more are made than cost as much as scanning these
_MOST_SCANS, _ALWAYS_AFFORDABLE = 4, 250_000  # cost of params worth trying: scans, or rows
_TIMED_SECONDS = 0.1
_MIN_TIMED, _MAX_TIMED = 3, 500
_WORTH_TRYING = 1.5  # times the least cost known to suffice; the cost model is a rough one
# Cells are prepared for this much less recall: masks may cost 0.01, and cells were measured to find
# 0.007 more than they are prepared for.
_WORSE_UNDER_MASKS = 0.0175
_BEYOND_TARGET = 0.4  # of what is missing from 1; about what points deliver beyond their target
_FINALISTS = 3  # params that are timed for each target

AnyIndex = LocalIndex[Any, Any]


@dataclass(frozen=True)
class TuningQueries:
    """Queries with their exact answers, in two halves.

    Attributes:
        choosing: (n, dim) float32, on which params are chosen.
        unseen: (m, dim) float32, on which the chosen params are measured.
        exact_choosing: the exact top k of ``choosing`` for the largest k that is tuned for.
        exact_unseen: the same for ``unseen``.
    """

    choosing: np.ndarray
    unseen: np.ndarray
    exact_choosing: Neighbors
    exact_unseen: Neighbors

    @classmethod
    def prepare(
        cls, embeddings: np.ndarray, queries: np.ndarray, max_k: int, seed: int
    ) -> TuningQueries:
        """Draw some of the queries, split them and search them exactly."""
        order = np.random.default_rng(seed).permutation(len(queries))[:_MAX_QUERIES]
        # A single query has to serve as both halves.
        choosing, unseen = queries[order[::2]], queries[order[1::2] if len(order) > 1 else order]
        scorer = ExactScorer(embeddings)
        return cls(choosing, unseen, scorer.search(choosing, max_k), scorer.search(unseen, max_k))


def tune(
    index: AnyIndex,
    queries: TuningQueries,
    k: int,
    targets: Sequence[float] = TARGETS,
    *,
    fewest: int | None = None,
    before: Sequence[OperatingPoint] = (),
) -> list[OperatingPoint]:
    """Return the operating points of an index for k results, the cheapest first.

    Args:
        index: a built index.
        queries: what to measure on.
        k: the number of results; at most what ``queries`` was prepared for.
        targets: the recalls to tune for, each below 1.
        fewest: the least number of results that the points are to serve as well, by default k: an
            index may find most of the best thousand and miss the very best.
        before: the points for fewer results, whose recall is to hold under masks, where a search
            for few looks as deep as one for these.

    Returns:
        A point for each target that some params meet, and the exhaustive one.
    """
    exhaustive = _exhaustive_point(index, queries, k)
    if index.is_exact:
        return [exhaustive]
    trials = _Trials(index, queries, k, k if fewest is None else fewest)
    delivered = {
        target: [p.recall for p in before if p.recall_target == target] for target in targets
    }
    points = [trials.best(target, delivered[target]) for target in targets]
    return [*(point for point in points if point is not None), exhaustive]


def tune_depths(
    index: AnyIndex,
    queries: TuningQueries,
    depths: Sequence[int],
    targets: Sequence[float] = TARGETS,
    *,
    on_depth: Callable[[int], None] = lambda _: None,
) -> list[OperatingPoint]:
    """Return the operating points of an index for several numbers of results.

    Those of one number serve fewer results as well, down to the number before it.

    Args:
        index: a built index.
        queries: what to measure on.
        depths: the numbers of results, rising.
        targets: the recalls to tune for, each below 1.
        on_depth: told each number before it is tuned for.
    """
    points: list[OperatingPoint] = []
    for below, k in pairwise((0, *depths)):
        on_depth(k)
        points += tune(index, queries, k, targets, fewest=below + 1, before=points)
    return points


class _Trials:
    """The params of one index that were tried for one k."""

    def __init__(self, index: AnyIndex, queries: TuningQueries, k: int, fewest: int) -> None:
        self._index = index
        self._queries = queries
        n_choosing = max(_MIN_CHOOSING, _MAX_ANSWERS // k)
        self._choosing = queries.choosing[:n_choosing]
        self._exact = queries.exact_choosing.best(k).of_first(n_choosing)
        self._k = k
        self._fewest = fewest
        self._ladders = index.effort_ladders(k)
        self._shown: dict[SearchParams, float] = {}

    def best(self, target: float, delivered: Sequence[float]) -> OperatingPoint | None:
        """Return the cheapest params that meet a target, measured; None if none do.

        Under masks they are to keep what the points for fewer results delivered, too. What costs
        far more than exact search is not tried: nobody should search like that.
        """
        enough = self._enough(target)
        enough.sort(key=self._cost)
        if not enough:
            return None
        finalists = enough[:_FINALISTS]
        timings = _latencies(self._index, self._queries.unseen, self._k, finalists)
        timed = zip(finalists, timings, strict=True)
        params, latencies = min(timed, key=lambda one: float(np.median(one[1])))
        found = self._index.search(self._queries.unseen, self._k, params)
        recalls = recall_at_k(found, self._queries.exact_unseen.best(self._k))
        under_masks = _under_masks(target, max([float(recalls.mean()), *delivered]))
        params = self._index.prepared_for_masks(params, self._choosing, self._exact, under_masks)
        return _point(target, self._k, params, recalls, latencies)

    def _enough(self, target: float) -> list[SearchParams]:
        """Return the lowest rungs that meet a target, of all ladders where that may be cheapest.

        From the middle down: what suffices there is a limit that rules most of the upper out. Where
        no rung of a ladder suffices, none of those below it does.
        """
        enough: list[SearchParams] = []
        limit: float = max(_MOST_SCANS * self._index.n_candidates, _ALWAYS_AFFORDABLE)
        middle, lowest_useful = len(self._ladders) // 2, 0
        for number in (*range(middle, -1, -1), *range(middle + 1, len(self._ladders))):
            if number < lowest_useful:
                continue
            ladder = self._ladders[number]
            affordable = [params for params in ladder if self._cost(params) <= limit]
            params = self._lowest(affordable, target)
            if params is not None:
                enough.append(params)
                limit = min(limit, _WORTH_TRYING * self._cost(params))
            elif len(affordable) == len(ladder):
                lowest_useful = number + 1
        return enough

    def _cost(self, params: SearchParams) -> float:
        return self._index.cost(self._k, params)

    def _lowest(self, ladder: Sequence[SearchParams], target: float) -> SearchParams | None:
        """Return the lowest rung that meets the target, found by bisection; None if none does."""
        low, high = 0, len(ladder)
        while low < high:
            middle = (low + high) // 2
            if self._meets(ladder[middle], target):
                high = middle
            else:
                low = middle + 1
        return ladder[low] if low < len(ladder) else None

    def _meets(self, params: SearchParams, target: float) -> bool:
        if params not in self._shown:
            self._shown[params] = self._recall_shown(params)
        return self._shown[params] >= target

    def _recall_shown(self, params: SearchParams) -> float:
        """Return the recall that the choosing half shows, by a standard error and at all depths."""
        found = self._index.search(self._choosing, self._k, params)
        # Where an index proposes too few, the answer is completed: rightly, but slowly.
        if found.method is not SearchMethod.INDEX:
            return 0.0
        depths = (self._fewest, self._k)
        recalls = [recall_at_k(found.best(n), self._exact.best(n)) for n in depths]
        return min(float(one.mean()) - standard_error(one) for one in recalls)


def _under_masks(target: float, delivered: float) -> float:
    """Return the recall to prepare for under masks; without, points deliver more than asked."""
    return max(target + _BEYOND_TARGET * (1 - target), delivered - _WORSE_UNDER_MASKS)


def _exhaustive_point(index: AnyIndex, queries: TuningQueries, k: int) -> OperatingPoint:
    params = index.exhaustive_params()
    affordable = max(1, int(_EXHAUSTIVE_ROWS / index.cost(k, params)))
    n_queries = min(_EXHAUSTIVE_QUERIES, affordable)
    found = index.search(queries.unseen[:n_queries], k, params)
    recalls = recall_at_k(found, queries.exact_unseen.best(k).of_first(n_queries))
    (latencies,) = _latencies(index, queries.unseen, k, [params])
    return _point(1.0, k, params, recalls, latencies)


def _point(
    target: float, k: int, params: SearchParams, recalls: np.ndarray, latencies: np.ndarray
) -> OperatingPoint:
    recall, low, high = mean_interval(recalls)
    p50, p99 = np.percentile(latencies, [50, 99])
    return OperatingPoint(
        name=EXHAUSTIVE if target == 1 else max(f"{target:.2f}", f"{target:g}", key=len),
        recall_target=target,
        k=k,
        search_params=params.model_dump(),
        recall=recall,
        recall_low=low,
        recall_high=high,
        p50_microseconds=round(float(p50), 1),
        p99_microseconds=round(float(p99), 1),
    )


def _latencies(
    index: AnyIndex, queries: np.ndarray, k: int, several: Sequence[SearchParams]
) -> list[np.ndarray]:
    """Return for each of several params the microseconds that calls with one query take.

    They are called in turn, so that what else the machine does meets all of them alike.
    """
    for params in several:
        index.search(queries[:1], k, params)
    rounds: list[list[int]] = []
    started = time.perf_counter()
    while len(rounds) < _MIN_TIMED or (
        len(rounds) < _MAX_TIMED and time.perf_counter() - started < _TIMED_SECONDS * len(several)
    ):
        query = queries[len(rounds) % len(queries)][None, :]
        rounds.append([_nanoseconds(index, query, k, params) for params in several])
    return list(np.transpose(rounds) / 1e3)


def _nanoseconds(index: AnyIndex, query: np.ndarray, k: int, params: SearchParams) -> int:
    start = time.perf_counter_ns()
    index.search(query, k, params)
    return time.perf_counter_ns() - start
