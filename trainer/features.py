"""What the towers read: one description shared by training, export and serving.

A tower reads numbers only. Each feature says how a raw value (an id, a label, a list, a text, a
number, a history) becomes a fixed-width array, and the description travels with the towers as
``features.json`` and ``vocabularies.parquet``, so that the server encodes a request exactly as
the trainer encoded its data. Nothing here imports TensorFlow.

Token 0 is padding and every unknown token; a vocabulary's row r is token r + 1.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from trainer.vocabulary import Vocabulary

Kind: TypeAlias = Literal["history", "id", "category", "list", "text", "number"]
Vocabularies: TypeAlias = Mapping[str, Vocabulary]
Value: TypeAlias = str | float | bool | Sequence[str] | None

HISTORY = "history"
CANDIDATE_ID = "candidate_id"
USER_ID = "user_id"
TIME = "time"
"""When a query is asked, in seconds since 1970."""

DESCRIPTION = "description"
"""A free text about what a query is for."""

_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_LARGEST_NUMBER = float(np.finfo(np.float32).max)
_FARTHEST = 1e5
"""Standard deviations from the mean beyond which numbers are told apart no more: none of n numbers
is farther than the root of n, and what a request makes up must not overflow in a tower."""

_NEAR = 3.0
"""Standard deviations from a number's mean within which a number in a text stands for it."""


class Feature(BaseModel):
    """One input of a tower."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: Kind
    length: int = 1
    """Values kept: of a list the first, of a history the newest."""
    n_tokens: int = 0
    """Size of the vocabulary, without token 0; of a history, the candidates; 0 for numbers."""
    mean: float = 0.0
    deviation: float = 1.0


class Features(BaseModel):
    """All inputs of both towers, in the order in which the towers read them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    query: tuple[Feature, ...]
    candidate: tuple[Feature, ...]

    @cached_property
    def n_known(self) -> int:
        """How many candidates the towers know from the training, the first rows; 0 if not told."""
        read = (f for f in (*self.query, *self.candidate) if f.name in (HISTORY, CANDIDATE_ID))
        return max((feature.n_tokens for feature in read), default=0)

    def readable(self, history: np.ndarray) -> np.ndarray:
        """Return those candidate rows (n,) of a history that the query tower knows, in order."""
        return history[history < self.n_known] if self.n_known else history

    @property
    def context(self) -> tuple[Feature, ...]:
        """What the query tower reads beside the history."""
        return tuple(feature for feature in self.query if feature.kind != "history")

    @property
    def content(self) -> tuple[Feature, ...]:
        """What the candidate tower reads beside the ids."""
        return tuple(feature for feature in self.candidate if feature.kind != "id")

    @property
    def reads_history(self) -> bool:
        """Whether the query tower reads what users did."""
        return self.max_history_length > 0

    @property
    def reads_candidate_ids(self) -> bool:
        """Whether the candidate tower reads which candidate it is."""
        return any(feature.name == CANDIDATE_ID for feature in self.candidate)

    @property
    def reads_users(self) -> bool:
        """Whether the query tower reads who a user is."""
        return any(feature.name == USER_ID for feature in self.query)

    @property
    def max_history_length(self) -> int:
        """How many interactions, newest last, the query tower reads; 0 if it reads none."""
        return next((f.length for f in self.query if f.kind == "history"), 0)


def tokenize(text: str) -> list[str]:
    """Split a text into lower-case words."""
    return _WORD.findall(text.lower())


