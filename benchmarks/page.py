"""The page of a search benchmark: recall against queries a second, to look into by hovering."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go

from benchmarks.report import colour_of, frontier
from benchmarks.search import SearchPoint, SearchReport


def write_page(report: SearchReport, path: Path) -> None:
    """Write a page that needs no network: each contender's Pareto front, params on hovering.

    Args:
        report: what was measured.
        path: of the HTML file, replaced if it exists.
    """
    figure = go.Figure()
    for number, contender in enumerate(report.build_seconds):
        points = [point for point in report.points if point.contender == contender]
        front = frontier(points)
        figure.add_scatter(
            x=[point.recall_at_100 for point in front],
            y=[1e6 / point.latency.mean_us for point in front],
            text=[_told(point) for point in front],
            name=contender,
            mode="lines+markers",
            line={"color": colour_of(contender, number)},
            hovertemplate="%{text}<extra>%{fullData.name}</extra>",
        )
    figure.update_layout(
        title=f"{report.n_candidates:,} candidates of {report.dim} dimensions, one query a call, "
        f"one thread: up and to the right is better",
        xaxis_title=f"recall@{report.k}",
        yaxis_title="queries a second",
        yaxis_type="log",
        hovermode="closest",
    )
    figure.write_html(path, include_plotlyjs=True)


def _told(point: SearchPoint) -> str:
    params = "".join(f"<br>{name} {value}" for name, value in point.search_params.items())
    return (
        f"recall {point.recall_at_100:.4f}, {1e6 / point.latency.mean_us:,.0f} queries a second, "
        f"{point.batch_qps:,.0f} in batches<br>p50 {point.latency.p50_us:,.0f} us, "
        f"p99 {point.latency.p99_us:,.0f} us{params}"
    )
