import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from ai_edge_litert.interpreter import Interpreter

from trainer import export as export_module
from trainer.bundle import QUERY_ASSET_FILES, RANKER, TowerBundle
from trainer.datasets import Dataset, load_dataset
from trainer.export import ExportError, export
from trainer.keras import tf
from trainer.model_config import RankerConfig, TowersConfig
from trainer.publish import BundleError
from trainer.ranking import Ranker
from trainer.ranking import fit as fit_ranker
from trainer.splits import split
from trainer.trained_towers import Towers
from trainer.training import fit

CONFIG = TowersConfig(dim=16, epochs=1)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset("sample")


@pytest.fixture(scope="module")
def train_rows(dataset: Dataset) -> np.ndarray:
    return split(dataset, "leave-last-out").train


@pytest.fixture(scope="module")
def towers(dataset: Dataset, train_rows: np.ndarray) -> Towers:
    return fit(dataset, train_rows, CONFIG, seed=1)


@pytest.fixture(scope="module")
def bundle(
    towers: Towers,
    dataset: Dataset,
    train_rows: np.ndarray,
    tmp_path_factory: pytest.TempPathFactory,
) -> TowerBundle:
    root = tmp_path_factory.mktemp("towers")
    metrics = {"heldout_recall@10": 0.5, "ndcg@10": 0.25, "ndcg@20": 0.3}
    evaluation = {"split": "leave-last-out", "n_users": 1500, "metrics": metrics}
    directory = export(
        *(towers, dataset, train_rows, root),
        seed=1,
        rows_name="leave-last-out train",
        evaluation=evaluation,
    )
    return TowerBundle.open(directory)


def test_the_manifest_says_what_the_weights_have_seen(
    bundle: TowerBundle, dataset: Dataset, train_rows: np.ndarray
) -> None:
    manifest = bundle.manifest
    assert manifest.dim == 16
    assert manifest.n_candidates == dataset.n_candidates
    assert manifest.n_users == dataset.n_users
    assert manifest.seed == 1
    assert manifest.max_history_length == CONFIG.max_history_length
    seen = manifest.trained_on
    assert (seen.dataset, seen.rows) == ("sample", "leave-last-out train")
    assert seen.n_interactions == len(train_rows)
    assert dataset.timestamps is not None
    assert seen.newest_timestamp == dataset.timestamps[train_rows].max()
    assert manifest.config == CONFIG.model_dump(mode="json")


def test_users_are_embedded_and_their_histories_kept(
    bundle: TowerBundle, towers: Towers, dataset: Dataset
) -> None:
    assert bundle.query.user_ids is not None
    assert bundle.query.query_embeddings is not None
    assert bundle.query.user_ids.tokens([0, 5]) == dataset.user_ids.tokens([0, 5])
    for user_row in (0, 5, 17):
        history = bundle.query.history(user_row)
        assert history.tolist() == towers.histories[user_row].tolist()
        expected = towers.embed_queries([history])[0]
        np.testing.assert_allclose(bundle.query.query_embeddings[user_row], expected, atol=1e-5)


def test_popularity_counts_what_was_seen(
    bundle: TowerBundle, dataset: Dataset, train_rows: np.ndarray
) -> None:
    assert bundle.popularity.sum() == len(train_rows)
    assert bundle.popularity[3] == np.count_nonzero(dataset.candidate_rows[train_rows] == 3)


def test_tuning_queries_are_embeddings_of_earlier_histories(
    bundle: TowerBundle, dataset: Dataset
) -> None:
    assert bundle.tuning_queries.shape == (dataset.n_users, 16)
    assert (bundle.tuning_queries[:, -1] == 1).all()


def test_the_evaluation_and_the_model_card_travel_along(bundle: TowerBundle) -> None:
    evaluation = json.loads((bundle.directory / "evaluation.json").read_text())
    assert evaluation == bundle.manifest.evaluation
    assert evaluation["metrics"]["heldout_recall@10"] == 0.5
    card = (bundle.directory / "model_card.md").read_text()
    assert "trained on sample" in card
    assert "the leave-last-out split held out, for\n1,500 users" in card
    assert "| metric | @10 | @20 |\n| --- | --- | --- |\n| heldout_recall | 0.5000 |  |\n" in card
    assert "| ndcg | 0.2500 | 0.3000 |\n" in card


