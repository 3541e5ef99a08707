"""What a collection in Milvus holds: rows, vectors, and what it can hold of their metadata."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from indexer.metadata import MetadataType

ROW = "row"
"""The primary key: the candidate's row."""
VECTOR = "embedding"
ROW_FIELD = {"field_name": ROW, "datatype": "INT64", "is_primary": True}

_MAX_TEXT_BYTES, _MAX_ITEMS = 65_535, 4096  # of a VARCHAR, of an ARRAY


def storable(columns: dict[str, pa.Array]) -> dict[str, pa.Array]:
    """Return the columns that Milvus can hold as they are; others are left to whoever has them."""
    return {name: column for name, column in columns.items() if _is_storable(column)}


def _is_storable(column: pa.Array) -> bool:
    match MetadataType(column.type):
        case MetadataType.STRING:
            return bool((pc.max(pc.binary_length(column)).as_py() or 0) <= _MAX_TEXT_BYTES)
        case MetadataType.DOUBLE:
            return bool(pc.all(pc.is_finite(column)).as_py() in (True, None))
        case MetadataType.STRING_LIST:
            items = pc.list_flatten(column)
            is_short = (pc.max(pc.list_value_length(column)).as_py() or 0) <= _MAX_ITEMS
            return items.null_count == 0 and is_short and _is_storable(items)
        case _:
            return True


def lines(start: int, vectors: np.ndarray, columns: dict[str, pa.Array]) -> list[dict[str, Any]]:
    """Return some rows as Milvus is given them."""
    names = [ROW, VECTOR, *columns]
    parts = [column.slice(start, len(vectors)).to_pylist() for column in columns.values()]
    numbers: Sequence[int] = range(start, start + len(vectors))
    of_32_bits = vectors.astype(np.float32, copy=False)
    values: Iterator[tuple[Any, ...]] = zip(numbers, of_32_bits, *parts, strict=True)
    return [dict(zip(names, line, strict=True)) for line in values]


def vector_field(dim: int) -> dict[str, Any]:
    """Return the field of the vectors; types are named as Milvus names them."""
    return {"field_name": VECTOR, "datatype": "FLOAT_VECTOR", "dim": dim}


def metadata_field(name: str, column: pa.Array) -> dict[str, Any]:
    """Return the field of a column of metadata."""
    kind = MetadataType(column.type)
    field: dict[str, Any] = {"field_name": name, "nullable": True}
    if kind is MetadataType.STRING_LIST:
        return field | {
            "datatype": "ARRAY",
            "element_type": "VARCHAR",
            "max_capacity": _MAX_ITEMS,
            "max_length": _MAX_TEXT_BYTES,
        }
    if kind is MetadataType.STRING:
        return field | {"datatype": "VARCHAR", "max_length": _MAX_TEXT_BYTES}
    names = {MetadataType.BOOL: "BOOL", MetadataType.INTEGER: "INT64"}
    return field | {"datatype": names.get(kind, "DOUBLE")}
