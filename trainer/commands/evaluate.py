"""``python -m trainer evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainer.commands.data import load, source
from trainer.commands.options import (
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
    TrainFraction,
    UsersFile,
    WithRanker,
    require_writable,
)
from trainer.console import print_json, sentences_for_errors, stderr, tell
from trainer.splits import SplitKind
from trainer.splits import split as split_dataset

if TYPE_CHECKING:
    from trainer.comparison import Comparison
    from trainer.datasets import Dataset
    from trainer.evaluation import Evaluation, PredictRatings
    from trainer.ranking import Ranker
    from trainer.splits import Split
    from trainer.trained_towers import Towers


def evaluate(
    *,
    config: ConfigFile = None,
    dataset: DatasetName = None,
    interactions: InteractionsFile = None,
    candidates: CandidatesFile = None,
    users: UsersFile = None,
    min_rating: MinRating = None,
    split: HeldOut = None,
    train_fraction: TrainFraction = None,
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
        from trainer.files import whole_file
        from trainer.plots import draw_comparison
        from trainer.report import print_comparison, print_evaluation
        from trainer.trainings import Trainings

        chosen = load_config(
            config,
            {
                "seed": seed,
                "split": split,
                "train_fraction": train_fraction,
                "patience": patience,
                "with_ranker": ranker,
                "data": source(dataset, interactions, candidates, users, min_rating),
                "towers": {"epochs": epochs, "dim": dim},
            },
        )
        if chosen.split is SplitKind.NONE:
            raise typer.BadParameter("a split that holds nothing out cannot be evaluated")
        if compare:
            require_writable("--plot", plot)
        data = load(chosen.data)
        parts = split_dataset(data, chosen.split, train_fraction=chosen.train_fraction)
        trainings = Trainings(data, chosen, tensorboard=tensorboard)
        trainings.settle(parts)
        towers = trainings.fit_towers(parts)
        measure = _compare if compare else _evaluate
        result = measure(data, parts, towers, trainings.fit_ranker(parts))
        if as_json:
            print_json(result.model_dump(mode="json"))
        elif isinstance(result, Comparison):
            print_comparison(result)
        else:
            print_evaluation(result)
        if isinstance(result, Comparison):
            with whole_file(plot) as partial:
                draw_comparison(result, partial)
            if not as_json:
                tell(f"Drew {plot}")


def _evaluate(data: Dataset, parts: Split, towers: Towers, ranker: Ranker | None) -> Evaluation:
    from trainer.baselines import rating_biases
    from trainer.evaluation import evaluate as evaluate_scores
    from trainer.evaluation import rating_error
    from trainer.trainings import scorer

    predict = None if ranker is None else ranker.predict
    with stderr.status("Measuring the towers"):
        evaluation = evaluate_scores(data, parts, scorer(towers), predict)
        if predict is None or data.ratings is None:
            return evaluation
        biases = rating_biases(data, parts.train, data.ratings[parts.train])
        return evaluation.model_copy(update={"biases_rmse": rating_error(data, parts, biases)})


def _compare(data: Dataset, parts: Split, towers: Towers, ranker: Ranker | None) -> Comparison:
    from trainer.comparison import compare as compare_models
    from trainer.trainings import scorer

    with stderr.status("Comparing") as status:
        return compare_models(
            data,
            parts,
            scorer(towers),
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
