"""What the benchmarks print, write and draw."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from rich import box
from rich.table import Table

from benchmarks.search import BATCH_SIZE, SearchPoint, SearchReport

_COLOURS = {"brute_force": "#4c4c4c", "annoy": "#d95f02", "scann": "#1b6ca8"}
_OTHER_COLOUR = "#7570b3"


def search_table(report: SearchReport) -> Table:
    """Tabulate the operating points of a search benchmark."""
    table = Table(
        title=f"{report.n_candidates:,} candidates of {report.dim} dimensions, "
        f"{report.n_queries:,} {report.queries_are}",
        caption="p50/p95/p99: microseconds of calls with one query; QPS: one query a call, and in "
        f"batches of {BATCH_SIZE}; speed: against exact search of the same minute",
        box=box.SIMPLE,
        padding=0,
    )
    table.add_column("backend")
    table.add_column("point")
    for heading in (
        "recall@10",
        f"@{report.k}",
        "p50/p95/p99",
        "QPS",
        f"in {BATCH_SIZE}s",
        "speed",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for point in report.points:
        if point.name is None:
            continue
        latency = point.latency
        table.add_row(
            point.backend,
            point.name,
            f"{point.recall_at_10:.3f}",
            f"{point.recall_at_100:.3f}",
            f"{latency.p50_us:,.0f}/{latency.p95_us:,.0f}/{latency.p99_us:,.0f}",
            f"{1e6 / latency.mean_us:,.0f}",
            f"{point.batch_qps:,.0f}",
            f"{point.speedup:.2f}x",
        )
    return table


def build_table(report: SearchReport) -> Table:
    """Tabulate what the backends took to build, and take on disk beside the embeddings."""
    table = Table(box=box.SIMPLE, padding=0)
    table.add_column("backend")
    table.add_column("build seconds", justify="right")
    table.add_column("megabytes", justify="right")
    for backend, seconds in report.build_seconds.items():
        table.add_row(backend, f"{seconds:.2f}", f"{report.size_bytes[backend] / 1e6:.2f}")
    return table


def draw_search(report: SearchReport, path: Path) -> None:
    """Draw recall against latency, one line a backend, its operating points marked."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for backend in report.build_seconds:
        points = [point for point in report.points if point.backend == backend]
        if not points:
            continue
        colour = _COLOURS.get(backend, _OTHER_COLOUR)
        frontier = _frontier(points)
        axes.plot(
            [point.recall_at_100 for point in frontier],
            [point.latency.p50_us for point in frontier],
            color=colour,
            marker=".",
            label=backend,
        )
        named = [point for point in points if point.name is not None]
        axes.scatter(
            [point.recall_at_100 for point in named],
            [point.latency.p50_us for point in named],
            s=70,
            facecolors="none",
            edgecolors=colour,
        )
        for point in named:
            axes.annotate(
                point.name or "",
                (point.recall_at_100, point.latency.p50_us),
                textcoords="offset points",
                xytext=(-6, 7),
                ha="right",
                fontsize=8,
                color=colour,
            )
    axes.set_yscale("log")
    axes.set_xlabel(f"recall@{report.k}")
    axes.set_ylabel("median latency of one query, microseconds")
    axes.set_title(
        f"{report.n_candidates:,} candidates of {report.dim} dimensions: lower right is better"
    )
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _frontier(points: list[SearchPoint]) -> list[SearchPoint]:
    """Return the points that no other beats in both recall and latency, by rising recall."""
    best: list[SearchPoint] = []
    for point in sorted(points, key=lambda p: (p.latency.p50_us, -p.recall_at_100)):
        if not best or point.recall_at_100 > best[-1].recall_at_100:
            best.append(point)
    return best
