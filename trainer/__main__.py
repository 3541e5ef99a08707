"""``python -m trainer``: fit and evaluate two towers.

Commands import what they need when they run: TensorFlow takes seconds, ``--help`` should not.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from trainer.console import print_json, say, sentences_for_errors, stderr
from trainer.options import (
    AsJson,
    CandidatesFile,
    ConfigFile,
    DatasetName,
    Dim,
    Epochs,
    HeldOut,
    InteractionsFile,
    MinRating,
    Patience,
    Seed,
    TensorBoardFolder,
    WithRanker,
)
from trainer.splits import SplitKind
from trainer.splits import split as split_dataset

if TYPE_CHECKING:
    from trainer.comparison import Comparison
    from trainer.config import DataConfig
    from trainer.datasets import Dataset
    from trainer.evaluation import Evaluation, PredictRatings, ScoreUsers
    from trainer.ranking import Ranker
    from trainer.splits import Split
    from trainer.towers import Towers

app = typer.Typer(
    help="Train and evaluate two towers, and publish them as tower bundles.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.command()
def fit(
    *,
    output: Annotated[Path, typer.Option(help="Folder of the tower bundles.")] = Path(
        "artifacts/towers"
    ),
    config: ConfigFile = None,
    dataset: DatasetName = None,
    interactions: InteractionsFile = None,
    candidates: CandidatesFile = None,
    min_rating: MinRating = None,
    split: HeldOut = None,
    refit: Annotated[
        bool | None,
        typer.Option(
            "--refit/--no-refit",
            help="Train again on everything before the export, or export the towers that have "
            "seen the train part of the split only.",
        ),
    ] = None,
    with_histories: Annotated[
        bool | None,
        typer.Option(
            "--with-histories/--no-with-histories",
            help="Let the users' histories travel with the towers, or leave them out.",
        ),
    ] = None,
    seed: Seed = None,
    epochs: Epochs = None,
    patience: Patience = None,
    dim: Dim = None,
    ranker: WithRanker = None,
    checkpoints: Annotated[
        Path | None,
        typer.Option(
            help="Folder of checkpoints, from which the same command goes on if it was killed; "
            ".checkpoints in --output if not given.",
        ),
    ] = None,
    tensorboard: TensorBoardFolder = None,
    warm_start: Annotated[
        Path | None,
        typer.Option(
            help="A tower bundle, or a `current` link to one, whose weights training begins with."
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Publish even what is worse than the current bundle beyond chance."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train two towers and publish them as a tower bundle.

    Example: python -m trainer fit --dataset movielens/100k --output artifacts/towers
    """
    with sentences_for_errors():
        from trainer.acceptance import compare_with_current, quality_by_user
        from trainer.bundle import TowerBundle
        from trainer.config import load_config
        from trainer.evaluation import rank, summarise
        from trainer.export import export
        from trainer.report import print_evaluation
        from trainer.trainings import Trainings

        chosen = load_config(
            config,
            {
                "seed": seed,
                "split": split,
                "patience": patience,
                "refit": refit,
                "with_histories": with_histories,
                "with_ranker": ranker,
                "data": _source(dataset, interactions, candidates, min_rating),
                "towers": {"epochs": epochs, "dim": dim},
            },
        )
        data = _load(chosen.data)
        parts = split_dataset(data, chosen.split)
        trainings = Trainings(
            data,
            chosen,
            checkpoints=checkpoints or output / ".checkpoints",
            tensorboard=tensorboard,
            start_from=None if warm_start is None else TowerBundle.open(warm_start),
        )
        trainings.find_epochs(parts)
        evaluation, quality = None, None
        if parts.kind is not SplitKind.NONE:
            towers = trainings.fit_towers(parts)
            rankings = rank(data, parts, _scorer(towers))
            evaluation = summarise(data, parts, rankings)
            quality = quality_by_user(data, rankings)
        if sentence := compare_with_current(output, evaluation, quality, force=force):
            say(sentence)
        if chosen.refit or parts.kind is SplitKind.NONE:
            parts = split_dataset(data, SplitKind.NONE)
            towers = trainings.fit_towers(parts)
        report = None if evaluation is None else evaluation.model_dump(mode="json")
        directory = export(
            towers,
            data,
            parts.train,
            output,
            seed=chosen.seed,
            rows_name="all" if parts.kind is SplitKind.NONE else f"{parts.kind} train",
            evaluation=report,
            with_histories=chosen.with_histories,
            ranker=trainings.fit_ranker(parts),
            curve=trainings.curve,
            started_from=trainings.started_from,
            user_quality=quality,
        )
        trainings.forget_checkpoints()
        if as_json:
            print_json({"directory": str(directory), "evaluation": report})
        else:
            if evaluation is not None:
                print_evaluation(evaluation)
            Console().print(f"Published {directory}", soft_wrap=True)


