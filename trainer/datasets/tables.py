"""Tables from CSV and Parquet files, which know where in the file each of their rows stands."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from trainer.datasets.dataset import DatasetError

_PANDAS_INDEX = re.compile(r"__index_level_\d+__")  # a column that nobody made
# ISO 8601, with a zone or without; a zone stands after a time of day only, not after a date.
_TIME = r"^\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?(Z|[+-]\d\d:?\d\d)?)?$"
_ZONE = r"(Z|:\d\d(\.\d+)?[+-]\d\d:?\d\d)$"
_DAY_LENGTH = len("2026-11-30")
# A number as people write it; no "nan", no "inf".
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


class FileTable:
    """A file read whole; its columns can be had as ids or numbers, or refused by line and column.

    Args:
        path: a ``.csv`` or ``.parquet`` file. All values of a CSV file are texts until asked for
            as something else.
        required: columns that must be there.
        optional: further columns to read; None reads all there are.

    Raises:
        DatasetError: if the file cannot be read or lacks a column.
    """

    def __init__(
        self, path: Path, required: Collection[str], optional: Collection[str] | None = None
    ) -> None:
        self.path = path
        self.is_csv = path.suffix.lower() == ".csv"
        read = {".csv": _read_csv, ".parquet": _read_parquet}.get(path.suffix.lower())
        if read is None:
            raise DatasetError(f"{path}: expected a file named .csv or .parquet")
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise DatasetError(
                f"{str(path)!a}: the name of the file is not UTF-8: rename it"
            ) from error
        try:
            names = _column_names(path)
            _check_names(path, names, required)
            wanted = names if optional is None else [*required, *optional]
            self.table = read(path, [name for name in names if name in wanted])
        except OSError as error:
            raise DatasetError(f"{path}: cannot be read ({error.strerror or error})") from error
        except UnicodeEncodeError as error:
            raise DatasetError(
                f"{path}, line 1: the names of the columns are not UTF-8 text"
            ) from error
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise _diagnose(path, error) from error

    def __len__(self) -> int:
        return len(self.table)

    def __contains__(self, column: str) -> bool:
        return column in self.table.column_names

    def ids(self, column: str) -> pa.ChunkedArray:
        """Return a column as ids: texts, none of them blank."""
        values = self.table[column]
        if not is_text(values.type) and not pa.types.is_integer(values.type):
            raise self.error(None, column, f"expected texts or whole numbers, found {values.type}")
        ids = pc.fill_null(values.cast(pa.string()), "")
        self._refuse(pc.equal(pc.utf8_trim_whitespace(ids), ""), column, "the id is empty")
        lines = "the id has several lines: is a quote before it not closed?"
        self._refuse(pc.match_substring_regex(ids, "[\r\n]"), column, lines)
        return ids

    def numbers(
        self,
        column: str,
        *,
        expected: str = "a number",
        largest: float = np.inf,
        may_be_times: bool = False,
    ) -> npt.NDArray[np.float64]:
        """Return a column as finite numbers (n_rows,); times are seconds since 1970.

        Args:
            column: its name.
            expected: what its values are, for the refusal of one that is none.
            largest: what a number, of either sign, must not exceed.
            may_be_times: whether texts may be times by ISO 8601, of UTC where they name no zone.

        Raises:
            DatasetError: if a value is missing, no number, or too large.
        """
        values = self.table[column]
        if is_text(values.type):
            text = pc.utf8_trim_whitespace(values.cast(pa.string()))
            if may_be_times:
                text = self._with_times_as_seconds(column, text)
            is_number = pc.match_substring_regex(text, _NUMBER)
            values = pc.if_else(is_number, text, None)
        elif may_be_times and pa.types.is_date(values.type):
            values = values.cast(pa.timestamp("s")).cast(pa.int64())
        elif may_be_times and pa.types.is_timestamp(values.type):
            values = values.cast(pa.timestamp("s", values.type.tz), safe=False).cast(pa.int64())
        try:
            # Whole numbers beyond 2^53 are rounded: those that matter are refused as too large.
            numbers = pc.fill_null(values.cast(pa.float64(), safe=False), np.nan)
        except pa.ArrowNotImplementedError as error:
            raise self.error(None, column, f"expected numbers, found {values.type}") from error
        fits = pc.and_(pc.is_finite(numbers), pc.less_equal(pc.abs(numbers), largest))
        self._refuse(pc.invert(fits), column, f"expected {expected}, found {{value!r}}")
        return np.asarray(numbers, dtype=np.float64)

    def _with_times_as_seconds(self, column: str, text: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return a column's texts, of which those that are times are seconds since 1970 now."""
        is_time = pc.match_substring_regex(text, _TIME)
        if not pc.any(is_time).as_py():
            return text
        times = pc.if_else(is_time, text, None)
        is_day = pc.equal(pc.utf8_length(times), _DAY_LENGTH)
        times = pc.if_else(is_day, pc.binary_join_element_wise(times, "T00:00", ""), times)
        has_zone = pc.match_substring_regex(times, _ZONE)
        times = pc.if_else(has_zone, times, pc.binary_join_element_wise(times, "Z", ""))
        try:
            micros = times.cast(pa.timestamp("us", "UTC")).cast(pa.int64())
        except pa.ArrowInvalid:  # of a thirteenth month, say
            is_none = pa.array([not _is_time(one) for one in times])
            self._refuse(is_none, column, "there is no such time as {value!r}")
            raise
        seconds = pc.floor(pc.divide(micros.cast(pa.float64(), safe=False), 1e6)).cast(pa.int64())
        return pc.coalesce(seconds.cast(pa.string()), text)

    def error(self, row: int | None, column: str, problem: str) -> DatasetError:
        """Return the refusal of a row, or with None of the whole column."""
        place = "" if row is None else f", {self.place(row)}"
        return DatasetError(f"{self.path}{place}, column {column}: {problem}")

    def place(self, row: int) -> str:
        """Return where a row stands: its line in a CSV file, counted from 1, or its row."""
        if not self.is_csv:
            return f"row {row + 1}"
        records = (line for line, fields in _records(self.path) if fields)
        next(records)  # the header
        return f"line {next(line for i, line in enumerate(records) if i == row)}"

    def _refuse(self, is_bad: pa.ChunkedArray, column: str, problem: str) -> None:
        """Raise the refusal of the first bad row, if there is one."""
        row = pc.index(is_bad, value=True).as_py()
        if row >= 0:
            value = self.table[column][row]
            try:
                shown = value.as_py()
            except OverflowError:  # of a day that Python has no name for
                shown = value.cast(pa.int32()).as_py()
            raise self.error(row, column, problem.format(value=shown))


