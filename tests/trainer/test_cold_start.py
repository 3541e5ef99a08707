"""Cold start, on data where content and histories say all there is to know."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from trainer.cold_start import ColdStart, measure_cold_start
from trainer.datasets import Dataset
from trainer.evaluation import EvaluationError
from trainer.towers import TowersConfig

CONFIG = TowersConfig(dim=8, width=8, epochs=15, learning_rate=0.02, batch_size=20)
N_USERS, N_CANDIDATES, PER_USER = 60, 160, 30


def two_genres() -> Dataset:
    """Half of the users like comedies, the other half dramas, and nothing else."""
    rng = np.random.default_rng(0)
    is_drama = np.arange(N_CANDIDATES) % 2
    liked = np.stack(
        [
            rng.choice(np.flatnonzero(is_drama == user % 2), PER_USER, replace=False)
            for user in range(N_USERS)
        ]
    )
    return Dataset(
        name="two genres",
        users=pa.table({"user_id": [f"u{n:02}" for n in range(N_USERS)]}),
        candidates=pa.table(
            {
                "candidate_id": [f"c{n:03}" for n in range(N_CANDIDATES)],
                "genres": [["drama"] if drama else ["comedy"] for drama in is_drama],
            }
        ),
        user_rows=np.repeat(np.arange(N_USERS, dtype=np.int32), PER_USER),
        candidate_rows=liked.reshape(-1).astype(np.int32),
    )


@pytest.fixture(scope="module")
def result() -> ColdStart:
    trainings: list[str] = []
    measured = measure_cold_start(two_genres(), CONFIG, 0, trainings.append)
    assert len(trainings) == len(set(trainings)) == 7
    return measured


def test_candidates_never_trained_on_are_found_by_their_content(result: ColdStart) -> None:
    cold = result.candidates
    assert cold.n_hidden == 16
    assert cold.by_content > 1.4 * cold.by_label_popularity
    assert cold.lead.low > 0
    assert cold.times_chance > 1.4


def test_users_never_trained_on_are_served_from_their_history(result: ColdStart) -> None:
    users = result.users
    assert users.n_users <= N_USERS
    # A list of ten of one's own genre, of 80, finds an eighth; of either genre, a sixteenth.
    assert users.known > 0.09
    assert users.unknown > 0.09
    assert users.share == users.unknown / users.known


def test_too_few_candidates_are_refused() -> None:
    few = dataclasses.replace(
        two_genres(),
        candidates=two_genres().candidates.slice(0, 20),
        user_rows=np.array([0], dtype=np.int32),
        candidate_rows=np.array([0], dtype=np.int32),
    )
    with pytest.raises(EvaluationError, match="at least 110 in all"):
        measure_cold_start(few, CONFIG, 0, lambda _: None)
