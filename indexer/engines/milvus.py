"""Milvus: connections, and collections of rows with a vector and metadata each.

The only file that knows pymilvus. Nothing is imported or connected before it is needed: a process
that forks must have no gRPC object of its own.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from indexer.backends.base import BackendUnavailableError, IndexUnreachableError
from indexer.engines.milvus_schema import (
    ROW_FIELD,
    VECTOR,
    lines,
    metadata_field,
    vector_field,
)
from indexer.exact import padded
from trainer.extras import missing

ENVIRONMENT_PREFIX = "CANDIDATE_SEARCH_MILVUS_"
MAX_RESULTS = 16_384
"""The most results of a search that Milvus returns."""

_BATCH_BYTES, _MAX_BATCH_ROWS = 4 << 20, 5000  # loaded by one call
_MAX_QUERIES, _MAX_FOUND = 100, 5000  # of one call, so that it ends in time
_PATIENCE_SECONDS = 60.0  # of a build, for which nobody waits
_PAUSE_SECONDS = 0.5  # after a failure, in which nobody waits for the next one
_LOOK_SECONDS = 1.0  # between looks at how far an index is built
_PAUSES_SECONDS = (0.1, 0.5, 2.0)  # between attempts to load what was built
# pymilvus would ping every ten seconds, and a server that gRPC's defaults protect hangs up on that.
_CHANNEL_OPTIONS = {
    "grpc.keepalive_time_ms": 300_000,
    "grpc.keepalive_permit_without_calls": False,
}

_TYPES = ("datatype", "element_type")  # of a field

_log = logging.getLogger(__name__)
T = TypeVar("T")


class MilvusSettings(BaseSettings):
    """How Milvus is reached: ``CANDIDATE_SEARCH_MILVUS_TOKEN`` and others in the environment."""

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, extra="ignore", frozen=True)

    uri: str | None = None
    """Such as https://milvus.example:19530, or a path that ends with .db for milvus-lite. By
    default, where an index was built."""
    token: SecretStr | None = None
    """``user:password``, or an API key."""
    database: str = ""
    """The database within Milvus; empty for its default one."""
    tls_authority: Path | None = None
    """The authority (PEM) that must have signed the server's certificate."""
    tls_certificate: Path | None = None
    """The certificate (PEM) to show to the server, if it asks for one."""
    tls_key: Path | None = None
    """Its private key (PEM)."""
    tls_server_name: str = ""
    """What the server's certificate is for, if not for the address."""
    timeout_seconds: float = Field(default=5.0, gt=0)
    """How long to wait for a connection, or for the answer to a search."""

    @classmethod
    def read(cls) -> MilvusSettings:
        """Read them from the environment.

        Raises:
            BackendUnavailableError: if one cannot be used.
        """
        try:
            return cls()
        except ValidationError as error:
            wrong = error.errors()[0]
            name = ENVIRONMENT_PREFIX + ".".join(map(str, wrong["loc"])).upper()
            raise BackendUnavailableError(f"{name}: {wrong['msg']}") from error

    def for_build(self, location: str | None) -> MilvusSettings:
        """Return the same for a build, which may wait longer.

        Args:
            location: where to build, rather than at ``uri``.

        Raises:
            BackendUnavailableError: if neither names a place, or it holds a secret.
        """
        uri = location or self.uri
        if uri is None:
            raise BackendUnavailableError(
                f"nothing says where Milvus is: give --milvus-uri, or set {ENVIRONMENT_PREFIX}URI"
            )
        seconds = max(self.timeout_seconds, _PATIENCE_SECONDS)
        return self.model_copy(update={"uri": _checked(uri), "timeout_seconds": seconds})


def unavailable() -> str | None:
    """Return why Milvus cannot be used here, and how to mend it; None if it can."""
    if importlib.util.find_spec("pymilvus") is not None:
        return None
    return missing("pymilvus", "milvus")


def _checked(uri: str) -> str:
    """Return where Milvus is, as it may be written into an index bundle.

    Raises:
        BackendUnavailableError: if it names no place, or holds a secret.
    """
    if "://" not in uri:
        if not uri.endswith(".db"):
            raise BackendUnavailableError(
                f"{uri!r} is no place for Milvus: give an address such as http://localhost:19530, "
                "or a path that ends with .db, which milvus-lite keeps"
            )
        return str(Path(uri).absolute())
    if "@" in uri:
        raise BackendUnavailableError(
            "the URI of Milvus is written into the index bundle, and must hold no password; "
            f"leave it out, and set {ENVIRONMENT_PREFIX}TOKEN in the environment"
        )
    return uri


class Milvus:
    """A connection that is made when it is first needed, and anew after it failed.

    Safe to use from several threads. After a failure all calls fail for a moment, so that they do
    not pile up behind one another's timeouts.

    Args:
        uri: where; ``settings.uri`` comes before it.
        settings: how.
    """

    def __init__(self, uri: str, settings: MilvusSettings) -> None:
        self.uri = settings.uri or uri
        self.timeout_seconds = settings.timeout_seconds
        self._settings = settings
        self._client: Any = None
        self._failure = ""
        self._retry_at = 0.0
        self._lock = threading.Lock()

    def call(self, work: Callable[[Any], T]) -> T:
        """Have a ``MilvusClient`` do something.

        Raises:
            BackendUnavailableError: if pymilvus is not installed.
            IndexUnreachableError: if it could not be done, for whatever reason.
        """
        client = self._connected()
        try:
            return work(client)
        except Exception as error:  # pymilvus raises its own, gRPC's, and those of closed channels
            with self._lock:
                if client is self._client:
                    self._client = None
                    _close(client)
            raise self._failed(error) from error

    def _connected(self) -> Any:
        with self._lock:
            if self._client is not None:
                return self._client
            if time.monotonic() < self._retry_at:
                raise IndexUnreachableError(self._failure)
            try:
                self._client = _client(self.uri, self._settings)
            except Exception as error:
                raise self._failed(error) from error
            return self._client

    def _failed(self, error: Exception) -> Exception:
        """Return what to raise for an error, and begin to wait."""
        if isinstance(error, BackendUnavailableError):
            return error
        self._failure = f"Milvus at {self.uri} cannot be used: {_reason(error)}"
        self._retry_at = time.monotonic() + _PAUSE_SECONDS
        _log.warning(self._failure)
        return IndexUnreachableError(self._failure)


@dataclass(frozen=True)
class CollectionIndex:
    """How the vectors of a collection are indexed; params are named as Milvus names them."""

    index_type: Literal["FLAT", "HNSW"]
    params: dict[str, int]


