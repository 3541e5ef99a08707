"""How good a list of candidates is: every number of model quality, defined once.

Lists are rankings: for each user the rows of the best candidates, best first, from among those the
user has not interacted with in train; -1 pads a list where there were fewer. A hit is a candidate
that the user did interact with, in the held-out part. Index quality is not measured here: that is
recall against exact search, in ``indexer.recall``.

Accuracy metrics give one value per user, so that two models can be compared user by user; their
mean over users is the figure to report. How well ratings are predicted is one number over all of
them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from trainer.datasets.grouping import Grouped

Hits = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.integer[Any]]
Lists = npt.NDArray[np.integer[Any]]
PerUser = npt.NDArray[np.float64]
Ratings = npt.NDArray[np.floating[Any]]

_MAX_DRAWS = 1_000_000  # of users at once, for the bootstrap
_MAX_SUMS = 4_000_000  # of users by labels at once, for the diversity: 32 MB


def heldout_recall(hits: Hits, heldout_counts: Counts, k: int) -> PerUser:
    """Return the share of what could be found in the top k that was found.

    Hits in the top k / min(k, held-out candidates): a full list of hits is 1 however many more
    there were to find.

    Args:
        hits: (n_users, >= k) whether each listed candidate is held out for the user.
        heldout_counts: (n_users,) how many are held out, at least 1.
        k: how much of the list counts.
    """
    found: PerUser = hits[:, :k].sum(axis=1) / np.minimum(heldout_counts, k)
    return found


def chance_recall(heldout_counts: Counts, n_candidates: int, k: int) -> PerUser:
    """Return the heldout_recall that a random order of ``n_candidates`` is expected to have."""
    expected: PerUser = k / n_candidates * heldout_counts / np.minimum(heldout_counts, k)
    return expected


def ndcg(hits: Hits, heldout_counts: Counts, k: int) -> PerUser:
    """Return the normalised discounted cumulative gain of the top k, with binary gains.

    A hit at rank r gains 1 / log2(r + 1); the sum is divided by that of a list that begins with
    all that is held out (Järvelin and Kekäläinen 2002).
    """
    discounts = 1 / np.log2(np.arange(2, k + 2))
    gain: PerUser = hits[:, :k] @ discounts[: hits.shape[1]]
    ideal: PerUser = np.cumsum(discounts)[np.minimum(heldout_counts, k) - 1]
    return gain / ideal


def reciprocal_rank(hits: Hits, k: int) -> PerUser:
    """Return 1 / the rank of the first hit in the top k, 0 where there is none."""
    ranks = 1 + hits[:, :k].argmax(axis=1)
    reciprocal: PerUser = hits[:, :k].any(axis=1) / ranks
    return reciprocal


def hit_rate(hits: Hits, k: int) -> PerUser:
    """Return 1 where the top k has a hit, 0 where it has none."""
    return np.asarray(hits[:, :k].any(axis=1), dtype=np.float64)


def coverage(lists: Lists, n_candidates: int, k: int) -> float:
    """Return the share of all candidates that stand in at least one user's top k."""
    return np.count_nonzero(_listed_counts(lists, n_candidates, k)) / n_candidates


def gini(lists: Lists, n_candidates: int, k: int) -> float:
    """Return how unequally the top k are spread over all candidates: the Gini coefficient.

    0 when every candidate is listed equally often, close to 1 when a few popular ones fill all
    lists.
    """
    counts = np.sort(_listed_counts(lists, n_candidates, k))
    ranks = np.arange(1, n_candidates + 1)
    n_listed = max(counts.sum(), 1)
    return float(((2 * ranks - n_candidates - 1) * counts).sum() / (n_candidates * n_listed))


