"""``python -m trainer``: fit and evaluate two towers.

Commands import what they need when they run: TensorFlow takes seconds, ``--help`` should not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from trainer.datasets import DATASET_NAMES, Dataset, load_dataset, load_files
from trainer.splits import Split, SplitKind
from trainer.splits import split as split_dataset

if TYPE_CHECKING:
    from trainer.comparison import Comparison
    from trainer.evaluation import Evaluation, PredictRatings, ScoreUsers
    from trainer.metrics import Interval
    from trainer.ranking import Ranker
    from trainer.towers import Towers, TowersConfig

app = typer.Typer(
    help="Train and evaluate two towers, and publish them as tower bundles.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
stderr = Console(stderr=True)

DatasetName = Annotated[
    str, typer.Option("--dataset", help=f"One of {', '.join(DATASET_NAMES)}.", metavar="NAME")
]
InteractionsFile = Annotated[
    Path | None,
    typer.Option(
        "--interactions",
        help="Your own interactions, CSV or Parquet: user_id, candidate_id, and optionally rating "
        "and timestamp. Replaces --dataset.",
    ),
]
CandidatesFile = Annotated[
    Path | None,
    typer.Option(
        "--candidates",
        help="Your own candidates, CSV or Parquet: candidate_id, optionally title, and any "
        "metadata; lists are split on |.",
    ),
]
MinRating = Annotated[
    float | None, typer.Option(help="Take only interactions rated at least this high.")
]
Seed = Annotated[int, typer.Option(help="Seed of the training; the same seed gives one result.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over the users.")]
Dim = Annotated[
    int | None, typer.Option(min=2, help="Dimension of the embeddings, the bias included.")
]
WithRanker = Annotated[
    bool,
    typer.Option(
        "--ranker/--no-ranker", help="Train a ranking model as well, if there are ratings, or not."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for scripts.")]


@app.command()
def fit(
    *,
    output: Annotated[Path, typer.Option(help="Folder of the tower bundles.")] = Path(
        "artifacts/towers"
    ),
    dataset: DatasetName = "movielens/100k",
    interactions: InteractionsFile = None,
    candidates: CandidatesFile = None,
    min_rating: MinRating = None,
    split: Annotated[
        SplitKind, typer.Option(help="What is held out to measure quality; none skips it.")
    ] = SplitKind.LEAVE_LAST_OUT,
    refit: Annotated[
        bool,
        typer.Option(
            help="Train again on everything before the export, or export the towers that have "
            "seen the train part of the split only."
        ),
    ] = True,
    with_histories: Annotated[
        bool,
        typer.Option(help="Let the users' histories travel with the towers, or leave them out."),
    ] = True,
    seed: Seed = 42,
    epochs: Epochs = None,
    dim: Dim = None,
    ranker: WithRanker = True,
    as_json: AsJson = False,
) -> None:
    """Train two towers and publish them as a tower bundle.

    Example: python -m trainer fit --dataset movielens/100k --output artifacts/towers
    """
    with _sentences_for_errors():
        from trainer.export import export

        data = _load(dataset, interactions, candidates, min_rating)
        config = _config(epochs, dim)
        parts = split_dataset(data, split)
        evaluation: Evaluation | None = None
        if split is not SplitKind.NONE:
            towers = _fit(data, parts, config, seed, f"Training on the {split} train part")
            evaluation = _evaluate(data, parts, towers, ranker=None)
        if refit or split is SplitKind.NONE:
            parts = split_dataset(data, SplitKind.NONE)
            towers = _fit(data, parts, config, seed, "Training on everything")
        ranking_model = _fit_ranker(data, parts, seed) if ranker else None
        report = None if evaluation is None else evaluation.model_dump(mode="json")
        directory = export(
            towers,
            data,
            parts.train,
            output,
            seed=seed,
            rows_name="all" if parts.kind is SplitKind.NONE else f"{split} train",
            evaluation=report,
            with_histories=with_histories,
            ranker=ranking_model,
        )
        if as_json:
            _print_json({"directory": str(directory), "evaluation": report})
        else:
            if evaluation is not None:
                _print_evaluation(evaluation)
            Console().print(f"Published {directory}", soft_wrap=True)


@app.command()
def evaluate(
    *,
    dataset: DatasetName = "movielens/100k",
    interactions: InteractionsFile = None,
    candidates: CandidatesFile = None,
    min_rating: MinRating = None,
    split: Annotated[SplitKind, typer.Option(help="What is held out.")] = SplitKind.LEAVE_LAST_OUT,
    seed: Seed = 42,
    epochs: Epochs = None,
    dim: Dim = None,
    ranker: WithRanker = True,
    compare: Annotated[
        bool, typer.Option("--compare", help="Measure popularity, item-kNN, EASE... beside them.")
    ] = False,
    plot: Annotated[Path, typer.Option(help="Where --compare draws its picture, a PNG.")] = Path(
        "artifacts/comparison.png"
    ),
    as_json: AsJson = False,
) -> None:
    """Train on the train part of a split and measure what the towers find of the rest.

    Example: python -m trainer evaluate --dataset movielens/100k --split random --compare
    """
    with _sentences_for_errors():
        from trainer.comparison import Comparison
        from trainer.plots import draw_comparison

        if split is SplitKind.NONE:
            raise typer.BadParameter("a split that holds nothing out cannot be evaluated")
        data = _load(dataset, interactions, candidates, min_rating)
        parts = split_dataset(data, split)
        towers = _fit(
            data, parts, _config(epochs, dim), seed, f"Training on the {split} train part"
        )
        ranking_model = _fit_ranker(data, parts, seed) if ranker else None
        measure = _compare if compare else _evaluate
        result = measure(data, parts, towers, ranking_model)
        if isinstance(result, Comparison):
            plot.parent.mkdir(parents=True, exist_ok=True)
            draw_comparison(result, plot)
        if as_json:
            _print_json(result.model_dump(mode="json"))
        elif isinstance(result, Comparison):
            _print_comparison(result)
            Console().print(f"Drew {plot}", soft_wrap=True)
        else:
            _print_evaluation(result)


def _load(
    name: str, interactions: Path | None, candidates: Path | None, min_rating: float | None
) -> Dataset:
    if interactions is not None:
        return load_files(interactions, candidates, min_rating=min_rating)
    if candidates is not None:
        raise typer.BadParameter("--candidates needs --interactions as well")
    return load_dataset(name, min_rating=min_rating, fallback_to_sample=True)


def _config(epochs: int | None, dim: int | None) -> TowersConfig:
    from trainer.towers import TowersConfig

    given = {"epochs": epochs, "dim": dim}
    return TowersConfig.model_validate({k: v for k, v in given.items() if v is not None})


def _fit(data: Dataset, parts: Split, config: TowersConfig, seed: int, what: str) -> Towers:
    from trainer.training import fit as fit_towers

    with _epoch_progress(what, config.epochs) as on_epoch:
        return fit_towers(data, parts.train, config, seed, on_epoch)


def _fit_ranker(data: Dataset, parts: Split, seed: int) -> Ranker | None:
    """Train a ranking model; None, and a sentence, where there are no ratings to learn from."""
    from trainer.ranking import NoRatingsError, RankerConfig
    from trainer.ranking import fit as fit_ranking_model

    config = RankerConfig()
    try:
        with _epoch_progress("Training the ranking model", config.epochs) as on_epoch:
            return fit_ranking_model(data, parts.train, config, seed, on_epoch)
    except NoRatingsError as error:
        stderr.print(escape(str(error)), soft_wrap=True, highlight=False)
        return None


def _evaluate(data: Dataset, parts: Split, towers: Towers, ranker: Ranker | None) -> Evaluation:
    from trainer.evaluation import evaluate as evaluate_scores

    predict = None if ranker is None else ranker.predict
    return evaluate_scores(data, parts, _scorer(towers), predict)


def _compare(data: Dataset, parts: Split, towers: Towers, ranker: Ranker | None) -> Comparison:
    from trainer.comparison import compare as compare_models

    with stderr.status("Comparing") as status:
        return compare_models(
            data,
            parts,
            _scorer(towers),
            rating_models=_rating_models(ranker),
            on_model=lambda name: status.update(f"Comparing {name}"),
        )


def _rating_models(ranker: Ranker | None) -> dict[str, PredictRatings]:
    """Return what predicts ratings, by the name it has in tables."""
    if ranker is None:
        return {}
    return {
        "ranking model": ranker.predict,
        "ranking model, by history alone": ranker.without_users().predict,
    }


def _scorer(towers: Towers) -> ScoreUsers:
    """Return what scores all candidates for some of the users the towers were trained on."""
    candidates = towers.embed_candidates().T
    histories = towers.histories
    return lambda rows: towers.embed_queries([histories[row] for row in rows]) @ candidates


@contextmanager
def _epoch_progress(what: str, n_epochs: int) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """Draw a progress bar; yields what the training calls after every epoch."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs, loss {task.fields[loss]:.4f},"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    )
    with Progress(*columns, console=stderr) as progress:
        task = progress.add_task(what, total=n_epochs, loss=float("nan"))
        yield lambda epoch, logs: progress.update(task, completed=epoch, loss=logs["loss"])


