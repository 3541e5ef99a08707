"""Training that begins with the weights of a bundle."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from trainer.bundle import TowerBundle
from trainer.datasets import Dataset
from trainer.export import export
from trainer.features import encode_candidates
from trainer.inputs import describe
from trainer.model_config import TowersConfig
from trainer.publish import BundleError
from trainer.refresh import refresh
from trainer.towers import TwoTowers
from trainer.trained_towers import Towers
from trainer.training import fit
from trainer.warm_start import has_seen, warm_start

pytestmark = pytest.mark.usefixtures("uncovered")

CONFIG = TowersConfig(dim=8, width=8, epochs=20, learning_rate=0.03)


def dataset(candidate_ids: list[str], genres: list[list[str]]) -> Dataset:
    """Forty users, half of whom like the first half of the candidates, one after the other."""
    half = len(candidate_ids) // 2
    rows = [u % 2 * half + (u // 2 + i) % half for u in range(40) for i in range(2)]
    return Dataset(
        name="small",
        users=pa.table({"user_id": [f"u{n:02}" for n in range(40)]}),
        candidates=pa.table(
            {
                "candidate_id": candidate_ids,
                "genres": genres,
                "year": [1990 + n for n in range(len(candidate_ids))],
            }
        ),
        user_rows=np.repeat(np.arange(40, dtype=np.int32), 2),
        candidate_rows=np.array(rows, dtype=np.int32),
        timestamps=np.arange(80),
    )


OLD = dataset(["a", "b", "c", "d", "e", "f"], [["x"], ["x", "y"], ["y"], ["z"], ["z"], []])
NEW = dataset(["b", "c", "f", "g"], [["w", "z"], ["w", "y"], ["y", "z"], []])


@pytest.fixture(scope="module")
def towers() -> Towers:
    return fit(OLD, np.arange(80), CONFIG, seed=0)


@pytest.fixture(scope="module")
def bundle(towers: Towers, tmp_path_factory: pytest.TempPathFactory) -> TowerBundle:
    root = tmp_path_factory.mktemp("towers")
    return TowerBundle.open(export(towers, OLD, np.arange(80), root, seed=0))


def new_model(config: TowersConfig) -> tuple[TwoTowers, object, object]:
    features, vocabularies = describe(NEW.candidates, NEW.users, config)
    corpus = encode_candidates(features, vocabularies, NEW.candidates)
    return TwoTowers(features, corpus, config, 1), features, vocabularies


def test_what_is_known_by_name_begins_where_it_was(bundle: TowerBundle, towers: Towers) -> None:
    model, features, vocabularies = new_model(CONFIG)
    cold, *_ = new_model(CONFIG)
    warm_start(model, features, vocabularies, bundle)
    for side in ("query_tower", "candidate_tower"):
        old, new, untouched = (getattr(one, side).encoder for one in (towers.model, model, cold))
        for name, ours, theirs in (
            ("candidate_id", [0, 1, 2, 3], [0, 2, 3, 6]),  # padding, b, c, f
            ("genres", [0, 2, 3], [0, 2, 3]),  # padding, y, z
        ):
            expected = old.table(name).numpy()[theirs]
            np.testing.assert_array_equal(expected, new.table(name).numpy()[ours])
        for name, line in (("candidate_id", 4), ("genres", 1)):  # g, w
            expected = untouched.table(name).numpy()[line]
            np.testing.assert_array_equal(expected, new.table(name).numpy()[line])
        np.testing.assert_array_equal(old.table("year").numpy(), new.table("year").numpy())


def test_a_feature_that_became_another_begins_anew(bundle: TowerBundle) -> None:
    years = NEW.candidates.column("year").cast(pa.string())
    changed = dataclasses.replace(NEW, candidates=NEW.candidates.set_column(2, "year", years))
    towers = fit(
        changed, np.arange(80), CONFIG.model_copy(update={"epochs": 1}), 0, start_from=bundle
    )
    assert np.isfinite(towers.embed_candidates()).all()


def test_a_warm_training_begins_better_than_a_cold_one(bundle: TowerBundle) -> None:
    losses: dict[bool, list[float]] = {False: [], True: []}
    for is_warm, curve in losses.items():
        fit(
            *(OLD, np.arange(80), CONFIG.model_copy(update={"epochs": 1}), 0),
            on_epoch=lambda _, logs, curve=curve: curve.append(logs["loss"]),
            start_from=bundle if is_warm else None,
        )
    assert losses[True][0] < losses[False][0]


def test_towers_of_another_width_are_refused(bundle: TowerBundle) -> None:
    model, features, vocabularies = new_model(CONFIG.model_copy(update={"width": 4}))
    with pytest.raises(BundleError, match=r"another towers\.width: set it to 8"):
        warm_start(model, features, vocabularies, bundle)


def test_towers_of_another_version_are_refused(bundle: TowerBundle) -> None:
    manifest = bundle.manifest.model_copy(update={"config": {"depth": 3}})
    model, features, vocabularies = new_model(CONFIG)
    with pytest.raises(BundleError, match="another version of this program"):
        warm_start(model, features, vocabularies, TowerBundle(bundle.directory, manifest))


def test_what_a_bundle_has_seen_is_told_by_time(bundle: TowerBundle) -> None:
    later = dataclasses.replace(OLD, timestamps=np.arange(80) + 79)
    timeless = dataclasses.replace(OLD, timestamps=None)
    assert not has_seen(bundle, later, np.array([1, 79]))
    assert has_seen(bundle, later, np.array([0, 79]))  # at 79, the newest it has seen
    assert has_seen(bundle, timeless, np.array([79]))
    assert not has_seen(bundle, timeless, np.array([], dtype=np.int64))


def test_what_was_seen_before_a_warm_start_is_not_forgotten(
    bundle: TowerBundle, towers: Towers, tmp_path: Path
) -> None:
    seen = bundle.manifest.trained_on
    timeless = seen.model_copy(update={"newest_timestamp": None})
    for before, newest in ((None, 9), (seen, 79), (timeless, None)):
        path = export(towers, OLD, np.arange(10), tmp_path, seed=0, seen_before=before)
        assert newest == TowerBundle.open(path).manifest.trained_on.newest_timestamp


def test_users_that_came_with_a_refresh_begin_as_new_ones(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"query": ("history", "user_id"), "epochs": 1})
    rows = np.arange(80)
    before = TowerBundle.open(export(fit(OLD, rows, config, 0), OLD, rows, tmp_path, seed=0))
    names = pa.table({"user_id": [f"u{n:02}" for n in range(41)]})
    more = dataclasses.replace(OLD, users=names, user_rows=np.append(OLD.user_rows[1:], 40))
    refreshed = TowerBundle.open(refresh(before, more, tmp_path).directory)
    assert np.isfinite(fit(more, rows, config, 0, start_from=refreshed).embed_candidates()).all()