@app.command()
def evaluate(
    *,
    config: ConfigFile = None,
    dataset: DatasetName = None,
    interactions: InteractionsFile = None,
    candidates: CandidatesFile = None,
    min_rating: MinRating = None,
    split: HeldOut = None,
    seed: Seed = None,
    epochs: Epochs = None,
    patience: Patience = None,
    dim: Dim = None,
    ranker: WithRanker = None,
    tensorboard: TensorBoardFolder = None,
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
    with sentences_for_errors():
        from trainer.comparison import Comparison
        from trainer.config import load_config
        from trainer.plots import draw_comparison
        from trainer.report import print_comparison, print_evaluation
        from trainer.trainings import Trainings

        chosen = load_config(
            config,
            {
                "seed": seed,
                "split": split,
                "patience": patience,
                "with_ranker": ranker,
                "data": _source(dataset, interactions, candidates, min_rating),
                "towers": {"epochs": epochs, "dim": dim},
            },
        )
        if chosen.split is SplitKind.NONE:
            raise typer.BadParameter("a split that holds nothing out cannot be evaluated")
        data = _load(chosen.data)
        parts = split_dataset(data, chosen.split)
        trainings = Trainings(data, chosen, tensorboard=tensorboard)
        trainings.find_epochs(parts)
        towers = trainings.fit_towers(parts)
        measure = _compare if compare else _evaluate
        result = measure(data, parts, towers, trainings.fit_ranker(parts))
        if isinstance(result, Comparison):
            plot.parent.mkdir(parents=True, exist_ok=True)
            draw_comparison(result, plot)
        if as_json:
            print_json(result.model_dump(mode="json"))
        elif isinstance(result, Comparison):
            print_comparison(result)
            Console().print(f"Drew {plot}", soft_wrap=True)
        else:
            print_evaluation(result)


@app.command()
def refresh(
    towers: Annotated[
        Path, typer.Argument(help="A tower bundle, or a `current` link to one.", metavar="TOWERS")
    ],
    *,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the tower bundles; that of TOWERS if not given.")
    ] = None,
    config: ConfigFile = None,
    dataset: DatasetName = None,
    interactions: InteractionsFile = None,
    min_rating: MinRating = None,
    as_json: AsJson = False,
) -> None:
    """Publish towers with the histories that users have now, without training.

    Example: python -m trainer refresh artifacts/towers/current --interactions interactions.csv
    """
    with sentences_for_errors():
        from trainer.bundle import TowerBundle
        from trainer.config import load_config
        from trainer.refresh import refresh as refresh_bundle

        source = _source(dataset, interactions, None, min_rating)
        data = _load(load_config(config, {"data": source}).data)
        bundle = TowerBundle.open(towers)
        done = refresh_bundle(bundle, data, output or bundle.directory.parent)
        if done.n_left_out:
            say(
                f"{done.n_left_out:,} of {len(data):,} interactions are with candidates that the "
                "towers do not know, and were left out: train again to have them"
            )
        if as_json:
            print_json(
                {
                    "directory": str(done.directory),
                    "n_users": done.n_users,
                    "n_left_out": done.n_left_out,
                }
            )
        else:
            Console().print(f"Published {done.directory}, {done.n_users:,} users", soft_wrap=True)


@app.command(name="config")
def show_config(*, config: ConfigFile = None) -> None:
    """Print every option with what it does, as the TOML that --config reads.

    Example: python -m trainer config > trainer.toml
    """
    with sentences_for_errors():
        from trainer.config import as_toml, load_config

        sys.stdout.write(as_toml(load_config(config, {})))


def _source(
    dataset: str | None,
    interactions: Path | None,
    candidates: Path | None,
    min_rating: float | None,
) -> dict[str, object]:
    return {
        "dataset": dataset,
        "interactions": interactions,
        "candidates": candidates,
        "min_rating": min_rating,
    }


def _load(data: DataConfig) -> Dataset:
    from trainer.datasets import load_dataset, load_files

    if data.interactions is not None:
        return load_files(data.interactions, data.candidates, min_rating=data.min_rating)
    if data.candidates is not None:
        raise typer.BadParameter("--candidates needs --interactions as well")
    return load_dataset(data.dataset, min_rating=data.min_rating, fallback_to_sample=True)


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


if __name__ == "__main__":
    app(prog_name="python -m trainer")
