"""What a search may demand of candidates' metadata, as a tree of tests.

The server evaluates it over the columns of its own, and that decides. A backend that is a database
is given it as well, and may leave out beforehand what the filter surely does not let through.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

Value: TypeAlias = str | int | float | bool


@dataclass(slots=True, frozen=True)
class AllOf:
    """Holds where every filter holds."""

    filters: tuple[Filter, ...]


@dataclass(slots=True, frozen=True)
class AnyOf:
    """Holds where at least one filter holds."""

    filters: tuple[Filter, ...]


@dataclass(slots=True, frozen=True)
class Negated:
    """Holds where its filter does not."""

    filter: Filter


@dataclass(slots=True, frozen=True)
class OneOf:
    """Holds where a column's value is one of these."""

    field: str
    values: tuple[Value, ...]


@dataclass(slots=True, frozen=True)
class InRange:
    """Holds where a column's value lies between two bounds, both included; None is no bound."""

    field: str
    minimum: Value | None
    maximum: Value | None


@dataclass(slots=True, frozen=True)
class Contains:
    """Holds where a list has this item, or a text this part."""

    field: str
    value: Value


@dataclass(slots=True, frozen=True)
class IsNull:
    """Holds where a column's value is missing, or with ``expected`` false, where it is there."""

    field: str
    expected: bool


Test: TypeAlias = OneOf | InRange | Contains | IsNull
Filter: TypeAlias = AllOf | AnyOf | Negated | Test


@dataclass(slots=True, frozen=True, eq=False)
class Restriction:
    """Why candidates are not eligible, where that can be said in fewer words than a mask.

    Attributes:
        filter: what the eligible ones pass; None for no filter.
        excluded: (n,) integer rows that are not eligible whatever the filter says; may repeat.
    """

    filter: Filter | None
    excluded: np.ndarray
