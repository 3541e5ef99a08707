"""Timing calls: warm-up first, each call timed by itself, nothing averaged before percentiles."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle
from pathlib import Path
from time import perf_counter, perf_counter_ns, process_time_ns
from typing import TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict

T = TypeVar("T")

_WARM_UP_SHARE = 0.1


class Latency(BaseModel):
    """How long calls took, in microseconds a call, and how many were timed.

    ``cpu_us`` is the CPU time of a call in the mean: what the machine does beside lengthens it
    little, and a long call no more than a short one, so speeds are compared by it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_calls: int
    mean_us: float
    p50_us: float
    p95_us: float
    p99_us: float
    cpu_us: float


def hash_files(directory: Path, names: Iterable[str]) -> None:
    """Read and hash files one after the other, which is what opening a bundle is compared with."""
    for name in names:
        with (directory / name).open("rb") as file:
            hashlib.file_digest(file, "sha256")


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Return how many seconds a piece of work took, and its result."""
    start = perf_counter()
    result = work()
    return perf_counter() - start, result


def time_calls(
    function: Callable[[T], object], arguments: Sequence[T], *, seconds: float
) -> Latency:
    """Call a function with each argument in turn, over and over, for a while.

    Args:
        function: what is timed.
        arguments: at least one; the first calls, a tenth of the time, warm up and do not count.
        seconds: how long to go on; at least one call is timed.
    """
    endless = cycle(arguments)
    start = perf_counter_ns()
    counting_from = start + int(seconds * 1e9 * _WARM_UP_SHARE)
    end = start + int(seconds * 1e9)
    while perf_counter_ns() < counting_from:
        function(next(endless))
    durations: list[int] = []
    cpu_start = process_time_ns()
    while not durations or perf_counter_ns() < end:
        argument = next(endless)
        before = perf_counter_ns()
        function(argument)
        durations.append(perf_counter_ns() - before)
    cpu_us = (process_time_ns() - cpu_start) / len(durations) / 1e3
    p50, p95, p99 = np.percentile(durations, (50, 95, 99)) / 1e3
    return Latency(
        n_calls=len(durations),
        mean_us=float(np.mean(durations) / 1e3),
        p50_us=float(p50),
        p95_us=float(p95),
        p99_us=float(p99),
        cpu_us=cpu_us,
    )
