"""How well a model ranks what users did next: all candidates, no sampling.

For every user with something held out, all candidates are ranked but those of the user's train
rows; candidates that were interacted with both in train and in test are not held out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from trainer import metrics
from trainer.datasets import Dataset
from trainer.datasets.dataset import sorted_unique
from trainer.datasets.grouping import Grouped
from trainer.errors import TrainerError
from trainer.splits import Rows, Split, SplitKind

CUTOFFS = (10, 20, 50, 100)
"""Lengths of the lists that are measured."""

_DEPTH = max(CUTOFFS)
_MAX_SCORES = 8_000_000  # of one batch of users: 32 MB, and a few times that while ranking

RANKED_DEPTHS = (10, 100)
"""Numbers of retrieved candidates that the ranking model's order is measured on."""

_RANKED_CUTOFF = 10

ScoreUsers = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]]
"""Scores (n, n_candidates) of all candidates for user rows (n,)."""

PredictRatings = Callable[
    [npt.NDArray[np.integer[Any]], npt.NDArray[np.integer[Any]]], npt.NDArray[np.float32]
]
"""Ratings (n,) that the users of user rows (n,) would give to candidate rows (n,)."""


class EvaluationError(TrainerError):
    """Why a model cannot be evaluated, in words for the person who asked for it."""


class RankedOrder(BaseModel):
    """What the ranking model's order does to the lists that were retrieved.

    Attributes:
        n_retrieved: how many candidates of each user were put into its order.
        ndcg: NDCG@10 of that order, mean over users.
        lead: what that is above the order of retrieval, with its 95% interval.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_retrieved: int
    ndcg: float
    lead: metrics.Interval


class Evaluation(BaseModel):
    """The quality of one model on one split.

    Attributes:
        dataset: name of the dataset.
        split: how it was split.
        ordered_by: what settled which interaction is later, ``timestamp`` or ``row``.
        train_fraction: what share of the interactions was trained on, where the split leaves it
            open.
        min_rating: what the interactions were rated at least, if they were chosen so.
        n_users: how many users were scored.
        n_candidates: among how many candidates.
        metrics: by name, such as ``heldout_recall@10``; see ``trainer.metrics``.
        rmse: of the ranking model's ratings; None without one.
        biases_rmse: of what users and candidates add to the mean rating, which it should beat.
        ranked: what the ranking model's order does, by rising depth; empty without one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    split: SplitKind
    ordered_by: str
    train_fraction: float | None = None
    min_rating: float | None = None
    n_users: int
    n_candidates: int | None = None
    metrics: dict[str, float]
    rmse: float | None = None
    biases_rmse: float | None = None
    ranked: list[RankedOrder] = []


@dataclass(frozen=True, eq=False)
class Rankings:
    """The best candidates of each scored user.

    Attributes:
        user_rows: (n_users,) the scored users, rising.
        lists: (n_users, depth) int64 candidate rows, best first, -1 where there were fewer.
        hits: (n_users, depth) whether each is held out for the user.
        heldout_counts: (n_users,) how many candidates are held out.
    """

    user_rows: npt.NDArray[np.int64]
    lists: npt.NDArray[np.int64]
    hits: npt.NDArray[np.bool_]
    heldout_counts: npt.NDArray[np.int64]


def evaluate(
    dataset: Dataset,
    split: Split,
    score_users: ScoreUsers,
    predict_ratings: PredictRatings | None = None,
) -> Evaluation:
    """Rank the candidates for every test user and measure the lists.

    Args:
        dataset: what was split.
        split: its train rows are left out of the rankings, its test rows are looked for.
        score_users: scores of all candidates for a batch of user rows.
        predict_ratings: the ranking model, if there is one.

    Raises:
        EvaluationError: if there is nobody to score, or a score is not a number.
    """
    return summarise(dataset, split, rank(dataset, split, score_users), predict_ratings)


def summarise(
    dataset: Dataset,
    split: Split,
    rankings: Rankings,
    predict_ratings: PredictRatings | None = None,
) -> Evaluation:
    """Measure rankings as ``evaluate`` does.

    Args:
        dataset: what was split.
        split: what the candidates were ranked for.
        rankings: what ``rank`` made.
        predict_ratings: the ranking model, if there is one.
    """
    evaluation = Evaluation(
        dataset=dataset.name,
        split=split.kind,
        ordered_by=split.ordered_by,
        train_fraction=split.train_fraction,
        min_rating=dataset.min_rating,
        n_users=len(rankings.user_rows),
        n_candidates=dataset.n_candidates,
        metrics=measure(dataset, split, rankings),
    )
    if predict_ratings is None:
        return evaluation
    ranked = {
        "rmse": rating_error(dataset, split, predict_ratings),
        "ranked": [ranked_order(rankings, predict_ratings, n) for n in RANKED_DEPTHS],
    }
    return evaluation.model_copy(update=ranked)


