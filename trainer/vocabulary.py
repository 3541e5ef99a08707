"""Ids and their rows, without a Python object per id.

A dictionary of a million strings costs some hundred megabytes, and every look-up touches the
reference counts that keep forked workers from sharing it. Here the ids stay in an Arrow array, and
are found through a table of row numbers, compiled (``_vocabulary.cpp``), that nobody writes to.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.extras import NotCompiledError

try:
    from trainer._vocabulary import Table
except ImportError as error:
    raise NotCompiledError("trainer/_vocabulary.cpp", error) from error


class Vocabulary:
    """A one-to-one mapping between tokens (ids, words, labels) and rows 0, 1, 2...

    Args:
        tokens: the token of each row.

    Raises:
        ValueError: if a token is empty or missing, or stands in two rows.
    """

    def __init__(self, tokens: Sequence[str] | pa.Array | pa.ChunkedArray) -> None:
        self._tokens = _as_string_array(tokens)
        self._offsets, self._text = _buffers(self._tokens)
        lengths = np.diff(self._offsets)
        if not lengths.all():
            raise ValueError(f"row {int(np.argmin(lengths))} has an empty or missing id")
        self._table = Table(self._offsets, self._text, os.urandom(16))
        if (row := self._table.repeated) >= 0:
            token = self.token(row)
            raise ValueError(f"{token!r} stands in row {self.row(token)} and in row {row}")

    def __len__(self) -> int:
        return len(self._tokens)

    def __contains__(self, token: str) -> bool:
        return self.row(token) >= 0

    @property
    def array(self) -> pa.LargeStringArray:
        """All tokens in row order, as an Arrow array."""
        return self._tokens

    def row(self, token: str) -> int:
        """Return the row of ``token``, or -1 where it is unknown."""
        return self._table.row(token)

    def rows(self, tokens: Sequence[str]) -> np.ndarray:
        """Return the rows (n,) int64 of ``tokens``, -1 where one is unknown."""
        rows = np.empty(len(tokens), dtype=np.int64)
        self._table.rows(tokens if isinstance(tokens, list) else list(tokens), rows)
        return rows

    def token(self, row: int) -> str:
        """Return the token of ``row``, which must lie in [0, len)."""
        return self._text[self._offsets[row] : self._offsets[row + 1]].tobytes().decode()

    def tokens(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """Return the tokens of ``rows``, each of which must lie in [0, len)."""
        listed: list[str] = self._tokens.take(pa.array(rows, type=pa.int64())).to_pylist()
        return listed


def _as_string_array(tokens: Sequence[str] | pa.Array | pa.ChunkedArray) -> pa.LargeStringArray:
    """Return tokens as an array of its own, an empty text where one is missing."""
    if not isinstance(tokens, pa.Array | pa.ChunkedArray):
        tokens = pa.array(tokens, type=pa.large_string())
    texts = tokens.cast(pa.large_string())  # before they are put together: they may be too long
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    return pc.fill_null(texts, "")


def _buffers(array: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
    """Return where texts begin and end, (n + 1,) int64, in bytes (n_bytes,) uint8; not copied."""
    _, offsets, text = array.buffers()
    if offsets is None:  # as an array of nothing may have none
        return np.zeros(1, dtype=np.int64), np.empty(0, dtype=np.uint8)
    begins = np.frombuffer(offsets, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    begins = np.require(begins, requirements="A")  # as Arrow asks of memory, and files may not have
    return begins, np.frombuffer(text, dtype=np.uint8) if text else np.empty(0, dtype=np.uint8)
