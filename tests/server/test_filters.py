"""Filters on metadata, against expectations that can be checked by eye."""

import numpy as np
import pyarrow as pa
import pytest

from indexer.filters import (
    AllOf,
    AnyOf,
    Contains,
    Filter,
    InRange,
    IsNull,
    Negated,
    OneOf,
)
from server.errors import FieldUnknownError, FilterInvalidError
from server.filters import FilterMasks
from server.metadata import Metadata

CANDIDATES = pa.table(
    {
        "title": ["Alpha", "Beta", None, "Alphabet"],
        "year": pa.array([1990, 1995, None, 2001], pa.int16()),
        "price": [0.5, 1.0, 1.5, None],
        "change": [-0.0, 0.0, -1.0, None],
        "is_new": [True, False, None, True],
        "tags": [["a", "b"], ["b"], [], None],
    }
)


def masks(max_bytes: int = 1000) -> FilterMasks:
    return FilterMasks(Metadata(CANDIDATES), 4, max_bytes)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (OneOf("title", ("Beta",)), [1]),
        (OneOf("title", ("Beta", "Alpha", "Nothing")), [0, 1]),
        (OneOf("year", (1995,)), [1]),
        (OneOf("price", (1,)), [1]),
        (OneOf("is_new", (True,)), [0, 3]),
        (OneOf("change", (0,)), [0, 1]),
        (OneOf("change", (-0.0,)), [0, 1]),
        (Negated(OneOf("change", (-0.0,))), [2, 3]),
        (InRange("year", 1990, 1995), [0, 1]),
        (InRange("year", 1991, None), [1, 3]),
        (InRange("price", None, 1), [0, 1]),
        (InRange("title", "Alphabet", None), [1, 3]),
        (Contains("tags", "b"), [0, 1]),
        (Contains("title", "lph"), [0, 3]),
        (IsNull("tags", True), [3]),
        (IsNull("year", False), [0, 1, 3]),
        (Negated(OneOf("year", (1995,))), [0, 2, 3]),
        (AllOf((OneOf("is_new", (True,)), InRange("year", 2000, None))), [3]),
        (AnyOf((OneOf("title", ("Beta",)), IsNull("price", True))), [1, 3]),
    ],
)
def test_lets_through(condition: Filter, expected: list[int]) -> None:
    assert expected == np.flatnonzero(masks().mask(condition)).tolist()


@pytest.mark.parametrize(
    "condition",
    [
        OneOf("year", ("1995",)),
        OneOf("year", (True,)),
        OneOf("year", (1995.5,)),
        OneOf("title", (1,)),
        OneOf("is_new", (1,)),
        OneOf("tags", ("a",)),
        InRange("is_new", False, None),
        InRange("tags", "a", None),
        InRange("year", None, "x"),
        Contains("year", "1"),
        Contains("tags", 1),
    ],
)
def test_refuses_a_test_that_the_type_cannot_pass(condition: Filter) -> None:
    with pytest.raises(FilterInvalidError, match=r"column '(year|title|is_new|tags)' is of type"):
        masks().mask(condition)


def test_refuses_an_unknown_column_and_names_the_known() -> None:
    with pytest.raises(FieldUnknownError, match="'colour'; there are title, year, price"):
        masks().mask(IsNull("colour", True))


def test_keeps_masks_and_forgets_the_oldest() -> None:
    kept = masks(max_bytes=1100)  # two masks of four candidates, and what is kept with them
    first = kept.mask(OneOf("year", (1990,)))
    assert first is kept.mask(OneOf("year", (1990,)))
    kept.mask(OneOf("year", (1995,)))
    kept.mask(OneOf("year", (2001,)))
    assert first is not kept.mask(OneOf("year", (1990,)))


def test_keeps_nothing_where_there_is_no_memory_for_it() -> None:
    kept = masks(max_bytes=0)
    assert kept.mask(OneOf("year", (1990,))) is not kept.mask(OneOf("year", (1990,)))


@pytest.mark.parametrize("value", [2**53 + 1, -(2**63)])
def test_numbers_are_compared_with_integers_of_any_size(value: int) -> None:
    expected = [0, 1, 2] if value < 0 else []
    found = masks().mask(InRange("price", minimum=value, maximum=None))
    assert expected == np.flatnonzero(found).tolist()
    assert not masks().mask(OneOf("price", (value,))).any()


def test_values_that_python_calls_equal_are_other_filters() -> None:
    kept = masks()
    kept.mask(OneOf("price", (1,)))
    with pytest.raises(FilterInvalidError):
        kept.mask(OneOf("price", (True,)))


def test_what_takes_long_is_known_before_it_is_done_and_short_when_it_is_kept() -> None:
    kept, part = masks(max_bytes=10_000), Contains("title", "lph")
    both = AllOf((OneOf("year", (1990,)), Negated(part)))
    assert [True, False] == [kept.takes_longer_than(n, part) for n in (4 * 349, 4 * 350)]
    assert [True, False] == [kept.takes_longer_than(n, both) for n in (4 * 419, 4 * 420)]
    kept.mask(part)
    assert not kept.takes_longer_than(0, part)
    assert kept.takes_longer_than(0, both)


def test_a_mask_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        masks().mask(IsNull("year", True))[0] = True
