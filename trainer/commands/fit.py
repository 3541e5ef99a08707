"""``python -m trainer fit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

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
)
from trainer.console import print_json, say, sentences_for_errors, stderr, tell
from trainer.splits import SplitKind
from trainer.splits import split as split_dataset

if TYPE_CHECKING:
    import pyarrow as pa

    from trainer.evaluation import Evaluation
    from trainer.splits import Split
    from trainer.trained_towers import Towers
    from trainer.trainings import Trainings


def fit(
    *,
    output: Annotated[Path, typer.Option(help="Folder of the tower bundles.")] = Path(
        "artifacts/towers"
    ),
    config: ConfigFile = None,
    dataset: DatasetName = None,
    interactions: InteractionsFile = None,
    candidates: CandidatesFile = None,
    users: UsersFile = None,
    min_rating: MinRating = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="What your own files are called, by which bundles are compared; the name of the "
            "file of interactions if not given. Keep it the same where that has a date in it."
        ),
    ] = None,
    split: HeldOut = None,
    train_fraction: TrainFraction = None,
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
        from trainer.bundle import TowerBundle, TowerManifest
        from trainer.config import load_config
        from trainer.distribution import join_workers
        from trainer.publish import staging
        from trainer.report import print_evaluation
        from trainer.trainings import Trainings

        chosen = load_config(
            config,
            {
                "seed": seed,
                "split": split,
                "train_fraction": train_fraction,
                "patience": patience,
                "refit": refit,
                "with_histories": with_histories,
                "with_ranker": ranker,
                "data": {
                    **source(dataset, interactions, candidates, users, min_rating),
                    "name": name,
                },
                "towers": {"epochs": epochs, "dim": dim},
            },
        )
        strategy = join_workers()  # which TensorFlow allows before its first operation only
        data = load(chosen.data)
        parts = split_dataset(data, chosen.split, train_fraction=chosen.train_fraction)
        with staging(output, TowerManifest):
            pass  # that nothing can be written there is better said before the training than after
        trainings = Trainings(
            data,
            chosen,
            checkpoints=checkpoints or output / ".checkpoints",
            tensorboard=tensorboard,
            start_from=None if warm_start is None else TowerBundle.open(warm_start),
            strategy=strategy,
        )
        towers, seen, measured = trainings.fit_all(
            parts, lambda towers: _measure(trainings, parts, towers, output, force=force)
        )
        if measured is None:
            say("Trained; the chief, the first of the workers, publishes")
            return
        directory = _publish(trainings, towers, seen, measured, output)
        if as_json:
            print_json({"directory": str(directory), "evaluation": measured.report})
        else:
            if measured.evaluation is not None:
                print_evaluation(measured.evaluation)
            tell(f"Published {directory}")


class _Measured(NamedTuple):
    """How good towers are, if that was measured: as a whole, and by user."""

    evaluation: Evaluation | None = None
    by_user: pa.Table | None = None

    @property
    def report(self) -> dict[str, Any] | None:
        """The evaluation as JSON has it."""
        return None if self.evaluation is None else self.evaluation.model_dump(mode="json")


def _measure(
    trainings: Trainings, parts: Split, towers: Towers | None, output: Path, *, force: bool
) -> _Measured:
    """Measure the towers, if there are any, and refuse those worse than the current bundle's."""
    from trainer.acceptance import compare_with_current, quality_by_user
    from trainer.evaluation import rank, summarise
    from trainer.trainings import scorer

    data, measured = trainings.dataset, _Measured()
    if towers is not None:
        with stderr.status("Measuring the towers"):
            rankings = rank(data, parts, scorer(towers))
            measured = _Measured(summarise(data, parts, rankings), quality_by_user(data, rankings))
    is_warm = trainings.start_from is not None and trainings.config.refit
    began_anew = towers is not None and is_warm and trainings.started_from is None
    if sentence := compare_with_current(output, *measured, began_anew=began_anew, force=force):
        say(sentence)
    return measured


def _publish(
    trainings: Trainings, towers: Towers, seen: Split, measured: _Measured, output: Path
) -> Path:
    """Publish towers that have seen the train rows of a split, with a ranking model of its own."""
    from trainer.export import export

    config, ranker = trainings.config, trainings.fit_ranker(seen)
    with stderr.status("Publishing"):
        directory = export(
            towers,
            trainings.dataset,
            seen.train,
            output,
            seed=config.seed,
            rows_name="all" if seen.kind is SplitKind.NONE else f"{seen.kind} train",
            evaluation=measured.report,
            with_histories=config.with_histories,
            ranker=ranker,
            curve=trainings.curve,
            started_from=trainings.started_from,
            seen_before=trainings.seen_before,
            user_quality=measured.by_user,
        )
    trainings.forget_checkpoints()
    return directory
