"""Types of metadata columns: text, int64, double, boolean and list of text, and no others.

Dates and times become texts such as 2026-11-30, here and where own embeddings are indexed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.datasets.tables import is_text

# Leading zeros make a code, not a number; more than 18 digits may not fit 64 bits.
_INTEGER = r"^-?(0|[1-9]\d{0,17})$"
_NUMBER = r"^-?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?$"
_BOOLEAN = r"^(?i:true|false)$"
_LIST_SEPARATOR = "|"


def infer(texts: pa.StringArray) -> pa.Array:
    """Return texts as what they all look like; blank ones are missing.

    A ``|`` in any of them makes all of them lists. Otherwise they are whole numbers, numbers or
    true/false if every one of them is, and text if not.
    """
    values = _trimmed(texts)
    if pc.any(pc.match_substring(values, _LIST_SEPARATOR)).as_py():
        return _without_blanks(pc.split_pattern(pc.fill_null(values, ""), _LIST_SEPARATOR))
    for pattern, kind in (
        (_INTEGER, pa.int64()),
        (_NUMBER, pa.float64()),
        (_BOOLEAN, pa.bool_()),
    ):
        if pc.all(pc.match_substring_regex(values, pattern), min_count=1).as_py():
            return normalise(pc.utf8_lower(values).cast(kind))
    return values


def normalise(column: pa.Array) -> pa.Array:
    """Return a typed column as the one of our types that holds it; NaN and infinity are missing.

    Raises:
        ValueError: if none of our types does.
    """
    for is_kind, convert in _CONVERSIONS:
        if is_kind(column.type):
            try:
                return convert(column)
            except pa.ArrowInvalid as error:
                raise ValueError(f"a value of type {column.type} does not fit: {error}") from error
            except pa.ArrowNotImplementedError:
                break
    raise ValueError(
        f"expected text, numbers, true/false, times or lists of text, found {column.type}: leave "
        "the column out of the file"
    )


def as_text(column: pa.Array) -> pa.StringArray:
    """Return a column as text whatever it looks like; blank texts are missing.

    Raises:
        ValueError: if its type has no text.
    """
    try:
        return _trimmed(column.cast(pa.string()))
    except pa.ArrowNotImplementedError as error:
        raise ValueError(f"expected text, found {column.type}") from error


def _trimmed(texts: pa.StringArray) -> pa.StringArray:
    trimmed = pc.utf8_trim_whitespace(texts)
    return pc.if_else(pc.equal(trimmed, ""), None, trimmed)


def _without_blanks(lists: pa.ListArray) -> pa.ListArray:
    """Return the lists with their texts trimmed, without blank ones; a missing list is empty."""
    texts = pc.utf8_trim_whitespace(lists.flatten())
    kept = pc.fill_null(pc.not_equal(texts, ""), fill_value=False)
    parents = pc.list_parent_indices(lists).filter(kept)
    lengths = np.bincount(np.asarray(parents), minlength=len(lists))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, texts.filter(kept))


def _as_list(column: pa.Array) -> pa.ListArray:
    return _without_blanks(column.cast(pa.list_(pa.string())))


def _as_number(column: pa.Array) -> pa.DoubleArray:
    numbers = column.cast(pa.float64())
    return pc.if_else(pc.is_finite(numbers), numbers, None)


def _is_list_of_labels(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    of = kind.value_type
    tests = (is_text, pa.types.is_integer, pa.types.is_boolean, pa.types.is_null)
    return any(bool(test(of)) for test in tests)


def _is_day_or_time(kind: pa.DataType) -> bool:
    tests = (pa.types.is_date, pa.types.is_time, pa.types.is_timestamp)
    return any(bool(test(kind)) for test in tests)


_CONVERSIONS: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.Array], pa.Array]], ...] = (
    (is_text, lambda column: column.cast(pa.string())),
    (pa.types.is_null, lambda column: column.cast(pa.string())),
    (pa.types.is_boolean, lambda column: column),
    (pa.types.is_integer, lambda column: column.cast(pa.int64())),
    (pa.types.is_floating, _as_number),
    (pa.types.is_decimal, _as_number),
    (_is_day_or_time, lambda column: column.cast(pa.string())),
    (_is_list_of_labels, _as_list),
)
