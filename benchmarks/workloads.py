"""Generated workloads: catalogues of any size, with towers trained on them for real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from indexer.build import BuildOptions, build_bundle
from indexer.bundle import IndexBundle
from indexer.corpus import CANDIDATE_ID, Corpus
from indexer.embed import embed_candidates
from trainer.bundle import TowerBundle
from trainer.datasets import Dataset
from trainer.publish import CURRENT
from trainer.vocabulary import Vocabulary

_N_CLUSTERS = 200
_CLUSTERS_PER_USER = 3
_POPULARITY_EXPONENT = 0.8
_FIRST_YEAR = 1930
_SPREAD = 0.5  # of a cluster, against the distance between clusters
_NORM_DEVIATION = 0.3  # of the logarithm of the norms

OnStep = Callable[[str], None]


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
    ids = [f"c{row:08d}" for row in range(n_candidates)]
    years = _FIRST_YEAR + rng.integers(100, size=n_candidates)
    return Dataset(
        name=f"generated {n_users} x {n_candidates}",
        users=pa.table({"user_id": [f"u{row:08d}" for row in range(n_users)]}),
        candidates=pa.table(
            {
                "candidate_id": ids,
                "title": [f"Candidate {row}" for row in range(n_candidates)],
                "cluster": [f"cluster-{cluster}" for cluster in clusters],
                "year": years,
            }
        ),
        user_rows=user_rows,
        candidate_rows=candidate_rows,
        timestamps=np.arange(len(user_rows), dtype=np.int64),
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
        ValueError: if it is something else.
    """
    rows, _, dim = text.partition("x")
    if not (rows.isdecimal() and dim.isdecimal() and int(rows) and int(dim)):
        raise ValueError(f"a size is ROWSxDIM, as in 1000000x64, not {text!r}")
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


def serving_bundle(
    root: Path, *, n_candidates: int = 100_000, dim: int = 64, on_step: OnStep = lambda _: None
) -> IndexBundle:
    """Return an index bundle with a query tower over a generated catalogue, made on first use.

    Args:
        root: where it is kept, in a folder named by its size.
        n_candidates: size of the catalogue.
        dim: dimension of the embeddings.
        on_step: called with a line of progress.
    """
    folder = root / f"generated-{n_candidates}x{dim}"
    trained, indexes = folder / "towers", folder / "indexes"
    if not (trained / CURRENT).exists():
        on_step(f"training towers for {n_candidates:,} generated candidates")
        _train(trained, n_candidates, dim)
    if not (indexes / CURRENT).exists():
        towers = TowerBundle.open(trained / CURRENT)
        build_bundle(
            embed_candidates(towers),
            towers.tuning_queries,
            indexes,
            BuildOptions(recall_target=0.95, k=100, backends=("brute_force", "scann")),
            towers=towers,
            announce=on_step,
        )
    return IndexBundle.open(indexes / CURRENT)


def _train(root: Path, n_candidates: int, dim: int) -> None:
    from trainer.export import export  # noqa: PLC0415 - TensorFlow, for whoever has no bundle yet
    from trainer.model_config import TowersConfig  # noqa: PLC0415
    from trainer.training import fit  # noqa: PLC0415

    dataset = generate_dataset(n_users=2_000, n_candidates=n_candidates, interactions_per_user=60)
    rows = np.arange(len(dataset), dtype=np.int64)
    config = TowersConfig(dim=dim, epochs=4, learning_rate=0.02)
    towers = fit(dataset, rows, config, seed=42)
    export(towers, dataset, rows, root, seed=42)
