"""The towers beside the baselines: one table, and whether the differences are more than noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from pydantic import BaseModel, ConfigDict

from trainer.baselines import BASELINES, RATING_BASELINES, Fit, FitRatings
from trainer.datasets import Dataset
from trainer.evaluation import (
    EvaluationError,
    PredictRatings,
    ScoreUsers,
    measure,
    rank,
    rating_error,
    user_metrics,
)
from trainer.metrics import Interval, paired_bootstrap
from trainer.splits import Split, SplitKind

TOWERS = "towers"

HEADLINES = (
    "heldout_recall@10",
    "ndcg@10",
    "mrr@100",
    "hit_rate@10",
    "coverage@10",
    "gini@10",
    "diversity@10",
    "novelty@10",
)
"""Metrics worth a column in a table; the comparison has many more."""

BOOTSTRAPPED = ("heldout_recall@10", "ndcg@10", "heldout_recall@100")
"""Metrics whose differences come with an interval."""


class ComparedModel(BaseModel):
    """One line of the table.

    Attributes:
        name: of the model.
        metrics: by name; see ``trainer.metrics``.
        towers_lead: by name of the metric, towers minus this model over the same users, with its
            95% interval; empty for the towers themselves.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    metrics: dict[str, float]
    towers_lead: dict[str, Interval] = {}


class Comparison(BaseModel):
    """The towers and the baselines on one split.

    Attributes:
        dataset: name of the dataset.
        split: how it was split.
        ordered_by: what settled which interaction is later, ``timestamp`` or ``row``.
        n_users: how many users were scored.
        models: the towers first, then the baselines.
        left_out: by name, why a baseline could not be compared.
        rmse: of ratings, by the name of what predicts them: our models first, then their
            baselines; empty without ratings.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    split: SplitKind
    ordered_by: str
    n_users: int
    models: list[ComparedModel]
    left_out: dict[str, str]
    rmse: dict[str, float] = {}


def compare(
    dataset: Dataset,
    split: Split,
    score_users: ScoreUsers,
    *,
    rating_models: Mapping[str, PredictRatings] | None = None,
    baselines: Mapping[str, Fit] = BASELINES,
    rating_baselines: Mapping[str, FitRatings] = RATING_BASELINES,
    on_model: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Measure the towers and every baseline, each fitted to the same train rows.

    Args:
        dataset: what was split.
        split: what the models learn from and are tested on.
        score_users: the towers, trained on ``split.train``.
        rating_models: what predicts ratings, trained on the same, by name; none without ratings.
        baselines: what to compare the towers with, by name.
        rating_baselines: what to compare those with, by name.
        on_model: called with the name of each model before its turn, to show progress.

    Raises:
        EvaluationError: if there is nobody to score, or the towers give no numbers.
    """
    on_model(TOWERS)
    rankings = rank(dataset, split, score_users)
    towers = user_metrics(rankings)
    models = [ComparedModel(name=TOWERS, metrics=measure(dataset, split, rankings))]
    left_out = {}
    for name, fit in baselines.items():
        on_model(name)
        try:
            theirs = rank(dataset, split, fit(dataset, split.train))
        except (EvaluationError, np.linalg.LinAlgError) as error:
            left_out[name] = str(error)
            continue
        values = user_metrics(theirs)
        models.append(
            ComparedModel(
                name=name,
                metrics=measure(dataset, split, theirs),
                towers_lead={
                    metric: paired_bootstrap(towers[metric], values[metric])
                    for metric in BOOTSTRAPPED
                },
            )
        )
    return Comparison(
        dataset=dataset.name,
        split=split.kind,
        ordered_by=split.ordered_by,
        n_users=len(rankings.user_rows),
        models=models,
        left_out=left_out,
        rmse=_rating_errors(dataset, split, rating_models or {}, rating_baselines, on_model),
    )


def _rating_errors(
    dataset: Dataset,
    split: Split,
    models: Mapping[str, PredictRatings],
    baselines: Mapping[str, FitRatings],
    on_model: Callable[[str], None],
) -> dict[str, float]:
    """Return the RMSE of rating models and of their baselines, by name; none without models."""
    if not models or dataset.ratings is None:
        return {}
    errors = {name: rating_error(dataset, split, predict) for name, predict in models.items()}
    for name, fit in baselines.items():
        on_model(name)
        errors[name] = rating_error(
            dataset, split, fit(dataset, split.train, dataset.ratings[split.train])
        )
    return errors
