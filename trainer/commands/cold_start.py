"""``python -m trainer cold-start``."""

from __future__ import annotations

from trainer.commands.data import load, source
from trainer.commands.options import (
    AsJson,
    CandidatesFile,
    ConfigFile,
    DatasetName,
    Dim,
    Epochs,
    InteractionsFile,
    MinRating,
    Seed,
    UsersFile,
)
from trainer.console import print_json, sentences_for_errors, stderr


def cold_start(
    *,
    config: ConfigFile = None,
    dataset: DatasetName = None,
    interactions: InteractionsFile = None,
    candidates: CandidatesFile = None,
    users: UsersFile = None,
    min_rating: MinRating = None,
    seed: Seed = None,
    epochs: Epochs = None,
    dim: Dim = None,
    as_json: AsJson = False,
) -> None:
    """Measure what the towers do for candidates and users they were never trained on.

    Trains seven times: without a tenth of the candidates, with everybody, and without each fifth
    of the users.

    Example: python -m trainer cold-start --dataset movielens/100k
    """
    with sentences_for_errors():
        from trainer.cold_start import measure_cold_start
        from trainer.config import load_config
        from trainer.report import print_cold_start

        chosen = load_config(
            config,
            {
                "seed": seed,
                "data": source(dataset, interactions, candidates, users, min_rating),
                "towers": {"epochs": epochs, "dim": dim},
            },
        )
        data = load(chosen.data)
        with stderr.status("Training") as status:
            result = measure_cold_start(
                data,
                chosen.towers,
                chosen.seed,
                lambda what: status.update(f"Training {what}"),
            )
        if as_json:
            print_json(result.model_dump(mode="json"))
        else:
            print_cold_start(result)
