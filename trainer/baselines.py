"""What the towers must beat: popularity, item-kNN, EASE, iALS and the tutorials' model.

Each is a function of a dataset and its train rows that returns the scores of all candidates for a
batch of users. All of them see which candidates a user interacted with, and nothing else. The
ranking model has baselines of its own, which predict ratings and are fitted to ratings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from trainer.datasets import Dataset
from trainer.datasets.grouping import Grouped
from trainer.evaluation import EvaluationError, PredictRatings, ScoreUsers, candidates_by_user
from trainer.splits import Rows

# EASE inverts a square matrix over the candidates in double precision: three such take 6 GiB here.
_MAX_SQUARE_CANDIDATES = 16_384
_MAX_DENSE_VALUES = 8_000_000  # of one batch of users
_MAX_SOLVED_VALUES = 1_000_000  # of one batch of linear systems

Floats = npt.NDArray[np.float32]
Fit = Callable[[Dataset, Rows], ScoreUsers]
FitRatings = Callable[[Dataset, Rows, npt.NDArray[np.float32]], PredictRatings]


def popularity(dataset: Dataset, train_rows: Rows) -> ScoreUsers:
    """Score every candidate by its number of users, the same for everybody."""
    counts = np.bincount(
        candidates_by_user(dataset, train_rows).values, minlength=dataset.n_candidates
    ).astype(np.float32)
    return lambda user_rows: np.broadcast_to(counts, (len(user_rows), len(counts)))


def item_knn(dataset: Dataset, train_rows: Rows, *, n_neighbors: int = 200) -> ScoreUsers:
    """Score by the cosine similarity to the user's candidates, each known by its nearest others.

    Two candidates are similar if the same users interacted with them (Sarwar et al. 2001,
    doi:10.1145/371920.372071).
    """
    history = candidates_by_user(dataset, train_rows)
    weights = _cooccurrence(history, dataset.n_candidates)
    norms = np.sqrt(np.maximum(weights.diagonal(), 1))
    weights /= norms
    weights /= norms[:, None]
    np.fill_diagonal(weights, 0)
    if n_neighbors < len(weights):
        threshold = np.partition(weights, -n_neighbors, axis=1)[:, -n_neighbors, None]
        weights[weights < threshold] = 0
    return _linear(history, weights.T)


def ease(dataset: Dataset, train_rows: Rows, *, regularization: float = 300.0) -> ScoreUsers:
    """Score by the linear model without self-similarity in closed form (arXiv:1905.03375)."""
    history = candidates_by_user(dataset, train_rows)
    gram = _cooccurrence(history, dataset.n_candidates).astype(np.float64)
    gram[np.diag_indices_from(gram)] += regularization
    weights = np.linalg.inv(gram)
    weights /= -weights.diagonal()
    np.fill_diagonal(weights, 0)
    return _linear(history, weights.astype(np.float32))


def ials(
    dataset: Dataset,
    train_rows: Rows,
    *,
    dim: int = 64,
    unobserved_weight: float = 0.1,
    regularization: float = 0.01,
    n_iterations: int = 15,
    seed: int = 0,
) -> ScoreUsers:
    """Score by implicit matrix factorisation with alternating least squares (arXiv:2110.14037).

    Every pair that was not observed counts as a zero of weight ``unobserved_weight``; a row is
    regularised in proportion to how much it was observed.
    """
    by_user = candidates_by_user(dataset, train_rows)
    users = np.repeat(np.arange(dataset.n_users), by_user.counts)
    by_candidate = Grouped.by(by_user.values, users, n_groups=dataset.n_candidates)
    rng = np.random.default_rng(seed)
    scale = 0.1 / np.sqrt(dim)
    user_factors = rng.normal(0, scale, (dataset.n_users, dim))
    candidate_factors = rng.normal(0, scale, (dataset.n_candidates, dim))
    for _ in range(n_iterations):
        user_factors = _solve(candidate_factors, by_user, unobserved_weight, regularization)
        candidate_factors = _solve(user_factors, by_candidate, unobserved_weight, regularization)
    queries, candidates = user_factors.astype(np.float32), candidate_factors.astype(np.float32)
    return lambda user_rows: queries[user_rows] @ candidates.T


def tutorials_model(
    dataset: Dataset,
    train_rows: Rows,
    *,
    dim: int = 32,
    epochs: int = 3,
    batch_size: int = 4096,
    seed: int = 42,
) -> ScoreUsers:
    """Score by two embeddings trained on in-batch softmax, as the TFRS tutorials do.

    One embedding per user and one per candidate, no popularity correction, no regularisation,
    batches frozen after the first epoch, Adagrad with a learning rate of 0.1.
    """
    from trainer.keras import untuned  # noqa: PLC0415 - brings TensorFlow
    from trainer.tutorials import compiled, interactions  # noqa: PLC0415 - the same

    pairs = interactions(dataset, train_rows).shuffle(100_000, seed=seed)
    model = compiled(dataset.n_users, dataset.n_candidates, dim, seed)
    model.fit(untuned(pairs.batch(batch_size).cache()), epochs=epochs, verbose=0)
    queries, candidates = model.query.get_weights()[0], model.candidate.get_weights()[0]
    return lambda user_rows: queries[user_rows] @ candidates.T


BASELINES: dict[str, Fit] = {
    "popularity": popularity,
    "item-kNN": item_knn,
    "EASE": ease,
    "iALS": ials,
    "tutorials' model": tutorials_model,
}
"""By the name they have in tables."""


def rating_biases(
    dataset: Dataset,
    train_rows: Rows,
    ratings: npt.NDArray[np.float32],
    *,
    regularization: float = 4.0,
    n_iterations: int = 20,
) -> PredictRatings:
    """Predict the mean, plus what a user and a candidate add to it whoever the other is.

    Args:
        dataset: whose interactions.
        train_rows: (n,) the interactions to learn from.
        ratings: (n,) how they were rated.
        regularization: ratings of nothing added, that every user and candidate start with.
        n_iterations: alternations between users and candidates.
    """
    users, candidates = dataset.user_rows[train_rows], dataset.candidate_rows[train_rows]
    above_mean = ratings - ratings.mean(dtype=np.float64)
    of_user, of_candidate = np.zeros(dataset.n_users), np.zeros(dataset.n_candidates)
    for _ in range(n_iterations):
        of_candidate = _shrunk_means(
            candidates, above_mean - of_user[users], dataset.n_candidates, regularization
        )
        of_user = _shrunk_means(
            users, above_mean - of_candidate[candidates], dataset.n_users, regularization
        )
    mean = ratings.mean(dtype=np.float64)
    return lambda user_rows, candidate_rows: (
        mean + of_user[user_rows] + of_candidate[candidate_rows]
    ).astype(np.float32)


def tutorials_ranking_model(
    dataset: Dataset,
    train_rows: Rows,
    ratings: npt.NDArray[np.float32],
    *,
    dim: int = 32,
    epochs: int = 3,
    batch_size: int = 4096,
    seed: int = 42,
) -> PredictRatings:
    """Predict by dense layers over two embeddings end to end, as the TFRS tutorials do.

    Layers of 256, 64 and 1, squared error, batches frozen after the first epoch, Adagrad with a
    learning rate of 0.1.
    """
    from trainer.keras import tf, tfrs, untuned  # noqa: PLC0415 - only the tutorials' need TensorFlow

    class Ranking(tfrs.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            embedding, dense = tf.keras.layers.Embedding, tf.keras.layers.Dense
            uniform, glorot = (
                tf.keras.initializers.RandomUniform,
                tf.keras.initializers.GlorotUniform,
            )
            self.query = embedding(dataset.n_users, dim, uniform(seed=seed))
            self.candidate = embedding(dataset.n_candidates, dim, uniform(seed=seed + 1))
            self.layers_on_top = tf.keras.Sequential(
                [
                    dense(256, activation="relu", kernel_initializer=glorot(seed + 2)),
                    dense(64, activation="relu", kernel_initializer=glorot(seed + 3)),
                    dense(1, kernel_initializer=glorot(seed + 4)),
                ]
            )
            self.task = tfrs.tasks.Ranking(loss=tf.keras.losses.MeanSquaredError())

        def call(self, pairs: Mapping[str, object]) -> object:
            embeddings = [self.query(pairs["user"]), self.candidate(pairs["candidate"])]
            return self.layers_on_top(tf.concat(embeddings, axis=1))

        def compute_loss(self, features: Mapping[str, object], training: bool = False) -> object:  # noqa: ARG002
            return self.task(labels=features["rating"], predictions=self(features))

    rated = {
        "user": dataset.user_rows[train_rows],
        "candidate": dataset.candidate_rows[train_rows],
        "rating": ratings[:, None],
    }
    batches = tf.data.Dataset.from_tensor_slices(rated).shuffle(100_000, seed=seed)
    model = Ranking()
    model.compile(optimizer=tf.keras.optimizers.Adagrad(0.1))
    model.fit(untuned(batches.batch(batch_size).cache()), epochs=epochs, verbose=0)
    return lambda user_rows, candidate_rows: model(
        {"user": user_rows, "candidate": candidate_rows}
    ).numpy()[:, 0]


RATING_BASELINES: dict[str, FitRatings] = {
    "biases alone": rating_biases,
    "tutorials' ranking model": tutorials_ranking_model,
}
"""By the name they have in tables."""


def _shrunk_means(
    groups: npt.NDArray[np.int32],
    values: npt.NDArray[np.float64],
    n_groups: int,
    regularization: float,
) -> npt.NDArray[np.float64]:
    """Return the mean of the values of each group, as if so many more of them were 0."""
    totals = np.bincount(groups, values, n_groups)
    means: npt.NDArray[np.float64] = totals / (
        np.bincount(groups, minlength=n_groups) + regularization
    )
    return means


def _linear(history: Grouped, weights: Floats) -> ScoreUsers:
    """Return scores that are, for each user, the sum of the weights of their candidates."""
    return lambda user_rows: _dense(history, user_rows, len(weights)) @ weights


def _cooccurrence(history: Grouped, n_candidates: int) -> Floats:
    """Return how many users interacted with both, for every two candidates: a square matrix."""
    if n_candidates > _MAX_SQUARE_CANDIDATES:
        raise EvaluationError(
            f"this baseline needs a square matrix over the candidates, and {n_candidates:,} are "
            f"too many for it: at most {_MAX_SQUARE_CANDIDATES:,}"
        )
    counts = np.zeros((n_candidates, n_candidates), dtype=np.float32)
    batch_size = max(1, _MAX_DENSE_VALUES // n_candidates)
    users = np.flatnonzero(history.counts)
    for start in range(0, len(users), batch_size):
        dense = _dense(history, users[start : start + batch_size], n_candidates)
        counts += dense.T @ dense
    return counts


def _dense(history: Grouped, user_rows: npt.NDArray[np.int64], n_candidates: int) -> Floats:
    """Return 1 where a user interacted with a candidate, else 0: (n, n_candidates)."""
    dense = np.zeros((len(user_rows), n_candidates), dtype=np.float32)
    dense[history.pairs(user_rows)] = 1
    return dense


def _solve(
    factors: npt.NDArray[np.float64],
    observed: Grouped,
    unobserved_weight: float,
    regularization: float,
) -> npt.NDArray[np.float64]:
    """Return the least-squares factors (n_groups, dim) of each group, given the other side's.

    Args:
        factors: (n, dim) of the other side, which the values of ``observed`` are rows of.
        observed: what each group was observed with.
        unobserved_weight: of all other pairs.
        regularization: times what a group was observed with, unobserved ones by their weight.
    """
    n, dim = factors.shape
    everything = unobserved_weight * factors.T @ factors
    solved = np.zeros((len(observed.counts), dim))
    for groups in _batches_of_like_length(observed.counts, dim):
        positions, values = observed.pairs(groups)
        counts = observed.counts[groups]
        padded = np.zeros((len(groups), counts.max(), dim))
        within = np.arange(len(values)) - np.repeat(np.cumsum(counts) - counts, counts)
        padded[positions, within] = factors[values]
        weight = regularization * (counts + unobserved_weight * n)
        left = padded.transpose(0, 2, 1) @ padded + everything
        left += weight[:, None, None] * np.eye(dim)
        solved[groups] = np.linalg.solve(left, padded.sum(axis=1)[:, :, None])[:, :, 0]
    return solved


def _batches_of_like_length(
    counts: npt.NDArray[np.int64], dim: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the groups that have values, in batches that waste little when padded to one length."""
    groups = np.argsort(counts, kind="stable")
    groups = groups[counts[groups] > 0]
    while len(groups):
        longest = counts[groups[-1]]
        n_taken = max(1, _MAX_SOLVED_VALUES // int(dim * (longest + dim)))
        yield groups[-n_taken:]
        groups = groups[:-n_taken]
