"""Ray Data: candidates are embedded by a pool of workers, on one machine or on many.

The only file that knows Ray. The candidates go out as Parquet shards, and come back as shards of
rows and embeddings; what a worker leaves undone when it dies, another does. Towers and shards lie
in folders that all machines see. The shards are published like any bundle, whole or not at all.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from indexer.backends.base import BackendUnavailableError
from indexer.corpus import EMBEDDING, Corpus, CorpusError
from indexer.embed import CandidateEmbedder, corpus_of
from trainer.bundle import TowerBundle
from trainer.publish import Manifest, commit, staging

_ROWS_PER_SHARD = 50_000
_LEAST_CORES = 2  # one embeds, and one reads and writes; with one, Ray would wait for ever
_ROW = "_row"  # of a candidate, beside its features
_CANDIDATES, _SHARDS = "candidates", "shards"

Announce = Callable[[str], None]


class EmbeddingsManifest(Manifest):
    """What shards of embeddings say about themselves."""

    format_version: int = 1
    kind: str = "embeddings"
    tower_version: str
    n_candidates: int
    dim: int


class ShardEmbedder:
    """A worker of the pool.

    Args:
        towers: the directory of the tower bundle, which has been verified.
    """

    def __init__(self, towers: str) -> None:
        self._embedder = CandidateEmbedder(TowerBundle.open(Path(towers), verify=False))

    def __call__(self, shard: pa.Table) -> pa.Table:
        """Return the rows of some candidates with their embeddings."""
        vectors = self._embedder.embed(shard.drop_columns([_ROW]))
        lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        return pa.table({_ROW: shard.column(_ROW), EMBEDDING: lists})


def embed_candidates(
    towers: TowerBundle,
    root: Path,
    address: str | None = None,
    announce: Announce = lambda _: None,
    embedder: type[ShardEmbedder] = ShardEmbedder,
) -> Corpus:
    """Embed all candidates of a tower bundle, and publish the shards.

    Args:
        towers: the bundle.
        root: the folder that holds the versions of shards.
        address: of a Ray cluster; None to use the cores of this machine.
        announce: told what is being done.
        embedder: what embeds a shard.

    Raises:
        BackendUnavailableError: if Ray is not installed, there is no cluster at the address, or
            it has too few cores.
        BundleError: if ``root`` cannot be written to.
        CorpusError: if the shards do not hold every candidate once, with a finite embedding.
    """
    announce("starting Ray")
    ray = _started(address)
    with staging(root) as staged:
        _write_candidates(towers.candidates, staged / _CANDIDATES)
        announce(f"embedding {towers.manifest.n_candidates:,} candidates on Ray")
        ray.data.read_parquet(str(staged / _CANDIDATES)).map_batches(
            embedder,
            fn_constructor_args=(str(towers.directory.resolve()),),
            batch_format="pyarrow",
            batch_size=None,  # a block of a shard
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=_n_cores(ray)),
        ).write_parquet(str(staged / _SHARDS))
        shutil.rmtree(staged / _CANDIDATES)
        manifest = EmbeddingsManifest(
            producers={"ray": ray.__version__},
            tower_version=towers.manifest.version,
            n_candidates=towers.manifest.n_candidates,
            dim=towers.manifest.dim,
        )
        return read_shards(commit(staged, root, manifest), towers)


def read_shards(directory: Path, towers: TowerBundle) -> Corpus:
    """Put the embeddings of shards into the order of the candidates.

    Raises:
        CorpusError: if they do not hold every candidate once, with a finite embedding.
    """
    n_candidates, dim = towers.manifest.n_candidates, towers.manifest.dim
    embeddings = np.empty((n_candidates, dim), dtype=np.float32)
    times_seen = np.zeros(n_candidates, dtype=np.int64)
    for path in sorted((directory / _SHARDS).glob("*.parquet")):
        shard = pq.read_table(path)
        rows = shard.column(_ROW).to_numpy()
        vectors = shard.column(EMBEDDING).combine_chunks().flatten().to_numpy()
        embeddings[rows] = vectors.reshape(len(rows), dim)
        np.add.at(times_seen, rows, 1)
    if (wrong := np.flatnonzero(times_seen != 1)).size:
        row = int(wrong[0])
        raise CorpusError(f"{directory}: row {row} was embedded {times_seen[row]} times, not once")
    return corpus_of(towers, embeddings)


def _write_candidates(candidates: pa.Table, directory: Path) -> None:
    directory.mkdir()
    rows = pa.array(np.arange(len(candidates)))
    numbered = candidates.append_column(_ROW, rows)
    for number, start in enumerate(range(0, len(candidates), _ROWS_PER_SHARD)):
        shard = numbered.slice(start, _ROWS_PER_SHARD)
        pq.write_table(shard, directory / f"{number:06}.parquet")


def _n_cores(ray: Any) -> int:
    return int(ray.cluster_resources().get("CPU", 0))


def _started(address: str | None) -> Any:
    """Return Ray, connected to a cluster."""
    if importlib.util.find_spec("ray") is None:
        raise BackendUnavailableError(
            "Ray is not installed; it comes with: pip install 'candidate-search[ray]'"
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody unasked
    import ray  # noqa: PLC0415 - takes seconds, and most builds do without
    import ray.data  # noqa: PLC0415

    cores_here = max(_LEAST_CORES, os.cpu_count() or 1)
    try:
        ray.init(
            address or "local",
            num_cpus=None if address else cores_here,
            ignore_reinit_error=True,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise BackendUnavailableError(f"there is no Ray cluster at {address}: {error}") from error
    if (n_cores := _n_cores(ray)) < _LEAST_CORES:
        raise BackendUnavailableError(
            f"the Ray cluster has {n_cores} cores; at least {_LEAST_CORES} are needed"
        )
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray
