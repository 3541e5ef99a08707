"""Results as tables."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trainer.cold_start import ColdStart, K
from trainer.comparison import BOOTSTRAPPED, HEADLINES, Comparison
from trainer.evaluation import Evaluation
from trainer.metrics import Interval
from trainer.tuning import Tuning

_N_BEST = 5  # trials worth a line


def print_evaluation(evaluation: Evaluation) -> None:
    """Print the metrics by their cutoffs, and what the ranking model adds."""
    table = Table(
        title=escape(
            f"{evaluation.dataset}, {evaluation.split} split, {evaluation.n_users:,} users"
        )
    )
    names = sorted({name.partition("@")[0] for name in evaluation.metrics})
    cutoffs = sorted({int(name.partition("@")[2]) for name in evaluation.metrics})
    table.add_column("metric")
    for k in cutoffs:
        table.add_column(f"@{k}", justify="right")
    for name in names:
        values = (evaluation.metrics.get(f"{name}@{k}") for k in cutoffs)
        table.add_row(name, *("" if value is None else f"{value:.4f}" for value in values))
    Console().print(table)
    if evaluation.rmse is not None and evaluation.biases_rmse is not None:
        Console().print(
            f"The ranking model's ratings have an RMSE of {evaluation.rmse:.4f}, and those of what "
            f"users and candidates add to the mean rating one of {evaluation.biases_rmse:.4f}",
            soft_wrap=True,
        )
        if evaluation.rmse >= evaluation.biases_rmse:
            Console().print("So it knows nothing of who likes what: leave it out with --no-ranker")
    for order in evaluation.ranked:
        Console().print(
            f"In its order, the best of {order.n_retrieved} retrieved have an ndcg@10 of "
            f"{order.ndcg:.4f}: {shown_interval(order.lead)} against the order of retrieval",
            soft_wrap=True,
        )


def print_comparison(comparison: Comparison) -> None:
    """Print a line for every model, and the towers' leads with their intervals."""
    shown = [name for name in HEADLINES if name in comparison.models[0].metrics]
    table = Table(
        title=escape(
            f"{comparison.dataset}, {comparison.split} split, {comparison.n_users:,} users"
        ),
        box=SIMPLE,
        padding=0,
    )
    table.add_column("model")
    for name in shown:
        table.add_column(name.replace("@", "\n@"), justify="right")
    for model in comparison.models:
        table.add_row(model.name, *(f"{model.metrics[name]:.4f}" for name in shown))
    leads = Table(title="The towers' lead, with its 95% interval", box=SIMPLE, padding=0)
    leads.add_column("over")
    for name in BOOTSTRAPPED:
        leads.add_column(name, justify="right")
    for model in comparison.models[1:]:
        intervals = (model.towers_lead[name] for name in BOOTSTRAPPED)
        leads.add_row(
            model.name,
            *map(shown_interval, intervals),
        )
    console = Console()
    console.print(table)
    console.print(leads)
    if comparison.rmse:
        ratings = Table("model", title="Predicted ratings", box=SIMPLE, padding=0)
        ratings.add_column("rmse", justify="right")
        for name, rmse in comparison.rmse.items():
            ratings.add_row(name, f"{rmse:.4f}")
        console.print(ratings)
    for name, why in comparison.left_out.items():
        console.print(f"{name} was left out: {why}", soft_wrap=True, markup=False)


def print_tuning(tuning: Tuning) -> None:
    """Print the first trial, which is the configuration as it was, and the best after it."""
    first, *others = tuning.trials
    complete = [trial for trial in others if trial.state == "complete"]
    best = sorted(complete, key=lambda trial: trial.value or 0.0, reverse=True)[:_N_BEST]
    table = Table("trial", f"{tuning.metric} on validation", box=SIMPLE, padding=0)
    for name in first.options:
        table.add_column(name.replace("_", "\n"), justify="right")
    for trial in (first, *best):
        options = (f"{value:g}" for value in trial.options.values())
        table.add_row(str(trial.number), f"{trial.value:.4f}", *options)
    console = Console()
    console.print(table)
    n_complete = len(complete) + 1
    console.print(
        f"{n_complete} of {len(tuning.trials)} trials were trained to their end; the best is "
        f"trial {tuning.best.number}, {first.value:.4f} -> {tuning.best.value:.4f}",
        soft_wrap=True,
    )


def print_cold_start(result: ColdStart) -> None:
    """Print what candidates and users get that were never trained on."""
    candidates, users = result.candidates, result.users
    table = Table(title=escape(f"{result.dataset}, heldout_recall@{K}"), box=SIMPLE, padding=0)
    table.add_column("")
    table.add_column("", justify="right")
    if candidates is not None:
        hidden = f"{candidates.n_hidden} hidden candidates, found by their content"
        table.add_row(hidden, f"{candidates.by_content:.4f}")
        table.add_row("  by the popularity of labels", f"{candidates.by_label_popularity:.4f}")
        table.add_row("  by chance", f"{candidates.by_chance:.4f}")
    table.add_row(f"{users.n_users} users, trained on", f"{users.known:.4f}")
    table.add_row("  never trained on, served from their history", f"{users.unknown:.4f}")
    console = Console()
    console.print(table)
    if candidates is None:
        console.print("The towers read no content, by which new candidates could be found")
    else:
        console.print(
            f"The content finds {candidates.times_chance:.1f} times what chance does, and "
            f"{shown_interval(candidates.lead)} against the popularity of the labels",
            soft_wrap=True,
        )
    if words := result.descriptions:
        console.print(
            f"Of the first {K} for the name of a label, {words.labelled:.1%} have it, where "
            f"{words.labelled_by_chance:.1%} of the catalogue do, on average over "
            f"{words.n_labels} labels; {words.found:.1%} of the candidates are among the first "
            f"{K} for their own content, by chance {words.found_by_chance:.1%}",
            soft_wrap=True,
        )
    share = "" if users.share is None else f"{users.share:.1%} of what they get trained on: "
    console.print(f"Users never trained on get {share}{shown_interval(users.lead)}", soft_wrap=True)


def shown_interval(interval: Interval) -> str:
    """Return a difference and its bounds in words."""
    return f"{interval.mean:+.4f} ({interval.low:+.4f} to {interval.high:+.4f})"
