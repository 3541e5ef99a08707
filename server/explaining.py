"""One search, made on every backend and exactly: how the answers and their costs differ."""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter_ns

import numpy as np

from server.domain import Notice, SearchPlan, SearchRequest, SearchResult
from server.engine import Engine

EXACT = "exact"


@dataclass(slots=True)
class Answer:
    """What one backend answers."""

    name: str
    plan: SearchPlan
    rows: np.ndarray
    scores: np.ndarray
    overlap: float
    """The share of the exact answer's candidates that it has."""
    duration_micros: float


@dataclass(slots=True)
class Explanation:
    """One search, made in every way."""

    plan: SearchPlan
    plan_reason: str
    stage_micros: dict[str, float]
    answers: list[Answer]
    n_eligible: int
    notices: list[Notice]


def explain(engine: Engine, request: SearchRequest) -> Explanation:
    """Make one search in every way that the index can.

    Raises:
        SearchError: if the search is refused; the class says why.
    """
    engine.search(request)  # so that no first use is timed
    asked = engine.search(request)
    exact, exact_micros = _timed_search(engine, _by(request, exact=True))
    answers = []
    for name in engine.planner.indexes:
        result, micros = _timed_search(engine, _by(request, backend=name))
        answers.append(_answer(name, result, micros, exact))
    return Explanation(
        plan=asked.plan,
        plan_reason=engine.reason(request, asked.plan),
        stage_micros={stage: nanos / 1000 for stage, nanos in asked.stage_nanos.items()},
        answers=[*answers, _answer(EXACT, exact, exact_micros, exact)],
        n_eligible=engine.n_eligible(request),
        notices=asked.notices,
    )


def _by(
    request: SearchRequest, *, backend: str | None = None, exact: bool = False
) -> SearchRequest:
    recall_target = None if exact else request.recall_target
    return replace(request, backend=backend, exact=exact, recall_target=recall_target)


def _timed_search(engine: Engine, request: SearchRequest) -> tuple[SearchResult, float]:
    """Return an answer, and the microseconds that the second of two searches took."""
    engine.search(request)
    start = perf_counter_ns()
    result = engine.search(request)
    return result, (perf_counter_ns() - start) / 1000


def _answer(name: str, result: SearchResult, micros: float, exact: SearchResult) -> Answer:
    n_exact = len(exact.rows)
    n_shared = int(np.isin(result.rows, exact.rows).sum())
    overlap = n_shared / n_exact if n_exact else 1.0
    return Answer(name, result.plan, result.rows, result.scores, overlap, micros)