def rating_error(dataset: Dataset, split: Split, predict: PredictRatings) -> float:
    """Return the RMSE of the predicted ratings over all test rows, of new users too.

    Raises:
        EvaluationError: if there are no ratings to predict, or a prediction is not a number.
    """
    if dataset.ratings is None or not len(split.test):
        raise EvaluationError(f"the {split.kind} split of {dataset.name} holds out no ratings")
    predicted = predict(dataset.user_rows[split.test], dataset.candidate_rows[split.test])
    if np.isnan(predicted).any():
        raise EvaluationError("the model predicted a rating that is not a number (NaN)")
    return metrics.rmse(predicted, dataset.ratings[split.test])


def ranked_order(rankings: Rankings, predict: PredictRatings, n_retrieved: int) -> RankedOrder:
    """Put the first candidates of every list into the order of their predicted ratings."""
    lists, hits = rankings.lists[:, :n_retrieved], rankings.hits[:, :n_retrieved]
    users = np.broadcast_to(rankings.user_rows[:, None], lists.shape)
    ratings = predict(users.ravel(), np.maximum(lists, 0).ravel()).reshape(lists.shape)
    best_first = np.argsort(np.where(lists >= 0, -ratings, np.inf), axis=1, kind="stable")
    counts = rankings.heldout_counts
    retrieved = metrics.ndcg(rankings.hits, counts, _RANKED_CUTOFF)
    ranked = metrics.ndcg(np.take_along_axis(hits, best_first, axis=1), counts, _RANKED_CUTOFF)
    return RankedOrder(
        n_retrieved=n_retrieved,
        ndcg=float(ranked.mean()),
        lead=metrics.paired_bootstrap(ranked, retrieved),
    )


