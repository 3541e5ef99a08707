"""What the training benchmark prints and draws."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from rich import box
from rich.table import Table

from benchmarks.train import TOWERS, TUTORIALS, TrainReport


def train_table(report: TrainReport) -> Table:
    """Tabulate how fast the towers and the tutorials' model trained."""
    table = Table(
        title=f"Interactions a second, thousands, {report.dim} dimensions",
        caption=f"towers over the largest catalogue: {report.scaling:.2f} of the smallest",
        box=box.SIMPLE,
        padding=0,
    )
    table.add_column("candidates", justify="right")
    for model in (TUTORIALS, TOWERS):
        table.add_column(f"{model} (batch)", justify="right")
    table.add_column("ratio", justify="right")
    table.add_column("peak GiB", justify="right")
    for catalogue in report.catalogues:
        best = [catalogue.best(model) for model in (TUTORIALS, TOWERS)]
        table.add_row(
            f"{catalogue.n_candidates:,}",
            *(f"{speed.interactions_per_second / 1e3:,.0f} ({speed.batch_size})" for speed in best),
            f"{catalogue.ratio:.2f}",
            f"{catalogue.peak_bytes / 2**30:.1f}",
        )
    return table


def draw_train(report: TrainReport, path: Path) -> None:
    """Draw interactions a second by batch size, one line a model and catalogue."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for model, colour in ((TOWERS, "#1b6ca8"), (TUTORIALS, "#4c4c4c")):
        for catalogue, style in zip(report.catalogues, cycle(("-", "--", ":", "-.")), strict=False):
            speeds = [speed for speed in catalogue.speeds if speed.model == model]
            axes.plot(
                [speed.batch_interactions for speed in speeds],
                [speed.interactions_per_second / 1e3 for speed in speeds],
                style,
                marker="o",
                color=colour,
                label=f"{model}, {catalogue.n_candidates:,} candidates",
            )
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("interactions in a step")
    axes.set_ylabel("thousand interactions a second")
    axes.set_title("Training speed, same dimension, same run")
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)
