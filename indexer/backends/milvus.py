"""Milvus proposes: an index in a database of its own, which may be larger than any machine.

Malkov & Yashunin 2018, "Efficient and robust approximate nearest neighbor search using
hierarchical navigable small world graphs", over vectors of one norm; or FLAT, which compares all.
What Milvus proposes is scored here, from the embeddings that the bundle maps, as it is for every
backend; whatever it leaves unanswered is completed here.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from indexer.backends.base import BuildContext, IndexUnreachableError, LocalIndex
from indexer.backends.equal_norms import of_one_norm, with_added_zero
from indexer.backends.params import BuildParams, SearchParams, geometric
from indexer.engines import milvus
from indexer.engines.milvus_expressions import Fields, expression_for
from indexer.engines.milvus_schema import ROW, storable
from indexer.exact import Neighbors
from indexer.filters import Restriction
from indexer.mask import Mask
from indexer.metadata import MetadataType, typed_columns
from indexer.recall import recall_at_k

_FILE = "collection.json"
_PREFIX = "candidate_search_"  # of the names of collections
_HNSW_FROM = 20_000  # candidates; comparing fewer costs less than a call
_EFFORT_STEP = 1.4
_CALL_COST = 100_000.0  # a call to another machine, in rows of a sequential scan; about 1 ms
_STEP_COST = 100.0  # a candidate that HNSW keeps in view, in the same; measured
_MAX_EXCLUDED = 1000  # rows that an expression names; it is compared with every row
_CHUNK_ROWS = 65_536
_TRIED_ROWS, _TRIED_K, _TRIED_EF = 50, 10, 1000
_LEAST_RECALL = 0.9


class MilvusBuildParams(BuildParams):
    """How Milvus indexes the vectors."""

    index_type: Literal["FLAT", "HNSW"]
    M: int = Field(default=32, ge=2, le=2048)
    """Links of a vector in HNSW's graph."""
    efConstruction: int = Field(default=200, ge=1)  # noqa: N815 - Milvus's name
    """Candidates in view when a vector is linked."""


class MilvusSearchParams(SearchParams):
    """How hard Milvus searches."""

    ef: int | None = Field(default=None, ge=1)
    """Candidates that HNSW keeps in view; None to compare all, as FLAT always does."""


class CollectionEntry(BaseModel):
    """What a bundle says about where its collection is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    uri: str
    name: str
    fields: dict[str, str]
    """By the metadata column that Milvus holds, what it calls it."""
    types: dict[str, str]
    """By the column, the name of its type."""

    @classmethod
    def read(cls, directory: Path) -> CollectionEntry:
        """Read what ``write`` wrote.

        Raises:
            ValueError: if it is not as it should be.
        """
        return cls.model_validate_json((directory / _FILE).read_text())

    def write(self, directory: Path) -> None:
        """Write it into a backend's folder."""
        (directory / _FILE).write_text(self.model_dump_json(indent=2) + "\n")

    def collection(self, n_candidates: int, settings: milvus.MilvusSettings) -> milvus.Collection:
        """Return the collection; nothing is connected yet."""
        return milvus.Collection(milvus.Milvus(self.uri, settings), self.name, n_candidates)


