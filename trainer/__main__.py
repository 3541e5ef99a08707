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

from trainer.datasets import DATASET_NAMES, Dataset, files, load_dataset
from trainer.splits import Split, SplitKind
from trainer.splits import split as split_dataset

if TYPE_CHECKING:
    from trainer.evaluation import Evaluation
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
            evaluation = _evaluate(data, parts, towers)
        if refit or split is SplitKind.NONE:
            parts = split_dataset(data, SplitKind.NONE)
            towers = _fit(data, parts, config, seed, "Training on everything")
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
    as_json: AsJson = False,
) -> None:
    """Train on the train part of a split and measure what the towers find of the rest.

    Example: python -m trainer evaluate --dataset movielens/100k --split random
    """
    with _sentences_for_errors():
        if split is SplitKind.NONE:
            raise typer.BadParameter("a split that holds nothing out cannot be evaluated")
        data = _load(dataset, interactions, candidates, min_rating)
        parts = split_dataset(data, split)
        towers = _fit(
            data, parts, _config(epochs, dim), seed, f"Training on the {split} train part"
        )
        evaluation = _evaluate(data, parts, towers)
        if as_json:
            _print_json(evaluation.model_dump(mode="json"))
        else:
            _print_evaluation(evaluation)


def _load(
    name: str, interactions: Path | None, candidates: Path | None, min_rating: float | None
) -> Dataset:
    if interactions is not None:
        return files.load(interactions, candidates, min_rating=min_rating)
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


def _evaluate(data: Dataset, parts: Split, towers: Towers) -> Evaluation:
    from trainer.evaluation import evaluate as evaluate_scores

    candidates = towers.embed_candidates().T
    return evaluate_scores(
        data,
        parts,
        lambda user_rows: (
            towers.embed_queries([towers.histories[u] for u in user_rows]) @ candidates
        ),
    )


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
