"""What the scaling benchmark prints and draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from rich import box
from rich.table import Table

from benchmarks.scaling import ScalingPoint
from benchmarks.search import BATCH_SIZE

_EXACT_STYLE, _INDEX_STYLE = "--", "-"


def scaling_table(points: Sequence[ScalingPoint]) -> Table:
    """Tabulate how cost and memory grow."""
    table = Table(
        caption=f"CPU us: a query, one a call and in batches of {BATCH_SIZE}; speed: the CPU time "
        "of exact search of the same minute, divided by this",
        box=box.SIMPLE,
        padding=0,
    )
    for heading in ("candidates", "dim"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("index", no_wrap=True)
    for heading in (
        *("recall", "p50 us", "CPU us", f"in {BATCH_SIZE}s", "speed"),
        *("vectors MB", "index MB", "build s"),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for point in points:
        table.add_row(
            f"{point.n_candidates:,}",
            f"{point.dim}",
            point.backend,
            f"{point.recall:.3f}",
            f"{point.latency.p50_us:,.0f}",
            f"{point.latency.cpu_us:,.0f}",
            f"{point.batch_cpu_us:,.0f}",
            f"{point.speedup:.1f}x",
            f"{point.vectors_bytes / 1e6:,.1f}",
            f"{point.index_bytes / 1e6:,.1f}",
            f"{point.build_seconds:.1f}",
        )
    return table


def capacity_table(points: Sequence[ScalingPoint]) -> Table:
    """Tabulate what a core answers and what memory it takes, by candidates and dimension."""
    measured = {(point.n_candidates, point.dim): point for point in points}
    dims = sorted({dim for _, dim in measured})
    table = Table(
        title="Capacity",
        caption="queries a second that one core answers, one a call, at a recall of 0.95; MB: "
        "vectors and index",
        box=box.SIMPLE,
        padding=0,
    )
    table.add_column("candidates", justify="right", no_wrap=True)
    for dim in dims:
        table.add_column(f"{dim} dims: QPS", justify="right", no_wrap=True)
        table.add_column("MB", justify="right", no_wrap=True)
    for n_candidates in sorted({rows for rows, _ in measured}):
        line = (measured.get((n_candidates, dim)) for dim in dims)
        table.add_row(f"{n_candidates:,}", *(cell for point in line for cell in _capacity(point)))
    return table


def draw_scaling(points: Sequence[ScalingPoint], path: Path) -> None:
    """Draw the cost of a query by the number of candidates, one colour a dimension."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for number, dim in enumerate(sorted({point.dim for point in points})):
        line = sorted((p for p in points if p.dim == dim), key=lambda point: point.n_candidates)
        rows = [point.n_candidates for point in line]
        costs = [point.latency.cpu_us for point in line]
        exact_costs = [point.exact_cpu_us for point in line]
        for name, style, values in (
            ("the index", _INDEX_STYLE, costs),
            ("exact search", _EXACT_STYLE, exact_costs),
        ):
            axes.plot(rows, values, style, marker="o", color=f"C{number}", label=f"{name}, {dim}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("candidates")
    axes.set_ylabel("CPU microseconds a query")
    axes.set_title("What a query costs at a recall of 0.95, by candidates and dimension")
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _capacity(point: ScalingPoint | None) -> tuple[str, str]:
    """Return the cells of one corpus; nothing where none of that size was measured."""
    if point is None:
        return "", ""
    n_bytes = point.vectors_bytes + point.index_bytes
    return f"{1e6 / point.latency.cpu_us:,.0f}", f"{n_bytes / 1e6:,.1f}"
