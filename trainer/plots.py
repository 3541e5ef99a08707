"""Pictures of results. They are drawn in memory, so no display is needed."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from trainer.comparison import HEADLINES, TOWERS, Comparison

_LABELS = {"gini": "popularity bias (Gini)", "diversity": "intra-list diversity"}
_TOWERS_COLOR, _BASELINE_COLOR = "#1f6feb", "#9aa4b2"


def draw_comparison(comparison: Comparison, path: Path) -> None:
    """Draw the headline metrics of every model as bars, one panel a metric.

    Args:
        comparison: What to draw.
        path: Of the PNG, replaced if it exists.
    """
    names = [model.name for model in comparison.models]
    colors = [_TOWERS_COLOR if name == TOWERS else _BASELINE_COLOR for name in names]
    shown = [metric for metric in HEADLINES if metric in comparison.models[0].metrics]
    figure = Figure(figsize=(14, 1.5 + 0.7 * len(names)), layout="constrained")
    panels = figure.subplots(2, (len(shown) + 1) // 2, sharey=True, squeeze=False).flat
    for panel, metric in zip(panels, shown, strict=False):
        values = [model.metrics[metric] for model in comparison.models]
        bars = panel.barh(names, values, color=colors)
        panel.bar_label(bars, fmt="{:.3f}", padding=2, fontsize=8)
        panel.set_title(_title(metric), fontsize=10)
        panel.margins(x=0.18)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in list(figure.axes)[len(shown) :]:
        panel.set_visible(False)
    figure.axes[0].invert_yaxis()
    figure.suptitle(f"{comparison.dataset}, {comparison.split} split, {comparison.n_users:,} users")
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png", dpi=120)
    partial.replace(path)


def _title(metric: str) -> str:
    name, _, k = metric.partition("@")
    return f"{_LABELS.get(name, name.replace('_', ' '))} @{k}"