def _is_time(text: pa.StringScalar) -> bool:
    try:
        text.cast(pa.timestamp("us", "UTC"))
    except pa.ArrowInvalid:
        return False
    return True


def is_text(kind: pa.DataType) -> bool:
    """Return whether values of an Arrow type are texts."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def _column_names(path: Path) -> list[str]:
    if path.suffix.lower() == ".parquet":
        names = pa.parquet.read_schema(path).names
        return [name for name in names if name and not _PANDAS_INDEX.fullmatch(name)]
    names = next((fields for _, fields in _records(path) if fields), [])
    return [name for name in names if name]  # pandas writes its index without one


def _check_names(path: Path, names: list[str], required: Collection[str]) -> None:
    missing = [name for name in required if name not in names]
    if missing:
        raise DatasetError(
            f"{path}, line 1: column {missing[0]} is missing: expected {', '.join(required)}, "
            f"found {', '.join(names) or 'nothing'}"
        )
    if len(set(names)) < len(names):
        raise DatasetError(
            f"{path}, line 1: every column needs a name of its own, found {', '.join(names)}"
        )


def _read_parquet(path: Path, columns: list[str]) -> pa.Table:
    return pa.parquet.read_table(path, columns=columns)


def _read_csv(path: Path, columns: list[str]) -> pa.Table:
    _refuse_open_quote(path)
    return pa.csv.read_csv(
        path,
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(
            include_columns=columns, column_types=dict.fromkeys(columns, pa.string())
        ),
    )


def _refuse_open_quote(path: Path) -> None:
    """Refuse a file whose last record is all that follows a quote, which Arrow takes for a value.

    Raises:
        DatasetError: if it is one.
    """
    with path.open("rb") as file:
        n_quotes = sum(chunk.count(b'"') for chunk in iter(partial(file.read, 1 << 20), b""))
    if n_quotes % 2:  # a quote inside of a value, for inches, is all right
        deque(_records(path, strict=True), maxlen=0)


def _records(path: Path, *, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Yield the line that each record of a CSV file begins on, and its fields.

    Slow, so only for the header and to find what to blame. Bytes that are not UTF-8 come as
    surrogates. Where it is strict, a quote that is never closed is an error.
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=strict)
        line = 1
        try:
            for fields in reader:
                yield line, fields
                line = reader.line_num + 1
        except csv.Error as error:
            raise DatasetError(f"{path}, line {line}: cannot be read ({error})") from error


def _diagnose(path: Path, error: Exception) -> DatasetError:
    """Return what is wrong with a file that Arrow refused, by line and column where that helps."""
    if path.suffix.lower() == ".csv":
        names: list[str] = []
        for line, fields in _records(path):
            names = names or fields
            if fields and len(fields) != len(names):
                return DatasetError(
                    f"{path}, line {line}: expected {len(names)} values, one for each column, "
                    f"found {len(fields)}"
                )
            for name, field in zip(names, fields, strict=False):
                if any("\udc80" <= character <= "\udcff" for character in field):
                    return DatasetError(f"{path}, line {line}, column {name}: not UTF-8 text")
    return DatasetError(f"{path}: cannot be read ({error})")
