"""``python -m trainer refresh``."""

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
    InteractionsFile,
    MinRating,
    UsersFile,
)
from trainer.console import print_json, say, sentences_for_errors, stderr, tell


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
    candidates: CandidatesFile = None,
    users: UsersFile = None,
    min_rating: MinRating = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Publish even if most interactions are with candidates that the towers do "
            "not know, or if ratings that they were chosen by are missing.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Publish towers with the histories, and candidates, that there are now, without training.

    Example: python -m trainer refresh artifacts/towers/current --interactions interactions.csv
    --candidates candidates.csv
    """
    with sentences_for_errors():
        from trainer.bundle import TowerBundle
        from trainer.config import ConfigError, load_config
        from trainer.refresh import refresh as refresh_bundle

        flags = {"data": source(dataset, interactions, candidates, users, min_rating)}
        source_of_data = load_config(config, flags).data
        if not source_of_data.is_given:
            raise ConfigError(
                "nothing says whose histories to publish: give --interactions FILE, or --dataset "
                "NAME, or a --config FILE that names either"
            )
        data = load(source_of_data)
        bundle = TowerBundle.open(towers)
        with stderr.status("Embedding the users anew"):
            done = refresh_bundle(
                bundle,
                data,
                output or bundle.directory.parent,
                with_candidates=source_of_data.candidates is not None,
                force=force,
            )
        if done.n_left_out:
            can_read = bundle.query.features.content
            advice = "give --candidates FILE to have them found, or " if can_read else ""
            say(
                f"{done.n_left_out:,} of {len(data):,} interactions are with candidates that the "
                f"towers do not know, and were left out: {advice}train again"
            )
        if done.n_new_candidates:
            say(
                f"Candidates that have come since the training: {done.n_new_candidates:,}. They "
                "are found by their content, and not read in histories until you train again"
            )
        if as_json:
            print_json(
                {
                    "directory": str(done.directory),
                    "n_users": done.n_users,
                    "n_new_candidates": done.n_new_candidates,
                    "n_left_out": done.n_left_out,
                }
            )
        else:
            tell(f"Published {done.directory}, {done.n_users:,} users")
