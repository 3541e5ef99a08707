"""Cold start, on data where content and histories say all there is to know."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from trainer import cold_start, training
from trainer.cold_start import ColdStart, ColdUsers, measure_cold_start, measure_descriptions
from trainer.datasets import Dataset
from trainer.evaluation import EvaluationError
from trainer.features import Feature, Features
from trainer.metrics import Interval
from trainer.model_config import TowersConfig
from trainer.report import print_cold_start
from trainer.trained_towers import Towers

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


Trained = list[tuple[Dataset, np.ndarray]]


@pytest.fixture(scope="module")
def measured() -> tuple[ColdStart, Trained]:
    """What was measured, and the data and rows of each training."""
    said: list[str] = []
    trained: Trained = []

    def fit(dataset: Dataset, rows: np.ndarray, *options: Any) -> Towers:
        trained.append((dataset, rows))
        return training.fit(dataset, rows, *options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cold_start, "fit", fit)
        result = measure_cold_start(two_genres(), CONFIG, 0, said.append)
    assert len(said) == len(set(said)) == len(trained) == 7
    return result, trained


def test_candidates_never_trained_on_are_found_by_their_content(
    measured: tuple[ColdStart, Trained],
) -> None:
    result, ((without_some, rows), *_) = measured
    assert len(rows) == len(without_some)
    assert N_CANDIDATES - without_some.n_candidates == result.candidates.n_hidden == 16
    assert result.candidates.by_content > 1.4 * result.candidates.by_label_popularity
    assert result.candidates.lead.low > 0
    assert result.candidates.times_chance > 1.4


def test_users_never_trained_on_are_served_from_their_history(
    measured: tuple[ColdStart, Trained],
) -> None:
    result, (_, _, *folds) = measured
    left_out = [set(range(N_USERS)) - set(data.user_rows[rows].tolist()) for data, rows in folds]
    assert [N_USERS // 5] * 5 == [len(users) for users in left_out]
    assert set(range(N_USERS)) == set.union(*left_out)
    # Of 56 of one's own genre that were not trained on, ten find 0.18; of 136 of either, 0.07.
    assert result.users.known > 0.09
    assert result.users.unknown > 0.09


def test_the_name_of_a_label_finds_what_has_it(measured: tuple[ColdStart, Trained]) -> None:
    result, _ = measured
    words = result.descriptions
    assert words is not None
    assert (words.n_labels, words.labelled, words.labelled_by_chance) == (2, 1.0, 0.5)
    # Those of one label have the same content, so the same ten are first for all of them.
    assert words.found == 20 / N_CANDIDATES
    assert words.found_by_chance == 10 / N_CANDIDATES


def test_where_no_name_of_a_label_is_known_there_are_no_descriptions() -> None:
    content = (Feature(name="year", kind="number"),)
    towers: Any = SimpleNamespace(
        description_module=object(),
        features=Features(query=(), candidate=content),
        vocabularies={},
        embed_candidates=lambda: np.ones((N_CANDIDATES, 2)),
    )
    assert measure_descriptions(two_genres(), towers) is None


def test_what_is_nothing_has_no_share() -> None:
    lead = Interval(mean=0.1, low=0.0, high=0.2)
    users = [ColdUsers(n_users=9, known=known, unknown=0.1, lead=lead) for known in (0.0, 0.2)]
    assert [None, 0.5] == [one.share for one in users]


def test_too_few_candidates_are_refused() -> None:
    few = dataclasses.replace(
        two_genres(),
        candidates=two_genres().candidates.slice(0, 20),
        user_rows=np.array([0], dtype=np.int32),
        candidate_rows=np.array([0], dtype=np.int32),
    )
    with pytest.raises(EvaluationError, match="at least 110 in all"):
        measure_cold_start(few, CONFIG, 0, lambda _: None)


def test_without_content_nothing_is_said_of_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = two_genres()
    bare = dataclasses.replace(data, candidates=data.candidates.select(["candidate_id"]))
    brief = CONFIG.model_copy(update={"epochs": 1})
    towers = training.fit(bare, np.arange(len(bare)), brief, 0)
    said: list[str] = []
    monkeypatch.setattr(cold_start, "fit", lambda *_: towers)  # what it finds is not asked here
    result = measure_cold_start(bare, brief, 0, said.append)
    assert result.candidates is None
    assert len(said) == 6
    print_cold_start(result)
    printed = capsys.readouterr().out
    assert "The towers read no content" in printed
    assert "hidden" not in printed
