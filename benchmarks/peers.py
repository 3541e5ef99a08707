"""Other libraries on the same vectors: what our backends must stand beside.

FAISS (Douze et al. 2024, arXiv:2401.08281), hnswlib and the graphs of USearch and Voyager (HNSW:
Malkov and Yashunin 2016, arXiv:1603.09320). One thread, inner product, params as each library names
them. They are optional: the ``peers`` extra installs them.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from benchmarks.contenders import Contender, Setting
from benchmarks.errors import BenchmarkError
from benchmarks.progress import OnStep
from trainer.extras import missing

_EFFORTS = (10, 20, 40, 80, 160, 320, 640, 1280)
_FEW_LISTS = (1, 2, 5)  # inverted lists that may be enough where vectors lie in clusters
_GRAPH_LINKS = 16
_BUILD_EFFORT = 200


class PeersMissingError(BenchmarkError):
    """The other libraries are not installed; the message says how to install them."""


class _Peer(Contender):
    """A peer over one corpus; a subclass builds and searches."""

    library: ClassVar[str]
    """The module that it imports."""

    def __init__(self, embeddings: np.ndarray) -> None:
        start = time.perf_counter()
        self._build(embeddings)
        self.build_seconds = time.perf_counter() - start
        self.size_bytes = self._saved_bytes()

    def ladders(self, k: int) -> Iterator[Iterable[Setting]]:
        """Yield one ladder of rising efforts."""
        yield self._settings(k)

    @abstractmethod
    def _build(self, embeddings: np.ndarray) -> None:
        """Build the index on one thread."""

    @abstractmethod
    def _saved_bytes(self) -> int:
        """Return how large a file the library saves, in which the vectors are as well."""

    @abstractmethod
    def _settings(self, k: int) -> Iterator[Setting]:
        """Yield settings of rising effort."""


class _Faiss(_Peer):
    """An index of FAISS's factory."""

    library = "faiss"
    factory: str
    effort: str
    efforts: tuple[int, ...] = (*_FEW_LISTS, *_EFFORTS)

    def _build(self, embeddings: np.ndarray) -> None:
        faiss = importlib.import_module("faiss")
        faiss.omp_set_num_threads(1)
        n_lists = 2 ** round(math.log2(4 * math.sqrt(len(embeddings))))
        dim = embeddings.shape[1]
        n_parts = next(n for n in range(max(1, dim // 2), 0, -1) if dim % n == 0)
        description = self.factory.format(n_lists=n_lists, n_parts=n_parts)
        self._index = faiss.index_factory(dim, description, faiss.METRIC_INNER_PRODUCT)
        self._index.train(embeddings[:: max(1, len(embeddings) // (64 * n_lists))])
        self._index.add(embeddings)
        self._space = faiss.ParameterSpace()

    def _saved_bytes(self) -> int:
        return int(importlib.import_module("faiss").serialize_index(self._index).nbytes)

    def _settings(self, k: int) -> Iterator[Setting]:
        for effort in self.efforts:
            yield Setting(None, {self.effort: effort}, self._searcher(k, effort))

    def _searcher(self, k: int, effort: int) -> Callable[[np.ndarray], np.ndarray]:
        def search(queries: np.ndarray) -> np.ndarray:
            rows: np.ndarray = self._index.search(queries, k)[1]
            return rows

        self._space.set_index_parameter(self._index, self.effort, effort)
        return search


class FaissIvfFlat(_Faiss):
    """Inverted lists of whole vectors."""

    name = "FAISS IVF-Flat"
    factory = "IVF{n_lists},Flat"
    effort = "nprobe"


class FaissIvfPq(_Faiss):
    """Inverted lists of quantised vectors, scanned by fast scan and refined by whole ones."""

    name = "FAISS IVF-PQ"
    factory = "IVF{n_lists},PQ{n_parts}x4fs,RFlat"
    effort = "nprobe"

    def _searcher(self, k: int, effort: int) -> Callable[[np.ndarray], np.ndarray]:
        self._space.set_index_parameter(self._index, "k_factor_rf", 4)
        return super()._searcher(k, effort)


class FaissHnsw(_Faiss):
    """A graph of small worlds."""

    name = "FAISS HNSW"
    factory = f"HNSW{_GRAPH_LINKS},Flat"
    effort = "efSearch"
    efforts = _EFFORTS


class Hnswlib(_Peer):
    """The graph of its authors."""

    library = "hnswlib"
    name = "hnswlib"

    def _build(self, embeddings: np.ndarray) -> None:
        hnswlib = importlib.import_module("hnswlib")
        self._index: Any = hnswlib.Index(space="ip", dim=embeddings.shape[1])
        self._index.init_index(len(embeddings), ef_construction=_BUILD_EFFORT, M=_GRAPH_LINKS)
        self._index.set_num_threads(1)
        self._index.add_items(embeddings)

    def _saved_bytes(self) -> int:
        return int(self._index.index_file_size())

    def _settings(self, k: int) -> Iterator[Setting]:
        for effort in (one for one in _EFFORTS if one >= k):
            self._index.set_ef(effort)
            yield Setting(None, {"ef": effort}, lambda queries: self._rows(queries, k))

    def _rows(self, queries: np.ndarray, k: int) -> np.ndarray:
        labels: np.ndarray = self._index.knn_query(queries, k)[0]
        return labels.astype(np.int64)


class Usearch(_Peer):
    """USearch."""

    library = "usearch"
    name = "USearch"

    def _build(self, embeddings: np.ndarray) -> None:
        usearch = importlib.import_module("usearch.index")
        self._index: Any = usearch.Index(
            ndim=embeddings.shape[1],
            metric="ip",
            connectivity=_GRAPH_LINKS,
            expansion_add=_BUILD_EFFORT,
        )
        self._index.add(np.arange(len(embeddings)), embeddings, threads=1)

    def _saved_bytes(self) -> int:
        return int(self._index.serialized_length)

    def _settings(self, k: int) -> Iterator[Setting]:
        for effort in (one for one in _EFFORTS if one >= k):
            self._index.expansion_search = effort
            yield Setting(
                None, {"expansion_search": effort}, lambda queries: self._rows(queries, k)
            )

    def _rows(self, queries: np.ndarray, k: int) -> np.ndarray:
        found = self._index.search(queries, k, threads=1).keys
        return np.asarray(found, dtype=np.int64).reshape(len(queries), -1)


class Voyager(_Peer):
    """Voyager."""

    library = "voyager"
    name = "Voyager"

    def _build(self, embeddings: np.ndarray) -> None:
        voyager = importlib.import_module("voyager")
        self._index: Any = voyager.Index(
            voyager.Space.InnerProduct,
            num_dimensions=embeddings.shape[1],
            M=_GRAPH_LINKS,
            ef_construction=_BUILD_EFFORT,
        )
        self._index.add_items(embeddings, num_threads=1)

    def _saved_bytes(self) -> int:
        return len(self._index.as_bytes())

    def _settings(self, k: int) -> Iterator[Setting]:
        for effort in (one for one in _EFFORTS if one >= k):
            yield Setting(None, {"query_ef": effort}, self._searcher(k, effort))

    def _searcher(self, k: int, effort: int) -> Callable[[np.ndarray], np.ndarray]:
        def search(queries: np.ndarray) -> np.ndarray:
            rows, _ = self._index.query(queries, k, num_threads=1, query_ef=effort)
            return np.asarray(rows, dtype=np.int64)

        return search


PEERS: tuple[type[_Peer], ...] = (
    FaissIvfFlat,
    FaissIvfPq,
    FaissHnsw,
    Hnswlib,
    Usearch,
    Voyager,
)


def peers_named(names: Sequence[str]) -> tuple[type[_Peer], ...]:
    """Return the peers of these names, in any letter case; all if there are no names.

    Raises:
        BenchmarkError: if there is no peer of a name.
    """
    known = {peer.name.casefold(): peer for peer in PEERS}
    for name in names:
        if name.casefold() not in known:
            raise BenchmarkError(
                f"unknown peer {name!r}; there are {', '.join(p.name for p in PEERS)}"
            )
    return tuple(known[name.casefold()] for name in names) or PEERS


def check_installed(peers: Iterable[type[_Peer]]) -> None:
    """Refuse, before anything is measured, peers whose libraries are missing.

    Raises:
        PeersMissingError: if one is not installed.
    """
    for peer in peers:
        if importlib.util.find_spec(peer.library) is None:
            raise PeersMissingError(missing(peer.library, "peers"))


def build_peers(
    embeddings: np.ndarray, on_step: OnStep, peers: Sequence[type[_Peer]] = PEERS
) -> Iterator[Contender]:
    """Build one peer after the other; each is let go before the next if the caller lets it go."""
    vectors = np.array(embeddings)  # a copy: some libraries refuse what is mapped read-only
    for peer in peers:
        on_step(f"{peer.name}: building")
        yield peer(vectors)
