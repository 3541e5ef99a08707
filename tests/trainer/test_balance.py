"""How much the sequence head counts: what chooses it, and when nothing does."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pytest

from trainer.balance import METRIC, Balance, can_be_found, find_balance, rehearsal
from trainer.config import Config
from trainer.datasets import Dataset
from trainer.errors import TrainingError
from trainer.model_config import USUAL_SEQUENCE_WEIGHT, TowersConfig
from trainer.splits import Split, split
from trainer.trainings import Trainings

SMALL = TowersConfig(dim=8, width=8, epochs=40, learning_rate=0.02, content=())
N_USERS, N_CANDIDATES, N_EACH = 120, 40, 12


def dataset_of(histories: Iterable[np.ndarray]) -> Dataset:
    """Users with as many interactions each, oldest first."""
    rows = np.stack(list(histories))
    n_users, n_each = rows.shape
    n_candidates = int(rows.max()) + 1
    return Dataset(
        name="made",
        candidates=pa.table({"candidate_id": [f"c{i}" for i in range(n_candidates)]}),
        users=pa.table({"user_id": [f"u{i}" for i in range(n_users)]}),
        user_rows=np.repeat(np.arange(n_users), n_each),
        candidate_rows=rows.ravel(),
        timestamps=np.tile(np.arange(n_each), n_users),
    )


@pytest.fixture(scope="module")
def walks() -> Dataset:
    """Each candidate has one successor, far from it, so that the last one tells the next."""
    starts = np.random.default_rng(0).integers(N_CANDIDATES, size=N_USERS)
    return dataset_of((start + 7 * np.arange(N_EACH)) % N_CANDIDATES for start in starts)


@pytest.mark.parametrize("patience", [0, 5])
def test_where_the_last_tells_the_next_the_sequence_head_counts_more(
    walks: Dataset, patience: int, capsys: pytest.CaptureFixture[str]
) -> None:
    trainings = Trainings(walks, Config(towers=SMALL, patience=patience))
    trainings.settle(split(walks, "leave-last-out"))
    weight = trainings.config.towers.sequence_weight
    assert weight is not None
    assert weight > USUAL_SEQUENCE_WEIGHT
    assert f"The sequence head counts {weight:g} beside" in " ".join(
        capsys.readouterr().err.split()
    )


def test_where_anything_hidden_is_asked_for_it_does_not(walks: Dataset) -> None:
    trainings = Trainings(walks, Config(towers=SMALL))
    trainings.settle(split(walks, "random"))
    weight = trainings.config.towers.sequence_weight
    assert weight is not None
    assert weight <= USUAL_SEQUENCE_WEIGHT


def test_a_weight_that_is_given_stays(walks: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.trainings.fit", lambda *_, **__: pytest.fail("nothing to find"))
    config = Config(towers=TowersConfig(sequence_weight=0.7))
    trainings = Trainings(walks, config)
    trainings.settle(split(walks, "random"))
    assert config == trainings.config


def test_too_few_users_tell_nothing(walks: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.trainings.fit", lambda *_, **__: pytest.fail("nothing to find"))
    few = split(walks, "leave-last-out")
    test = few.test[walks.user_rows[few.test] < 99]
    assert can_be_found(walks, few)
    assert not can_be_found(walks, Split(few.kind, few.train, test, few.ordered_by))
    trainings = Trainings(walks, Config())
    trainings.find_balance(Split(few.kind, few.train, test, few.ordered_by))
    assert trainings.config.towers.sequence_weight is None
    assert trainings.config.towers.settled_sequence_weight == USUAL_SEQUENCE_WEIGHT


def test_what_cannot_be_rehearsed_is_said_and_trained_as_usual(
    walks: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fit(*_: object, **__: object) -> None:
        raise TrainingError("the loss became nan")

    monkeypatch.setattr("trainer.trainings.fit", fit)
    trainings = Trainings(walks, Config())
    trainings.settle(split(walks, "random"))
    assert trainings.config.towers.sequence_weight is None
    said = " ".join(capsys.readouterr().err.split())
    assert "The sequence head counts 0.25, as usual: the loss became nan" in said


class Measured:
    """What 200 users got by weight, as a validation measures it."""

    def __init__(self, **qualities: tuple[float, float]) -> None:
        self._qualities = {float(weight): quality for weight, quality in qualities.items()}

    def measure_weights(
        self, model: object, weights: Iterable[float]
    ) -> dict[float, dict[str, np.ndarray]]:
        """Half of the users got the one, half the other, of the two figures of a weight."""
        assert model == "model"
        values = {weight: self._qualities.get(weight, (0.1, 0.1)) for weight in weights}
        return {weight: {METRIC: np.tile(pair, 100)} for weight, pair in values.items()}


@pytest.mark.parametrize(
    ("qualities", "expected"),
    [
        ({"2.0": (0.6, 0.6)}, Balance(2.0, 0.6, 0.5)),
        # A lead of 0.02 on average, whose standard error is 0.48 / sqrt(200) = 0.034.
        ({"2.0": (1.0, 0.04)}, Balance(0.25, 0.5, 0.5)),
        # The same lead with one of 0.18 / sqrt(200) = 0.013.
        ({"2.0": (0.7, 0.34)}, Balance(2.0, 0.52, 0.5)),
        ({}, Balance(0.25, 0.5, 0.5)),
    ],
)
def test_another_weight_has_to_lead_by_more_than_a_standard_error(
    qualities: dict[str, tuple[float, float]], expected: Balance
) -> None:
    found = find_balance("model", Measured(**{"0.25": (0.5, 0.5)}, **qualities))  # type: ignore[arg-type]
    np.testing.assert_allclose(expected, found)


def test_a_rehearsal_is_as_short_as_the_data_allow() -> None:
    config = TowersConfig(epochs=100, learning_rate=0.002, batch_size=100)
    brief = rehearsal(config, n_users=1000)
    assert (30, pytest.approx(0.003, rel=0.01)) == (brief.epochs, brief.learning_rate)
    assert rehearsal(config, n_users=400).epochs == 50  # of four steps each
    assert rehearsal(config, n_users=101) == config