def test_without_histories_nothing_is_kept_about_a_user(
    towers: Towers, dataset: Dataset, train_rows: np.ndarray, tmp_path: Path
) -> None:
    directory = export(towers, dataset, train_rows, tmp_path, seed=1, with_histories=False)
    bundle = TowerBundle.open(directory)
    assert bundle.query.user_ids is None
    assert bundle.query.query_embeddings is None
    assert bundle.manifest.n_users == 0
    with pytest.raises(BundleError, match="holds no histories"):
        bundle.query.history(0)
    assert {path.name for path in directory.iterdir()}.isdisjoint(
        {"histories.parquet", "query_embeddings.npy"}
    )
    assert {"histories.parquet", "query_embeddings.npy"} < set(QUERY_ASSET_FILES)


@pytest.fixture(scope="module")
def rated() -> Dataset:
    """The sample, with something known of its users."""
    sample = load_dataset("sample")
    ages = pa.array(np.arange(sample.n_users) % 50)
    return dataclasses.replace(sample, users=sample.users.append_column("age", ages))


@pytest.fixture(scope="module")
def ranker(rated: Dataset, train_rows: np.ndarray) -> Ranker:
    return fit_ranker(rated, train_rows, RankerConfig(epochs=1, max_history_length=40), seed=1)


def ranked(bundle: TowerBundle, inputs: dict[str, np.ndarray]) -> np.ndarray:
    interpreter = Interpreter(model_path=str(bundle.query.ranker_path))
    ratings: np.ndarray = interpreter.get_signature_runner()(**inputs)["rating"]
    return ratings


def test_a_ranking_model_travels_with_what_it_reads(
    towers: Towers, ranker: Ranker, rated: Dataset, train_rows: np.ndarray, tmp_path: Path
) -> None:
    bundle = TowerBundle.open(export(towers, rated, train_rows, tmp_path, seed=1, ranker=ranker))
    assert bundle.manifest.has_ranker
    assert bundle.manifest.ranker_config == ranker.config.model_dump()
    assert bundle.query.ranker == ranker.description
    assert (bundle.directory / "ranker/1/saved_model.pb").exists()
    assert bundle.query.user_values(53) == {"age": 3}
    expected = ranker.predict(np.zeros(9, int), np.arange(9))
    np.testing.assert_allclose(expected, ranked(bundle, ranker.example(9)), rtol=1e-5)


def test_without_histories_the_ranking_model_knows_no_user(
    towers: Towers, ranker: Ranker, rated: Dataset, train_rows: np.ndarray, tmp_path: Path
) -> None:
    bundle = TowerBundle.open(
        export(towers, rated, train_rows, tmp_path, seed=1, ranker=ranker, with_histories=False)
    )
    unknown = ranker.example(9) | {"query_1": np.zeros((1, 1), np.int32)}
    expected = ranker.module.rank(*map(tf.constant, unknown.values()))["rating"]
    np.testing.assert_allclose(expected, ranked(bundle, unknown), rtol=1e-5)
    known_path = export(towers, rated, train_rows, tmp_path, seed=1, ranker=ranker)
    sizes = [path.stat().st_size for path in (bundle.query.ranker_path, known_path / RANKER)]
    assert sizes[1] - sizes[0] > rated.n_users * ranker.config.dim * ranker.config.members * 4


def test_without_ratings_there_is_no_ranking_model(bundle: TowerBundle) -> None:
    assert not bundle.manifest.has_ranker
    assert bundle.query.ranker is None
    assert "There is no ranking model." in (bundle.directory / "model_card.md").read_text()


def test_towers_that_do_not_convert_faithfully_are_not_published(
    towers: Towers,
    dataset: Dataset,
    train_rows: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export_module, "_PARITY", -1.0)
    with pytest.raises(ExportError, match="differs from its SavedModel"):
        export(towers, dataset, train_rows, tmp_path, seed=1)
    assert list(tmp_path.iterdir()) == []
