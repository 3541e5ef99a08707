"""Conditions on metadata as the command line has them, such as ``year>=1990``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import reduce
from operator import and_, or_

from candidate_search.v1 import candidate_search_service_pb2 as pb

from server.client import Condition, Field

EXAMPLES = "year>=1990, genres~Comedy or color=red|green"

_CONDITION = re.compile(r"\s*([^=<>~!]+?)\s*(>=|<=|=|~)\s*(.*?)\s*", re.DOTALL)
_FLAGS = {"true": True, "false": False}


def parse_conditions(
    texts: Iterable[str], types: Mapping[str, pb.MetadataType.ValueType]
) -> Condition | None:
    """Return what holds where all of some conditions do; None if there are none.

    ``=`` takes a value, or several with ``|`` between them, of which one must be there; ``~`` an
    item of a list or a part of a text, or several; ``>=`` and ``<=`` take a bound.

    Args:
        texts: the conditions.
        types: the ``MetadataType`` of each column; values for others are texts.

    Raises:
        ValueError: if one is no condition, or its value is not of its column's type.
    """
    conditions = [_parse(text, types) for text in texts]
    return reduce(and_, conditions) if conditions else None


def _parse(text: str, types: Mapping[str, pb.MetadataType.ValueType]) -> Condition:
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise ValueError(f"a condition is one such as {EXAMPLES}, not {text!r}")
    name, test, value = match.groups()
    if not value:
        raise ValueError(f"{text!r} has no value; a condition is one such as {EXAMPLES}")
    field, kind = Field(name), types.get(name, pb.METADATA_TYPE_STRING)
    match test:
        case ">=":
            return field.between(minimum=_value(name, kind, value))
        case "<=":
            return field.between(maximum=_value(name, kind, value))
        case "~":
            return reduce(or_, [field.contains(one) for one in value.split("|")])
    if kind == pb.METADATA_TYPE_STRING_LIST:
        raise ValueError(f"{name} holds lists: {name}~{value} finds what has the item")
    values = [_value(name, kind, one) for one in value.split("|")]
    return field.equals(*values) if len(values) == 1 else field.one_of(values)


def _value(name: str, kind: pb.MetadataType.ValueType, text: str) -> str | int | float | bool:
    try:
        if kind == pb.METADATA_TYPE_BOOL:
            return _FLAGS[text.lower()]
        if kind == pb.METADATA_TYPE_INTEGER:
            return int(text)
        return float(text) if kind == pb.METADATA_TYPE_DOUBLE else text
    except (KeyError, ValueError) as error:
        expected = pb.MetadataType.Name(kind).removeprefix("METADATA_TYPE_").lower()
        raise ValueError(f"{name} is compared with {expected}s, not {text!r}") from error
