"""Corpus -> index bundle: build every backend, measure it, choose the default, publish."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from indexer.backends import BACKENDS, BackendUnavailableError, LocalIndex, available_backends
from indexer.bundle import (
    BackendEntry,
    IndexManifest,
    OperatingPoint,
    write_corpus,
    write_query_assets,
)
from indexer.corpus import Corpus, CorpusError
from indexer.tuning import TuningQueries, tune
from trainer.bundle import TowerBundle
from trainer.publish import commit, staging

Announce = Callable[[str], None]
"""Told, in a few words, what is being done now."""

MEASURED_K = (10, 100, 1000)
"""Numbers of results that every index is tuned for, beside the one that is asked for."""

_PRODUCERS = ("annoy", "numpy", "scann")
_SAMPLE_SIZE = 20_000  # candidates on which variants of a backend are compared
_N_CANDIDATES_AS_QUERIES = 2_000


class BuildOptions(BaseModel):
    """What to build, and for what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recall_target: float = Field(default=0.95, gt=0, le=1)
    """The recall@k that the default backend delivers."""
    k: int = Field(default=100, ge=1)
    backends: tuple[str, ...] = ()
    """Backends to build; empty for all that are installed."""
    seed: int = 42


def build_bundle(
    corpus: Corpus,
    queries: np.ndarray | None,
    root: Path,
    options: BuildOptions,
    *,
    towers: TowerBundle | None = None,
    announce: Announce = lambda _: None,
) -> Path:
    """Build, measure and publish an index bundle.

    Args:
        corpus: what to index.
        queries: (n_queries, dim) float32 embeddings of real queries to measure on; without any,
            candidates stand in for them, and the bundle says so.
        root: the folder that holds the versions.
        options: what to build.
        towers: the tower bundle that the corpus was embedded with.
        announce: told what is being done.

    Returns:
        The directory of the new version.

    Raises:
        BackendUnavailableError: if a backend that was asked for is not installed.
        BundleError: if ``root`` cannot be written to.
        CorpusError: if the queries do not fit the corpus.
    """
    names = _backend_names(options)
    tuned_on = "candidates" if queries is None or len(queries) == 0 else "queries"
    if queries is None or len(queries) == 0:
        queries = _candidates_as_queries(corpus, options.seed)
    elif queries.shape[1] != corpus.dim:
        raise CorpusError(
            f"the queries have dimension {queries.shape[1]}, the candidates {corpus.dim}"
        )
    with staging(root) as staged:
        write_corpus(staged, corpus, queries)
        if towers is not None:
            write_query_assets(staged, towers)
        announce("searching exactly")
        depths = measured_depths(corpus.n_candidates, options.k)
        tuning_queries = TuningQueries.prepare(corpus.embeddings, queries, depths[-1], options.seed)
        entries = {
            name: _build_backend(name, corpus, tuning_queries, depths, staged, options, announce)
            for name in names
        }
        default, reason = choose_default(entries, depths, options)
        announce("publishing")
        return commit(
            staged,
            root,
            IndexManifest(
                producers=_producers(),
                dim=corpus.dim,
                has_bias_dimension=corpus.has_bias_dimension,
                max_history_length=0 if towers is None else towers.manifest.max_history_length,
                n_candidates=corpus.n_candidates,
                tower_version=None if towers is None else towers.manifest.version,
                tuned_on=tuned_on,
                default_backend=default,
                default_recall_target=options.recall_target,
                default_reason=reason,
                backends=entries,
            ),
        )


def measured_depths(n_candidates: int, k: int) -> list[int]:
    """Return the numbers of results to tune for, in rising order."""
    return sorted({min(depth, n_candidates) for depth in (*MEASURED_K, k)})