def intra_list_diversity(lists: Lists, labels: Grouped, k: int) -> PerUser:
    """Return 1 - the mean cosine similarity over all pairs of candidates in the top k.

    Candidates are compared by the sets of labels they have, such as genres; one without labels is
    similar to none. A list of fewer than two has no pairs and no diversity: 0.

    Args:
        lists: (n_users, >= k) candidate rows.
        labels: the numbers of each candidate's labels, each once.
        k: how much of the list counts.
    """
    n_labels = int(labels.values.max(initial=0)) + 1
    batch_size = max(1, _MAX_SUMS // n_labels)
    starts = range(0, max(len(lists), 1), batch_size)
    batches = [lists[start : start + batch_size, :k] for start in starts]
    return np.concatenate([_diversities(batch, labels, n_labels) for batch in batches])


def _diversities(lists: Lists, labels: Grouped, n_labels: int) -> PerUser:
    sizes = labels.counts
    is_listed = lists >= 0
    users, candidates = np.nonzero(is_listed)[0], lists[is_listed]
    positions, labels_there = labels.pairs(candidates)
    # Of each user the sum, over the list, of vectors of length 1 in the space of labels.
    sums = np.bincount(
        users[positions] * n_labels + labels_there,
        weights=sizes[candidates[positions]] ** -0.5,
        minlength=len(lists) * n_labels,
    ).reshape(len(lists), n_labels)
    n_labelled = np.bincount(users, weights=sizes[candidates] > 0, minlength=len(lists))
    # |sum of vectors|^2 is the sum over all ordered pairs, those of a vector with itself included.
    similarity = np.vecdot(sums, sums) - n_labelled
    lengths = is_listed.sum(axis=1)
    n_pairs = lengths * (lengths - 1)
    return np.where(n_pairs > 0, 1 - similarity / np.maximum(n_pairs, 1), 0.0)


def novelty(lists: Lists, train_counts: Counts, n_users: int, k: int) -> PerUser:
    """Return the mean self-information of the top k, in bits: high when they are little known.

    A candidate that c of n users know from train carries log2(n / c) bits (Zhou et al. 2010,
    doi:10.1073/pnas.1000488107); one that nobody knows counts as known to one.

    Args:
        lists: (n_users, >= k) candidate rows.
        train_counts: (n_candidates,) how many users interacted with each in train.
        n_users: how many users there are in train.
        k: how much of the list counts.
    """
    bits = np.log2(n_users / np.maximum(train_counts, 1))
    is_listed = lists[:, :k] >= 0
    total = np.where(is_listed, bits[lists[:, :k]], 0.0).sum(axis=1)
    mean: PerUser = total / np.maximum(is_listed.sum(axis=1), 1)
    return mean


def rmse(predicted: Ratings, actual: Ratings) -> float:
    """Return the root of the mean squared error of predicted ratings, both (n_ratings,)."""
    errors = predicted.astype(np.float64) - actual
    return float(np.sqrt(np.mean(errors**2)))


class Interval(BaseModel):
    """A mean and the bounds its bootstrap distribution keeps to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: float
    low: float
    high: float


def paired_bootstrap(
    ours: PerUser,
    theirs: PerUser,
    *,
    confidence: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Return the mean difference ``ours - theirs`` over users and its percentile interval.

    Users are drawn with replacement, the two values of a user together. An interval on one side of
    zero is a difference that another sample of users would most likely show too.

    Args:
        ours: (n_users,) one model's values.
        theirs: (n_users,) the other's, of the same users.
        confidence: share of the bootstrap distribution within the bounds.
        n_resamples: how many samples of users to draw.
        seed: of the random generator.
    """
    differences = ours - theirs
    rng = np.random.default_rng(seed)
    n_users = len(differences)
    means = np.empty(n_resamples)
    batch_size = max(1, _MAX_DRAWS // n_users)
    for start in range(0, n_resamples, batch_size):
        batch = means[start : start + batch_size]
        batch[:] = differences[rng.integers(n_users, size=(len(batch), n_users))].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(mean=float(differences.mean()), low=float(low), high=float(high))


def _listed_counts(lists: Lists, n_candidates: int, k: int) -> npt.NDArray[np.int64]:
    """Return in how many users' top k each candidate stands, (n_candidates,)."""
    top = lists[:, :k]
    return np.bincount(top[top >= 0], minlength=n_candidates)
