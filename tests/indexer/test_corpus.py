from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from indexer.corpus import Corpus, CorpusError, read_corpus, read_vectors
from trainer.datasets import DatasetError
from trainer.vocabulary import Vocabulary


def test_own_files(own_files: dict[str, Path]) -> None:
    corpus = read_corpus(*own_files.values())
    assert (corpus.n_candidates, corpus.dim) == (3, 2)
    assert corpus.candidates.column("candidate_id").to_pylist() == ["a", "b", "c"]
    assert corpus.candidates.column("title").to_pylist() == ["A", "B", "C"]
    assert corpus.candidate_ids.row("c") == 2
    assert not corpus.has_bias_dimension
    np.testing.assert_array_equal([0, 0, 0], corpus.popularity)


def test_metadata_is_optional(own_files: dict[str, Path]) -> None:
    corpus = read_corpus(own_files["vectors.npy"], own_files["ids.txt"])
    assert corpus.candidates.column_names == ["candidate_id"]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_floating_point_type_becomes_float32(tmp_path: Path, dtype: Any) -> None:
    np.save(tmp_path / "v.npy", np.array([[0.5, 2.0]], dtype=dtype))
    vectors = read_vectors(tmp_path / "v.npy")
    assert np.dtype(np.float32) == vectors.dtype
    np.testing.assert_array_equal([[0.5, 2.0]], vectors)


def test_vectors_in_fortran_order(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.asfortranarray([[1.0, 2.0], [3.0, 4.0]]))
    assert read_vectors(tmp_path / "v.npy").flags.c_contiguous


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32()), pa.list_(pa.float64(), 2), pa.large_list(pa.int64())]
)
def test_vectors_in_a_parquet_column(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({"embedding": pa.array([[1, 2], [3, 4], [5, 6]], kind)})
    pq.write_table(table, tmp_path / "V.PARQUET", row_group_size=2)
    np.testing.assert_array_equal([[1, 2], [3, 4], [5, 6]], read_vectors(tmp_path / "V.PARQUET"))


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.array([[0, 1], [np.nan, 0]], np.float32), "row 1 of the embeddings holds a NaN"),
        (np.array([[0, 1], [1, 0], [0, -np.inf]], np.float32), "row 2 of the embeddings holds"),
        (np.array([[1e300, 1]]), "row 0 of the embeddings holds a NaN or an infinity"),
        (np.array([[1e30, 1]]), "row 0 of the embeddings is too large"),
        (np.array([1.0, 2.0]), r"shape \(n, dim\), not \(2,\)"),
        (np.empty((0, 4)), "must not be empty"),
        (np.array([[True, False]]), "must hold numbers, not bool"),
        (np.array([[1.0], [1.0, 2.0]], dtype=object), "not a readable .npy file"),
    ],
)
def test_vectors_that_are_refused(tmp_path: Path, vectors: Any, message: str) -> None:
    # Pickled on purpose where the array holds objects: that is a file that must be refused.
    np.save(tmp_path / "v.npy", vectors, allow_pickle=True)
    with pytest.raises(CorpusError, match=message):
        read_vectors(tmp_path / "v.npy")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([[1.0, 2.0], [3.0]], "row 1 has dimension 1, row 0 has dimension 2"),
        ([[1.0], None], "row 1 has no embedding"),
        ([[1.0], [None]], "row 1 of the embeddings holds a NaN"),
        ([None, [1.0]], "row 0 has no embedding"),
        ([[], []], "must not be empty"),
        ([["a"], ["b"]], "column 'embedding' must hold lists of numbers, not list<"),
        ([1.0, 2.0], "column 'embedding' must hold lists of numbers, not double"),
    ],
)
def test_vector_columns_that_are_refused(tmp_path: Path, column: Any, message: str) -> None:
    pq.write_table(pa.table({"embedding": column}), tmp_path / "v.parquet")
    with pytest.raises(CorpusError, match=message):
        read_vectors(tmp_path / "v.parquet")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"text"])
def test_what_is_no_npy_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "v.npy").write_bytes(content)
    with pytest.raises(CorpusError, match=r"not a readable \.npy file"):
        read_vectors(tmp_path / "v.npy")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="there is no file"):
        read_vectors(tmp_path / "v.npy")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("a\nb\n", "has 3 rows but .* has 2 ids"),
        ("a\nb\na\n", "'a' stands in row 0 and in row 2"),
        ("a\n\nc\n", "row 1 has an empty"),
    ],
)
def test_ids_that_are_refused(own_files: dict[str, Path], ids: str, message: str) -> None:
    own_files["ids.txt"].write_text(ids)
    with pytest.raises(CorpusError, match=message):
        read_corpus(own_files["vectors.npy"], own_files["ids.txt"])


