import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer._vocabulary import Table
from trainer.vocabulary import Vocabulary

tokens = st.lists(st.text(min_size=1, max_size=8), max_size=50, unique=True)


@given(tokens)
def test_rows_and_tokens_are_inverse(tokens: list[str]) -> None:
    vocabulary = Vocabulary(tokens)
    assert len(vocabulary) == len(tokens)
    assert vocabulary.tokens(np.arange(len(tokens))) == tokens
    assert vocabulary.rows(tokens).tolist() == list(range(len(tokens)))
    assert [vocabulary.row(token) for token in tokens] == list(range(len(tokens)))
    assert vocabulary.array.to_pylist() == tokens


@given(tokens, st.text(max_size=8))
def test_an_unknown_token_has_row_minus_one(tokens: list[str], other: str) -> None:
    vocabulary = Vocabulary([token for token in tokens if token != other])
    assert vocabulary.row(other) == -1
    assert vocabulary.rows([other]).tolist() == [-1]
    assert other not in vocabulary


def test_more_tokens_than_are_looked_up_at_a_time() -> None:
    listed = [f"c{row}" for row in range(1000)]
    vocabulary = Vocabulary(listed)
    asked = [token for row in range(1000) for token in (f"c{row}", f"d{row}")]
    assert vocabulary.rows(asked).tolist() == [n for row in range(1000) for n in (row, -1)]
    with pytest.raises(ValueError, match="'c7' stands in row 7 and in row 1000"):
        Vocabulary([*listed, "c7", "c8"])


def test_what_is_no_text_is_refused_and_what_utf_8_cannot_hold_is_unknown() -> None:
    vocabulary = Vocabulary(["a", "b"])
    assert vocabulary.rows(["b", "\ud800", ""]).tolist() == [1, -1, -1]
    with pytest.raises(TypeError, match="must be a string, not 7"):
        vocabulary.rows(["a", 7])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("offsets", "n_bytes", "key"), [([0, 2], 1, 16), ([2, 1], 2, 16), ([], 2, 16), ([0, 1], 1, 8)]
)
def test_a_table_takes_no_offsets_beyond_its_text(
    offsets: list[int], n_bytes: int, key: int
) -> None:
    text = np.zeros(n_bytes, dtype=np.uint8)
    with pytest.raises(ValueError, match="do not fit the text"):
        Table(np.array(offsets, dtype=np.int64), text, bytes(key))


def test_a_table_writes_no_further_than_it_may() -> None:
    table = Table(np.array([0, 1]), np.frombuffer(b"a", dtype=np.uint8), bytes(16))
    with pytest.raises(ValueError, match="an int64 for each token"):
        table.rows(["a", "a"], np.empty(1, dtype=np.int64))


def test_arrow_arrays_may_be_chunked_and_sliced() -> None:
    chunked = pa.chunked_array([["x", "a"], ["ü", "日本"]]).slice(1)
    assert Vocabulary(chunked).tokens([0, 1, 2]) == ["a", "ü", "日本"]


def test_an_array_may_begin_within_another() -> None:
    whole = pa.array(["x", "a", "ü", None], pa.large_string())
    vocabulary = Vocabulary(whole.slice(1, 2))
    assert vocabulary.rows(["x", "a", "ü"]).tolist() == [-1, 0, 1]
    assert [vocabulary.token(0), vocabulary.token(1)] == ["a", "ü"]


def test_a_list_that_grows_shorter_meanwhile_is_an_error() -> None:
    tokens = ["a"]

    class Rows:
        def __buffer__(self, flags: int) -> memoryview:
            tokens.clear()
            return memoryview(bytearray(8))

    table = Table(np.array([0, 1]), np.frombuffer(b"a", dtype=np.uint8), bytes(16))
    with pytest.raises((IndexError, TypeError)):  # before Python 3.12 the second
        table.rows(tokens, Rows())  # type: ignore[arg-type]


def test_a_duplicate_is_refused_with_both_rows() -> None:
    with pytest.raises(ValueError, match="'b' stands in row 1 and in row 3"):
        Vocabulary(["a", "b", "c", "b"])


@pytest.mark.parametrize("missing", ["", None])
def test_a_missing_id_is_refused_with_its_row(missing: str | None) -> None:
    with pytest.raises(ValueError, match="row 1 has an empty or missing id"):
        Vocabulary(pa.array(["a", missing]))


def test_an_empty_vocabulary_knows_nothing() -> None:
    assert Vocabulary([]).rows(["a"]).tolist() == [-1]
