"""Which candidates a filter on their metadata makes eligible.

A filter is evaluated once over the corpus's whole Arrow columns, and its mask kept: the same few
filters come with most requests.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from indexer.filters import (
    AllOf,
    AnyOf,
    Contains,
    Filter,
    InRange,
    IsNull,
    Negated,
    OneOf,
    Test,
    Value,
)
from indexer.metadata import MetadataType
from server.errors import FilterInvalidError
from server.metadata import Metadata

_WITHOUT_ORDER = (MetadataType.BOOL, MetadataType.STRING_LIST)
_ENTRY_BYTES = 512  # of a kept mask, beside its values: the objects around it and its key
# What testing one value takes, in numbers that a scan reads meanwhile: of a part of a text, and of
# anything else, at most; measured.
_PART_FLOATS, _TEST_FLOATS = 350, 70
_WITHOUT_PARTS = (MetadataType.BOOL, MetadataType.INTEGER, MetadataType.DOUBLE)


class FilterMasks:
    """The masks of filters over one corpus; safe to use from several threads.

    Args:
        metadata: the columns.
        n_candidates: how long they are.
        max_bytes: how much memory the masks kept may take.
    """

    def __init__(self, metadata: Metadata, n_candidates: int, max_bytes: int) -> None:
        self._metadata = metadata
        self._n_candidates = n_candidates
        self._capacity = max_bytes // (n_candidates + _ENTRY_BYTES)
        self._masks: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def mask(self, condition: Filter) -> np.ndarray:
        """Return the read-only mask (n_candidates,) bool of the candidates for which it holds.

        Raises:
            FieldUnknownError: if it tests a column that the corpus does not have.
            FilterInvalidError: if it tests a column for what its type cannot be.
        """
        key = _key(condition)
        with self._lock:
            if key in self._masks:
                self._masks.move_to_end(key)
                return self._masks[key]
        mask = _evaluate(condition, self._metadata)
        mask.flags.writeable = False
        with self._lock:
            self._masks[key] = mask
            if len(self._masks) > self._capacity:
                self._masks.popitem(last=False)
        return mask

    def share(self, condition: Filter) -> float:
        """Return the share of the candidates that a filter lets through; 1 if no mask is kept."""
        with self._lock:
            mask = self._masks.get(_key(condition))
        return 1.0 if mask is None else float(np.count_nonzero(mask) / max(len(mask), 1))

    def takes_longer_than(self, n_floats: int, condition: Filter) -> bool:
        """Whether making a mask takes longer than scanning so many numbers; not if it is kept."""
        if self._n_candidates * _floats_a_candidate(condition) <= n_floats:
            return False
        key = _key(condition)
        with self._lock:
            return key not in self._masks


def _key(condition: Filter) -> bytes:
    # Values of different types may be equal in Python (1 and True), their representations not.
    return hashlib.blake2b(repr(condition).encode(), digest_size=32).digest()


def _floats_a_candidate(condition: Filter) -> int:
    match condition:
        case AllOf(filters) | AnyOf(filters):
            return sum(map(_floats_a_candidate, filters))
        case Negated(inner):
            return _floats_a_candidate(inner)
        case Contains():
            return _PART_FLOATS
    return _TEST_FLOATS


def _evaluate(condition: Filter, metadata: Metadata) -> np.ndarray:
    mask: np.ndarray
    match condition:
        case AllOf(filters):
            mask = reduce(np.logical_and, (_evaluate(one, metadata) for one in filters))
        case AnyOf(filters):
            mask = reduce(np.logical_or, (_evaluate(one, metadata) for one in filters))
        case Negated(inner):
            mask = np.logical_not(_evaluate(inner, metadata))
        case _:
            passed = _test(condition, metadata.column(condition.field), metadata)
            mask = pc.fill_null(passed, False).to_numpy(zero_copy_only=False)
    return mask


def _test(condition: Test, column: pa.Array, metadata: Metadata) -> pa.BooleanArray:
    """Return which values of a column pass a test; null where the value is."""
    kind = metadata.types[condition.field]
    match condition:
        case OneOf(field, values):
            _refuse(kind, (MetadataType.STRING_LIST,), field, "the test of a list is contains")
            return pc.is_in(column, value_set=_comparable(values, kind, field))
        case InRange(field):
            _refuse(kind, _WITHOUT_ORDER, field, "a range needs numbers or texts")
            return _in_range(column, condition, kind)
        case Contains(field, value):
            _refuse(kind, _WITHOUT_PARTS, field, "contains needs lists or texts")
            (part,) = _comparable((value,), MetadataType.STRING, field)
            if kind is MetadataType.STRING:
                return pc.match_substring(column, part.as_py())
            return _lists_with(column, part)
        case IsNull(_, expected):
            return pc.is_null(column) if expected else pc.is_valid(column)


def _in_range(column: pa.Array, condition: InRange, kind: MetadataType) -> pa.BooleanArray:
    passed = pc.is_valid(column)
    if condition.minimum is not None:
        (bound,) = _comparable((condition.minimum,), kind, condition.field)
        passed = pc.and_(passed, pc.greater_equal(column, bound))
    if condition.maximum is not None:
        (bound,) = _comparable((condition.maximum,), kind, condition.field)
        passed = pc.and_(passed, pc.less_equal(column, bound))
    return passed


def _lists_with(column: pa.ListArray, item: pa.Scalar) -> pa.BooleanArray:
    """Return which lists of a column have an item."""
    is_item = pc.fill_null(pc.equal(pc.list_flatten(column), item), False)
    found = np.zeros(len(column), dtype=bool)
    found[pc.list_parent_indices(column).filter(is_item).to_numpy()] = True
    return pa.array(found)


def _refuse(kind: MetadataType, refused: tuple[MetadataType, ...], field: str, why: str) -> None:
    if kind in refused:
        raise FilterInvalidError(
            f"{why}; column {field!r} is of type {kind.name}", field=field, column_type=kind.name
        )


def _comparable(values: tuple[Value, ...], kind: MetadataType, field: str) -> pa.Array:
    """Return values as an array that a column of this type can be compared with."""
    for value in values:
        if not _fits(value, kind):
            raise FilterInvalidError(
                f"column {field!r} is of type {kind.name}; "
                f"it cannot be compared with {value!r}, a {type(value).__name__}",
                field=field,
                column_type=kind.name,
            )
    if kind is MetadataType.DOUBLE:
        # Arrow refuses to round, and its sets know a zero that is negative, as no column has.
        values = tuple(float(value) + 0.0 for value in values)
    return pa.array(values, type=kind.value)


def _fits(value: Value, kind: MetadataType) -> bool:
    match kind:
        case MetadataType.STRING | MetadataType.STRING_LIST:
            return isinstance(value, str)
        case MetadataType.BOOL:
            return isinstance(value, bool)
        case MetadataType.INTEGER:
            return isinstance(value, int) and not isinstance(value, bool)
        case MetadataType.DOUBLE:
            return isinstance(value, int | float) and not isinstance(value, bool)
