"""Conditions as the command line has them."""

import pytest
from candidate_search.v1 import candidate_search_service_pb2 as pb

from server.client import Condition, Field
from server.conditions import parse_conditions

TYPES = {
    "title": pb.METADATA_TYPE_STRING,
    "year": pb.METADATA_TYPE_INTEGER,
    "price": pb.METADATA_TYPE_DOUBLE,
    "in_print": pb.METADATA_TYPE_BOOL,
    "genres": pb.METADATA_TYPE_STRING_LIST,
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("year>=1990", Field("year").between(minimum=1990)),
        (" year <= 1999 ", Field("year").between(maximum=1999)),
        ("price<=.5", Field("price").between(maximum=0.5)),
        ("year=1990", Field("year").equals(1990)),
        ("in_print=True", Field("in_print").equals(True)),
        ("title=Heat|Speed", Field("title").one_of(["Heat", "Speed"])),
        ("genres~Film-Noir", Field("genres").contains("Film-Noir")),
        ("title~a = b", Field("title").contains("a = b")),
        ("genres~War|Drama", Field("genres").contains("War") | Field("genres").contains("Drama")),
        ("elsewhere=7", Field("elsewhere").equals("7")),  # the server says that there is none
    ],
)
def test_one_condition(text: str, expected: Condition) -> None:
    parsed = parse_conditions([text], TYPES)
    assert parsed is not None
    assert parsed.message == expected.message


def test_all_of_several_must_hold() -> None:
    parsed = parse_conditions(["year>=1990", "genres~Drama"], TYPES)
    expected = Field("year").between(minimum=1990) & Field("genres").contains("Drama")
    assert parsed is not None
    assert parsed.message == expected.message
    assert parse_conditions([], TYPES) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("year", "a condition is one such as year>=1990, .*, not 'year'"),
        ("=1990", "a condition is one"),
        ("year=199O", "year is compared with integers, not '199O'"),
        ("price>=free", "price is compared with doubles, not 'free'"),
        ("genres~", "'genres~' has no value"),
        ("genres=Drama", "genres holds lists: genres~Drama finds"),
        ("year!=1990", "a condition is one"),
        ("in_print=perhaps", "in_print is compared with bools, not 'perhaps'"),
    ],
)
def test_what_is_none_is_a_sentence(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_conditions([text], TYPES)
