from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from indexer import embed
from indexer.build import BuildOptions, build_bundle
from indexer.bundle import IndexBundle
from indexer.corpus import CorpusError
from indexer.embed import embed_candidates
from trainer.bundle import QUERY_ASSET_FILES, TowerBundle, TowerManifest
from trainer.datasets import Dataset
from trainer.export import export
from trainer.model_config import TowersConfig
from trainer.publish import BundleError
from trainer.trained_towers import Towers
from trainer.training import fit

N_CANDIDATES, DIM = 11, 6


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset(
        name="tiny",
        users=pa.table({"user_id": [f"u{row}" for row in range(9)]}),
        candidates=pa.table({"candidate_id": [f"c{row:02}" for row in range(N_CANDIDATES)]}),
        user_rows=np.repeat(np.arange(9, dtype=np.int32), 4),
        candidate_rows=rng.integers(0, N_CANDIDATES, 36).astype(np.int32),
        timestamps=np.arange(36, dtype=np.int64),
        ratings=None,
    )


@pytest.fixture(scope="module")
def towers(dataset: Dataset) -> Towers:
    config = TowersConfig(dim=DIM, max_history_length=5, epochs=1)
    return fit(dataset, np.arange(36), config, seed=0)


@pytest.fixture(scope="module")
def bundle(
    towers: Towers, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> TowerBundle:
    root = tmp_path_factory.mktemp("towers")
    return TowerBundle.open(export(towers, dataset, np.arange(36), root, seed=0))


@pytest.mark.parametrize("batch_size", [3, N_CANDIDATES, 1024])
def test_the_embeddings_are_the_towers(
    towers: Towers, bundle: TowerBundle, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "_BATCH_SIZE", batch_size)
    done: list[int] = []
    corpus = embed_candidates(bundle, done.append)
    np.testing.assert_allclose(corpus.embeddings, towers.embed_candidates(), atol=1e-6)
    np.testing.assert_array_equal(bundle.popularity, corpus.popularity)
    assert corpus.has_bias_dimension
    assert done[-1] == N_CANDIDATES


def test_an_index_bundle_carries_what_the_server_needs(bundle: TowerBundle, tmp_path: Path) -> None:
    corpus = embed_candidates(bundle)
    directory = build_bundle(
        corpus,
        bundle.tuning_queries,
        tmp_path,
        BuildOptions(backends=("brute_force",)),
        towers=bundle,
    )
    index = IndexBundle.open(directory)
    assert bundle.manifest.version == index.manifest.tower_version
    assert (index.manifest.max_history_length, index.manifest.has_bias_dimension) == (5, True)
    assert index.query is not None
    without_ratings_and_content = {"ranker.tflite", "ranker.json", "description_tower.tflite"}
    for name in set(QUERY_ASSET_FILES) - without_ratings_and_content:
        assert (bundle.directory / name).read_bytes() == (directory / "query" / name).read_bytes()
    np.testing.assert_array_equal(bundle.query.history(3), index.query.history(3))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("query_embeddings.npy", np.zeros((1, DIM + 1), np.float32), "it is of other towers"),
        (
            "histories.parquet",
            pa.table({"user_id": ["a"]}),
            "parquet has no column 'candidate_rows'",
        ),
        (
            "histories.parquet",
            pa.table({"user_id": [f"u{row}" for row in range(9)], "candidate_rows": [[99]] * 9}),
            f"not among the {N_CANDIDATES} there are: it is of other towers",
        ),
        ("features.json", "{}", "features.json: "),
        ("ranker.json", "{}", "ranker.json: "),
    ],
)
def test_an_index_with_parts_of_other_towers_is_found(
    bundle: TowerBundle, tmp_path: Path, name: str, content: Any, message: str
) -> None:
    only_exact = BuildOptions(backends=("brute_force",))
    directory = build_bundle(embed_candidates(bundle), None, tmp_path, only_exact, towers=bundle)
    path = directory / "query" / name
    path.unlink(missing_ok=True)  # it is a link to the towers' own
    if isinstance(content, np.ndarray):
        np.save(path, content)
    elif isinstance(content, pa.Table):
        pq.write_table(content, path)
    else:
        path.write_text(content)
    with pytest.raises(BundleError, match=message):
        IndexBundle.open(directory, verify=False).check()


def test_a_tower_of_another_dimension_is_refused(bundle: TowerBundle) -> None:
    wrong: TowerManifest = bundle.manifest.model_copy(update={"dim": DIM + 1})
    with pytest.raises(CorpusError, match=f"dimension {DIM}, its manifest says {DIM + 1}"):
        embed_candidates(TowerBundle(bundle.directory, wrong))
