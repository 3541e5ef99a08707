"""What is eligible in some cells of a corpus."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer import _exact
from indexer import cells as module
from indexer.cells import Cells
from indexer.exact import ExactScorer


def in_cells(embeddings: np.ndarray, cell_of: np.ndarray, n_cells: int) -> Cells:
    """Put a corpus into cells around the means of their members, in bytes as ScaNN would."""
    members = np.argsort(cell_of, kind="stable").astype(np.int32)
    coarse, scales = in_bytes(embeddings)
    centers = np.zeros((n_cells, embeddings.shape[1]), np.int8)
    for cell in np.unique(cell_of):
        centers[cell] = np.rint(embeddings[cell_of == cell].mean(axis=0) / scales)
    starts = np.searchsorted(cell_of[members], np.arange(n_cells + 1))
    return Cells(centers, members, starts, coarse[members], scales)


def in_bytes(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scales = (np.maximum(np.abs(embeddings).max(axis=0), 1e-9) / 127).astype(np.float32)
    return np.rint(embeddings / scales).astype(np.int8), scales


def test_cells_are_parted_by_length() -> None:
    embeddings = np.array([[1, 0], [9, 0], [0, 2], [2, 0], [0, 4], [3, 0], [4, 0]], np.float32)
    centers = np.array([[4, 1], [7, 7], [0, 3]], np.float32)
    coarse, scales = in_bytes(embeddings)
    cells = Cells.part(embeddings, centers, np.array([0, 0, 2, 0, 2, 0, 0]), coarse, scales)
    # Of five in the first cell the parts hold two, one, one and one; of two, one each.
    assert [1, 6, 5, 3, 0, 4, 2] == cells.members.tolist()
    assert [0, 2, 3, 4, 5, 6, 7] == cells.starts.tolist()
    # The mean of the first cell is (3.8, 0), that of its longest vectors (6.5, 0).
    np.testing.assert_allclose(
        cells.centers * scales,
        [[6.7, 1], [3.2, 1], [2.2, 1], [1.2, 1], [0, 4], [0, 2]],
        atol=float(scales.max()) / 2,
    )
    np.testing.assert_array_equal(coarse[cells.members], cells.coarse)


@pytest.mark.parametrize("cell", [-1, 2])
def test_a_cell_that_there_is_not(cell: int) -> None:
    embeddings = np.ones((3, 1), np.float32)
    with pytest.raises(ValueError, match="a candidate is in none of the 2 cells"):
        Cells.part(embeddings, embeddings[:2], np.array([0, cell, 1]), *in_bytes(embeddings))


def test_many_are_parted_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((500, 6), dtype=np.float32)
    arguments = (embeddings, embeddings[:7], rng.integers(0, 7, 500), *in_bytes(embeddings))
    at_once = Cells.part(*arguments)
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 13)
    for expected, found in zip(at_once.arrays, Cells.part(*arguments).arrays, strict=True):
        np.testing.assert_allclose(expected, found, rtol=1e-5, atol=1e-6)


def test_saved_and_loaded_they_are_the_same(tmp_path: Path) -> None:
    embeddings = np.random.default_rng(0).standard_normal((50, 3), dtype=np.float32)
    cells = in_cells(embeddings, np.arange(50) // 10, n_cells=5)
    cells.save(tmp_path)
    loaded = Cells.load(tmp_path, (50, 3))
    for expected, found in zip(cells.arrays, loaded.arrays, strict=True):
        np.testing.assert_array_equal(expected, found)
    with pytest.raises(ValueError, match="holds no cells of 51 vectors"):
        Cells.load(tmp_path, (51, 3))


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [("members", 3, 50), ("members", 3, -1), ("starts", 0, 1), ("starts", 2, 99), ("starts", 5, 9)],
)
def test_cells_that_name_other_rows_are_refused(
    tmp_path: Path, name: str, place: int, value: int
) -> None:
    embeddings = np.random.default_rng(0).standard_normal((50, 3), dtype=np.float32)
    in_cells(embeddings, np.arange(50) // 10, n_cells=5).save(tmp_path)
    array = np.load(tmp_path / f"{name}.npy")
    array[place] = value
    np.save(tmp_path / f"{name}.npy", array)
    with pytest.raises(ValueError, match="holds no cells of 50 vectors"):
        Cells.load(tmp_path, (50, 3))


def test_how_many_hold_a_share() -> None:
    """The better half of the best eight lies in the first cell, the others in one each."""
    embeddings = np.arange(16, 0, -1, dtype=np.float32)[:, None]
    cells = in_cells(embeddings, np.array([0] * 4 + list(range(1, 13))), n_cells=13)
    queries, rows = np.ones((3, 1), np.float32), np.tile(np.arange(8), (3, 1))
    shares = (0.1, 0.5, 0.51, 0.75, 1.0)
    assert [1, 1, 2, 3, 5] == [cells.n_holding(queries, rows, share) for share in shares]
    rows[:, 4:] = -1
    assert cells.n_holding(queries, rows, 1.0) == 1


def test_only_the_most_promising_cells_are_looked_into() -> None:
    embeddings = np.array([[9], [1], [8], [2], [7], [3]], np.float32)
    cells = in_cells(embeddings, np.array([0, 1, 0, 1, 0, 1]), n_cells=2)
    eligible = np.array([False, True, True, True, True, True])
    found, counts = ExactScorer(embeddings).search_cells(
        np.array([[2], [-1]], np.float32), 3, eligible, cells, steps=np.array([1]), n_rescored=3
    )
    assert [[2, 4, -1], [1, 3, 5]] == found.rows.tolist()
    assert [[16.0, 14.0, -np.inf], [-1.0, -2.0, -3.0]] == found.scores.tolist()
    assert ([[3], [3]], [[2], [3]]) == (counts.n_seen.tolist(), counts.n_kept.tolist())


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(1, 700),
    dim=st.sampled_from([1, 3, 16, 20, 64]),
    n_cells=st.integers(1, 9),
    k=st.integers(1, 40),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_in_all_cells_it_is_an_exact_search(
    n: int, dim: int, n_cells: int, k: int, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    embeddings = rng.standard_normal((n, dim), dtype=np.float32)
    queries = rng.standard_normal((3, dim), dtype=np.float32)
    cell_of = rng.integers(0, n_cells, n)
    eligible = rng.random(n) < share
    scorer = ExactScorer(embeddings)
    found, counts = scorer.search_cells(
        *(queries, k, eligible, in_cells(embeddings, cell_of, n_cells)),
        steps=np.arange(1, n_cells + 1),
        n_rescored=max(n, k),
    )
    expected = scorer.search(queries, k, eligible)
    np.testing.assert_array_equal(expected.rows, found.rows)
    np.testing.assert_array_equal(expected.scores, found.scores)
    assert [n] * 3 == counts.n_seen[:, -1].tolist()
    assert [np.count_nonzero(eligible)] * 3 == counts.n_kept[:, -1].tolist()


@pytest.mark.parametrize("dim", [5, 64, 5000])
def test_what_seems_best_in_bytes_is_scored_exactly(dim: int) -> None:
    rng = np.random.default_rng(dim)
    embeddings = rng.standard_normal((2000, dim), dtype=np.float32)
    queries = rng.standard_normal((20, dim), dtype=np.float32)
    scorer = ExactScorer(embeddings)
    cells = in_cells(embeddings, rng.integers(0, 7, 2000), n_cells=7)
    everything = np.ones(2000, bool)
    steps = np.array([7])
    found, _ = scorer.search_cells(queries, 20, everything, cells, steps=steps, n_rescored=40)
    np.testing.assert_array_equal(scorer.search(queries, 20).rows, found.rows)


@pytest.mark.parametrize("length", [1e-34, 1e-20, 1e15])
def test_queries_of_any_length_find_the_same(length: float) -> None:
    rng = np.random.default_rng(3)
    embeddings = rng.standard_normal((500, 8), dtype=np.float32)
    queries = rng.standard_normal((5, 8), dtype=np.float32)
    cells = in_cells(embeddings, rng.integers(0, 7, 500), n_cells=7)
    search = partial(
        ExactScorer(embeddings).search_cells,
        k=10,
        eligible=np.ones(500, bool),
        cells=cells,
        steps=np.array([3]),
        n_rescored=12,
    )
    expected, _ = search(queries)
    found, _ = search(queries * np.float32(length))
    np.testing.assert_array_equal(expected.rows, found.rows)


TASK = [
    np.zeros((2, 4), np.float32),
    np.zeros((1, 4), np.float32),
    np.zeros((1, 2), np.int64),
    np.zeros((1, 2), np.float32),
    np.ones(2, np.bool_),
    np.zeros((3, 4), np.int8),
    np.array([0, 1], np.int32),
    np.array([0, 1, 2, 2]),
    np.zeros((2, 4), np.int8),
    np.ones(4, np.float32),
    np.array([1, 2, 3]),
    np.zeros((1, 3), np.int64),
    np.zeros((1, 3), np.int64),
    np.zeros(2, np.int64),
]


@pytest.mark.parametrize(
    ("place", "array"),
    [
        (0, np.zeros(8, np.float32)),
        (0, np.array(0, np.float32)),
        (4, np.ones(3, np.bool_)),
        (4, np.ones(2, np.int8)),
        (5, np.zeros((3, 5), np.int8)),
        (5, np.zeros((3, 4), np.float32)),
        (6, np.array([0, 1])),
        (6, np.zeros(3, np.int32)),
        (7, np.array([0, 1, 2])),
        (7, np.array([0, 1, 2, 2], np.int32)),
        (8, np.zeros((2, 4), np.uint8)),
        (8, np.zeros((3, 4), np.int8)),
        (8, np.zeros((2, 5), np.int8)),
        (9, np.ones(5, np.float32)),
        (10, np.array([1, 2])),
        (10, np.array([1, 2, 4])),
        (10, np.array([0, 1, 2])),
        (10, np.array([1, 1, 2])),
        (10, np.array([1, 2, 3], np.int32)),
        (11, np.zeros((2, 3), np.int64)),
        (12, np.zeros((1, 2), np.int64)),
        (13, np.zeros(1, np.int64)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(place: int, array: np.ndarray) -> None:
    arrays: list[Any] = list(TASK)
    _exact.scan_cells(*arrays)
    arrays[place] = array
    with pytest.raises(ValueError, match="do not fit"):
        _exact.scan_cells(*arrays)


def test_no_steps_are_refused() -> None:
    counts = [np.zeros((1, 0), np.int64), np.zeros((1, 0), np.int64)]
    with pytest.raises(ValueError, match="do not fit"):
        _exact.scan_cells(*TASK[:10], np.array([], np.int64), *counts, TASK[13])
    with pytest.raises(TypeError, match="14 arguments, not 13"):
        _exact.scan_cells(*TASK[:13])  # type: ignore[call-arg]
