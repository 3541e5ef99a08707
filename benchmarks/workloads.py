"""Generated workloads: catalogues of any size, with towers trained on them for real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.errors import BenchmarkError
from benchmarks.progress import OnStep
from indexer.build import BuildOptions, build_bundle
from indexer.bundle import IndexBundle
from indexer.corpus import Corpus
from indexer.embed import embed_candidates
from trainer.bundle import CANDIDATES, POPULARITY, TowerBundle
from trainer.datasets import Dataset
from trainer.features import CANDIDATE_ID
from trainer.model_config import TowersConfig
from trainer.publish import CURRENT, commit, copy_content, staging
from trainer.vocabulary import Vocabulary

_N_CLUSTERS = 200
_CLUSTERS_PER_USER = 3
_POPULARITY_EXPONENT = 0.8
_FIRST_YEAR = 1930
_N_TRAINED = 20_000  # candidates of towers whose catalogue then grows
_PART = 100_000  # candidates that are generated at once, of more than memory should hold
_SPREAD = 0.5  # of a cluster, against the distance between clusters
_NORM_DEVIATION = 0.3  # of the logarithm of the norms


def generate_dataset(
    n_users: int, n_candidates: int, interactions_per_user: int, seed: int = 42
) -> Dataset:
    """Generate a dataset in which every user keeps to a few clusters of candidates.

    Args:
        n_users: how many users.
        n_candidates: how many candidates; each is in one cluster, some far more popular than most.
        interactions_per_user: how many interactions each user has.
        seed: of the random generator.

    Returns:
        The dataset; candidates have a ``title``, a ``cluster`` and a ``year`` from 1930 to 2029.
    """
    rng = np.random.default_rng(seed)
    clusters = rng.integers(_N_CLUSTERS, size=n_candidates)
    by_cluster = np.argsort(clusters, kind="stable")
    sizes = np.bincount(clusters, minlength=_N_CLUSTERS)
    starts = np.cumsum(sizes) - sizes
    user_rows = np.repeat(np.arange(n_users, dtype=np.int32), interactions_per_user)
    tastes = rng.integers(_N_CLUSTERS, size=(n_users, _CLUSTERS_PER_USER))
    chosen = tastes[user_rows, rng.integers(_CLUSTERS_PER_USER, size=len(user_rows))]
    # Within a cluster the popularity falls with the rank, by a power law.
    quantiles = rng.random(len(user_rows)) ** (1 / (1 - _POPULARITY_EXPONENT))
    ranks = (quantiles * sizes[chosen]).astype(np.int64)
    places = np.minimum(starts[chosen] + ranks, n_candidates - 1)  # a cluster may be empty
    candidate_rows = by_cluster[places].astype(np.int32)
    return Dataset(
        name=f"generated {n_users} x {n_candidates}",
        users=pa.table({"user_id": [f"u{row:08d}" for row in range(n_users)]}),
        candidates=generate_candidates(0, clusters, rng),
        user_rows=user_rows,
        candidate_rows=candidate_rows,
        timestamps=np.arange(len(user_rows), dtype=np.int64),
    )


def generate_candidates(first_row: int, clusters: np.ndarray, rng: np.random.Generator) -> pa.Table:
    """Generate what is known of some candidates.

    Args:
        first_row: the row of the first; the others follow.
        clusters: (n_candidates,) the cluster of each.
        rng: draws the rest.

    Returns:
        ``candidate_id``, ``title``, ``cluster``, and ``year`` from 1930 to 2029.
    """
    rows = range(first_row, first_row + len(clusters))
    return pa.table(
        {
            CANDIDATE_ID: [f"c{row:08d}" for row in rows],
            "title": [f"Candidate {row}" for row in rows],
            "cluster": [f"cluster-{cluster}" for cluster in clusters],
            "year": _FIRST_YEAR + rng.integers(100, size=len(clusters)),
        }
    )


def generate_corpus(
    n_candidates: int, dim: int, n_queries: int = 2_000, seed: int = 42
) -> tuple[Corpus, np.ndarray]:
    """Generate embeddings like trained ones: in clusters, with unequal norms.

    Args:
        n_candidates: how many.
        dim: their dimension.
        n_queries: how many queries, each near some cluster.
        seed: of the random generator.

    Returns:
        The corpus, and queries (n_queries, dim) float32.
    """
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(1, round(n_candidates**0.5)), dim), dtype=np.float32)

    def near_centres(n: int) -> np.ndarray:
        vectors = rng.standard_normal((n, dim), dtype=np.float32) * np.float32(_SPREAD)
        vectors += centres[rng.integers(len(centres), size=n)]
        return vectors

    embeddings = near_centres(n_candidates)
    embeddings *= rng.lognormal(0.0, _NORM_DEVIATION, (n_candidates, 1)).astype(np.float32)
    ids = Vocabulary([f"c{row:08d}" for row in range(n_candidates)])
    corpus = Corpus(
        candidate_ids=ids,
        embeddings=embeddings,
        candidates=pa.table({CANDIDATE_ID: ids.array}),
        popularity=np.zeros(n_candidates, dtype=np.float32),
    )
    return corpus, near_centres(n_queries)


def parse_size(text: str) -> tuple[int, int]:
    """Read ``ROWSxDIM``, as in ``1000000x64``.

    Raises:
        BenchmarkError: if it is something else.
    """
    rows, _, dim = text.partition("x")
    if not (rows.isdecimal() and dim.isdecimal() and int(rows) and int(dim)):
        raise BenchmarkError(f"a size is ROWSxDIM, as in 1000000x64, not {text!r}")
    return int(rows), int(dim)


def synthetic_bundle(
    root: Path,
    n_candidates: int,
    dim: int,
    *,
    backends: tuple[str, ...] = (),
    milvus_uri: str | None = None,
    on_step: OnStep = lambda _: None,
) -> IndexBundle:
    """Return an index bundle over generated embeddings, made on first use.

    Args:
        root: where it is kept, in a folder named by its size.
        n_candidates: how many candidates.
        dim: dimension of the embeddings.
        backends: which to build; empty for all on this machine.
        milvus_uri: where the backend milvus keeps its collection.
        on_step: called with a line of progress.
    """
    indexes = root / "-".join(["synthetic", f"{n_candidates}x{dim}", *backends])
    if not (indexes / CURRENT).exists():
        on_step(f"generating {n_candidates:,} embeddings")
        corpus, queries = generate_corpus(n_candidates, dim)
        options = BuildOptions(backends=backends, milvus_uri=milvus_uri)
        build_bundle(corpus, queries, indexes, options, announce=on_step)
    return IndexBundle.open(indexes / CURRENT)


def generated_bundle(
    root: Path, n_candidates: int, dim: int, *, on_step: OnStep = lambda _: None
) -> IndexBundle:
    """Return an index bundle with a query tower over a generated catalogue, made on first use.

    Args:
        root: where it is kept, in a folder named by its size.
        n_candidates: size of the catalogue.
        dim: dimension of the embeddings.
        on_step: called with a line of progress.
    """
    return bundle_of_towers(
        root / f"generated-{n_candidates}x{dim}",
        lambda towers: train_towers(towers, n_candidates, dim, on_step),
        BuildOptions(recall_target=0.95, k=100, backends=("brute_force", "scann")),
        on_step,
    )


def bundle_of_towers(
    folder: Path, train: Callable[[Path], None], options: BuildOptions, on_step: OnStep
) -> IndexBundle:
    """Return an index bundle over what trained towers embed, both made on first use.

    Args:
        folder: where both are kept.
        train: publishes the towers under the folder it is given.
        options: how to build the index.
        on_step: called with a line of progress.
    """
    trained, indexes = folder / "towers", folder / "indexes"
    if not (trained / CURRENT).exists():
        train(trained)
    if not (indexes / CURRENT).exists():
        towers = TowerBundle.open(trained / CURRENT)
        candidates, queries = embed_candidates(towers), towers.tuning_queries
        build_bundle(candidates, queries, indexes, options, towers=towers, announce=on_step)
    return IndexBundle.open(indexes / CURRENT)


def enlarged_towers(
    root: Path, n_candidates: int, dim: int, on_step: OnStep = lambda _: None
) -> TowerBundle:
    """Return trained towers whose catalogue has grown since, made on first use.

    Args:
        root: where they are kept, in a folder named by their size.
        n_candidates: size of the catalogue; what is beyond those that the towers were trained on
            they know by its content alone.
        dim: dimension of the embeddings.
        on_step: called with a line of progress.
    """
    trained = root / f"generated-{_N_TRAINED}x{dim}" / "towers"
    if not (trained / CURRENT).exists():
        train_towers(trained, _N_TRAINED, dim, on_step)
    towers = TowerBundle.open(trained / CURRENT)
    enlarged = root / f"enlarged-{n_candidates}x{dim}"
    if not (enlarged / CURRENT).exists():
        on_step(f"generating {n_candidates:,} candidates")
        _enlarge(towers, enlarged, n_candidates)
    return TowerBundle.open(enlarged / CURRENT)


def _enlarge(towers: TowerBundle, root: Path, n_candidates: int) -> None:
    """Publish towers anew with another catalogue, of which a part is in memory at a time."""
    rng, schema = np.random.default_rng(42), towers.candidates.schema
    with staging(root) as staged:
        copy_content(towers.directory, staged, (CANDIDATES, POPULARITY))
        with pq.ParquetWriter(staged / CANDIDATES, schema) as writer:
            for first_row in range(0, n_candidates, _PART):
                n_rows = min(_PART, n_candidates - first_row)
                clusters = rng.integers(_N_CLUSTERS, size=n_rows)
                writer.write_table(generate_candidates(first_row, clusters, rng))
        np.save(staged / POPULARITY, np.zeros(n_candidates, dtype=np.float32))
        commit(staged, root, towers.manifest.model_copy(update={"n_candidates": n_candidates}))


def train_towers(root: Path, n_candidates: int, dim: int, on_step: OnStep = lambda _: None) -> None:
    """Train towers on a generated dataset, and publish them.

    Args:
        root: the folder that holds the versions.
        n_candidates: of the dataset.
        dim: dimension of the embeddings.
        on_step: called with a line of progress.
    """
    on_step(f"training towers for {n_candidates:,} generated candidates")
    dataset = generate_dataset(n_users=2_000, n_candidates=n_candidates, interactions_per_user=60)
    publish_towers(root, dataset, TowersConfig(dim=dim, epochs=4, learning_rate=0.02))


def publish_towers(root: Path, dataset: Dataset, config: TowersConfig) -> None:
    """Train towers on all of a dataset, and publish them under ``root``."""
    from trainer.export import export  # noqa: PLC0415 - TensorFlow, for whoever has no bundle yet
    from trainer.training import fit  # noqa: PLC0415

    rows = np.arange(len(dataset), dtype=np.int64)
    export(fit(dataset, rows, config, seed=42), dataset, rows, root, seed=42)
