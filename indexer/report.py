"""What the commands print of an index, for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from indexer.bundle import EXHAUSTIVE, IndexManifest

_MIN_WIDTH = 100  # of the tables, wherever they are printed to


def print_index(directory: Path, manifest: IndexManifest) -> None:
    """Print what an index bundle holds and what its backends deliver."""
    width = max(Console().width, _MIN_WIDTH)
    console = Console(width=width, highlight=False, markup=False)
    source = manifest.tower_version or "own embeddings"
    console.print(f"{manifest.n_candidates:,} candidates, dimension {manifest.dim}, from {source}")
    console.print(_builds_table(manifest))
    console.print(_points_table(manifest))
    console.print(f"Default: {manifest.default_reason}", soft_wrap=True)
    console.print(f"Index: {directory}", soft_wrap=True)


def _builds_table(manifest: IndexManifest) -> Table:
    table = Table("backend", "build params", box=SIMPLE)
    table.add_column("seconds", justify="right")
    table.add_column("MB", justify="right")
    for name, entry in manifest.backends.items():
        table.add_row(
            name,
            _one_line(entry.build_params),
            f"{entry.build_seconds:.1f}",
            f"{entry.size_bytes / 1e6:,.1f}",
        )
    return table


def _points_table(manifest: IndexManifest) -> Table:
    """Tabulate the operating points; exhaustive ones only of backends that have no others."""
    table = Table("backend", box=SIMPLE, caption=f"measured on {manifest.tuned_on}, one a call")
    for name in ("k", "asked", "recall@k", "p50 µs", "p99 µs"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("search params")
    for name, entry in manifest.backends.items():
        tuned = [p for p in entry.operating_points if p.name != EXHAUSTIVE]
        for point in tuned or entry.operating_points:
            table.add_row(
                name,
                str(point.k),
                point.name,
                f"{point.recall:.3f} ± {(point.recall_high - point.recall_low) / 2:.3f}",
                f"{point.p50_microseconds:,.0f}",
                f"{point.p99_microseconds:,.0f}",
                _one_line(point.search_params),
            )
    return table


def _one_line(params: Mapping[str, Any]) -> str:
    given = {name: value for name, value in params.items() if value is not None}
    return ", ".join(f"{name} {value}" for name, value in given.items()) or "none"
