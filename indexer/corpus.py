"""The corpus: all candidates in row order, with their ids, embeddings and metadata.

It comes from a tower bundle (``indexer.embed``) or from the user's own files, which are read and
checked here: what is refused is refused with its row.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from indexer.backends.checks import check_embeddings
from indexer.metadata import typed_columns
from trainer.bundle import load_array
from trainer.features import CANDIDATE_ID
from trainer.publish import BundleError
from trainer.vocabulary import Vocabulary

EMBEDDING = "embedding"


class CorpusError(Exception):
    """A corpus that cannot be used; the message is meant for the user."""


@dataclass(frozen=True)
class Corpus:
    """All candidates; the line of an array or a table is the candidate's row.

    Attributes:
        candidate_ids: the id of each row.
        embeddings: (n_candidates, dim) float32 in C order, finite; may be memory-mapped.
        candidates: ``candidate_id`` and the metadata.
        popularity: (n_candidates,) float32, interactions seen in training; 0 where unknown.
        has_bias_dimension: whether the last dimension is a bias, to be left out when candidates
            are compared with each other.

    Raises:
        CorpusError: if the parts do not fit together or an embedding cannot be searched.
    """

    candidate_ids: Vocabulary
    embeddings: np.ndarray
    candidates: pa.Table
    popularity: np.ndarray
    has_bias_dimension: bool = False

    def __post_init__(self) -> None:
        try:
            check_embeddings(self.embeddings)
        except ValueError as error:
            raise CorpusError(str(error)) from error
        expected = len(self.candidate_ids)
        for name, found in (
            ("embeddings", len(self.embeddings)),
            ("candidates", self.candidates.num_rows),
            ("popularity", len(self.popularity)),
        ):
            if found != expected:
                raise CorpusError(f"{expected} candidate ids, but {found} rows of {name}")

    @property
    def n_candidates(self) -> int:
        """The number of candidates."""
        return len(self.embeddings)

    @property
    def dim(self) -> int:
        """The dimension of the embeddings."""
        return int(self.embeddings.shape[1])


def read_corpus(embeddings: Path, candidate_ids: Path, metadata: Path | None = None) -> Corpus:
    """Read a corpus from the user's own files.

    Args:
        embeddings: a ``.npy`` file of shape (n_candidates, dim), or a ``.parquet`` file with a
            column ``embedding`` of lists; numbers of any kind, converted to float32.
        candidate_ids: a text file with one id a line, in the order of the embeddings.
        metadata: a Parquet or CSV file with a column ``candidate_id`` and any others, one line for
            each candidate, in any order.

    Raises:
        CorpusError: if a file cannot be read or a row cannot be used.
        DatasetError: if that is so of metadata in CSV.
    """
    vectors = read_vectors(embeddings)
    ids = _read_ids(candidate_ids)
    if len(ids) != len(vectors):
        raise CorpusError(
            f"{embeddings} has {len(vectors)} rows but {candidate_ids} has {len(ids)} ids; "
            "there must be one id for each row"
        )
    table = pa.table({CANDIDATE_ID: ids.array})
    return Corpus(
        candidate_ids=ids,
        embeddings=vectors,
        candidates=table if metadata is None else _read_metadata(metadata, ids),
        popularity=np.zeros(len(ids), dtype=np.float32),
    )


def read_vectors(path: Path, what: str = "embeddings") -> np.ndarray:
    """Read (n, dim) float32 vectors from a ``.npy`` or ``.parquet`` file.

    Args:
        path: the file; an array is memory-mapped if nothing needs to be converted.
        what: what the vectors are called where one is refused.

    Raises:
        CorpusError: if the file cannot be read, or holds no finite vectors of one dimension.
    """
    is_parquet = path.suffix.lower() == ".parquet"
    array = _read_vector_column(path) if is_parquet else _read_array(path)
    if array.dtype.kind not in "fiu":
        raise CorpusError(f"{path} must hold numbers, not {array.dtype}")
    with np.errstate(over="ignore"):  # what overflows becomes infinite and is refused by its row
        vectors = np.ascontiguousarray(array, dtype=np.float32)
    try:
        check_embeddings(vectors)
    except ValueError as error:
        raise CorpusError(f"{path}: {str(error).replace('embeddings', what)}") from error
    return vectors


def _read_array(path: Path) -> np.ndarray:
    try:
        return load_array(path)
    except BundleError as error:
        advice = "; Parquet is told by a name that ends in .parquet" if path.exists() else ""
        raise CorpusError(f"{error}{advice}") from error


def _read_vector_column(path: Path) -> np.ndarray:
    column = _read_table(path, EMBEDDING).column(EMBEDDING)
    if not _holds_vectors(column.type):
        raise CorpusError(
            f"{path}: column {EMBEDDING!r} must hold lists of numbers, not {column.type}"
        )
    values = pc.list_flatten(column).cast(pa.float64())
    dims = np.asarray(pc.fill_null(pc.list_value_length(column), -1))
    if len(missing := np.flatnonzero(dims < 0)):
        raise CorpusError(f"{path}: row {missing[0]} has no embedding")
    if len(odd := np.flatnonzero(dims != dims[:1])):
        raise CorpusError(
            f"{path}: row {odd[0]} has dimension {dims[odd[0]]}, row 0 has dimension {dims[0]}"
        )
    # A missing number becomes NaN, and is refused by its row as such.
    return np.asarray(values).reshape(len(column), -1 if len(values) else 0)


def _holds_vectors(kind: pa.DataType) -> bool:
    """Whether a column of a type holds lists of numbers."""
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(is_one(kind) for is_one in lists):
        return False
    # Of nothing but empty lists the type is that of nulls: they are refused as what they are.
    numbers = (pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal, pa.types.is_null)
    return any(is_one(kind.value_type) for is_one in numbers)


def _read_ids(path: Path) -> Vocabulary:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path} is not a readable text file: {error}") from error
    if lines[-1] == "":
        lines.pop()
    try:
        return Vocabulary([line.removesuffix("\r") for line in lines])
    except ValueError as error:
        raise CorpusError(f"{path}: {error}") from error


def _read_metadata(path: Path, ids: Vocabulary) -> pa.Table:
    """Read metadata and put its lines into the order of ``ids``."""
    is_csv = path.suffix.lower() == ".csv"
    table = _read_csv(path) if is_csv else _read_table(path, CANDIDATE_ID)
    if EMBEDDING in table.column_names and _holds_vectors(table.schema.field(EMBEDDING).type):
        # One file for all is fine, and every vector as texts is not.
        table = table.drop_columns([EMBEDDING])
    try:
        table = pa.table(typed_columns(table))
        described = Vocabulary(table.column(CANDIDATE_ID))
    except (ValueError, pa.ArrowNotImplementedError) as error:
        raise CorpusError(f"{path}: {error}") from error
    if len(unknown := np.flatnonzero(ids.rows(described.tokens(range(len(described)))) < 0)):
        row = int(unknown[0])
        raise CorpusError(f"{path}: row {row} is about {described.token(row)!r}, not a candidate")
    lines = described.rows(ids.tokens(range(len(ids))))
    if len(missing := np.flatnonzero(lines < 0)):
        row = int(missing[0])
        raise CorpusError(f"{path} has no line for candidate {ids.token(row)!r} (row {row})")
    return table.take(pa.array(lines)).set_column(
        table.column_names.index(CANDIDATE_ID), CANDIDATE_ID, ids.array
    )


def _read_csv(path: Path) -> pa.Table:
    from trainer.datasets.files import load_described  # noqa: PLC0415 - a server reads no files

    return load_described(path, CANDIDATE_ID)


def _read_table(path: Path, column: str) -> pa.Table:
    try:
        # Of a file all columns are there, also those that are there twice.
        table = pq.read_table(path) if path.is_dir() else pq.ParquetFile(path).read()
    except FileNotFoundError as error:
        raise CorpusError(f"there is no file {path}") from error
    except (OSError, pa.ArrowException) as error:
        raise CorpusError(f"{path} is not a readable Parquet file: {error}") from error
    if repeated := [name for name, count in Counter(table.column_names).items() if count > 1]:
        raise CorpusError(f"{path} has the column {repeated[0]!r} more than once")
    if column not in table.column_names:
        found = ", ".join(table.column_names) or "none"
        raise CorpusError(f"{path} must have a column {column!r}; its columns are {found}")
    return table
