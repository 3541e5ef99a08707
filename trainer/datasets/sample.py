"""A made-up dataset, for machines without MovieLens and for tests: generated from a seed.

It has what makes retrieval worth measuring: popularity with a long tail, genres and eras, and users
with tastes for some of them, so that a model that learns the tastes beats a popularity list.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trainer.datasets.dataset import Dataset, rows_of, sorted_unique

N_USERS = 500
N_CANDIDATES = 800
N_INTERACTIONS = 30_000

_GENRE_NOUNS = {
    "Action": ("Pursuit", "Heist", "Strike", "Convoy", "Fury", "Getaway", "Bullet", "Mission"),
    "Adventure": ("Voyage", "Summit", "Island", "Caravan", "Treasure", "Jungle", "Map", "Tide"),
    "Animation": ("Puppet", "Dragon", "Penguin", "Kite", "Toyshop", "Balloon", "Acorn", "Fox"),
    "Comedy": ("Wedding", "Neighbour", "Holiday", "Butler", "Mix-Up", "Diet", "Uncle", "Picnic"),
    "Crime": ("Alibi", "Witness", "Verdict", "Informer", "Ransom", "Docks", "Ledger", "Precinct"),
    "Documentary": ("Glacier", "Orchestra", "Archive", "Factory", "Reef", "Ballot", "Loom", "Mine"),
    "Drama": ("Harvest", "Letter", "Daughter", "Silence", "Bridge", "Winter", "Promise", "Garden"),
    "Fantasy": ("Amulet", "Oracle", "Kingdom", "Witch", "Mirror", "Unicorn", "Spell", "Throne"),
    "Horror": ("Cellar", "Crypt", "Scream", "Asylum", "Doll", "Marsh", "Shadow", "Séance"),
    "Romance": ("Kiss", "Waltz", "Rendezvous", "Valentine", "Sunset", "Bouquet", "Affair", "Café"),
    "Sci-Fi": ("Orbit", "Android", "Nebula", "Colony", "Signal", "Reactor", "Clone", "Starship"),
    "Western": ("Saddle", "Canyon", "Sheriff", "Stagecoach", "Prairie", "Outlaw", "Ranch", "Spur"),
}
_ADJECTIVES = (
    "Silent", "Golden", "Broken", "Hidden", "Last", "Crimson", "Distant", "Endless", "Frozen",
    "Hollow", "Little", "Lonely", "Midnight", "Northern", "Pale", "Quiet", "Restless", "Secret",
    "Second", "Stolen", "Strange", "Velvet", "Wild", "Winding", "Burning", "Forgotten",
)  # fmt: skip
_GENRES = tuple(_GENRE_NOUNS)
_FIRST_YEAR, _LAST_YEAR = 1950, 2024
_POPULARITY_EXPONENT = 0.7
_TASTE_WEIGHT = 1.6
_EPOCH_SECONDS = 1_600_000_000
_DAY_SECONDS = 86_400


def load(seed: int = 42) -> Dataset:
    """Generate the sample; the same seed gives the same dataset.

    Args:
        seed: of the random generator.

    Returns:
        500 users, 800 candidates with title, genres and year, and about 30,000 interactions with
        ratings of 1 to 5 and timestamps, listed user by user in the order of time.
    """
    rng = np.random.default_rng(seed)
    has_genre, years, candidates = _make_candidates(rng)
    affinity = _affinity(rng, has_genre, years)
    users, chosen = _choose(rng, affinity)
    user_ids = pa.chunked_array([pa.array((users + 1).astype(str))])
    candidate_ids = pa.chunked_array([pa.array((chosen + 1).astype(str))])
    unique_user_ids = sorted_unique(user_ids)
    return Dataset(
        name="sample",
        users=pa.table({"user_id": unique_user_ids}),
        candidates=candidates,
        user_rows=rows_of(user_ids, unique_user_ids),
        candidate_rows=rows_of(candidate_ids, candidates["candidate_id"].combine_chunks()),
        timestamps=_times(rng, users),
        ratings=_rate(rng, affinity[users, chosen]),
    )


def _make_candidates(
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64], pa.Table]:
    """Return the genres (n_candidates, n_genres), the years (n_candidates,), and the table."""
    main = rng.choice(len(_GENRES), size=N_CANDIDATES, p=rng.dirichlet(np.full(len(_GENRES), 8)))
    has_genre = rng.random((N_CANDIDATES, len(_GENRES))) < 0.8 / len(_GENRES)
    has_genre[np.arange(N_CANDIDATES), main] = True
    age = rng.gamma(2.0, 10.0, N_CANDIDATES).astype(np.int64)
    years = np.maximum(_LAST_YEAR - age, _FIRST_YEAR)
    candidates = pa.table(
        {
            "candidate_id": pa.array(np.arange(1, N_CANDIDATES + 1).astype(str)),
            "title": _make_titles(rng, main, years),
            "genres": [[_GENRES[i] for i in np.flatnonzero(row)] for row in has_genre],
            "year": years,
        }
    )
    return has_genre, years, candidates.sort_by("candidate_id").combine_chunks()


def _make_titles(
    rng: np.random.Generator, main: npt.NDArray[np.int64], years: npt.NDArray[np.int64]
) -> list[str]:
    """Return a title for each candidate, no two alike, its noun telling the main genre."""
    pairs = {
        genre: iter(rng.permutation(list(itertools.product(_ADJECTIVES, nouns))).tolist())
        for genre, nouns in _GENRE_NOUNS.items()
    }
    titles = []
    for genre, year in zip(main, years, strict=True):
        adjective, noun = next(pairs[_GENRES[genre]])
        titles.append(f"The {adjective} {noun} ({year})")
    return titles


def _affinity(
    rng: np.random.Generator, has_genre: npt.NDArray[np.bool_], years: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Return how much each user likes each candidate, (n_users, n_candidates), mostly -5 to 0."""
    tastes = rng.dirichlet(np.full(len(_GENRES), 0.3), N_USERS)
    genre_affinity: npt.NDArray[np.float64] = np.log(
        tastes @ has_genre.T / has_genre.sum(axis=1) + 0.01
    )
    favourite_years = rng.choice(years, N_USERS)
    distance_years: npt.NDArray[np.float64] = np.abs(years - favourite_years[:, None])
    return genre_affinity - distance_years / 15.0


