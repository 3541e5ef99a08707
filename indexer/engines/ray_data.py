"""Ray Data: candidates are embedded by a pool of workers, on one machine or on many.

The only file that knows Ray. The candidates go out as Parquet shards, and come back as shards of
embeddings, in NumPy's format; what a worker leaves undone when it dies, another does. Towers and
shards lie in folders that all machines see, so that nothing but their names passes through Ray, and
nobody holds more than a shard in memory. The shards are published like any bundle, whole or not at
all.
"""

from __future__ import annotations

import gc
import importlib.util
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from indexer.backends.base import BackendUnavailableError
from indexer.corpus import Corpus, CorpusError
from indexer.embed import CandidateEmbedder, corpus_of
from trainer.bundle import TowerBundle, load_array
from trainer.extras import missing
from trainer.features import CANDIDATE_ID
from trainer.publish import Manifest, commit, staging

_ROWS_PER_SHARD = 50_000
_CANDIDATES, _SHARDS = "candidates", "shards"
_NAME = "{:012}"  # of a shard, before what it ends with: the row of its first candidate
_PATH, _FIRST_ROW, _N_ROWS = "path", "first_row", "n_rows"


class EmbeddingsManifest(Manifest):
    """What shards of embeddings say about themselves."""

    format_version: int = 2  # since shards are arrays, whose rows follow from their names
    kind: str = "embeddings"
    tower_version: str
    n_candidates: int
    dim: int


class ShardEmbedder:
    """A worker of the pool.

    Args:
        towers: the directory of the tower bundle, which has been verified.
        shards: the folder for shards of embeddings.
    """

    def __init__(self, towers: str, shards: str) -> None:
        self._embedder = CandidateEmbedder(TowerBundle.open(Path(towers), verify=False))
        self._shards = Path(shards)
        gc.freeze()  # Ray's own objects stay, and to look through them again and again takes long

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        """Embed the candidates of a shard, and write their embeddings.

        Args:
            shard: the path of its candidates, and the row of the first.

        Returns:
            How many there are.
        """
        source, first_row = Path(shard[_PATH]), int(shard[_FIRST_ROW])
        vectors = self._embedder.embed(pq.read_table(source), first_row)
        # Moved when it is whole: a worker that dies leaves nothing among the embeddings.
        unfinished = source.with_suffix(f".{secrets.token_hex(4)}.npy")
        np.save(unfinished, vectors)
        unfinished.replace(self._shards / f"{source.stem}.npy")
        return {_N_ROWS: len(vectors)}


def embed_candidates(
    towers: TowerBundle,
    root: Path,
    address: str | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
    embedder: type[ShardEmbedder] = ShardEmbedder,
) -> Path:
    """Embed all candidates of a tower bundle, and publish the shards.

    Args:
        towers: the bundle.
        root: the folder that holds the versions of shards.
        address: of a Ray cluster; None to use the cores of this machine.
        on_progress: called with the number of candidates embedded so far.
        embedder: what embeds a shard.

    Returns:
        The directory of the new version, for ``read_shards``.

    Raises:
        BackendUnavailableError: if Ray is not installed, there is no cluster at the address, or
            it has no cores.
        BundleError: if ``root`` cannot be written to.
    """
    ray, n_cores = _started(address)
    with staging(root, EmbeddingsManifest) as staged:
        sources = _write_candidates(towers, staged / _CANDIDATES)
        (staged / _SHARDS).mkdir()
        folders = (towers.directory, staged / _SHARDS)
        embedded = ray.data.from_items(sources, override_num_blocks=len(sources)).map(
            embedder,
            fn_constructor_args=tuple(str(folder.resolve()) for folder in folders),
            compute=ray.data.ActorPoolStrategy(size=min(n_cores, len(sources))),
        )
        n_done = 0
        for shard in embedded.iter_rows():
            n_done += shard[_N_ROWS]
            on_progress(n_done)
        shutil.rmtree(staged / _CANDIDATES)
        manifest = EmbeddingsManifest(
            producers={"ray": ray.__version__},
            tower_version=towers.manifest.version,
            n_candidates=towers.manifest.n_candidates,
            dim=towers.manifest.dim,
        )
        return commit(staged, root, manifest)


