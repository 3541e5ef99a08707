"""The index bundle, the unit of deployment: its schema, its writer and its reader.

candidates.parquet    candidate_id and metadata; the line is the candidate's row
embeddings.npy        (n_candidates, dim) float32 in C order, memory-mapped
popularity.npy        (n_candidates,) float32
tuning_queries.npy    (n_queries, dim) float32, what the operating points were measured on
query/                what the server needs of the tower (trainer.bundle.QueryAssets);
                      absent if the embeddings are the user's own
<backend>/            what each backend saves, if anything
"""

from __future__ import annotations

import itertools
import mmap
import os
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from indexer.backends import BACKENDS, LocalIndex, Measured, SearchParams, Series
from indexer.corpus import Corpus, CorpusError
from trainer.bundle import QUERY_ASSET_FILES, QueryAssets, TowerBundle, load_array, read_table
from trainer.features import CANDIDATE_ID
from trainer.pruning import hold
from trainer.publish import BundleError, Manifest, read_manifest, resolve, verify_files
from trainer.vocabulary import Vocabulary

CANDIDATES = "candidates.parquet"
EMBEDDINGS = "embeddings.npy"
POPULARITY = "popularity.npy"
TUNING_QUERIES = "tuning_queries.npy"
QUERY = "query"

EXHAUSTIVE = "exhaustive"


class OperatingPoint(BaseModel):
    """Search params with their measured recall and latency."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """The recall target in digits, or ``exhaustive``."""
    recall_target: float
    """The recall that was asked for; 1 for ``exhaustive``."""
    k: int
    """The number of results it was measured for; it holds for fewer, but not for more."""
    search_params: dict[str, Any]
    recall: float
    """Mean recall@k on queries that the choice of the params has not seen."""
    recall_low: float
    recall_high: float
    """The 95% confidence interval of ``recall``."""
    p50_microseconds: float
    p99_microseconds: float
    """Latency of a call with one query."""


class BackendEntry(BaseModel):
    """One built backend."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    build_params: dict[str, Any]
    operating_points: tuple[OperatingPoint, ...]
    build_seconds: float
    size_bytes: int
    """Bytes on disk, beside the embeddings that all backends share."""


class IndexManifest(Manifest):
    """What an index bundle says about itself."""

    format_version: int = 2  # since ScaNN reorders by bytes
    kind: str = "index"
    dim: int
    has_bias_dimension: bool
    max_history_length: int
    """Interactions the query tower reads; 0 where there is no query tower."""
    n_candidates: int
    tower_version: str | None
    """The tower bundle the embeddings come from; None if they are the user's own."""
    tuned_on: str
    """``queries``, or ``candidates`` where there were no queries to measure on."""
    default_backend: str
    default_recall_target: float
    default_k: int = 100
    """For how many results the default backend was chosen."""
    default_reason: str
    """Why this backend is the default, in a sentence."""
    backends: dict[str, BackendEntry] = Field(min_length=1)


@dataclass(frozen=True)
class SearchChoice:
    """How a request is to be searched.

    Attributes:
        backend: the name of the backend.
        point: the operating point, with the recall to expect.
        params: the point's search params, for ``Index.search``.
    """

    backend: str
    point: OperatingPoint
    params: SearchParams

    @property
    def is_makeshift(self) -> bool:
        """Whether an approximate index must search exhaustively, as no other point will do."""
        return self.point.name == EXHAUSTIVE and not BACKENDS[self.backend].is_exact


