import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer import vocabulary as vocabulary_module
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


def test_tokens_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary_module, "hash", lambda _: 7, raising=False)
    vocabulary = Vocabulary(["a", "b", "c"])
    assert vocabulary.rows(["c", "a", "d", "b"]).tolist() == [2, 0, -1, 1]
    with pytest.raises(ValueError, match="'a' stands in row 0 and in row 2"):
        Vocabulary(["a", "b", "a"])


def test_arrow_arrays_may_be_chunked_and_sliced() -> None:
    chunked = pa.chunked_array([["x", "a"], ["ü", "日本"]]).slice(1)
    assert Vocabulary(chunked).tokens([0, 1, 2]) == ["a", "ü", "日本"]


def test_a_duplicate_is_refused_with_both_rows() -> None:
    with pytest.raises(ValueError, match="'b' stands in row 1 and in row 3"):
        Vocabulary(["a", "b", "c", "b"])


@pytest.mark.parametrize("missing", ["", None])
def test_a_missing_id_is_refused_with_its_row(missing: str | None) -> None:
    with pytest.raises(ValueError, match="row 1 has an empty or missing id"):
        Vocabulary(pa.array(["a", missing]))


def test_an_empty_vocabulary_knows_nothing() -> None:
    assert Vocabulary([]).rows(["a"]).tolist() == [-1]