def choose_default(
    entries: Mapping[str, BackendEntry], depths: Sequence[int], options: BuildOptions
) -> tuple[str, str]:
    """Return the backend that delivers the recall at the least latency, and why, in a sentence."""
    k = min(options.k, depths[-1])
    points = {
        name: min(enough, key=lambda point: point.p50_microseconds)
        for name, entry in entries.items()
        if (enough := _enough(entry, k, options.recall_target))
    }
    ranking = sorted(points, key=lambda name: points[name].p50_microseconds)
    told = "; ".join(
        f"{name} {point.p50_microseconds:,.0f} µs a query at recall {point.recall:.3f}"
        for name, point in ((name, points[name]) for name in ranking)
    )
    return ranking[0], (
        f"{ranking[0]} is the fastest to deliver recall@{k} of {options.recall_target:g}: {told}"
    )


def _enough(entry: BackendEntry, k: int, target: float) -> list[OperatingPoint]:
    """Return the points for k results that promise the recall target; exhaustive ones always do."""
    return [p for p in entry.operating_points if p.k == k and p.recall_target >= target]


def _build_backend(
    name: str,
    corpus: Corpus,
    queries: TuningQueries,
    depths: Sequence[int],
    staged: Path,
    options: BuildOptions,
    announce: Announce,
) -> BackendEntry:
    announce(f"{name}: choosing how to build it")
    params = _choose_build_params(name, corpus.embeddings, queries, options)
    announce(f"{name}: building")
    start = time.perf_counter()
    index = BACKENDS[name].build(corpus.embeddings, params)
    build_seconds = time.perf_counter() - start
    points: list[OperatingPoint] = []
    for k in depths:
        announce(f"{name}: tuning for {k} results")
        points += tune(index, queries, k)
    return BackendEntry(
        build_params=params.model_dump(),
        operating_points=tuple(points),
        build_seconds=round(build_seconds, 3),
        size_bytes=_save(index, staged / name),
    )


def _save(index: LocalIndex[Any, Any], directory: Path) -> int:
    """Save an index and return its size in bytes; a backend without files gets no folder."""
    directory.mkdir()
    index.save(directory)
    files = [path for path in directory.rglob("*") if path.is_file()]
    if not files:
        directory.rmdir()
    return sum(path.stat().st_size for path in files)


def _choose_build_params(
    name: str, embeddings: np.ndarray, queries: TuningQueries, options: BuildOptions
) -> Any:
    """Return the variant that delivers the recall at the least latency on a sample."""
    backend = BACKENDS[name]
    variants = backend.build_variants(*embeddings.shape)
    if len(variants) == 1:
        return variants[0]
    rng = np.random.default_rng(options.seed)
    size = min(_SAMPLE_SIZE, len(embeddings))
    rows = np.sort(rng.choice(len(embeddings), size, replace=False))
    sample = np.ascontiguousarray(embeddings[rows])
    k = min(options.k, size)
    sampled = TuningQueries.prepare(sample, queries.choosing, k, options.seed)

    def latency(params: Any) -> float:
        points = tune(backend.build(sample, params), sampled, k)
        return min(p.p50_microseconds for p in points if p.recall_target >= options.recall_target)

    return min(variants, key=latency)


def _backend_names(options: BuildOptions) -> list[str]:
    available = available_backends()
    for name in options.backends:
        if name not in BACKENDS:
            raise BackendUnavailableError(
                f"unknown backend {name!r}; the known ones are {', '.join(BACKENDS)}"
            )
        if name not in available:
            raise BackendUnavailableError(str(BACKENDS[name].unavailable()))
    return [name for name in available if not options.backends or name in options.backends]


def _candidates_as_queries(corpus: Corpus, seed: int) -> np.ndarray:
    """Return the embeddings of some candidates, in the form that queries have."""
    order = np.random.default_rng(seed).permutation(corpus.n_candidates)
    queries = corpus.embeddings[np.sort(order[:_N_CANDIDATES_AS_QUERIES])].copy()
    if corpus.has_bias_dimension:
        queries[:, -1] = 1
    return queries


def _producers() -> dict[str, str]:
    """Return the versions of the libraries that are installed."""
    versions = {}
    for name in _PRODUCERS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
