"""The user's own interactions, candidates and users, in CSV or Parquet.

Interactions have the columns ``user_id`` and ``candidate_id``, optionally ``rating`` and
``timestamp`` (seconds since 1970, or ISO 8601); further columns are not read. Candidates have
``candidate_id``, optionally ``title``, and any columns of metadata; users have ``user_id`` and any
columns. CSV says nothing of types, so such a column is a list where any of its values has a ``|``,
else whole numbers, numbers or true/false where all its values are, else text; an empty value is
missing. A title is always text.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from trainer.datasets import metadata
from trainer.datasets.dataset import Dataset, DatasetError, rows_of, sorted_unique
from trainer.datasets.tables import FileTable

# Beyond the year 5000, and what milliseconds are taken for seconds.
_MAX_TIMESTAMP_SECONDS = 1e11
_SECONDS = "seconds since 1970 (no milliseconds), or times such as 2026-11-30T12:00:00Z"
_PLURALS = {"candidate_id": "candidates", "user_id": "users"}


def load(
    interactions: Path,
    candidates: Path | None = None,
    users: Path | None = None,
    *,
    min_rating: float | None = None,
    name: str | None = None,
) -> Dataset:
    """Load a dataset from files.

    Args:
        interactions: the file of interactions.
        candidates: the file of candidates; without one, the candidates are those of the
            interactions, and nothing but their ids is known.
        users: the file of users; of those that it lacks, and without one of all, nothing but their
            interactions is known.
        min_rating: keep only interactions rated at least so.
        name: of the dataset; by default that of the file of interactions, without its ending.

    Raises:
        DatasetError: if a file cannot be read or has a bad row; it names file, line and column.
    """
    table = FileTable(interactions, ("user_id", "candidate_id"), ("rating", "timestamp"))
    if not len(table):
        raise DatasetError(f"{interactions}: there are no interactions in this file")
    user_ids, candidate_ids = table.ids("user_id"), table.ids("candidate_id")
    known_users = _only_ids("user_id", user_ids)
    if users is not None:
        described = load_described(users, "user_id")
        if rows_of(known_users["user_id"], described["user_id"].combine_chunks()).max() < 0:
            raise DatasetError(
                f"{users}: none of these users is in {interactions}: are the ids written alike?"
            )
        known_users = _with_others(described, user_ids)
    catalogue = (
        _only_ids("candidate_id", candidate_ids)
        if candidates is None
        else load_described(candidates, "candidate_id")
    )
    candidate_rows = rows_of(candidate_ids, catalogue["candidate_id"].combine_chunks())
    if candidate_rows.min() < 0:
        row = int(np.argmin(candidate_rows))
        raise table.error(
            row,
            "candidate_id",
            f"candidate {candidate_ids[row]} is not among those in {candidates}",
        )
    dataset = Dataset(
        name=name or interactions.stem,
        users=known_users,
        candidates=catalogue,
        user_rows=rows_of(user_ids, known_users["user_id"].combine_chunks()),
        candidate_rows=candidate_rows,
        timestamps=_timestamps(table) if "timestamp" in table else None,
        ratings=_ratings(table) if "rating" in table else None,
    )
    return dataset if min_rating is None else dataset.with_min_rating(min_rating)


def _timestamps(table: FileTable) -> npt.NDArray[np.int64]:
    seconds = table.numbers(
        "timestamp", expected=_SECONDS, largest=_MAX_TIMESTAMP_SECONDS, may_be_times=True
    )
    return np.floor(seconds).astype(np.int64)


def _ratings(table: FileTable) -> npt.NDArray[np.float32]:
    return table.numbers("rating", largest=float(np.finfo(np.float32).max)).astype(np.float32)


def _only_ids(id_column: str, ids: pa.ChunkedArray) -> pa.Table:
    return pa.table({id_column: sorted_unique(ids)})


def _with_others(users: pa.Table, ids: pa.ChunkedArray) -> pa.Table:
    """Return the users and all others with these ids, of whom nothing is known, sorted by id."""
    known = users["user_id"]
    everybody = _only_ids("user_id", pa.chunked_array([*known.chunks, *ids.chunks]))
    rows = rows_of(everybody["user_id"], known.combine_chunks())
    described = users.take(pa.array(rows, mask=rows < 0))
    return described.set_column(0, "user_id", everybody["user_id"]).combine_chunks()


def load_described(path: Path, id_column: str) -> pa.Table:
    """Load candidates or users, sorted by id, their metadata typed.

    Args:
        path: a CSV or Parquet file.
        id_column: ``candidate_id`` or ``user_id``.

    Raises:
        DatasetError: if the file cannot be read or has a bad row; it names file, line and column.
    """
    table = FileTable(path, (id_column,))
    if not len(table):
        raise DatasetError(f"{path}: there are no {_PLURALS[id_column]} in this file")
    ids = table.ids(id_column)
    _refuse_duplicates(table, id_column, ids)
    columns = {id_column: ids}
    for name in table.table.column_names:
        if name != id_column:
            columns[name] = _metadata(table, name)
    return pa.table(columns).take(pc.sort_indices(ids)).combine_chunks()


def _refuse_duplicates(table: FileTable, id_column: str, ids: pa.ChunkedArray) -> None:
    rows = rows_of(ids, sorted_unique(ids))
    first_rows = np.unique(rows, return_index=True)[1][rows]
    repeated = np.flatnonzero(first_rows != np.arange(len(rows)))
    if len(repeated):
        row = int(repeated[0])
        first = table.place(int(first_rows[row]))
        what = id_column.removesuffix("_id")
        raise table.error(row, id_column, f"{what} {ids[row]} is already in {first}")


def _metadata(table: FileTable, name: str) -> pa.Array:
    """Return a column of metadata in one of our types."""
    column = table.table[name].combine_chunks()
    try:
        if name == "title":
            return metadata.as_text(column)
        return metadata.infer(column) if table.is_csv else metadata.normalise(column)
    except ValueError as error:
        raise table.error(None, name, str(error)) from error
