"""Embedding on Ray, started on this machine: as the embedder of one process, whoever dies."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from indexer import embed
from indexer.backends import BackendUnavailableError
from indexer.bundle import IndexBundle
from indexer.commands import app
from indexer.corpus import CorpusError
from indexer.engines import ray_data
from indexer.engines.ray_data import EmbeddingsManifest, ShardEmbedder, read_shards
from trainer.bundle import TowerBundle
from trainer.publish import BundleError, read_manifest, resolve, verify_files


@pytest.fixture(scope="module", autouse=True)
def _ray(many_processes: None) -> Iterator[None]:
    """Two cores of a cluster of one's own, for all tests here: to start it takes long."""
    del many_processes
    ray = pytest.importorskip("ray")
    options = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 << 20}
    for attempt in range(4):  # on a busy machine it gives up early
        try:
            ray.init("local", **options)
            break
        except Exception:  # of no narrower kind
            ray.shutdown()
            if attempt == 3:
                raise
    yield
    ray.shutdown()


def dying_once(mark: Path) -> type[ShardEmbedder]:
    """A worker that kills its process the first time that one has embedded something."""

    class DyingOnce(ShardEmbedder):
        def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
            found = super().__call__(shard)
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return found

    return DyingOnce


def test_it_embeds_as_one_process_does_though_a_worker_dies(
    sample_towers: TowerBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_data, "_ROWS_PER_SHARD", 100)
    mark = tmp_path / "died"
    embedder = dying_once(mark)
    done: list[int] = []
    published = ray_data.embed_candidates(
        sample_towers, tmp_path / "shards", on_progress=done.append, embedder=embedder
    )
    corpus = read_shards(published, sample_towers)
    alone = embed.embed_candidates(sample_towers)
    assert mark.exists()
    assert corpus.n_candidates == done[-1]
    np.testing.assert_allclose(corpus.embeddings, alone.embeddings, rtol=0, atol=1e-6)
    assert (alone.candidates, alone.has_bias_dimension) == (
        corpus.candidates,
        corpus.has_bias_dimension,
    )
    assert resolve(tmp_path / "shards" / "current") == published
    manifest = read_manifest(published, EmbeddingsManifest)
    verify_files(published, manifest)
    assert (sample_towers.manifest.version, corpus.n_candidates, corpus.dim) == (
        manifest.tower_version,
        manifest.n_candidates,
        manifest.dim,
    )


@pytest.mark.parametrize("damage", ["short", "missing", "long"])
def test_shards_that_are_not_every_candidate_once_are_refused(
    sample_towers: TowerBundle, tmp_path: Path, damage: str
) -> None:
    n_candidates, dim = sample_towers.manifest.n_candidates, sample_towers.manifest.dim
    (tmp_path / "shards").mkdir()
    lengths = {0: 30, 30: n_candidates - 30}
    for first_row, length in lengths.items():
        found = length + {"short": -1, "missing": 0, "long": 1}[damage]
        vectors = np.zeros((found, dim), dtype=np.float32)
        np.save(tmp_path / "shards" / f"{first_row:012}.npy", vectors)
    if damage == "missing":
        (tmp_path / "shards" / f"{30:012}.npy").unlink()
    with pytest.raises(CorpusError, match=r"every candidate once: it goes wrong after \d+ of"):
        read_shards(tmp_path, sample_towers)


def test_a_shard_that_is_no_array_is_refused(sample_towers: TowerBundle, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / f"{0:012}.npy").write_text("no array")
    with pytest.raises(BundleError, match=r"0\.npy is not a readable \.npy file"):
        read_shards(tmp_path, sample_towers)


@pytest.mark.slow
def test_the_command_builds_an_index_of_it(sample_towers: TowerBundle, tmp_path: Path) -> None:
    folders = ["--output", str(tmp_path / "indexes"), "--shards", str(tmp_path / "shards")]
    source = [
        "--towers",
        str(sample_towers.directory),
        "--backend",
        "brute_force",
        "--engine",
        "ray",
    ]
    done = CliRunner().invoke(app, ["build", *source, *folders, "--json"])
    assert done.exit_code == 0, done.output
    corpus = IndexBundle.open(tmp_path / "indexes" / "current").corpus
    alone = embed.embed_candidates(sample_towers)
    np.testing.assert_allclose(corpus.embeddings, alone.embeddings, rtol=0, atol=1e-6)


def test_a_cluster_without_cores_is_a_sentence(
    sample_towers: TowerBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.cluster_resources", dict)
    with pytest.raises(BackendUnavailableError, match="has no cores to embed with"):
        ray_data.embed_candidates(sample_towers, tmp_path)


def test_without_ray_it_is_a_sentence(
    sample_towers: TowerBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(BackendUnavailableError, match=r"pip install '\.\[ray\]'"):
        ray_data.embed_candidates(sample_towers, tmp_path)
    assert not list(tmp_path.iterdir())
