"""From interactions to fitted towers."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.trainer.small import small_dataset
from trainer import validation as validation_module
from trainer.checkpoints import (
    CheckpointError,
    directory_of,
    latest,
    mark_diverged,
    remove,
)
from trainer.datasets import Dataset
from trainer.errors import TrainingError
from trainer.evaluation import evaluate
from trainer.keras import tf
from trainer.model_config import TowersConfig
from trainer.monitoring import Monitor
from trainer.splits import Split, SplitKind
from trainer.training import fit
from trainer.validation import best_epoch

pytestmark = pytest.mark.usefixtures("uncovered")

SMALL = TowersConfig(dim=8, max_history_length=4, epochs=2, batch_size=2)


def two_tastes(n_users: int = 40) -> Dataset:
    """Half of the users like the first five candidates, the others the last five."""
    rng = np.random.default_rng(0)
    liked = np.stack([rng.permutation(5)[:3] + 5 * (user % 2) for user in range(n_users)])
    return Dataset(
        name="two tastes",
        users=pa.table({"user_id": [f"u{n:02}" for n in range(n_users)]}),
        candidates=pa.table({"candidate_id": [f"c{n}" for n in range(10)]}),
        user_rows=np.repeat(np.arange(n_users, dtype=np.int32), 3),
        candidate_rows=liked.reshape(-1).astype(np.int32),
    )


def test_towers_learn_tastes() -> None:
    data = two_tastes()
    config = TowersConfig(dim=8, max_history_length=4, epochs=30, learning_rate=0.03, batch_size=10)
    losses: list[float] = []
    towers = fit(
        data, np.arange(120), config, seed=1, on_epoch=lambda _, logs: losses.append(logs["loss"])
    )
    assert len(losses) == 30
    assert losses[-1] < losses[0]
    scores = (
        towers.embed_queries([np.array([0, 1]), np.array([8, 9])]) @ towers.embed_candidates().T
    )
    best = np.argsort(-scores, axis=1)[:, :5]
    assert [{0, 1, 2, 3, 4}, {5, 6, 7, 8, 9}] == [set(line.tolist()) for line in best]


def test_one_seed_gives_one_result_and_another_seed_another() -> None:
    data = two_tastes()
    first, again, other = (
        fit(data, np.arange(120), SMALL, seed).embed_candidates() for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def validation() -> Split:
    rows = np.arange(120)
    return Split(SplitKind.RANDOM, rows[rows % 3 < 2], rows[rows % 3 == 2], "row")


def test_validation_measures_every_epoch_and_stops_when_it_is_enough() -> None:
    data, reports = two_tastes(), []
    config = SMALL.model_copy(update={"epochs": 40, "learning_rate": 0.03})
    fit(
        *(data, validation().train, config, 0, lambda epoch, logs: reports.append((epoch, logs))),
        validation=validation(),
        patience=3,
    )
    assert list(range(1, len(reports) + 1)) == [epoch for epoch, _ in reports]
    curve = [logs for _, logs in reports]
    assert all({"loss", "val_ndcg@10", "val_heldout_recall@10"} == logs.keys() for logs in curve)
    assert len(curve) == best_epoch(curve) + 3 < 40
    assert max(logs["val_ndcg@10"] for logs in curve) > 0.4


def test_the_measures_of_validation_are_those_of_the_evaluation_before_compression() -> None:
    """With as many dimensions as both heads have, compression loses nothing."""
    data, reports = two_tastes(), []
    config = SMALL.model_copy(update={"dim": 40, "width": 16})
    towers = fit(
        *(data, validation().train, config, 0, lambda _, logs: reports.append(logs)),
        validation=validation(),
    )
    candidates = towers.embed_candidates().T
    score = lambda rows: towers.embed_queries([towers.histories[row] for row in rows]) @ candidates  # noqa: E731
    expected = evaluate(data, validation(), score).metrics
    assert expected["ndcg@10"] == pytest.approx(reports[-1]["val_ndcg@10"])


def test_of_more_users_than_an_epoch_can_wait_for_some_validate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(validation_module, "_MAX_SCORES", 0)
    data = two_tastes(n_users=250)
    rows = np.arange(750)
    split = Split(SplitKind.RANDOM, rows[rows % 3 < 2], rows[rows % 3 == 2], "row")
    users = data.user_rows[validation_module._thinned(data, split).test]
    assert list(range(0, 250, 3)) == users.tolist()


def test_tensorboard_gets_the_metrics(tmp_path: Path) -> None:
    fit(
        *(two_tastes(), validation().train, SMALL, 0),
        validation=validation(),
        tensorboard=tmp_path,
    )
    logged = {
        value.tag
        for file in tmp_path.rglob("events.*")
        for event in tf.compat.v1.train.summary_iterator(str(file))
        for value in event.summary.value
    }
    assert {"epoch_loss", "epoch_ndcg@10", "epoch_heldout_recall@10"} <= logged


class KilledError(Exception):
    """Stands for a kill between two epochs."""


def test_a_training_that_was_stopped_goes_on_to_the_same_towers(tmp_path: Path) -> None:
    data, config = two_tastes(), SMALL.model_copy(update={"epochs": 5})
    arguments = (data, validation().train, config, 3)
    uninterrupted, curve, seen = fit(*arguments).embed_candidates(), [], []

    def stop_after_the_third(epoch: int, metrics: dict[str, float]) -> None:
        curve.append(metrics)
        if epoch == 3:
            raise KilledError

    with pytest.raises(KilledError):
        fit(*arguments, stop_after_the_third, validation=validation(), checkpoints=tmp_path)
    again = fit(
        *(*arguments, lambda epoch, metrics: seen.append((epoch, metrics))),
        validation=validation(),
        checkpoints=tmp_path,
    )
    np.testing.assert_array_equal(uninterrupted, again.embed_candidates())
    assert [1, 2, 3, 4, 5] == [epoch for epoch, _ in seen]
    assert curve[0] == seen[0][1]


def test_a_training_that_is_done_is_not_trained_further(tmp_path: Path) -> None:
    data, config = two_tastes(), SMALL.model_copy(update={"epochs": 40, "learning_rate": 0.03})
    arguments = (data, validation().train, config, 3)
    lengths, results = [], []
    for _ in "ab":
        curve: list[dict[str, float]] = []
        towers = fit(
            *(*arguments, lambda _, metrics, curve=curve: curve.append(metrics)),
            validation=validation(),
            patience=2,
            checkpoints=tmp_path,
        )
        lengths.append(len(curve))
        results.append(towers.embed_candidates())
        checkpoint = sorted(path.name for path in tmp_path.iterdir())
    assert lengths[0] == lengths[1] < 40
    assert checkpoint
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("place", ["checkpoints", "tensorboard"])
def test_a_folder_that_cannot_be_made_is_told_before_the_training(
    place: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises((CheckpointError, TrainingError), match=r"cannot be made .*: Not a dir"):
        fit(two_tastes(), np.arange(120), SMALL, 0, **{place: tmp_path / "file" / "folder"})


def test_a_checkpoint_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    def spoil(epoch: int, _: dict[str, float]) -> None:
        if epoch == 1:
            shutil.rmtree(tmp_path)
            tmp_path.write_text("no folder any more")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("trainer.checkpoints._MAX_SHARE", 1.0)
        with pytest.raises(CheckpointError, match="no checkpoint can be written to"):
            fit(two_tastes(), np.arange(120), SMALL, 0, spoil, checkpoints=tmp_path)
    tmp_path.unlink()


def test_a_checkpoint_of_other_towers_is_refused(tmp_path: Path) -> None:
    fit(two_tastes(), np.arange(120), SMALL, 0, checkpoints=tmp_path)
    with pytest.raises(CheckpointError, match=r"of another version.*remove that folder"):
        fit(
            two_tastes(),
            np.arange(120),
            SMALL.model_copy(update={"width": 9}),
            0,
            checkpoints=tmp_path,
        )


def test_trainings_share_checkpoints_only_if_they_have_the_same_result() -> None:
    data, rows = two_tastes(), np.arange(120)
    args = (Path("root"), data, rows, SMALL, 0, "all")
    directory = directory_of(*args)
    assert directory == directory_of(*args)
    faster = SMALL.model_copy(update={"learning_rate": 0.5})
    others = [
        directory_of(Path("root"), data, rows, faster, 0, "all"),
        directory_of(Path("root"), data, rows[1:], SMALL, 0, "all"),
        directory_of(Path("root"), data, rows, SMALL, 1, "all"),
        directory_of(Path("root"), data, rows, SMALL, 0, "validation"),
        directory_of(Path("root"), data, rows, SMALL.model_copy(update={"dim": 9}), 0, "all"),
        directory_of(Path("root"), with_columns(year=[1] * 4), rows, SMALL, 0, "all"),
    ]
    assert len({directory, *others}) == 7


def test_only_what_diverged_is_gone_on_from_with_a_lower_learning_rate(tmp_path: Path) -> None:
    root, data, rows = tmp_path / "checkpoints", two_tastes(), np.arange(120)

    def directory(learning_rate: float) -> Path:
        config = SMALL.model_copy(update={"learning_rate": learning_rate, "epochs": 1})
        return directory_of(root, data, rows, config, 0, "all")

    config = SMALL.model_copy(update={"learning_rate": 0.01, "epochs": 1})
    fit(data, rows, config, 0, checkpoints=directory(0.01))
    assert latest(directory(0.01)).startswith(str(directory(0.01)))
    assert latest(directory(0.001)) is None
    mark_diverged(directory(0.01))
    assert latest(directory(0.001)).startswith(str(directory(0.01)))
    assert latest(directory(0.1)) is None
    remove([directory(0.001)])
    assert not root.exists()


def test_a_loss_that_is_not_a_number_leaves_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, config, seen = two_tastes(), SMALL.model_copy(update={"epochs": 3}), []
    note_loss = Monitor.on_train_batch_end

    def diverge_in_the_second_epoch(self: Monitor, batch: int, logs: dict[str, float]) -> None:
        note_loss(self, batch, {"loss": float("nan")} if self._curve else logs)

    with monkeypatch.context() as patched:
        patched.setattr(Monitor, "on_train_batch_end", diverge_in_the_second_epoch)
        expected = rf"became nan in epoch 2, step 1: lower.*is kept in .*{tmp_path.name}, from"
        with pytest.raises(TrainingError, match=expected):
            fit(data, np.arange(120), config, 0, checkpoints=tmp_path)
    lower = config.model_copy(update={"learning_rate": 0.001})
    fit(data, np.arange(120), lower, 0, lambda *one: seen.append(one), checkpoints=tmp_path)
    assert [1, 2, 3] == [epoch for epoch, _ in seen]


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(TrainingError, match="no interaction to learn from"):
        fit(small_dataset([0], [0], [1]), np.array([], dtype=np.int64), SMALL, seed=0)


def test_one_user_and_one_interaction_train() -> None:
    towers = fit(small_dataset([0], [2], [1]), np.array([0]), SMALL, seed=0)
    assert np.isfinite(towers.embed_queries(towers.histories)).all()
    assert np.isfinite(towers.embed_candidates()).all()


def test_a_loss_that_is_not_a_number_stops_training_and_says_how_to_mend_it() -> None:
    config = SMALL.model_copy(update={"learning_rate": float("inf")})
    with pytest.raises(TrainingError, match=r"loss became .* lower the learning rate"):
        fit(two_tastes(), np.arange(120), config, seed=0)


def test_what_the_last_step_breaks_is_told_too(tmp_path: Path) -> None:
    one_step = SMALL.model_copy(update={"learning_rate": 1e25, "epochs": 1, "batch_size": 40})
    with pytest.raises(
        TrainingError, match=r"grew beyond all numbers in epoch 1: lower the learning rate"
    ):
        fit(two_tastes(), np.arange(120), one_step, seed=0, checkpoints=tmp_path)
    fit(
        *(two_tastes(), np.arange(120), one_step.model_copy(update={"learning_rate": 0.001}), 0),
        checkpoints=tmp_path,
    )


def with_columns(**columns: list[object]) -> Dataset:
    data = small_dataset([0, 1], [0, 1], None)
    candidates = data.candidates
    for name, values in columns.items():
        candidates = candidates.append_column(name, [values])
    return dataclasses.replace(data, candidates=candidates)
