"""What embedding on Ray costs beside embedding in one process, and what memory it takes.

Both embed generated candidates with the same trained tower, each in a process of its own. Speed is
measured over the middle half of the candidates, so that what is started and ended does not count
there; CPU time is that of all processes, Ray's own included. What was embedded is read back in the
end, as whoever builds an index does.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from rich import box
from rich.table import Table

from benchmarks.processes import cpu_seconds, descendants, peak_bytes, run_alone, title
from benchmarks.progress import OnStep
from benchmarks.workloads import enlarged_towers
from indexer import embed
from indexer.engines import ray_data
from indexer.engines.ray_data import ShardEmbedder
from trainer.bundle import TowerBundle

_MAX_ALONE = 1_000_000  # candidates of the one process, which holds all of them in memory


class Embedding(BaseModel):
    """What embedding took, in one of the two ways."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_candidates: int
    n_workers: int
    cpu_us: float
    """CPU time of a candidate, of all processes."""
    wall_us: float
    """Time of a candidate, by the clock."""
    start_seconds: float
    """Until the first candidates were embedded."""
    seconds: float
    """All of it."""
    main_peak_bytes: int
    """Resident memory of the process that wants the embeddings."""
    worker_peak_bytes: int
    """The same of the worker that took the most; without workers, of the process itself."""
    all_peak_bytes: int
    """The sum over all processes, what they share counted for each."""

    @property
    def rate(self) -> float:
        """Candidates a second of a core."""
        return 1e6 / self.cpu_us


class RayReport(BaseModel):
    """Embedding on Ray, and in one process."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dim: int
    alone: tuple[Embedding, Embedding]
    """Before and after, as a machine is not equally fast all the time."""
    on_ray: Embedding
    assembling_seconds: float
    """What it took to read the shards back, in order, and to check them."""

    @property
    def ratio(self) -> float:
        """Candidates a second of a core on Ray, as a share of those of one process."""
        before, after = self.alone
        return (before.cpu_us + after.cpu_us) / 2 / self.on_ray.cpu_us


def benchmark_ray(
    root: Path, n_candidates: int, dim: int, on_step: OnStep = lambda _: None
) -> RayReport:
    """Measure what embedding takes in one process and on Ray.

    Args:
        root: where generated towers are kept; embeddings are removed again.
        n_candidates: how many to embed on Ray, and at most in one process.
        dim: dimension of the embeddings.
        on_step: called with a line of progress.

    Raises:
        BackendUnavailableError: if Ray is not installed.
    """
    few = enlarged_towers(root, min(n_candidates, _MAX_ALONE), dim, on_step)
    all_of_them = enlarged_towers(root, n_candidates, dim, on_step)
    shards = root / "ray-shards"
    try:
        on_step("embedding in one process")
        before = run_alone(_measure_alone, few.directory)
        on_step(f"embedding {n_candidates:,} candidates on Ray")
        on_ray = run_alone(_measure_on_ray, all_of_them.directory, shards)
        on_step("embedding in one process again")
        after = run_alone(_measure_alone, few.directory)
        on_step("putting the embeddings together")
        assembling_seconds = run_alone(_measure_assembling, all_of_them.directory, shards)
    finally:
        shutil.rmtree(shards, ignore_errors=True)
    return RayReport(
        dim=dim, alone=(before, after), on_ray=on_ray, assembling_seconds=assembling_seconds
    )


def ray_table(report: RayReport) -> Table:
    """Tabulate both ways."""
    table = Table(
        title=f"{report.on_ray.n_candidates:,} candidates, {report.dim} dimensions",
        caption="candidates a second of a core: by the CPU time of all processes, while they embed",
        box=box.SIMPLE,
    )
    headings = ("", "a second of a core", "speed", "start s", "all s", "worker MiB", "main MiB")
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    before, after = report.alone
    ways = (
        ("one process", before, ""),
        (f"Ray, {report.on_ray.n_workers} workers", report.on_ray, f"{report.ratio:.2f}x"),
        ("one process again", after, ""),
    )
    for name, way, ratio in ways:
        memory = (f"{peak / 2**20:,.0f}" for peak in (way.worker_peak_bytes, way.main_peak_bytes))
        seconds = (f"{way.start_seconds:.1f}", f"{way.seconds:.1f}")
        table.add_row(name, f"{way.rate:,.0f}", ratio, *seconds, *memory)
    return table


_MIDDLE = (0.25, 0.75)  # of the candidates, where speed is measured


class _Gauge:
    """Watches an embedding from the process that wants it.

    Args:
        n_candidates: how many there are.
    """

    def __init__(self, n_candidates: int) -> None:
        self._n_candidates = n_candidates
        self._started = time.perf_counter()
        self._marks: list[tuple[int, float, float]] = []
        """Where the middle half begins and ends: candidates done, the time, the CPU time."""
        self._start_seconds = 0.0
        self._peaks: dict[int, int] = {}
        self._workers: set[int] = set()

    def look(self, n_done: int) -> None:
        """Look at the processes when some candidates are done."""
        self._start_seconds = self._start_seconds or time.perf_counter() - self._started
        for share in _MIDDLE[len(self._marks) :][:1]:
            if n_done >= share * self._n_candidates:
                self._marks.append((n_done, time.perf_counter(), cpu_seconds(os.getpid())))
        for pid in descendants(os.getpid()):
            self._peaks[pid] = max(peak_bytes(pid), self._peaks.get(pid, 0))
            if ShardEmbedder.__name__ in title(pid):
                self._workers.add(pid)

    def result(self) -> Embedding:
        """Return what was seen."""
        (n_before, start, cpu_before), (n_after, end, cpu_after) = self._marks
        main, of_workers = peak_bytes(os.getpid()), [self._peaks[pid] for pid in self._workers]
        return Embedding(
            n_candidates=self._n_candidates,
            n_workers=len(self._workers),
            cpu_us=(cpu_after - cpu_before) / (n_after - n_before) * 1e6,
            wall_us=(end - start) / (n_after - n_before) * 1e6,
            start_seconds=self._start_seconds,
            seconds=time.perf_counter() - self._started,
            main_peak_bytes=main,
            worker_peak_bytes=max(of_workers, default=main),
            all_peak_bytes=main + sum(self._peaks.values()),
        )


def _measure_alone(directory: Path) -> Embedding:
    towers = TowerBundle.open(directory, verify=False)
    gauge = _Gauge(towers.manifest.n_candidates)
    embed.embed_candidates(towers, gauge.look)
    return gauge.result()


def _measure_on_ray(directory: Path, shards: Path) -> Embedding:
    towers = TowerBundle.open(directory, verify=False)
    gauge = _Gauge(towers.manifest.n_candidates)
    ray_data.embed_candidates(towers, shards, on_progress=gauge.look)
    return gauge.result()


def _measure_assembling(directory: Path, shards: Path) -> float:
    towers = TowerBundle.open(directory, verify=False)
    start = time.perf_counter()
    (published,) = shards.glob("2*")
    ray_data.read_shards(published, towers)
    return time.perf_counter() - start
