"""Ids and their rows, without a Python object per id.

A dictionary of a million strings costs some hundred megabytes, and every look-up touches the
reference counts that keep forked workers from sharing it. Here the ids stay in one string, cut
where NumPy offsets say, and are found through their sorted hashes: arrays that nobody writes to.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class Vocabulary:
    """A one-to-one mapping between tokens (ids, words, labels) and rows 0, 1, 2...

    Args:
        tokens: the token of each row.

    Raises:
        ValueError: if a token is empty or missing, or stands in two rows.
    """

    def __init__(self, tokens: Sequence[str] | pa.Array | pa.ChunkedArray) -> None:
        array = _as_string_array(tokens)
        lengths = pc.fill_null(pc.utf8_length(array), 0).to_numpy(zero_copy_only=False)
        if not lengths.all():
            raise ValueError(f"row {int(np.argmin(lengths))} has an empty or missing id")
        listed = array.to_pylist()
        self._text = "".join(listed)
        self._offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        # Python salts its string hashes per process; these live and die with this object.
        hashes = np.fromiter(map(hash, listed), dtype=np.int64, count=len(listed))
        self._sorted_rows = np.argsort(hashes, kind="stable")
        self._sorted_hashes = hashes[self._sorted_rows]
        self._refuse_duplicates()

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __contains__(self, token: str) -> bool:
        return self.row(token) >= 0

    @property
    def array(self) -> pa.StringArray:
        """All tokens in row order, as an Arrow array."""
        return pa.array(self.tokens(np.arange(len(self))), type=pa.string())

    def row(self, token: str) -> int:
        """Return the row of ``token``, or -1 where it is unknown."""
        wanted = hash(token)
        position = bisect_left(self._sorted_hashes.data, wanted)
        while position < len(self) and self._sorted_hashes[position] == wanted:
            row = int(self._sorted_rows[position])
            if self.token(row) == token:
                return row
            position += 1
        return -1

    def rows(self, tokens: Sequence[str]) -> np.ndarray:
        """Return the rows (n,) int64 of ``tokens``, -1 where one is unknown."""
        if len(self) == 0:
            return np.full(len(tokens), -1, dtype=np.int64)
        hashes = np.fromiter(map(hash, tokens), dtype=np.int64, count=len(tokens))
        positions = self._sorted_hashes.searchsorted(hashes)
        rows: np.ndarray = self._sorted_rows.take(positions, mode="clip")
        found = self.tokens(rows)
        if found != list(tokens):  # seldom, and cheaper to see than what differs
            for i, token in enumerate(tokens):
                if found[i] != token:
                    rows[i] = self.row(token)
        return rows

    def token(self, row: int) -> str:
        """Return the token of ``row``, which must lie in [0, len)."""
        return self._text[self._offsets[row] : self._offsets[row + 1]]

    def tokens(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """Return the tokens of ``rows``, each of which must lie in [0, len)."""
        rows = np.asarray(rows, dtype=np.int64)
        starts, ends = self._offsets.take(rows).tolist(), self._offsets.take(rows + 1).tolist()
        text = self._text
        return [text[start:end] for start, end in zip(starts, ends, strict=True)]

    def _refuse_duplicates(self) -> None:
        same_hash = np.flatnonzero(self._sorted_hashes[1:] == self._sorted_hashes[:-1])
        for row in self._sorted_rows[same_hash + 1].tolist():
            first = self.row(self.token(row))
            if first != row:
                raise ValueError(f"{self.token(row)!r} stands in row {first} and in row {row}")


def _as_string_array(tokens: Sequence[str] | pa.Array | pa.ChunkedArray) -> pa.LargeStringArray:
    if isinstance(tokens, pa.ChunkedArray):
        tokens = tokens.combine_chunks()
    if isinstance(tokens, pa.Array):
        return tokens.cast(pa.large_string())
    return pa.array(tokens, type=pa.large_string())