def rank(dataset: Dataset, split: Split, score_users: ScoreUsers) -> Rankings:
    """Rank the candidates for every test user, as ``evaluate`` measures them.

    Raises:
        EvaluationError: if there is nobody to score, or a score is not a number.
    """
    seen = candidates_by_user(dataset, split.train)
    heldout = _heldout(dataset, split)
    user_rows = _scored_users(dataset, split, seen, heldout)
    batch_size = max(1, _MAX_SCORES // dataset.n_candidates)
    batches = [
        _rank_batch(user_rows[start : start + batch_size], score_users, seen, heldout)
        for start in range(0, len(user_rows), batch_size)
    ]
    lists, hits = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return Rankings(user_rows, lists, hits, heldout.counts[user_rows])


def check_measurable(dataset: Dataset, split: Split) -> None:
    """Refuse, before anything is trained, a split that leaves nobody to score.

    Raises:
        EvaluationError: if it does.
    """
    seen, heldout = candidates_by_user(dataset, split.train), _heldout(dataset, split)
    _scored_users(dataset, split, seen, heldout)


def _scored_users(
    dataset: Dataset, split: Split, seen: Grouped, heldout: Grouped
) -> npt.NDArray[np.int64]:
    """Return the users (n,) that ``rank`` ranks candidates for."""
    user_rows = np.flatnonzero(heldout.counts)
    if split.kind is SplitKind.TEMPORAL:
        user_rows = user_rows[seen.counts[user_rows] > 0]
    if not len(user_rows):
        raise EvaluationError(
            f"the {split.kind} split of {dataset.name} leaves nobody to score: no user has a "
            "held-out candidate that is not in their train rows; `fit --split none` trains "
            "without measuring"
        )
    return user_rows


def candidates_by_user(dataset: Dataset, rows: Rows) -> Grouped:
    """Return the candidates of each user in ``rows``, each once."""
    pairs = np.unique(_pair_keys(dataset, rows))
    return Grouped.by(*np.divmod(pairs, dataset.n_candidates), n_groups=dataset.n_users)


def top_rows(scores: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    """Return the columns (n, min(k, n_columns)) of each row's best scores, best first.

    Ties go to the lower column.
    """
    k = min(k, scores.shape[1])
    threshold = np.partition(scores, -k, axis=1)[:, -k, None]
    chosen = scores >= threshold
    # Where more than k reach the threshold, the last of those that tie at it are too many.
    crowded = np.flatnonzero(np.count_nonzero(chosen, axis=1) > k)
    tied = scores[crowded] == threshold[crowded]
    room = k - np.count_nonzero(chosen[crowded] & ~tied, axis=1, keepdims=True)
    chosen[crowded] &= ~tied | (np.cumsum(tied, axis=1, dtype=np.int32) <= room)
    columns = np.nonzero(chosen)[1].reshape(len(scores), k)
    order = np.argsort(-np.take_along_axis(scores, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)


def user_metrics(rankings: Rankings) -> dict[str, metrics.PerUser]:
    """Return the accuracy of each user's list, (n_users,) by the name of the metric."""
    hits, counts = rankings.hits, rankings.heldout_counts
    values = {}
    for k in CUTOFFS:
        values[f"heldout_recall@{k}"] = metrics.heldout_recall(hits, counts, k)
        values[f"ndcg@{k}"] = metrics.ndcg(hits, counts, k)
        values[f"hit_rate@{k}"] = metrics.hit_rate(hits, k)
        values[f"mrr@{k}"] = metrics.reciprocal_rank(hits, k)
    return values


def measure(dataset: Dataset, split: Split, rankings: Rankings) -> dict[str, float]:
    """Return every metric of the rankings by its name: means over users, and beyond accuracy."""
    figures = {name: float(values.mean()) for name, values in user_metrics(rankings).items()}
    lists, n_candidates = rankings.lists, dataset.n_candidates
    known_by = np.bincount(candidates_by_user(dataset, split.train).values, minlength=n_candidates)
    n_train_users = len(np.unique(dataset.user_rows[split.train]))
    labels = labels_by_candidate(dataset.candidates)
    for k in CUTOFFS:
        figures[f"coverage@{k}"] = metrics.coverage(lists, n_candidates, k)
        figures[f"gini@{k}"] = metrics.gini(lists, n_candidates, k)
        figures[f"novelty@{k}"] = float(
            metrics.novelty(lists, known_by, max(n_train_users, 1), k).mean()
        )
        if labels is not None:
            diversity = metrics.intra_list_diversity(lists, labels, k)
            figures[f"diversity@{k}"] = float(diversity.mean())
    return figures


def _rank_batch(
    user_rows: npt.NDArray[np.int64], score_users: ScoreUsers, seen: Grouped, heldout: Grouped
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the lists and the hits (n, depth) of one batch of users."""
    scores = np.array(score_users(user_rows), dtype=np.float32)
    if np.isnan(scores).any():
        raise EvaluationError("the model gave a score that is not a number (NaN)")
    scores[seen.pairs(user_rows)] = -np.inf
    lists = top_rows(scores, _DEPTH)
    lists[np.isneginf(np.take_along_axis(scores, lists, axis=1))] = -1
    n_candidates = scores.shape[1]
    positions, candidates = heldout.pairs(user_rows)
    keys = np.arange(len(lists))[:, None] * n_candidates + lists
    hits = np.isin(keys, positions * n_candidates + candidates) & (lists >= 0)
    return lists, hits


def _heldout(dataset: Dataset, split: Split) -> Grouped:
    """Return the candidates each user is tested on: those of the test that are not in train."""
    pairs = np.setdiff1d(_pair_keys(dataset, split.test), _pair_keys(dataset, split.train))
    return Grouped.by(*np.divmod(pairs, dataset.n_candidates), n_groups=dataset.n_users)


def _pair_keys(dataset: Dataset, rows: Rows) -> npt.NDArray[np.int64]:
    """Return one number (n,) for each interaction's user and candidate."""
    users = dataset.user_rows[rows].astype(np.int64)
    return users * dataset.n_candidates + dataset.candidate_rows[rows]


def labels_by_candidate(candidates: pa.Table) -> Grouped | None:
    """Return the labels of each candidate, each once; None if there are none.

    They are numbered in the order of ``sorted_unique``.
    """
    column = label_column(candidates)
    if column is None:
        return None
    labels = sorted_unique(pa.chunked_array([column.flatten()]))
    rows = pc.list_parent_indices(column).to_numpy().astype(np.int64)
    numbers = pc.index_in(column.flatten(), value_set=labels).to_numpy(zero_copy_only=False)
    pairs = np.unique(rows * max(len(labels), 1) + numbers)
    return Grouped.by(*np.divmod(pairs, max(len(labels), 1)), n_groups=len(candidates))


def label_column(candidates: pa.Table) -> pa.ListArray | None:
    """Return the labels of each candidate: the ``genres``, or else the first column of lists."""
    names = [field.name for field in candidates.schema if pa.types.is_list(field.type)]
    if not names:
        return None
    return candidates["genres" if "genres" in names else names[0]].combine_chunks()
