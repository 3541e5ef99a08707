"""What may take the place of the current bundle."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from trainer import acceptance
from trainer.acceptance import METRIC, WorseError, compare_with_current, quality_by_user
from trainer.datasets import load_dataset
from trainer.evaluation import Evaluation, Rankings

EVALUATION = Evaluation(
    dataset="d",
    split="random",
    ordered_by="row",
    train_fraction=0.8,
    n_users=40,
    n_candidates=1_000,
    metrics={},
)


def quality(values: np.ndarray, first_user: int = 0, held_out: int = 10) -> pa.Table:
    users = [f"u{first_user + n}" for n in range(len(values))]
    return pa.table({"user_id": users, METRIC: values, "held_out": [held_out] * len(values)})


@dataclasses.dataclass
class Manifest:
    evaluation: dict[str, object]
    version: str = "the-current"


@dataclasses.dataclass
class Current:
    """What is asked of the current bundle."""

    user_quality: pa.Table | None
    manifest: Manifest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "current").mkdir()
    return tmp_path


def publish(monkeypatch: pytest.MonkeyPatch, table: pa.Table | None, **evaluation: object) -> None:
    measured = EVALUATION.model_dump(mode="json") | evaluation
    current = Current(table, Manifest(measured))
    monkeypatch.setattr(acceptance.TowerBundle, "open", lambda *_, **__: current)


BEFORE = np.linspace(0.0, 1.0, 40)


def test_what_is_worse_beyond_chance_is_refused_unless_forced(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, quality(BEFORE))
    worse = quality(BEFORE - 0.1)
    shown = r"ndcg@10 -0\.1000 \(-0\.1000 to -0\.1000\) against the-current, over 40 users"
    with pytest.raises(WorseError, match=shown + r"\. Nothing was published; --force"):
        compare_with_current(root, EVALUATION, worse)
    forced = compare_with_current(root, EVALUATION, worse, force=True)
    assert "ndcg@10 -0.1000 (-0.1000 to -0.1000) against the-current, over 40 users" == forced


def test_a_few_users_refuse_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, quality(BEFORE[:2]))
    said = compare_with_current(root, EVALUATION, quality(BEFORE[:2] - 0.1))
    assert str(said).endswith("over 2 users: too few to tell from chance")


@pytest.mark.parametrize("change", [0.0, 0.1])
def test_what_is_as_good_or_better_is_welcome(
    change: float, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, quality(BEFORE))
    said = compare_with_current(root, EVALUATION, quality(BEFORE + change))
    assert f"ndcg@10 +{change:.4f}" in str(said)


def test_what_chance_explains_is_welcome(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, quality(BEFORE))
    noise = np.where(np.arange(40) % 2, 0.3, -0.32)
    assert "ndcg@10 -0.0100" in str(compare_with_current(root, EVALUATION, quality(BEFORE + noise)))


def test_users_are_paired_by_id_and_others_do_not_count(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, quality(np.arange(10.0)))
    mixed = quality(np.arange(5.0, 20.0), first_user=5).take(np.arange(15)[::-1])
    said = compare_with_current(root, EVALUATION, mixed)
    assert "ndcg@10 +0.0000 (+0.0000 to +0.0000) against the-current, over 5 users" in str(said)


@pytest.mark.parametrize(
    ("table", "evaluation", "measured", "reason"),
    [
        (quality(BEFORE), {}, None, "the new towers were not measured"),
        (None, {}, EVALUATION, "it holds no quality by user"),
        (quality(BEFORE), {"split": "temporal"}, EVALUATION, "split, temporal instead of random"),
        (quality(BEFORE), {"dataset": "e"}, EVALUATION, "another dataset, e instead of d"),
        (quality(BEFORE), {"min_rating": 4.0}, EVALUATION, "min rating, 4.0 instead of None"),
        (quality(BEFORE), {"train_fraction": 0.5}, EVALUATION, "fraction, 0.5 instead of 0.8"),
        (quality(BEFORE, first_user=50), {}, EVALUATION, "no user was measured in both"),
        (quality(BEFORE), {"n_candidates": 800}, EVALUATION, "800 candidates, now there are 1,000"),
        (
            quality(BEFORE, held_out=12),
            {},
            EVALUATION,
            "12.0 interactions held out of each user, now there are 10.0",
        ),
    ],
)
def test_what_cannot_be_compared_is_said(
    table: pa.Table | None,
    evaluation: dict[str, object],
    measured: Evaluation | None,
    reason: str,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish(monkeypatch, table, **evaluation)
    said = compare_with_current(root, measured, measured and quality(BEFORE))
    assert str(said).startswith("Not compared with the current bundle: ")
    assert str(said).endswith(reason)


def test_towers_that_began_anew_say_nothing_of_those_that_did_not(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, quality(BEFORE))
    said = compare_with_current(root, EVALUATION, quality(BEFORE - 0.1), began_anew=True)
    assert str(said).startswith("Not compared with the current bundle: the towers that were meas")


def test_bundles_that_do_not_tell_what_was_asked_are_compared(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, quality(BEFORE).drop_columns(["held_out"]), n_candidates=None)
    said = compare_with_current(root, EVALUATION, quality(BEFORE + 0.1))
    assert "ndcg@10 +0.1000" in str(said)


def test_a_current_bundle_that_cannot_be_read_stops_nothing(root: Path) -> None:
    said = compare_with_current(root, EVALUATION, quality(BEFORE))
    assert str(said).startswith("Not compared with the current bundle: ")


def test_without_a_current_bundle_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert compare_with_current(tmp_path, EVALUATION, quality(BEFORE)) is None


def test_quality_is_by_user() -> None:
    data = load_dataset("sample")
    hits = np.zeros((2, 10), dtype=bool)
    hits[1, 0] = True
    rankings = Rankings(np.array([3, 7]), np.zeros((2, 10), np.int64), hits, np.array([1, 1]))
    users = data.user_ids.tokens([3, 7])
    expected = {"user_id": users, METRIC: [0.0, 1.0], "held_out": [1, 1]}
    assert expected == quality_by_user(data, rankings).to_pydict()
