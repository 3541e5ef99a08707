"""Corpus -> index bundle: build every backend, measure it, choose the default, publish."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from indexer.backends import (
    BACKENDS,
    BackendUnavailableError,
    BuildContext,
    LocalIndex,
    available_backends,
)
from indexer.bundle import (
    BackendEntry,
    IndexBundle,
    IndexManifest,
    OperatingPoint,
    link_files,
    replace_tuning_queries,
    reread,
    write_corpus,
    write_query_assets,
)
from indexer.corpus import Corpus, CorpusError
from indexer.metadata import typed_columns
from indexer.tuning import TARGETS, TuningQueries, tune, tune_depths
from trainer.bundle import TowerBundle
from trainer.publish import CURRENT, commit, follow, staging

Announce = Callable[[str], None]
"""Told, in a few words, what is being done now."""

MEASURED_K = (10, 30, 100, 300, 1000, 3000)
"""Numbers of results that every index is tuned for, beside the one that is asked for.

More than anyone reads: a search looks so deep where the best are not eligible."""

_PRODUCERS = ("annoy", "numpy", "pymilvus", "scann")
_SAMPLE_SIZE = 20_000  # candidates on which variants of a backend are compared
_DRAW = 1.25  # an approximate index must be this much faster than an exact one
_N_CANDIDATES_AS_QUERIES = 2_000


class BuildOptions(BaseModel):
    """What to build, and for what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recall_target: float = Field(default=0.95, gt=0, le=1)
    """The recall@k that the default backend delivers."""
    k: int = Field(default=100, ge=1)
    backends: tuple[str, ...] = ()
    """Backends to build; empty for all that are installed and need nothing but this machine."""
    milvus_uri: str | None = None
    """Where the collection of the backend milvus is to be."""
    seed: int = 42

    @property
    def targets(self) -> tuple[float, ...]:
        """The recalls to tune for; an exhaustive search, for a recall of 1, needs no tuning."""
        return tuple(sorted({*TARGETS, self.recall_target} - {1.0}))


