"""The flags that several commands share; one that is not given leaves the config as it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from trainer.datasets import DATASET_NAMES
from trainer.splits import SplitKind

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="A TOML file of options, which flags override; `config` prints all there are with "
        "their defaults.",
    ),
]
DatasetName = Annotated[
    str | None,
    typer.Option("--dataset", help=f"One of {', '.join(DATASET_NAMES)}.", metavar="NAME"),
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
UsersFile = Annotated[
    Path | None,
    typer.Option(
        "--users",
        help="Your own users, CSV or Parquet: user_id, and any columns for demographics.",
    ),
]
MinRating = Annotated[
    float | None, typer.Option(help="Take only interactions rated at least this high.")
]
HeldOut = Annotated[
    SplitKind | None,
    typer.Option("--split", help="What is held out to measure quality; none skips it."),
]
TrainFraction = Annotated[
    float | None,
    typer.Option(help="Share of the interactions to train on, for a random or temporal split."),
]
Seed = Annotated[
    int | None,
    typer.Option(
        help="Seed of the training; the same seed gives one result. What is held out stays."
    ),
]
Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over the users.")]
Patience = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Early stopping: epochs without a better validation after which the number of epochs "
        "is settled; 0 trains all.",
    ),
]
TensorBoardFolder = Annotated[
    Path | None, typer.Option("--tensorboard", help="Folder for TensorBoard's logs.")
]
Dim = Annotated[
    int | None, typer.Option(min=2, help="Dimension of the embeddings, the bias included.")
]
WithRanker = Annotated[
    bool | None,
    typer.Option(
        "--ranker/--no-ranker", help="Train a ranking model as well, if there are ratings, or not."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for scripts.")]


def require_writable(flag: str, file: Path) -> None:
    """Make the folder of a file that is written after a training, or refuse the file before it.

    Raises:
        typer.BadParameter: if the file cannot be written there.
    """
    folder = file.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"{flag}: {folder} cannot be made: {error.strerror}") from error
    if file.is_dir():
        raise typer.BadParameter(f"{flag}: {file} is a folder; name a file in it")
    if not os.access(folder, os.W_OK):
        raise typer.BadParameter(f"{flag}: {folder} cannot be written to")