def _choose(
    rng: np.random.Generator, affinity: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return who interacts with what, each pair once: users and candidates (n_interactions,)."""
    popularity = -_POPULARITY_EXPONENT * np.log(1.0 + rng.permutation(N_CANDIDATES))
    activity = rng.lognormal(0.0, 0.7, N_USERS)
    counts = np.clip(activity / activity.sum() * N_INTERACTIONS, 15, 300).astype(np.int64)
    # Adding Gumbel noise and taking the best samples without replacement.
    utility = _TASTE_WEIGHT * affinity + popularity + rng.gumbel(size=affinity.shape)
    best_first = np.argsort(-utility, axis=1)
    users = np.repeat(np.arange(N_USERS), counts)
    chosen = [rng.permutation(best_first[user, :n]) for user, n in enumerate(counts)]
    return users, np.concatenate(chosen)


def _times(rng: np.random.Generator, users: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return (n_interactions,) int64 seconds, rising within a user, users joining over a year."""
    joined = rng.uniform(0, 365, N_USERS)[users]
    since = rng.exponential(60, len(users))
    in_order = np.lexsort((since, users))
    return (_EPOCH_SECONDS + (joined + since[in_order]) * _DAY_SECONDS).astype(np.int64)


def _rate(rng: np.random.Generator, affinity: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return ratings (n_interactions,) of 1 to 5 that follow the affinity, with noise."""
    liking = (affinity - affinity.mean()) / affinity.std() + rng.normal(0, 0.7, len(affinity))
    stars = np.clip(np.round(3.5 + liking), 1, 5)
    return np.asarray(stars, dtype=np.float32)
