"""``python -m trainer tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    Seed,
    TrainFraction,
    UsersFile,
    require_writable,
)
from trainer.console import epoch_progress, print_json, sentences_for_errors, tell
from trainer.splits import split as split_dataset


def tune(
    *,
    output: Annotated[
        Path, typer.Option(help="Where the best options go, the TOML that --config reads.")
    ] = Path("artifacts/tuned.toml"),
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
    dim: Dim = None,
    trials: Annotated[
        int, typer.Option(min=1, help="Trainings to make; the first is of the config as it is.")
    ] = 20,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Begin no further training after this long.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Search for better options of the towers, on a validation part of the train rows only.

    Example: python -m trainer tune --dataset movielens/100k --minutes 30 --output tuned.toml
    """
    with sentences_for_errors():
        from trainer.config import load_config, write_config
        from trainer.report import print_tuning
        from trainer.trainings import Trainings
        from trainer.tuning import Tuning
        from trainer.tuning import tune as search
        from trainer.validation import validation_of

        chosen = load_config(
            config,
            {
                "seed": seed,
                "split": split,
                "train_fraction": train_fraction,
                "data": source(dataset, interactions, candidates, users, min_rating),
                "towers": {"epochs": epochs, "dim": dim},
            },
        )
        require_writable("--output", output)
        data = load(chosen.data)
        parts = split_dataset(data, chosen.split, train_fraction=chosen.train_fraction)

        validation = validation_of(data, parts)
        trainings = Trainings(data, chosen)
        trainings.tell_what_is_read(parts)
        trainings.find_balance(validation)
        settled = trainings.config

        def write_best(tuning: Tuning) -> None:
            towers = settled.towers.model_copy(update=tuning.best.options)
            write_config(settled.model_copy(update={"towers": towers}), output)

        tuning = search(
            data,
            validation,
            settled.towers,
            seed=chosen.seed,
            n_trials=trials,
            seconds=None if minutes is None else 60 * minutes,
            progress=lambda n: epoch_progress(f"Trial {n} of {trials}", chosen.towers.epochs),
            on_trial=write_best,
        )
        if as_json:
            print_json({"config": str(output), **tuning.model_dump()})
        else:
            print_tuning(tuning)
            tell(f"Wrote {output}")