class Collection:
    """Rows 0 to n - 1, each with a vector and metadata; searched by inner product.

    Args:
        milvus: where it is.
        name: what it is called there.
        n_rows: how many rows it has when it is complete.
    """

    def __init__(self, milvus: Milvus, name: str, n_rows: int) -> None:
        self._milvus = milvus
        self._name = name
        self._n_rows = n_rows
        self._checked: Any = None

    def search(
        self, vectors: np.ndarray, k: int, params: dict[str, int], expression: str
    ) -> np.ndarray:
        """Return the rows (n, k) int64 that Milvus finds, -1 where it finds fewer.

        Args:
            vectors: (n, dim) float32.
            k: at most ``MAX_RESULTS``.
            params: search params.
            expression: what the rows must meet; empty for all rows.

        Raises:
            IndexUnreachableError: if Milvus does not answer, or not from all rows.
        """
        found: list[np.ndarray] = []
        step = min(_MAX_QUERIES, max(1, _MAX_FOUND // k))
        for start in range(0, len(vectors), step):
            some = list(vectors[start : start + step])
            found += self._milvus.call(
                partial(self._search, some=some, k=k, params=params, expression=expression)
            )
        rows = padded(found)
        if rows.max(initial=-1) >= self._n_rows:
            raise IndexUnreachableError(f"collection {self._name} is not this index's")
        return rows

    def drop(self) -> None:
        """Remove it, if it is there.

        Raises:
            IndexUnreachableError: if Milvus does not answer.
        """
        self._milvus.call(lambda client: client.drop_collection(self._name))

    def load(
        self,
        vectors: Callable[[int, int], np.ndarray],
        columns: dict[str, pa.Array],
        index: CollectionIndex,
        announce: Callable[[str], None],
    ) -> None:
        """Fill it, from where an earlier attempt ended, and wait until it can be searched.

        Args:
            vectors: from the first row and the one after the last to (n, dim) vectors.
            columns: metadata by name, ``storable``, of the types of ``MetadataType``.
            index: how the vectors are indexed.
            announce: told how far this is.

        Raises:
            BackendUnavailableError: if pymilvus is not installed.
            IndexUnreachableError: if Milvus fails, or ends up with another number of rows.
        """
        dim = vectors(0, 1).shape[1]
        fields = [ROW_FIELD, vector_field(dim), *map(metadata_field, columns, columns.values())]
        self._milvus.call(partial(self._create, fields=fields, index=index))
        step = int(np.clip(_BATCH_BYTES // (4 * dim), 1, _MAX_BATCH_ROWS))
        n_there = self._milvus.call(self._count)
        # Batches are sent one after the other, so only the last can be there in part.
        for start in range(n_there // step * step, self._n_rows, step):
            announce(f"milvus: loading {start:,} of {self._n_rows:,}")
            stop = min(start + step, self._n_rows)
            some = lines(start, vectors(start, stop), columns)
            write = "upsert" if start < n_there else "insert"
            self._milvus.call(partial(self._write, method=write, some=some))
        self._milvus.call(lambda client: client.flush(self._name))
        while n_left := self._milvus.call(self._n_unindexed):
            announce(f"milvus: indexing, {n_left:,} rows left")
            time.sleep(_LOOK_SECONDS)
        if n_there < self._n_rows:  # else others may be searching it
            self._milvus.call(self._reload)
        self._milvus.call(self._check)

    def _create(self, client: Any, fields: list[dict[str, Any]], index: CollectionIndex) -> None:
        if client.has_collection(self._name):
            client.load_collection(self._name)
            return
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        for field in fields:
            types = {name: _data_type(field[name]) for name in _TYPES if name in field}
            schema.add_field(**field | types)
        indexes = client.prepare_index_params()
        indexes.add_index(
            VECTOR, index_type=index.index_type, metric_type="IP", params=index.params
        )
        client.create_collection(self._name, schema=schema, index_params=indexes)

    def _write(self, client: Any, method: str, some: list[dict[str, Any]]) -> None:
        getattr(client, method)(self._name, some)

    def _reload(self, client: Any) -> None:
        """Have what was indexed searched, instead of rows as they came in.

        milvus-lite says that it has indexed before all of it is written, and fails to read it then.
        """
        client.release_collection(self._name)
        for seconds in _PAUSES_SECONDS:
            try:
                client.load_collection(self._name)
            except Exception as error:  # noqa: BLE001 - the last attempt says what is the matter
                _log.info("collection %s is not loaded yet: %s", self._name, _reason(error))
                time.sleep(seconds)
            else:
                return
        client.load_collection(self._name)

    def _n_unindexed(self, client: Any) -> int:
        return int(client.describe_index(self._name, VECTOR).get("pending_index_rows", 0))

    def _count(self, client: Any) -> int:
        found = client.query(
            self._name,
            output_fields=["count(*)"],
            consistency_level="Strong",
            timeout=self._milvus.timeout_seconds,
        )
        return int(found[0]["count(*)"])

    def _check(self, client: Any) -> None:
        """Look once for each connection whether all rows are there, in memory."""
        if client is self._checked:
            return
        wait = {"timeout": self._milvus.timeout_seconds}
        if client.get_load_state(self._name, **wait)["state"].name != "Loaded":
            client.load_collection(self._name, **wait)  # milvus-lite forgets it when it ends
        found = self._count(client)
        if found != self._n_rows:
            raise ValueError(f"collection {self._name} has {found} rows, not {self._n_rows}")
        self._checked = client

    def _search(
        self,
        client: Any,
        some: list[np.ndarray],
        k: int,
        params: dict[str, int],
        expression: str,
    ) -> list[np.ndarray]:
        self._check(client)
        answers = client.search(
            self._name,
            some,
            filter=expression,
            limit=k,
            search_params={"metric_type": "IP", "params": params},
            # Nothing is written any more once a collection is searched.
            consistency_level="Bounded",
            timeout=self._milvus.timeout_seconds,
        )
        if len(answers) != len(some):
            raise ValueError(f"{len(answers)} answers to {len(some)} queries")
        return [np.array(hits.ids, dtype=np.int64) for hits in answers]


def _data_type(name: str) -> Any:
    from pymilvus import DataType  # noqa: PLC0415 - see the module

    return DataType[name]


def _client(uri: str, settings: MilvusSettings) -> Any:
    if reason := unavailable():
        raise BackendUnavailableError(reason)
    from pymilvus import MilvusClient  # noqa: PLC0415 - see the module

    token = "" if settings.token is None else settings.token.get_secret_value()
    return MilvusClient(
        uri,
        token=token,
        db_name=settings.database,
        timeout=settings.timeout_seconds,
        grpc_options=_CHANNEL_OPTIONS,
        **_tls(settings),
    )


def _tls(settings: MilvusSettings) -> dict[str, str]:
    """Return what pymilvus calls the files of TLS."""
    if settings.tls_certificate is None:
        files = {"server_pem_path": settings.tls_authority}
    else:
        files = {
            "ca_pem_path": settings.tls_authority,
            "client_pem_path": settings.tls_certificate,
            "client_key_path": settings.tls_key,
        }
    options = {name: str(path) for name, path in files.items() if path is not None}
    return options | ({"server_name": settings.tls_server_name} if settings.tls_server_name else {})


def _close(client: Any) -> None:
    try:
        client.close()
    except Exception as error:  # noqa: BLE001 - it is given up, whatever becomes of it
        _log.debug("closing a connection to Milvus failed: %s", error)


def _reason(error: Exception) -> str:
    """Return the first line of what a library says; gRPC's errors say it when they are called."""
    said = getattr(error, "details", None) or getattr(error, "message", None) or error
    message = str(said() if callable(said) else said)
    return message.splitlines()[0] if message else type(error).__name__
