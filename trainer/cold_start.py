"""Cold start: what the towers do for what they were never trained on.

A candidate nobody trained on is embedded by its content. Some candidates are taken out of the
catalogue before training; the question is which of them the users interacted with. A user nobody
trained on is embedded by the history in the request. Users are taken out, a fifth at a time; the
question is whether they are served as well as when they were trained on. A description in words is
embedded as the content of a candidate; the question is whether it finds what it describes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from trainer.datasets import Dataset
from trainer.datasets.dataset import sorted_unique
from trainer.datasets.grouping import Grouped
from trainer.evaluation import (
    EvaluationError,
    ScoreUsers,
    label_column,
    labels_by_candidate,
    rank,
    top_rows,
    user_metrics,
)
from trainer.features import DescriptionReader, encode_candidates
from trainer.inputs import describe, describe_users
from trainer.metrics import Interval, chance_recall, paired_bootstrap
from trainer.model_config import TowersConfig
from trainer.splits import Rows, Split, SplitKind
from trainer.splits import split as split_dataset
from trainer.trained_towers import Towers
from trainer.training import fit
from trainer.trainings import scorer

OnTraining = Callable[[str], None]

K = 10
N_FOLDS = 5
"""Parts of the users; each is taken out once."""
_METRIC = f"heldout_recall@{K}"
_HIDDEN_SHARE = 0.1


class ColdCandidates(BaseModel):
    """How well candidates are found that were no part of the training's catalogue.

    All figures are heldout_recall@10 among the hidden candidates alone.
    """

    model_config = ConfigDict(frozen=True)

    n_hidden: int
    n_users: int
    """Users who interacted with any of them."""
    by_content: float
    by_label_popularity: float
    """By how popular the trained candidates are, on average, that share a label with them."""
    by_chance: float
    """What a random order is expected to find."""
    lead: Interval
    """Of the content over the popularity of the labels, over users."""

    @property
    def times_chance(self) -> float:
        """What the content finds, as a multiple of chance."""
        return self.by_content / self.by_chance


class ColdUsers(BaseModel):
    """How well users are served by a history that was no part of the training.

    Both figures are heldout_recall@10 of the same users on the random split.
    """

    model_config = ConfigDict(frozen=True)

    n_users: int
    known: float
    """When they were trained on."""
    unknown: float
    """When a fifth of the users, and they among them, were left out of the training."""
    lead: Interval
    """Of unknown users over known ones, over users."""

    @property
    def share(self) -> float | None:
        """What an unknown user gets, as a share of what a known one gets; None if that is none."""
        return self.unknown / self.known if self.known else None


class Descriptions(BaseModel):
    """How well words find what they describe; popularity has no part in it."""

    model_config = ConfigDict(frozen=True)

    n_labels: int
    labelled: float
    """Of the first 10 for the name of a label, the share that has it, on average over labels."""
    labelled_by_chance: float
    """The share of the catalogue that has a label, on average over labels."""
    found: float
    """Share of the candidates that are among the first 10 for all that the towers read of them."""
    found_by_chance: float


class ColdStart(BaseModel):
    """What the towers do for those they were never trained on."""

    model_config = ConfigDict(frozen=True)

    dataset: str
    candidates: ColdCandidates | None
    """None where the towers read no content."""
    users: ColdUsers
    descriptions: Descriptions | None
    """None where the towers read no content, or know no labels."""


def measure_cold_start(
    dataset: Dataset, config: TowersConfig, seed: int, on_training: OnTraining
) -> ColdStart:
    """Train without some candidates and without some users, and look for what they lack.

    Args:
        dataset: users, candidates and interactions.
        config: how the towers are built and trained, seven times.
        seed: of the trainings, and of who is taken out.
        on_training: called before each training with what it does.

    Raises:
        EvaluationError: if there are too few candidates or users to take any out.
        TrainingError: if what is left cannot be trained on.
    """
    parts = split_dataset(dataset, SplitKind.RANDOM, seed=seed)
    users = describe_users(dataset, parts.train, config)
    features, _ = describe(dataset.candidates, users, config)
    candidates = None
    if features.content:
        on_training("without some candidates")
        candidates = _cold_candidates(dataset, config, seed)
    on_training("with everybody")
    everybody = fit(dataset, parts.train, config, seed)
    cold_users = _cold_users(dataset, parts, everybody, seed, on_training)
    return ColdStart(
        dataset=dataset.name,
        candidates=candidates,
        users=cold_users,
        descriptions=measure_descriptions(dataset, everybody),
    )


def _cold_candidates(dataset: Dataset, config: TowersConfig, seed: int) -> ColdCandidates:
    order = np.random.default_rng(seed).permutation(dataset.n_candidates)
    n_hidden = round(dataset.n_candidates * _HIDDEN_SHARE)
    if n_hidden <= K:
        raise EvaluationError(
            f"a tenth of {dataset.name} is {n_hidden} candidates: to look for the best {K} of "
            f"them there have to be more, so at least {round((K + 1) / _HIDDEN_SHARE)} in all"
        )
    hidden_rows = np.sort(order[:n_hidden])
    hidden, trained = _only(dataset, hidden_rows), _only(dataset, np.sort(order[n_hidden:]))
    towers = fit(trained, np.arange(len(trained)), config, seed)
    corpus = encode_candidates(towers.features, towers.vocabularies, hidden.candidates)
    popularity = _label_popularity(dataset, hidden_rows)
    parts = Split(SplitKind.RANDOM, np.arange(0), np.arange(len(hidden)), "row")

    def by_labels(rows: Rows) -> npt.NDArray[np.float32]:
        return np.broadcast_to(popularity, (len(rows), len(popularity)))

    found, counts = _recalls(hidden, parts, scorer(towers, corpus=corpus))
    by_labels_found, _ = _recalls(hidden, parts, by_labels)
    return ColdCandidates(
        n_hidden=n_hidden,
        n_users=len(found),
        by_content=float(found.mean()),
        by_label_popularity=float(by_labels_found.mean()),
        by_chance=float(chance_recall(counts, n_hidden, K).mean()),
        lead=paired_bootstrap(found, by_labels_found),
    )


def _cold_users(
    dataset: Dataset, parts: Split, everybody: Towers, seed: int, on_training: OnTraining
) -> ColdUsers:
    score_known = scorer(everybody)
    known: list[npt.NDArray[np.float64]] = []
    unknown: list[npt.NDArray[np.float64]] = []
    for number, fold in enumerate(_folds(dataset, seed), start=1):
        on_training(f"without users, part {number} of {N_FOLDS}")
        of_fold = np.isin(dataset.user_rows, fold)
        theirs = replace(parts, test=parts.test[of_fold[parts.test]])
        others = fit(dataset, parts.train[~of_fold[parts.train]], everybody.config, seed)
        score_unknown = scorer(others, everybody.histories)
        known.append(_recalls(dataset, theirs, score_known)[0])
        unknown.append(_recalls(dataset, theirs, score_unknown)[0])
    before, after = np.concatenate(known), np.concatenate(unknown)
    return ColdUsers(
        n_users=len(before),
        known=float(before.mean()),
        unknown=float(after.mean()),
        lead=paired_bootstrap(after, before),
    )


def measure_descriptions(dataset: Dataset, towers: Towers) -> Descriptions | None:
    """Look for candidates by words; None if the towers read no content, or know no labels.

    Args:
        dataset: that the towers were trained on.
        towers: that embed words.
    """
    column, labels = label_column(dataset.candidates), labels_by_candidate(dataset.candidates)
    if towers.description_module is None or column is None or labels is None:
        return None
    reader = DescriptionReader(towers.features.content, towers.vocabularies)
    candidates = towers.embed_candidates().T

    def first(content: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
        return top_rows(towers.embed_descriptions(content) @ candidates, K)

    names = sorted_unique(pa.chunked_array([column.flatten()])).to_pylist()
    read = {i: content for i, name in enumerate(names) if (content := reader.read(name))}
    if not read:
        return None
    all_rows = np.arange(dataset.n_candidates)
    rows, numbers = labels.pairs(all_rows)
    having = Grouped.by(numbers, rows, len(names))
    shares = [np.isin(first(content), having.of(i)).mean() for i, content in read.items()]
    own = first({one.name: towers.corpus[one.name] for one in towers.features.content})
    return Descriptions(
        n_labels=len(read),
        labelled=float(np.mean(shares)),
        labelled_by_chance=float(having.counts[list(read)].mean() / dataset.n_candidates),
        found=float((own == all_rows[:, None]).any(axis=1).mean()),
        found_by_chance=K / dataset.n_candidates,
    )


def _folds(dataset: Dataset, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    if dataset.n_users < N_FOLDS:
        raise EvaluationError(
            f"{dataset.name} has {dataset.n_users} users: to leave a part of them out there have "
            f"to be {N_FOLDS} at least"
        )
    yield from np.array_split(np.random.default_rng(seed).permutation(dataset.n_users), N_FOLDS)


def _recalls(
    dataset: Dataset, parts: Split, score_users: ScoreUsers
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return what is found for each test user, and how much there was to find."""
    rankings = rank(dataset, parts, score_users)
    return user_metrics(rankings)[_METRIC], rankings.heldout_counts


def _only(dataset: Dataset, rows: npt.NDArray[np.int64]) -> Dataset:
    """Return the dataset as if it had some of its candidates only, which are numbered anew."""
    new_rows = np.full(dataset.n_candidates, -1)
    new_rows[rows] = np.arange(len(rows))
    return dataset.with_candidates(dataset.candidates.take(rows), new_rows)


def _label_popularity(dataset: Dataset, hidden: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return how popular the others are that share labels with each hidden candidate."""
    counts = np.bincount(dataset.candidate_rows, minlength=dataset.n_candidates)
    is_trained = np.ones(dataset.n_candidates)
    is_trained[hidden] = 0
    labels = labels_by_candidate(dataset.candidates)
    if labels is None:
        return np.zeros(len(hidden), dtype=np.float32)
    rows, numbers = labels.pairs(np.arange(dataset.n_candidates))
    n_trained = np.bincount(numbers, weights=is_trained[rows])
    of_label = np.bincount(numbers, weights=(counts * is_trained)[rows]) / np.maximum(n_trained, 1)
    summed = np.bincount(rows, weights=of_label[numbers], minlength=dataset.n_candidates)
    return (summed / np.maximum(labels.counts, 1))[hidden].astype(np.float32)