class IndexBundle:
    """A published index bundle, which is not pruned on this machine while it is open.

    Args:
        directory: the version's directory.
        manifest: its manifest.
    """

    def __init__(self, directory: Path, manifest: IndexManifest) -> None:
        self.directory = directory
        self.manifest = manifest
        hold(directory, self)
        self._indexes: dict[str, LocalIndex[Any, Any]] = {}

    @classmethod
    def open(cls, path: Path, *, verify: bool = True) -> IndexBundle:
        """Open the bundle at ``path``, which may be a ``current`` link.

        Args:
            path: a version's directory, or a link to one.
            verify: whether to hash every file first. Native code opens some of them, and a
                damaged one can crash the process.

        Raises:
            BundleError: if there is no bundle, or it is damaged or of another kind.
        """
        directory = resolve(path)
        manifest = read_manifest(directory, IndexManifest)
        if unknown := sorted(manifest.backends.keys() - BACKENDS.keys()):
            raise BundleError(
                f"{directory} has the backends {', '.join(unknown)}, which this version does not "
                f"know; it knows {', '.join(BACKENDS)}"
            )
        bundle = cls(directory, manifest)  # held while its files are hashed, which may take minutes
        if verify:
            verify_files(directory, manifest)
        return bundle

    @property
    def backend_names(self) -> tuple[str, ...]:
        """The backends that were built, the default first."""
        default = self.manifest.default_backend
        return (default, *(name for name in self.manifest.backends if name != default))

    @cached_property
    def corpus(self) -> Corpus:
        """The candidates; the embeddings are memory-mapped.

        Raises:
            BundleError: if the files do not fit the manifest or each other.
        """
        try:
            candidates = read_table(self.directory / CANDIDATES, CANDIDATE_ID)
            corpus = Corpus(
                candidate_ids=Vocabulary(candidates.column(CANDIDATE_ID)),
                embeddings=load_array(self.directory / EMBEDDINGS).view(np.ndarray),
                candidates=candidates,
                popularity=np.array(load_array(self.directory / POPULARITY)),
                has_bias_dimension=self.manifest.has_bias_dimension,
            )
        except (CorpusError, ValueError) as error:
            raise BundleError(f"{self.directory}: {error}") from error
        expected = (self.manifest.n_candidates, self.manifest.dim)
        if corpus.embeddings.shape != expected:
            raise BundleError(
                f"{self.directory / EMBEDDINGS} has shape {corpus.embeddings.shape}, "
                f"the manifest says {expected}"
            )
        return corpus

    @cached_property
    def query(self) -> QueryAssets | None:
        """What turns a query into an embedding; None if the embeddings are the user's own."""
        directory = self.directory / QUERY
        return QueryAssets(directory) if directory.is_dir() else None

    @cached_property
    def tuning_queries(self) -> np.ndarray:
        """(n_queries, dim) float32: what the operating points were measured on.

        Raises:
            BundleError: if the file holds no array.
        """
        return np.array(load_array(self.directory / TUNING_QUERIES))

    def index(self, name: str) -> LocalIndex[Any, Any]:
        """Return a backend's index, opened on first use.

        Raises:
            ValueError: if the bundle has no such backend.
            BackendUnavailableError: if the backend's library is not installed here.
            BundleError: if its files do not fit the corpus.
        """
        if name not in self._indexes:
            self._indexes[name] = self._load(name)
        return self._indexes[name]

    def _load(self, name: str) -> LocalIndex[Any, Any]:
        entry, backend = self._entry(name), BACKENDS[name]
        params = backend.build_params_type.model_validate(entry.build_params)
        try:
            index = backend.load(self.directory / name, self.corpus.embeddings, params)
        except ValueError as error:
            raise BundleError(f"{self.directory}: {error}") from error
        index.calibrate(_series(entry, backend.search_params_type))
        return index

    def check(self) -> None:
        """Open everything, so that what does not fit together is found now.

        Raises:
            BundleError: if a part does not fit the manifest or the corpus.
        """
        for name in self.backend_names:
            if BACKENDS[name].unavailable() is None:
                self.index(name)
        if self.tuning_queries.shape[1:] != (self.manifest.dim,):
            raise BundleError(
                f"{self.directory / TUNING_QUERIES} has shape {self.tuning_queries.shape}, "
                f"the dimension is {self.manifest.dim}"
            )
        if self.query is not None:
            self.query.check(self.manifest.dim, self.manifest.n_candidates)

    def choose(
        self,
        k: int,
        *,
        recall_target: float | None = None,
        backend: str | None = None,
        among: Collection[str] | None = None,
    ) -> SearchChoice:
        """Choose the cheapest way to deliver a recall, by the measured operating points.

        Args:
            k: candidates wanted.
            recall_target: the recall to deliver; by default, what the index was built for.
            backend: the only backend to consider; by default, the index's own choice, or those of
                ``among`` if a recall target is given, or if nothing but an exhaustive search of
                that one delivers it for so many.
            among: the backends that can be used, the index's own choice among them; by default,
                all.

        Returns:
            The choice. Where nothing was measured for so many candidates or so high a recall, it
            is an exhaustive search.

        Raises:
            ValueError: if the bundle has no such backend, or the target is not in (0, 1].
        """
        target = self.manifest.default_recall_target if recall_target is None else recall_target
        if not 0 < target <= 1:
            raise ValueError(f"recall_target must be above 0 and at most 1, not {target}")
        usable = self.backend_names if among is None else among
        if backend is not None or recall_target is not None:
            return self._cheapest(usable if backend is None else (backend,), k, target)
        choice = self._cheapest((self.manifest.default_backend,), k, target)
        return self._cheapest(usable, k, target) if choice.is_makeshift else choice

    def _cheapest(self, names: Iterable[str], k: int, target: float) -> SearchChoice:
        """Return the fastest of the backends' points that promise enough."""
        points = ((name, point) for name in names for point in self._enough(name, k, target))
        name, point = min(points, key=lambda one: one[1].p50_microseconds)
        params = BACKENDS[name].search_params_type.model_validate(point.search_params)
        return SearchChoice(name, point, params)

    def _enough(self, name: str, k: int, target: float) -> list[OperatingPoint]:
        """Return a backend's points that promise a recall for k; its exhaustive one if none does.

        A point promises it for k results and for fewer, down to those that another was measured
        for; what finds most of the best thousand may miss the very best.
        """
        points = self._entry(name).operating_points
        depth = min((p.k for p in points if p.k >= k), default=None)
        enough = [p for p in points if p.k == depth and p.recall_target >= target]
        return enough or [p for p in points if p.name == EXHAUSTIVE][-1:]

    def _entry(self, name: str) -> BackendEntry:
        if name not in self.manifest.backends:
            known = ", ".join(self.backend_names)
            raise ValueError(f"unknown backend {name!r}; this index has {known}")
        return self.manifest.backends[name]


