"""The types of the candidates' metadata: five, and no others."""

from __future__ import annotations

from enum import Enum
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


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


def typed_columns(candidates: pa.Table) -> dict[str, pa.Array]:
    """Return the columns of a corpus's table by name, each of one of the types.

    Integers and numbers are widened, decimals become numbers, dates and the like texts, and lists
    lists of texts.

    Raises:
        ValueError: if a column can become none of them.
    """
    return {
        str(name): _typed(str(name), column)
        for name, column in zip(candidates.column_names, candidates.columns, strict=True)
    }


def _typed(name: str, column: pa.ChunkedArray) -> pa.Array:
    try:
        return _one_array(pc.cast(column, _type_of(column.type).value))
    except pa.ArrowException as error:
        raise ValueError(
            f"column {name!r} is of type {column.type}; candidates have texts, numbers, flags and "
            f"lists of texts ({error})"
        ) from error


def _type_of(kind: pa.DataType) -> MetadataType:
    if pa.types.is_boolean(kind):
        return MetadataType.BOOL
    if pa.types.is_integer(kind):
        return MetadataType.INTEGER
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return MetadataType.DOUBLE
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return MetadataType.STRING_LIST
    return MetadataType.STRING


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    if isinstance(combined, pa.ChunkedArray):
        return combined.chunk(0) if combined.num_chunks else pa.array([], type=combined.type)
    return combined