def read_shards(directory: Path, towers: TowerBundle) -> Corpus:
    """Put the embeddings of shards together, on disk: memory holds a shard at a time.

    Args:
        directory: what ``embed_candidates`` published; a file without a name takes room beside
            it for as long as the corpus is in use.
        towers: the bundle that they were embedded with.

    Raises:
        BundleError: if a shard cannot be read.
        CorpusError: if they do not hold every candidate once, with a finite embedding.
    """
    n_candidates, dim = towers.manifest.n_candidates, towers.manifest.dim
    shape = (n_candidates, dim)
    with tempfile.TemporaryFile(dir=directory.parent) as file:
        _reserve(file.fileno(), 4 * n_candidates * dim, directory.parent)
        embeddings = np.memmap(file, np.float32, "w+", shape=shape).view(np.ndarray)
    n_read = 0
    for path in sorted((directory / _SHARDS).iterdir()):
        vectors = load_array(path)
        if path.stem != _NAME.format(n_read) or n_read + len(vectors) > n_candidates:
            break
        embeddings[n_read : n_read + len(vectors)] = vectors
        n_read += len(vectors)
    if n_read != n_candidates:
        raise CorpusError(
            f"{directory} does not hold every candidate once: it goes wrong after {n_read:,} of "
            f"{n_candidates:,}; embed them again"
        )
    return corpus_of(towers, embeddings)


def _reserve(file: int, n_bytes: int, directory: Path) -> None:
    """Take room on the disk: whoever writes to a mapped file for which there is none is killed."""
    if not hasattr(os, "posix_fallocate"):  # as on macOS
        return
    try:
        os.posix_fallocate(file, 0, n_bytes)
    except OSError as error:
        raise CorpusError(
            f"{directory} has no room for embeddings of {n_bytes / 1e9:.1f} GB ({error.strerror}); "
            "make some, or build elsewhere"
        ) from error


def _write_candidates(towers: TowerBundle, directory: Path) -> list[dict[str, Any]]:
    """Write shards of candidates, with what the tower reads of them.

    Returns:
        For each its path and its first row, as ``ShardEmbedder`` takes them.
    """
    directory.mkdir()
    file, sources, first_row = pq.ParquetFile(towers.candidates_path), [], 0
    read = {CANDIDATE_ID, *(feature.name for feature in towers.query.features.content)}
    columns = [name for name in file.schema_arrow.names if name in read]
    for batch in file.iter_batches(_ROWS_PER_SHARD, columns=columns):
        path = directory / f"{_NAME.format(first_row)}.parquet"
        pq.write_table(pa.table(batch), path)
        sources.append({_PATH: str(path.resolve()), _FIRST_ROW: first_row})
        first_row += len(batch)
    return sources


def _n_cores(ray: Any) -> int:
    return int(ray.cluster_resources().get("CPU", 0))


def _started(address: str | None) -> tuple[Any, int]:
    """Return Ray, connected to a cluster, and how many cores that has."""
    if importlib.util.find_spec("ray") is None:
        raise BackendUnavailableError(missing("Ray", "ray"))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody unasked
    import ray  # noqa: PLC0415 - takes seconds, and most builds do without
    import ray.data  # noqa: PLC0415

    try:
        ray.init(
            address or "local",
            include_dashboard=None if address else False,
            ignore_reinit_error=True,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise BackendUnavailableError(f"there is no Ray cluster at {address}: {error}") from error
    except Exception as error:  # of no narrower kind, where a busy machine takes too long
        raise BackendUnavailableError(f"Ray did not start, try again: {error}") from error
    n_cores = _n_cores(ray)
    if n_cores < 1:
        raise BackendUnavailableError(f"the Ray cluster at {address} has no cores to embed with")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray, n_cores