class MilvusIndex(LocalIndex[MilvusBuildParams, MilvusSearchParams]):
    """A collection in Milvus that belongs to this very content, and is never written to again."""

    name: ClassVar[str] = "milvus"
    is_remote: ClassVar[bool] = True
    build_params_type = MilvusBuildParams
    search_params_type = MilvusSearchParams

    _entry: CollectionEntry
    _collection: milvus.Collection
    _fields: Fields

    @property
    def is_deterministic(self) -> bool:
        """Whether all vectors are compared: graphs are built by several threads."""
        return self.build_params.index_type == "FLAT"

    @classmethod
    def unavailable(cls) -> str | None:
        """Return why Milvus cannot be used here; None if it can."""
        return milvus.unavailable()

    @classmethod
    def default_build_params(cls, n_candidates: int, dim: int) -> MilvusBuildParams:
        """Return params with a graph but for few vectors."""
        del dim
        return MilvusBuildParams(index_type="FLAT" if n_candidates < _HNSW_FROM else "HNSW")

    def default_search_params(self, k: int) -> MilvusSearchParams:
        """Return params that keep eight times as many candidates in view as are wanted."""
        return MilvusSearchParams(ef=8 * k if self._has_graph else None)

    def exhaustive_params(self) -> MilvusSearchParams:
        """Return the params under which all are compared: by FLAT in Milvus, for HNSW here."""
        return MilvusSearchParams()

    def effort_ladders(self, k: int) -> list[list[MilvusSearchParams]]:
        """Return rising numbers of candidates in view."""
        if not self._has_graph:
            return [[MilvusSearchParams()]]
        rungs = geometric(k, self.n_candidates, _EFFORT_STEP)
        return [[MilvusSearchParams(ef=ef) for ef in rungs]]

    def cost(self, k: int, params: MilvusSearchParams) -> float:
        """Return the cost of a call and of the candidates that are looked at."""
        if self._is_made_here(k, params):
            return float(self.n_candidates)
        looked_at = self.n_candidates if params.ef is None else _STEP_COST * max(params.ef, k)
        return _CALL_COST + looked_at

    def save(self, directory: Path) -> None:
        """Write where the collection is."""
        self._entry.write(directory)

    def _build(self) -> None:
        self._build_in(BuildContext())

    def _build_in(self, context: BuildContext) -> None:
        settings = milvus.MilvusSettings.read().for_build(context.location)
        metadata = {} if context.metadata is None else typed_columns(context.metadata)
        columns = storable(metadata)
        context.announce("milvus: hashing the content")
        self._open(self._new_entry(str(settings.uri), columns), settings)
        fields = self._entry.fields
        self._collection.load(
            lambda start, stop: of_one_norm(self.embeddings[start:stop], self._exact.max_norm),
            {fields[name]: column for name, column in columns.items()},
            self._collection_index(),
            context.announce,
        )
        context.announce("milvus: trying what was loaded")
        self._try_out()

    def _new_entry(self, uri: str, columns: dict[str, pa.Array]) -> CollectionEntry:
        return CollectionEntry(
            uri=uri,
            name=self._content_name(columns),
            # Columns may have names that Milvus does not allow.
            fields={name: f"column_{number}" for number, name in enumerate(columns)},
            types={name: MetadataType(column.type).name for name, column in columns.items()},
        )

    def _load(self, directory: Path) -> None:
        self._open(CollectionEntry.read(directory), milvus.MilvusSettings.read())

    def _open(self, entry: CollectionEntry, settings: milvus.MilvusSettings) -> None:
        self._entry = entry
        self._collection = entry.collection(self.n_candidates, settings)
        self._fields = {
            name: (field, MetadataType[entry.types[name]]) for name, field in entry.fields.items()
        }

    def _search(self, queries: np.ndarray, k: int, params: MilvusSearchParams) -> np.ndarray:
        return self._proposed(queries, k, params, expression="")

    def _search_eligible(
        self,
        queries: np.ndarray,
        k: int,
        params: MilvusSearchParams,
        eligible: np.ndarray,
        restriction: Restriction | None,
    ) -> Neighbors:
        """Have Milvus filter, if it can and a scan of the eligible would cost more."""
        mask = Mask(eligible, self.n_candidates)
        search = self._eligible_search(k, params, mask)
        filters = None if restriction is None else self._expression(restriction)
        if filters is None or mask.includes_all or search.scan_cost <= self.cost(k, params):
            return super()._search_eligible(queries, k, params, eligible, restriction)
        expression, n_unsaid = filters
        n_wanted = min(k, mask.n_eligible)
        rows = self._proposed(queries, k + n_unsaid, params, expression)
        rows = np.where(mask.keeps(rows), rows, -1)
        found = self._exact.rescore(queries, rows, k)
        (short,) = (found.rows[:, n_wanted - 1] < 0).nonzero()
        return search.complete(queries, found, short) if len(short) else found

    def _expression(self, restriction: Restriction) -> tuple[str, int] | None:
        """Return what Milvus is to filter by, and how many excluded rows it does not say.

        None if fetching more and dropping some is the better way.
        """
        if restriction.filter is None:
            return None
        condition = expression_for(restriction.filter, self._fields)
        if condition is None:
            return None
        excluded = np.unique(restriction.excluded)
        if len(excluded) == 0:
            return condition, 0
        if len(excluded) > _MAX_EXCLUDED:
            return condition, len(excluded)
        return f"{condition} and {ROW} not in {excluded.tolist()}", 0

    def _proposed(
        self, queries: np.ndarray, k: int, params: MilvusSearchParams, expression: str
    ) -> np.ndarray:
        k = min(k, self.n_candidates)
        if self._is_made_here(k, params):
            return self._exact.search(queries, k).rows
        effort = {} if params.ef is None else {"ef": max(params.ef, k)}
        return self._collection.search(with_added_zero(queries), k, effort, expression)

    def _is_made_here(self, k: int, params: MilvusSearchParams) -> bool:
        """Whether all candidates are compared here, as Milvus would not, or not so many."""
        return k > milvus.MAX_RESULTS or (self._has_graph and params.ef is None)

    @property
    def _has_graph(self) -> bool:
        return self.build_params.index_type == "HNSW"

    def _collection_index(self) -> milvus.CollectionIndex:
        params = self.build_params
        graph = {"M": params.M, "efConstruction": params.efConstruction}
        return milvus.CollectionIndex(params.index_type, graph if self._has_graph else {})

    def _content_name(self, columns: dict[str, pa.Array]) -> str:
        """Return a name that no other content has, so that what is begun can be found again."""
        digest = hashlib.sha256(self.build_params.model_dump_json().encode())
        digest.update(repr(self.embeddings.shape).encode())
        for start in range(0, self.n_candidates, _CHUNK_ROWS):
            digest.update(self.embeddings[start : start + _CHUNK_ROWS].data)
        digest.update(repr(list(columns)).encode())
        for batch in pa.table(columns).to_batches(_CHUNK_ROWS) if columns else ():
            digest.update(batch.serialize())
        return _PREFIX + digest.hexdigest()[:32]

    def _try_out(self) -> None:
        """Search for some candidates, before anybody relies on the collection.

        Raises:
            IndexUnreachableError: if it does not hold what was loaded, or cannot be searched.
        """
        rows = np.linspace(0, self.n_candidates - 1, _TRIED_ROWS).astype(np.int64)
        queries, k = np.array(self.embeddings[np.unique(rows)]), min(_TRIED_K, self.n_candidates)
        params = MilvusSearchParams(ef=_TRIED_EF if self._has_graph else None)
        found = self._exact.rescore(queries, self._search(queries, k, params), k)
        recall = float(recall_at_k(found, self._exact.search(queries, k)).mean())
        if recall < _LEAST_RECALL:
            raise IndexUnreachableError(
                f"collection {self._entry.name} at {self._entry.uri} finds {recall:.3f} of what an "
                f"exact search does, less than {_LEAST_RECALL}, and is not published; drop it, "
                "and build again"
            )