def _print_json(content: object) -> None:
    sys.stdout.write(json.dumps(content, indent=2) + "\n")


def _print_evaluation(evaluation: Evaluation) -> None:
    table = Table(
        title=f"{evaluation.dataset}, {evaluation.split} split, {evaluation.n_users:,} users"
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
    if evaluation.rmse is not None:
        Console().print(f"The ranking model's ratings have an RMSE of {evaluation.rmse:.4f}")
    for order in evaluation.ranked:
        Console().print(
            f"In its order, the best of {order.n_retrieved} retrieved have an ndcg@10 of "
            f"{order.ndcg:.4f}: {_shown_interval(order.lead)} against the order of retrieval",
            soft_wrap=True,
        )


def _print_comparison(comparison: Comparison) -> None:
    from trainer.comparison import BOOTSTRAPPED, HEADLINES

    shown = [name for name in HEADLINES if name in comparison.models[0].metrics]
    table = Table(
        title=f"{comparison.dataset}, {comparison.split} split, {comparison.n_users:,} users",
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
            *map(_shown_interval, intervals),
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
        console.print(f"{name} was left out: {why}", soft_wrap=True)


def _shown_interval(interval: Interval) -> str:
    return f"{interval.mean:+.4f} ({interval.low:+.4f} to {interval.high:+.4f})"


@contextmanager
def _sentences_for_errors() -> Iterator[None]:
    """Turn what the user can mend into one sentence on stderr and exit code 1."""
    from trainer.datasets import DatasetError
    from trainer.evaluation import EvaluationError
    from trainer.export import ExportError
    from trainer.publish import BundleError
    from trainer.training import TrainingError

    try:
        yield
    except (BundleError, DatasetError, EvaluationError, ExportError, TrainingError) as error:
        stderr.print(f"[bold red]Error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    app(prog_name="python -m trainer")