def build_bundle(
    corpus: Corpus,
    queries: np.ndarray | None,
    root: Path,
    options: BuildOptions,
    *,
    towers: TowerBundle | None = None,
    make_current: bool = True,
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
        make_current: whether ``current`` is to lead to it; where there is none yet, it does.
        announce: told what is being done.

    Returns:
        The directory of the new version.

    Raises:
        BackendUnavailableError: if a backend that was asked for is not installed.
        BundleError: if ``root`` cannot be written to.
        CorpusError: if the queries do not fit the corpus, or a column of its table is of a type
            that cannot be served.
        IndexUnreachableError: if a backend outside of this process does not answer.
    """
    names = backend_names(options)
    try:
        typed_columns(corpus.candidates)
    except ValueError as error:
        raise CorpusError(str(error)) from error
    queries, tuned_on = _queries_to_tune_on(corpus, queries, options)
    with staging(root, IndexManifest) as staged:
        write_corpus(staged, corpus, queries)
        corpus = reread(staged, corpus)
        if towers is not None:
            write_query_assets(staged, towers)
        gauge = _Gauge.prepare(corpus, queries, options, announce)
        entries = {name: _build_backend(name, corpus, gauge, staged) for name in names}
        default, reason = choose_default(entries, options)
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
                default_k=options.k,
                default_reason=reason,
                backends=entries,
            ),
            make_current=make_current,
        )


def retune_bundle(
    bundle: IndexBundle,
    queries: np.ndarray | None,
    options: BuildOptions,
    *,
    make_current: bool = True,
    announce: Announce = lambda _: None,
) -> Path:
    """Measure the indexes of a bundle anew and publish them with their new operating points.

    Args:
        bundle: the bundle; the new version shares its files and lies beside it.
        queries: (n_queries, dim) float32 to measure on; by default, what the bundle holds.
        options: the recall and the k that the default backend is to deliver; all of the bundle's
            backends are tuned.
        make_current: whether the new version is to take the bundle's place if that is current.
        announce: told what is being done.

    Returns:
        The directory of the new version.

    Raises:
        BackendUnavailableError: if a backend of the bundle is not installed.
        BundleError: if the bundle is damaged, or its folder cannot be written to.
        CorpusError: if the queries do not fit the corpus.
    """
    corpus, tuned_on = bundle.corpus, bundle.manifest.tuned_on
    if queries is None:
        queries = bundle.tuning_queries
    else:
        queries, tuned_on = _queries_to_tune_on(corpus, queries, options)
    root = bundle.directory.parent
    with staging(root, IndexManifest) as staged:
        link_files(bundle, staged)
        replace_tuning_queries(staged, queries)
        gauge = _Gauge.prepare(corpus, queries, options, announce)
        entries = {
            name: entry.model_copy(
                update={"operating_points": gauge.operating_points(bundle.index(name))}
            )
            for name, entry in bundle.manifest.backends.items()
        }
        default, reason = choose_default(entries, options)
        announce("publishing")
        manifest = bundle.manifest.model_copy(
            update={
                "tuned_on": tuned_on,
                "default_backend": default,
                "default_recall_target": options.recall_target,
                "default_k": options.k,
                "default_reason": reason,
                "backends": entries,
            }
        )
        # What somebody keeps beside the current version does not take its place by being measured.
        was_current = follow(root / CURRENT).name == bundle.directory.name
        return commit(staged, root, manifest, make_current=make_current and was_current)


@dataclass(frozen=True)
class _Gauge:
    """Measures indexes over one corpus on one set of queries."""

    queries: TuningQueries
    depths: Sequence[int]
    options: BuildOptions
    announce: Announce

    @classmethod
    def prepare(
        cls, corpus: Corpus, queries: np.ndarray, options: BuildOptions, announce: Announce
    ) -> _Gauge:
        announce("searching exactly")
        depths = measured_depths(corpus.n_candidates, options.k)
        prepared = TuningQueries.prepare(corpus.embeddings, queries, depths[-1], options.seed)
        return cls(prepared, depths, options, announce)

    def operating_points(self, index: LocalIndex[Any, Any]) -> tuple[OperatingPoint, ...]:
        def announce(k: int) -> None:
            self.announce(f"{index.name}: tuning for {k:,} results")

        targets = self.options.targets
        return tuple(tune_depths(index, self.queries, self.depths, targets, on_depth=announce))


def measured_depths(n_candidates: int, k: int) -> list[int]:
    """Return the numbers of results to tune for, in rising order."""
    return sorted({min(depth, n_candidates) for depth in (*MEASURED_K, k)})


def choose_default(entries: Mapping[str, BackendEntry], options: BuildOptions) -> tuple[str, str]:
    """Return the backend that delivers the recall at the least latency, and why, in a sentence.

    An exact backend wins a draw: latencies differ by some percent from run to run, and exact
    answers are worth more.
    """
    points = {name: _cheapest(entry, options) for name, entry in entries.items()}

    def handicapped(name: str) -> float:
        return points[name].p50_microseconds * (1.0 if BACKENDS[name].is_exact else _DRAW)

    ranking = sorted(points, key=handicapped)
    told = "; ".join(
        f"{name} {point.p50_microseconds:,.0f} µs a query at recall {point.recall:.3f}"
        for name, point in ((name, points[name]) for name in ranking)
    )
    best = ranking[0]
    why = "is exact and no other is much faster" if BACKENDS[best].is_exact else "is the fastest"
    return best, f"{best} {why} at recall@{points[best].k} of {options.recall_target:g}: {told}"


def _cheapest(entry: BackendEntry, options: BuildOptions) -> OperatingPoint:
    """Return the fastest point that promises the recall for k results, or for all there are."""
    enough = [p for p in entry.operating_points if p.recall_target >= options.recall_target]
    k = min(options.k, max(p.k for p in enough))
    return min((p for p in enough if p.k == k), key=lambda point: point.p50_microseconds)


def _build_backend(name: str, corpus: Corpus, gauge: _Gauge, staged: Path) -> BackendEntry:
    index, build_seconds = _best_index(name, corpus, gauge)
    size_bytes = _save(index, staged / name)  # before it is tuned: what is saved tells more
    return BackendEntry(
        build_params=index.build_params.model_dump(),
        operating_points=gauge.operating_points(index),
        build_seconds=round(build_seconds, 3),
        size_bytes=size_bytes,
    )


def _best_index(name: str, corpus: Corpus, gauge: _Gauge) -> tuple[LocalIndex[Any, Any], float]:
    """Build a backend's variants, and return the fastest and the seconds it took to build."""
    backend, embeddings = BACKENDS[name], corpus.embeddings
    context = BuildContext(corpus.candidates, gauge.options.milvus_uri, gauge.announce)
    variants = backend.build_variants(*embeddings.shape)
    if len(variants) > 1 and backend.variants_scale:
        gauge.announce(f"{name}: comparing variants on a sample")
        variants = [_best_on_sample(name, variants, embeddings, gauge)]
    built = []
    for number, params in enumerate(variants, 1):
        gauge.announce(f"{name}: building" + (f" variant {number}" if len(variants) > 1 else ""))
        start = time.perf_counter()
        try:
            index = backend.build(embeddings, params, context)
        except ValueError as error:  # what a library cannot take; the corpus itself was checked
            raise CorpusError(f"{name} cannot be built: {error}") from error
        built.append((index, time.perf_counter() - start))
    if len(built) == 1:
        return built[0]
    gauge.announce(f"{name}: comparing variants")
    return min(built, key=lambda one: _latency(one[0], gauge.queries, gauge.options))


def _save(index: LocalIndex[Any, Any], directory: Path) -> int:
    """Save an index and return its size in bytes; a backend without files gets no folder."""
    directory.mkdir()
    index.save(directory)
    files = [path for path in directory.rglob("*") if path.is_file()]
    if not files:
        directory.rmdir()
    return sum(path.stat().st_size for path in files)


def _best_on_sample(
    name: str, variants: Sequence[Any], embeddings: np.ndarray, gauge: _Gauge
) -> Any:
    """Return the params of the variant that is the fastest on a sample of the candidates."""
    options = gauge.options
    rng = np.random.default_rng(options.seed)
    size = min(_SAMPLE_SIZE, len(embeddings))
    rows = np.sort(rng.choice(len(embeddings), size, replace=False))
    sample = np.ascontiguousarray(embeddings[rows])
    k = min(options.k, size)
    queries = TuningQueries.prepare(sample, gauge.queries.choosing, k, options.seed)
    built = (BACKENDS[name].build(sample, params) for params in variants)
    return min(built, key=lambda index: _latency(index, queries, options)).build_params


def _latency(index: LocalIndex[Any, Any], queries: TuningQueries, options: BuildOptions) -> float:
    """Return the microseconds in which an index delivers what is asked for, the very best too."""
    k = min(options.k, index.n_candidates)
    targets = [target for target in options.targets if target >= options.recall_target]
    points = tune(index, queries, k, targets[:1], fewest=1)
    return min(point.p50_microseconds for point in points)


def _queries_to_tune_on(
    corpus: Corpus, queries: np.ndarray | None, options: BuildOptions
) -> tuple[np.ndarray, str]:
    """Return the queries, or candidates where there are none, and which of the two they are."""
    if queries is None or len(queries) == 0:
        return _candidates_as_queries(corpus, options.seed), "candidates"
    if queries.shape[1] != corpus.dim:
        raise CorpusError(
            f"the queries have dimension {queries.shape[1]}, the candidates {corpus.dim}"
        )
    telling = _telling(queries)
    if not len(telling):
        raise CorpusError("the queries are all zero, to which every candidate is as good")
    return telling, "queries"


def _telling(queries: np.ndarray) -> np.ndarray:
    """Return a copy of the queries but those of zeros, to which every answer is as good."""
    telling: np.ndarray = np.asarray(queries)[np.any(queries, axis=1)]
    return telling


def backend_names(options: BuildOptions) -> list[str]:
    """Return the backends to build.

    Raises:
        BackendUnavailableError: if one that was asked for is not known, or not installed.
    """
    available = available_backends()
    for name in options.backends:
        if name not in BACKENDS:
            raise BackendUnavailableError(
                f"unknown backend {name!r}; the known ones are {', '.join(BACKENDS)}"
            )
        if name not in available:
            raise BackendUnavailableError(str(BACKENDS[name].unavailable()))
    wanted = options.backends or [name for name in available if not available[name].is_remote]
    return [name for name in available if name in wanted]


def _candidates_as_queries(corpus: Corpus, seed: int) -> np.ndarray:
    """Return the embeddings of some candidates, in the form that queries have."""
    order = np.random.default_rng(seed).permutation(corpus.n_candidates)
    if not corpus.has_bias_dimension:
        telling = order[np.any(corpus.embeddings, axis=1)[order]]
        order = telling if len(telling) else order
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