def test_whole_numbers_are_vectors_too(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.array([[1, 2], [-3, 4]], np.int8))
    pq.write_table(pa.table({"embedding": [[1, 2], [-3, 4]]}), tmp_path / "v.parquet")
    for name in ("v.npy", "v.parquet"):
        np.testing.assert_array_equal([[1, 2], [-3, 4]], read_vectors(tmp_path / name))


def test_queries_that_are_refused_are_called_so(tmp_path: Path) -> None:
    np.save(tmp_path / "q.npy", np.array([[1, np.nan]]))
    with pytest.raises(CorpusError, match="row 0 of the queries holds a NaN"):
        read_vectors(tmp_path / "q.npy", "queries")


def test_a_folder_of_parts_is_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "v.parquet").mkdir()
    for number in (2, 0, 1):
        part = pa.table({"embedding": [[float(number)]]})
        pq.write_table(part, tmp_path / "v.parquet" / f"part-0000{number}.parquet")
    (tmp_path / "v.parquet" / "_SUCCESS").touch()
    np.testing.assert_array_equal([[0], [1], [2]], read_vectors(tmp_path / "v.parquet"))


def test_one_file_may_hold_the_vectors_and_the_metadata(own_files: dict[str, Path]) -> None:
    own = {"candidate_id": ["a", "b", "c"], "embedding": [[1.0], [2.0], [3.0]], "size": [1, 2, 3]}
    file = own_files["metadata.parquet"].with_name("all.parquet")
    pq.write_table(pa.table(own), file)
    corpus = read_corpus(file, own_files["ids.txt"], file)
    np.testing.assert_array_equal([[1], [2], [3]], corpus.embeddings)
    assert ["candidate_id", "size"] == corpus.candidates.column_names


def test_ids_with_windows_line_ends_and_a_byte_order_mark(own_files: dict[str, Path]) -> None:
    own_files["ids.txt"].write_bytes(b"\xef\xbb\xbfa\r\nb\r\nc")
    ids = read_corpus(own_files["vectors.npy"], own_files["ids.txt"]).candidate_ids
    assert ids.tokens([0, 1, 2]) == ["a", "b", "c"]


def test_metadata_is_kept_in_our_types(own_files: dict[str, Path]) -> None:
    own = {
        "candidate_id": pa.array(["c", "a", "b"], pa.string_view()),
        "made": pa.array([0, 1, 2], pa.date32()),
        "size": pa.array([3, 1, 2], pa.int8()),
        "price": pa.array([Decimal("9.50"), Decimal(10), None], pa.decimal128(9, 2)),
    }
    pq.write_table(pa.table(own), own_files["metadata.parquet"])
    assert read_corpus(*own_files.values()).candidates.to_pydict() == {
        "candidate_id": ["a", "b", "c"],
        "made": ["1970-01-02", "1970-01-03", "1970-01-01"],
        "size": [1, 2, 3],
        "price": [10.0, None, 9.5],
    }


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"id": ["a", "b", "c"]}, "must have a column 'candidate_id'; its columns are id"),
        ({"candidate_id": ["a", "b"]}, "no line for candidate 'c'"),
        ({"candidate_id": ["a", "b", "c", "d"]}, "row 3 is about 'd', not a candidate"),
        ({"candidate_id": ["a", "b", "c", "a"]}, "'a' stands in row 0 and in row 3"),
        ({"candidate_id": ["a", "b", "c"], "x": [{"y": 1}] * 3}, "metadata.parquet: column 'x' is"),
    ],
)
def test_metadata_that_is_refused(own_files: dict[str, Path], table: Any, message: str) -> None:
    pq.write_table(pa.table(table), own_files["metadata.parquet"])
    with pytest.raises(CorpusError, match=message):
        read_corpus(*own_files.values())


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(CorpusError, match="2 candidate ids, but 1 rows of candidates"):
        Corpus(
            candidate_ids=Vocabulary(["a", "b"]),
            embeddings=np.ones((2, 3), dtype=np.float32),
            candidates=pa.table({"candidate_id": ["a"]}),
            popularity=np.zeros(2, dtype=np.float32),
        )


def test_metadata_may_be_csv(own_files: dict[str, Path]) -> None:
    file = own_files["metadata.parquet"].with_suffix(".csv")
    file.write_text("candidate_id,year,tags\nc,2000,x|y\na,1999,\nb,,z\n")
    files = (own_files["vectors.npy"], own_files["ids.txt"])
    candidates = read_corpus(*files, file).candidates
    assert candidates.to_pydict() == {
        "candidate_id": ["a", "b", "c"],
        "year": [1999, None, 2000],
        "tags": [[], ["z"], ["x", "y"]],
    }
    file.write_text("candidate_id,year\na,1999\na,2000\n")
    with pytest.raises(DatasetError, match=r"line 3, column candidate_id: candidate a is already"):
        read_corpus(*files, file)
