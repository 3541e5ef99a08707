"""Page tokens: signed, of one search and one version."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import PageTokenExpiredError, UndecodableError
from server.paging import PageTokens

TOKENS = PageTokens("v1", b"key")


@given(st.binary(), st.integers(0, 2**31 - 1))
def test_a_token_says_where_its_page_begins(search: bytes, offset: int) -> None:
    assert offset == TOKENS.offset(TOKENS.sign(search, offset), search)


@given(st.text() | st.binary().map(lambda b: b.decode("latin-1")))
def test_a_forged_token_is_refused(token: str) -> None:
    with pytest.raises(UndecodableError, match="none that this server signed"):
        TOKENS.offset(token, b"search")


@given(st.integers(0, 70), st.integers(0, 63))
def test_a_changed_token_is_refused(position: int, change: int) -> None:
    token = TOKENS.sign(b"search", 10)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    position %= len(token.rstrip("="))
    changed = token[:position] + alphabet[change] + token[position + 1 :]
    try:
        assert TOKENS.offset(changed, b"search") == 10
    except UndecodableError:
        assert changed != token


@pytest.mark.parametrize("spelling", ["!{}", " {}", "{}====", "{}\n", "\n{}"])
def test_a_token_is_taken_as_it_was_given(spelling: str) -> None:
    with pytest.raises(UndecodableError):
        TOKENS.offset(spelling.format(TOKENS.sign(b"search", 10)), b"search")


def test_a_token_of_another_version_search_or_key_is_refused() -> None:
    token = TOKENS.sign(b"search", 10)
    with pytest.raises(PageTokenExpiredError, match="version that is gone"):
        PageTokens("v2", b"key").offset(token, b"search")
    with pytest.raises(PageTokenExpiredError, match="another search"):
        TOKENS.offset(token, b"other")
    with pytest.raises(UndecodableError):
        PageTokens("v1", b"other").offset(token, b"search")