def encode_histories(histories: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Encode histories as the query tower reads them.

    Args:
        histories: candidate rows of each user, oldest first.
        length: how many interactions are kept, newest first to stay.

    Returns:
        (n, length) int32: candidate row + 1, oldest first, padded on the right with 0.
    """
    encoded = np.zeros((len(histories), length), dtype=np.int32)
    for line, history in zip(encoded, histories, strict=True):
        kept = history[-length:]
        line[: len(kept)] = kept
        line[: len(kept)] += 1
    return encoded


def encode_together(histories: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Encode histories as ``encode_histories`` does, but padded to the longest of them only."""
    longest = max(map(len, histories), default=0)
    return encode_histories(histories, max(1, min(longest, length)))


def encode_query(
    features: Features,
    vocabularies: Vocabularies,
    history: np.ndarray,
    values: Mapping[str, Value],
) -> dict[str, np.ndarray]:
    """Encode one query for the query tower.

    Args:
        features: the description of the towers.
        vocabularies: the tokens of each feature that has any.
        history: (n,) candidate rows, oldest first.
        values: raw values of the other features by name; an absent one is encoded as unknown.

    Returns:
        The inputs by name, each (1, length).
    """
    inputs = {}
    for feature in features.query:
        if feature.kind == "history":
            known = features.readable(history)
            inputs[feature.name] = encode_histories([known], feature.length)
        else:
            vocabulary = vocabularies.get(feature.name)
            inputs[feature.name] = _encode(feature, vocabulary, [values.get(feature.name)])
    return inputs


def encode_queries(
    features: Features,
    vocabularies: Vocabularies,
    histories: Sequence[np.ndarray],
    users: pa.Table,
) -> dict[str, np.ndarray]:
    """Encode many queries for the query tower.

    Args:
        features: the description of the towers.
        vocabularies: the tokens of each feature that has any.
        histories: candidate rows of each, oldest first.
        users: a line for each, with the other features; an absent column is encoded as unknown.

    Returns:
        The inputs by name, each (n, length).
    """
    inputs = encode_table(features.context, vocabularies, users)
    if features.reads_history:
        known = list(map(features.readable, histories))
        inputs[HISTORY] = encode_histories(known, features.max_history_length)
    return {feature.name: inputs[feature.name] for feature in features.query}


def encode_candidates(
    features: Features,
    vocabularies: Vocabularies,
    candidates: pa.Table,
    first_row: int | None = None,
) -> dict[str, np.ndarray]:
    """Encode candidates for the candidate tower.

    Args:
        features: the description of the towers.
        vocabularies: the tokens of each feature that has any; the ids' are needed only without
            ``first_row``.
        candidates: a table with a column for each feature; an absent column is encoded as unknown.
        first_row: the row of the first of them, if they are the next ones of their corpus: then
            nobody looks their ids up.

    Returns:
        The inputs by name, each (n_candidates, length).
    """
    if first_row is None:
        return encode_table(features.candidate, vocabularies, candidates)
    inputs = encode_table(features.content, vocabularies, candidates)
    rows = np.arange(first_row, first_row + candidates.num_rows)
    ids = (feature for feature in features.candidate if feature.kind == "id")
    return inputs | {feature.name: _tokens_of_rows(feature, rows)[:, None] for feature in ids}


def encode_table(
    features: Sequence[Feature], vocabularies: Vocabularies, table: pa.Table
) -> dict[str, np.ndarray]:
    """Encode the lines of a table, whatever they stand for.

    Args:
        features: what to encode.
        vocabularies: the tokens of each feature that has any.
        table: with a column for each feature; an absent column is encoded as unknown.

    Returns:
        The inputs by name, each (n_lines, length).
    """
    inputs = {}
    for feature in features:
        if feature.name in table.column_names:
            values = table.column(feature.name).to_pylist()
        else:
            values = [None] * table.num_rows
        inputs[feature.name] = _encode(feature, vocabularies.get(feature.name), values)
    return inputs


class DescriptionReader:
    """Reads a text as the content of a candidate that nobody knows.

    Of labels and words those count that stand in the text, upper or lower case; of the numbers in
    it, for each number of a candidate the first that is near those of the candidates.

    Args:
        features: the content that candidates have.
        vocabularies: the tokens of each feature that has any.
    """

    def __init__(self, features: Sequence[Feature], vocabularies: Vocabularies) -> None:
        self._features = features
        self._phrases = {
            feature.name: _Phrases(vocabularies[feature.name])
            for feature in features
            if feature.kind != "number"
        }

    def read(self, text: str) -> dict[str, np.ndarray] | None:
        """Encode a text as ``encode_candidates`` encodes a candidate; None if it says nothing.

        Returns:
            The inputs by name, each (1, length).
        """
        words = tokenize(text)
        numbers = np.array(_NUMBER.findall(text), dtype=np.float64)
        inputs, says_anything = {}, False
        for feature in self._features:
            if feature.kind == "number":
                near = numbers[np.abs(numbers - feature.mean) <= _NEAR * feature.deviation]
                inputs[feature.name] = _encode(feature, None, [near[0] if len(near) else None])
                says_anything |= len(near) > 0
            else:
                tokens = self._phrases[feature.name].tokens_in(words)[: feature.length]
                inputs[feature.name] = np.zeros((1, feature.length), dtype=np.int32)
                inputs[feature.name][0, : len(tokens)] = tokens
                says_anything |= len(tokens) > 0
        return inputs if says_anything else None


class _Phrases:
    """The labels or words of one feature, to be found in texts."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        rows = {}
        for row, token in enumerate(vocabulary.array.to_pylist()):
            if words := tokenize(token):
                rows[" ".join(words)] = row
        self._known = Vocabulary(list(rows))
        self._tokens = np.fromiter(rows.values(), dtype=np.int32, count=len(rows)) + 1
        self._longest = max((phrase.count(" ") + 1 for phrase in rows), default=0)

    def tokens_in(self, words: Sequence[str]) -> list[int]:
        """Return the tokens of all phrases that stand in a text, each once, in its order."""
        spans = [
            " ".join(words[start : start + length])
            for start in range(len(words))
            for length in range(1, min(self._longest, len(words) - start) + 1)
        ]
        rows = self._known.rows(spans)
        return list(dict.fromkeys(self._tokens[rows[rows >= 0]].tolist()))


def describe_column(
    name: str, column: pa.ChunkedArray, *, max_length: int = 64, min_count: int = 2
) -> tuple[Feature, Vocabulary | None]:
    """Describe a metadata column by its type: a list, a number, a text or a category.

    A column of strings is a text if its values have several words on average, and a category
    otherwise.

    Args:
        name: the column's name, which becomes the feature's.
        column: its values.
        max_length: how many tokens of a list or text are read at most, the first.
        min_count: in how many values a word or label must occur to get a token of its own; one
            that occurs once says no more than the id does.

    Returns:
        The feature, and its vocabulary if it has one.

    Raises:
        ValueError: if no tower can read the column's type, or numbers as large as its.
    """
    kind = kind_of(column)
    if kind is None:
        raise ValueError(
            f"a column of type {column.type} cannot be a feature; leave it out or cast it"
        )
    if kind == "number":
        mean, deviation = _scale(column)
        return Feature(name=name, kind=kind, mean=mean, deviation=deviation), None
    tokens = [_tokens(kind, value)[:max_length] for value in column.to_pylist()]
    counts = Counter(token for line in tokens for token in set(line))
    vocabulary = Vocabulary(sorted(t for t, count in counts.items() if count >= min_count))
    length = max(map(len, tokens), default=1) or 1
    return Feature(name=name, kind=kind, length=length, n_tokens=len(vocabulary)), vocabulary


def _scale(column: pa.ChunkedArray) -> tuple[float, float]:
    """Return the mean of a column's numbers and what they are divided by, never 0."""
    # Whole numbers beyond 2^53 are rounded: the tower reads 32 bits of them anyway.
    numbers = pc.drop_null(pc.cast(column, pa.float64(), safe=False)).to_numpy()
    if len(numbers) == 0:
        return 0.0, 1.0
    largest = float(np.abs(numbers).max())
    if largest > _LARGEST_NUMBER:
        raise ValueError(f"{largest:g} is too large a number for a tower; scale the column down")
    # Of equal numbers the deviation is not 0 but what rounding makes of it; of tiny ones it may be.
    deviation = 0.0 if np.ptp(numbers) == 0 else float(numbers.std())
    return float(numbers.mean()), deviation or 1.0


_MAX_COUNTED = 10_000
"""Values whose words tell a text from a category; of more, some tell it."""


def kind_of(column: pa.ChunkedArray) -> Kind | None:
    """Return as what a tower would read a column; None where it can read none of its type."""
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return "list"
    if pa.types.is_boolean(kind):
        return "category"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        some = column.take(np.arange(0, len(column), 1 + len(column) // _MAX_COUNTED))
        n_words = [len(tokenize(value)) for value in some.to_pylist() if value]
        return "text" if n_words and sum(n_words) / len(n_words) > 2 else "category"  # noqa: PLR2004
    return None


def _tokens(kind: Kind, value: Value) -> list[str]:
    """Return the tokens that a raw value stands for; none for a missing or empty one."""
    if value is None:
        return []
    if kind == "text":
        return tokenize(str(value))
    values: Iterable[Any] = value if kind == "list" and not isinstance(value, str) else [value]  # type: ignore[assignment]
    return [str(one) for one in values if one is not None and str(one)]


def _encode(feature: Feature, vocabulary: Vocabulary | None, values: Sequence[Value]) -> np.ndarray:
    """Encode raw values of one feature as (n, length), float32 numbers or int32 tokens."""
    if feature.kind == "number":
        numbers = np.array([np.nan if v is None else v for v in values], dtype=np.float64)
        scaled = np.nan_to_num((numbers - feature.mean) / feature.deviation)
        return scaled.clip(-_FARTHEST, _FARTHEST).astype(np.float32)[:, None]
    if vocabulary is None:
        raise ValueError(f"feature {feature.name!r} has no vocabulary")
    tokens, counts = _all_tokens(feature, values)
    known = vocabulary.rows(tokens)
    encoded = np.zeros((len(values), feature.length), dtype=np.int32)
    encoded[np.arange(feature.length) < counts[:, None]] = _tokens_of_rows(feature, known)
    return encoded


def _all_tokens(feature: Feature, values: Sequence[Value]) -> tuple[list[str], np.ndarray]:
    """Return the tokens that are kept of all values, in their order, and how many (n,) of each."""
    if feature.kind in ("category", "id"):  # a list for each would be much for so little
        labels = ["" if value is None else str(value) for value in values]
        return [label for label in labels if label], np.array([bool(one) for one in labels], int)
    lines = [_tokens(feature.kind, value)[: feature.length] for value in values]
    counts = np.array([len(line) for line in lines], dtype=np.int64)
    return [token for line in lines for token in line], counts


def _tokens_of_rows(feature: Feature, rows: np.ndarray) -> np.ndarray:
    """Return the tokens (n,) int32 of rows of a vocabulary (n,), of which -1 is unknown.

    Users and candidates may have come since the training: a row beyond those it had is unknown too.
    """
    return np.where(rows < feature.n_tokens, rows + 1, 0).astype(np.int32)
