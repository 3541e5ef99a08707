"""The candidates' metadata as filters read it and responses return it: five types, no others."""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from server.errors import FieldUnknownError


class MetadataType(Enum):
    """The type of a column; the names are the wire's."""

    STRING = pa.string()
    INTEGER = pa.int64()
    DOUBLE = pa.float64()
    BOOL = pa.bool_()
    STRING_LIST = pa.list_(pa.string())

    @property
    def empty(self) -> Any:
        """What stands for a null on the wire."""
        return _EMPTY[self]


_EMPTY: dict[MetadataType, Any] = {
    MetadataType.STRING: "",
    MetadataType.INTEGER: 0,
    MetadataType.DOUBLE: 0.0,
    MetadataType.BOOL: False,
    MetadataType.STRING_LIST: (),
}


class Metadata:
    """The metadata columns of a corpus.

    Args:
        candidates: the corpus's table; the line is the candidate's row. Integers and numbers are
            widened, dates and the like become texts, and lists become lists of texts.
    """

    def __init__(self, candidates: pa.Table) -> None:
        self.types = {
            name: _type_of(candidates.schema.field(name).type) for name in _names(candidates)
        }
        self._columns: dict[str, pa.Array] = {
            name: _one_array(pc.cast(candidates.column(name), kind.value))
            for name, kind in self.types.items()
        }

    def column(self, name: str) -> pa.Array:
        """Return the column of that name.

        Raises:
            FieldUnknownError: if there is none.
        """
        if name not in self._columns:
            raise FieldUnknownError(
                f"there is no metadata column {name!r}; there are {', '.join(self._columns)}",
                field=name,
            )
        return self._columns[name]

    def values(self, name: str, rows: np.ndarray) -> list[object]:
        """Return the values of one column for ``rows``, None where one is null.

        Raises:
            FieldUnknownError: if there is no such column.
        """
        found: list[object] = self.column(name).take(pa.array(rows)).to_pylist()
        return found


def _names(candidates: pa.Table) -> list[str]:
    return [str(name) for name in candidates.column_names]


def _type_of(kind: pa.DataType) -> MetadataType:
    if pa.types.is_boolean(kind):
        return MetadataType.BOOL
    if pa.types.is_integer(kind):
        return MetadataType.INTEGER
    if pa.types.is_floating(kind):
        return MetadataType.DOUBLE
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return MetadataType.STRING_LIST
    return MetadataType.STRING


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    if isinstance(combined, pa.ChunkedArray):
        return combined.chunk(0) if combined.num_chunks else pa.array([], type=combined.type)
    return combined
