"""The corpus: all candidates in row order, with their ids, embeddings and metadata.

It comes from a tower bundle (``indexer.embed``) or from the user's own files, which are read and
checked here: what is refused is refused with its row.
"""

from __future__ import annotations

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
            column ``embedding`` of lists; floating point, converted to float32.
        candidate_ids: a text file with one id a line, in the order of the embeddings.
        metadata: a Parquet file with a column ``candidate_id`` and any others, one line for each
            candidate, in any order.

    Raises:
        CorpusError: if a file cannot be read or a row cannot be used.
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


def read_vectors(path: Path) -> np.ndarray:
    """Read (n, dim) float32 vectors from a ``.npy`` or ``.parquet`` file.

    Raises:
        CorpusError: if the file cannot be read, or holds no finite vectors of one dimension.
    """
    is_parquet = path.suffix.lower() == ".parquet"
    array = _read_vector_column(path) if is_parquet else _read_array(path)
    if not np.issubdtype(array.dtype, np.floating):
        raise CorpusError(f"{path} must hold floating-point numbers, not {array.dtype}")
    with np.errstate(over="ignore"):  # what overflows becomes infinite and is refused by its row
        vectors = np.ascontiguousarray(array, dtype=np.float32)
    try:
        check_embeddings(vectors)
    except ValueError as error:
        raise CorpusError(f"{path}: {error}") from error
    return vectors


def _read_array(path: Path) -> np.ndarray:
    try:
        return load_array(path)
    except BundleError as error:
        raise CorpusError(str(error)) from error


def _read_vector_column(path: Path) -> np.ndarray:
    column = _read_table(path, EMBEDDING).column(EMBEDDING)
    try:
        dims = pc.list_value_length(column)
        values = pc.list_flatten(column).cast(pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise CorpusError(
            f"{path}: column {EMBEDDING!r} must hold lists of numbers, not {column.type}"
        ) from error
    dims = np.asarray(pc.fill_null(dims, -1))
    if len(missing := np.flatnonzero(dims < 0)):
        raise CorpusError(f"{path}: row {missing[0]} has no embedding")
    if len(odd := np.flatnonzero(dims != dims[:1])):
        raise CorpusError(
            f"{path}: row {odd[0]} has dimension {dims[odd[0]]}, row 0 has dimension {dims[0]}"
        )
    # A missing number becomes NaN, and is refused by its row as such.
    return np.asarray(values).reshape(len(column), -1 if len(values) else 0)


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
    table = _read_table(path, CANDIDATE_ID)
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


def _read_table(path: Path, column: str) -> pa.Table:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise CorpusError(f"{path} is not a readable Parquet file: {error}") from error
    if column not in table.column_names:
        found = ", ".join(table.column_names) or "none"
        raise CorpusError(f"{path} must have a column {column!r}; its columns are {found}")
    return table
