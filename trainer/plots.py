"""Pictures of results. They are drawn in memory, so no display is needed."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import MaxNLocator

from trainer.baselines import RATING_BASELINES
from trainer.checkpoints import Curve
from trainer.comparison import HEADLINES, TOWERS, Comparison

_LABELS = {"gini": "popularity bias (Gini)", "diversity": "intra-list diversity"}
_STYLES = ("-", "--", ":")
_TOWERS_COLOR, _BASELINE_COLOR = "#1f6feb", "#9aa4b2"


def draw_comparison(comparison: Comparison, path: Path) -> None:
    """Draw the headline metrics of every model as bars, one panel a metric; and the ratings' RMSE.

    Args:
        comparison: what to draw.
        path: of the PNG, replaced if it exists.
    """
    heights = [1.5 + 0.7 * len(comparison.models)]
    if comparison.rmse:
        heights.append(0.6 + 0.3 * len(comparison.rmse))
    figure = Figure(figsize=(14, sum(heights)), layout="constrained")
    models, *others = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False).flat
    _draw_models(models, comparison)
    for ratings in others:
        _draw_ratings(ratings, comparison.rmse)
    _save(figure, path)


def _draw_models(figure: FigureBase, comparison: Comparison) -> None:
    names = [model.name for model in comparison.models]
    colors = [_TOWERS_COLOR if name == TOWERS else _BASELINE_COLOR for name in names]
    shown = [metric for metric in HEADLINES if metric in comparison.models[0].metrics]
    n_columns = (len(shown) + 1) // 2
    panels = list(figure.subplots(2, n_columns, sharey=True, squeeze=False).flat)
    for panel, metric in zip(panels, shown, strict=False):
        values = [model.metrics[metric] for model in comparison.models]
        _draw_bars(panel, names, values, colors)
        panel.set_title(_title(metric), fontsize=10)
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    panels[0].invert_yaxis()
    title = f"{comparison.dataset}, {comparison.split} split, {comparison.n_users:,} users"
    figure.suptitle(title, parse_math=False)  # a file's name may hold a $


def _draw_ratings(figure: FigureBase, rmse: dict[str, float]) -> None:
    panel = figure.subplots()
    colors = [_BASELINE_COLOR if name in RATING_BASELINES else _TOWERS_COLOR for name in rmse]
    _draw_bars(panel, list(rmse), list(rmse.values()), colors)
    panel.invert_yaxis()
    panel.set_title("RMSE of predicted ratings, less is better", fontsize=10)


def _draw_bars(panel: Axes, names: list[str], values: list[float], colors: list[str]) -> None:
    bars = panel.barh(names, values, color=colors)
    panel.bar_label(bars, fmt="{:.3f}", padding=2, fontsize=8)
    panel.margins(x=0.18)
    panel.spines[["top", "right"]].set_visible(False)


def draw_learning_curve(curve: Curve, path: Path) -> None:
    """Draw the metrics of a training over its epochs: the loss, and what validation measured.

    Args:
        curve: the metrics of every epoch, by name; the loss among them.
        path: of the PNG, replaced if it exists.
    """
    epochs = range(1, len(curve) + 1)
    watched = [name for name in curve[0] if name != "loss"]
    figure = Figure(figsize=(7, 4), layout="constrained")
    losses = figure.subplots()
    losses.plot(epochs, [metrics["loss"] for metrics in curve], color=_BASELINE_COLOR, label="loss")
    losses.set(xlabel="epoch", ylabel="loss")
    losses.xaxis.set_major_locator(MaxNLocator(integer=True))
    losses.spines["top"].set_visible(False)
    if watched:
        quality = losses.twinx()
        for name, style in zip(watched, _STYLES, strict=False):
            values = [metrics[name] for metrics in curve]
            quality.plot(epochs, values, style, color=_TOWERS_COLOR, label=_validated(name))
        quality.set_ylabel("on validation")
        quality.spines["top"].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="png", dpi=120)


def _validated(name: str) -> str:
    return name.removeprefix("val_").replace("_", " ")


def _title(metric: str) -> str:
    name, _, k = metric.partition("@")
    return f"{_LABELS.get(name, name.replace('_', ' '))} @{k}"
