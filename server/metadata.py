"""The candidates' metadata as filters read it and responses return it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from indexer.metadata import MetadataType, typed_columns
from server.errors import FieldUnknownError


class Metadata:
    """The metadata columns of a corpus.

    Args:
        candidates: the corpus's table; the line is the candidate's row. Integers and numbers are
            widened, dates and the like become texts, and lists become lists of texts. What is less
            than zero by its sign alone is zero.
    """

    def __init__(self, candidates: pa.Table) -> None:
        typed = typed_columns(candidates)
        self.types = {name: MetadataType(column.type) for name, column in typed.items()}
        # Arrow's sets tell the two zeros apart, which its comparisons do not.
        self._columns = {
            name: pc.add(column, 0.0) if self.types[name] is MetadataType.DOUBLE else column
            for name, column in typed.items()
        }

    def column(self, name: str) -> pa.Array:
        """Return the column of that name.

        Raises:
            FieldUnknownError: if there is none.
        """
        if name not in self._columns:
            raise FieldUnknownError(
                f"there is no metadata column {name!r}; there are {', '.join(self._columns)}",
                field=name,
            )
        return self._columns[name]

    def values(self, name: str, rows: np.ndarray) -> list[object]:
        """Return the values of one column for ``rows``, None where one is null.

        Raises:
            FieldUnknownError: if there is no such column.
        """
        found: list[object] = self.column(name).take(pa.array(rows)).to_pylist()
        return found