def _series(
    entry: BackendEntry, search_params_type: type[SearchParams]
) -> list[Series[SearchParams]]:
    """Return, for each recall target, the search params for rising numbers of results."""
    points = sorted(entry.operating_points, key=lambda point: (point.recall_target, point.k))
    return [
        tuple(
            Measured(p.k, search_params_type.model_validate(p.search_params), p.recall)
            for p in group
        )
        for _, group in itertools.groupby(points, key=lambda point: point.recall_target)
    ]


def write_corpus(directory: Path, corpus: Corpus, tuning_queries: np.ndarray) -> None:
    """Write the corpus, and the queries to tune on, into a staged bundle."""
    pq.write_table(corpus.candidates, directory / CANDIDATES)
    np.save(directory / EMBEDDINGS, corpus.embeddings)
    np.save(directory / POPULARITY, corpus.popularity)
    np.save(directory / TUNING_QUERIES, tuning_queries)


def reread(directory: Path, corpus: Corpus) -> Corpus:
    """Return a corpus with the embeddings that ``write_corpus`` wrote, if it had them of a file.

    Somebody may write another file in its place meanwhile, and what was indexed would not be what
    is published.

    Raises:
        CorpusError: if somebody did, and left what cannot be searched.
    """
    if not _is_mapped(corpus.embeddings):
        return corpus
    embeddings = load_array(directory / EMBEDDINGS).view(np.ndarray)
    return replace(corpus, embeddings=embeddings)


def _is_mapped(array: np.ndarray) -> bool:
    """Whether the memory of an array is that of a file."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap):
            return True
        base = base.base
    return isinstance(base, mmap.mmap)


def link_files(bundle: IndexBundle, directory: Path) -> None:
    """Put all files of a bundle into a staged one, without copies if possible."""
    for name in bundle.manifest.files:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        _link_or_copy(bundle.directory / name, directory / name)


def replace_tuning_queries(directory: Path, tuning_queries: np.ndarray) -> None:
    """Write other queries to tune on into a staged bundle; what was linked stays as it is."""
    (directory / TUNING_QUERIES).unlink()
    np.save(directory / TUNING_QUERIES, tuning_queries)


def write_query_assets(directory: Path, towers: TowerBundle) -> None:
    """Put what the server needs of the tower into a staged bundle, without a copy if possible."""
    target = directory / QUERY
    target.mkdir()
    for name in QUERY_ASSET_FILES:
        source = towers.query.directory / name
        if source.exists():
            _link_or_copy(source, target / name)


def _link_or_copy(source: Path, target: Path) -> None:
    """Make a hard link, or a copy where the file systems differ or know no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
