"""Filters as Milvus understands them.

An expression lets through whatever its filter does, and perhaps more: what Milvus cannot test, or
might test otherwise than we do, is left out, and decided by the mask that every answer passes. A
null passes no test here, and so every negated one; that is said in so many words, since databases
do not agree on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

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

Fields = Mapping[str, tuple[str, MetadataType]]
"""By the name of a column, what Milvus calls it, and its type."""

_MAX_INTEGER = 1 << 62
_NOT_PLAIN = frozenset('"\\%_')  # in a text, these would have to be escaped


def expression_for(condition: Filter, fields: Fields) -> str | None:
    """Return what lets through all that a filter does; None if only everything does.

    Args:
        condition: the filter.
        fields: the columns that Milvus holds.
    """
    return _wide(condition, fields, negated=False)


def _wide(condition: Filter, fields: Fields, *, negated: bool) -> str | None:
    match condition:
        case Negated(inner):
            return _wide(inner, fields, negated=not negated)
        case AllOf(filters) | AnyOf(filters):
            parts = [_wide(one, fields, negated=negated) for one in filters]
            must_all_hold = isinstance(condition, AllOf) is not negated
            return _all(parts) if must_all_hold else _any(parts)
        case _:
            return _negation(condition, fields) if negated else _test(condition, fields)


def _negation(test: Test, fields: Fields) -> str | None:
    if isinstance(test, IsNull):
        return _test(IsNull(test.field, not test.expected), fields)
    said = _test(test, fields)
    return None if said is None else f"(not {said} or {fields[test.field][0]} is null)"


def _all(parts: Sequence[str | None]) -> str | None:
    """Join what all must hold; what cannot be said is left out, which lets more through."""
    said = [part for part in parts if part is not None]
    return f"({' and '.join(said)})" if said else None


def _any(parts: Sequence[str | None]) -> str | None:
    """Join what one of must hold; if one cannot be said, everything may pass."""
    said = [part for part in parts if part is not None]
    return f"({' or '.join(said)})" if said and len(said) == len(parts) else None


def _test(test: Test, fields: Fields) -> str | None:
    if test.field not in fields:
        return None
    name, kind = fields[test.field]
    match test:
        case IsNull(_, expected):
            return f"({name} is null)" if expected else f"({name} is not null)"
        case OneOf(_, values):
            return _one_of(name, kind, values)
        case InRange(_, minimum, maximum):
            return _in_range(name, minimum, maximum)
        case Contains(_, value):
            return _contains(name, kind, value)


def _one_of(name: str, kind: MetadataType, values: Sequence[Value]) -> str | None:
    if kind is MetadataType.BOOL:
        return _any([f"{name} == {_literal(value)}" for value in values])
    literals = [_literal(value) for value in values]
    return _call(f"({name} in [{{}}])", literals) if literals else None


def _in_range(name: str, minimum: Value | None, maximum: Value | None) -> str | None:
    bounds = ((">=", minimum), ("<=", maximum))
    given = [(sign, _literal(bound)) for sign, bound in bounds if bound is not None]
    if any(literal is None for _, literal in given):
        return None
    compared = [f"{name} {sign} {literal}" for sign, literal in given]
    return _all(compared or [f"{name} is not null"])


def _contains(name: str, kind: MetadataType, value: Value) -> str | None:
    if kind is MetadataType.STRING_LIST:
        return _call(f"array_contains({name}, {{}})", [_literal(value)])
    return f'({name} like "%{value}%")' if _is_plain(value) else None


def _call(template: str, literals: Sequence[str | None]) -> str | None:
    said = [literal for literal in literals if literal is not None]
    return template.format(", ".join(said)) if len(said) == len(literals) else None


def _literal(value: Value) -> str | None:
    """Write a value; None if that takes more than plain characters and plain numbers."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return f'"{value}"' if _is_plain(value) else None
        case int():
            return str(value) if abs(value) < _MAX_INTEGER else None
        case _:
            return repr(value) if math.isfinite(value) else None


def _is_plain(value: Value) -> bool:
    return isinstance(value, str) and value.isprintable() and not _NOT_PLAIN.intersection(value)
