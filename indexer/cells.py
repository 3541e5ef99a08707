"""Candidates in cells, of which a query looks into the few that promise most.

An inverted file (Sivic and Zisserman 2003) keeps each vector with the nearest of some centres. The
largest inner products are with those of a cell's vectors that are long, most of all where the cell
is not a query's nearest; so each cell is parted by their lengths (as Yan et al. 2018 part a corpus,
"Norm-ranging LSH for maximum inner product search"), and has a centre for each part. Far fewer
candidates then need to be looked at to find as many of the best.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from indexer.recall import standard_error

_PARTS = 4  # of a cell; more hold the best in fewer candidates, but each has a centre to compare
_ROWS_AT_ONCE = 1 << 16  # of vectors that are read in the order of the cells
_MAX_BYTE = 127
_FINE = 1.05  # from one number of cells to the next that is tried


@dataclass(frozen=True)
class Cells:
    """A corpus in cells.

    Attributes:
        centers: (n_cells, dim) int8, about centres divided by ``scales``, of which the inner
            product with a query tells how promising a cell is.
        members: (n_candidates,) int32, every row once, those of a cell together.
        starts: (n_cells + 1,) int64, where each cell begins in ``members``; the last is the end.
        coarse: (n_candidates, dim) int8, about the embeddings of ``members`` divided by ``scales``:
            what is together in a cell is together in memory.
        scales: (dim,) float32.
    """

    centers: np.ndarray
    members: np.ndarray
    starts: np.ndarray
    coarse: np.ndarray
    scales: np.ndarray

    @classmethod
    def part(
        cls,
        embeddings: np.ndarray,
        centers: np.ndarray,
        cell_of: np.ndarray,
        coarse: np.ndarray,
        scales: np.ndarray,
    ) -> Self:
        """Part cells by the lengths of the vectors in them.

        Args:
            embeddings: (n_candidates, dim) float32; may be memory-mapped.
            centers: (n, dim) float32, of the cells that are parted.
            cell_of: (n_candidates,) integers, in which of them each candidate is.
            coarse: (n_candidates, dim) int8, about the embeddings divided by the scales; may be
                memory-mapped.
            scales: (dim,) float32.

        Raises:
            ValueError: if a candidate is in no cell that there is.
        """
        n_cells = len(centers)
        if not 0 <= int(cell_of.min(initial=0)) <= int(cell_of.max(initial=0)) < n_cells:
            raise ValueError(f"a candidate is in none of the {n_cells} cells")
        longest_first = np.lexsort((-np.vecdot(embeddings, embeddings), cell_of))
        sizes = np.bincount(cell_of, minlength=n_cells)
        cells = cell_of[longest_first]
        places = np.arange(len(cells)) - (np.cumsum(sizes) - sizes)[cells]
        parts = _PARTS * cells + _PARTS * places // sizes[cells]
        numbers, starts = np.unique(parts, return_index=True)
        starts = np.append(starts, len(cells)).astype(np.int64)
        means = _means(embeddings, longest_first, starts)
        whole = _means(embeddings, longest_first, np.append(0, np.cumsum(sizes[sizes > 0])))
        of_whole = np.unique(numbers // _PARTS, return_inverse=True)[1]
        # What tells cells apart best need not be their means; but lengths shift both alike.
        parted = centers[numbers // _PARTS] + means - whole[of_whole]
        return cls(
            centers=np.rint(parted / scales).clip(-_MAX_BYTE, _MAX_BYTE).astype(np.int8),
            members=longest_first.astype(np.int32),
            starts=starts,
            coarse=np.concatenate([coarse[rows] for rows in _in_parts(longest_first)]),
            scales=scales,
        )

    def save(self, directory: Path) -> None:
        """Write what ``load`` reads into an existing folder."""
        for field in fields(self):
            np.save(directory / f"{field.name}.npy", getattr(self, field.name))

    @classmethod
    def load(cls, directory: Path, shape: tuple[int, ...]) -> Self:
        """Read, and map into memory, what ``save`` wrote.

        Args:
            directory: the folder.
            shape: of the embeddings.

        Raises:
            ValueError: if they are not cells of so many embeddings.
        """
        cells = cls(
            **{
                field.name: np.load(
                    directory / f"{field.name}.npy", mmap_mode="r", allow_pickle=False
                ).view(np.ndarray)
                for field in fields(cls)
            }
        )
        n_cells, (n_candidates, dim) = len(cells.centers), shape
        found = [array.shape for array in cells.arrays]
        expected = [(n_cells, dim), (n_candidates,), (n_cells + 1,), shape, (dim,)]
        # The compiled scan trusts what they say of rows.
        if found != expected or not cells._are_whole(n_candidates):
            raise ValueError(f"{directory} holds no cells of {n_candidates} vectors")
        return cells

    def _are_whole(self, n_candidates: int) -> bool:
        """Whether all members are candidates, and the cells follow one another to the end."""
        ends = (self.starts[0], self.starts[-1])
        return (
            ends == (0, n_candidates)
            and bool((np.diff(self.starts) >= 0).all())
            and int(self.members.min(initial=0)) >= 0
            and int(self.members.max(initial=0)) < n_candidates
        )

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """All of it, as the compiled scan takes it."""
        return (self.centers, self.members, self.starts, self.coarse, self.scales)

    def n_holding(self, queries: np.ndarray, rows: np.ndarray, share: float) -> int:
        """Return how many cells must be searched to find a share of the queries' rows.

        The mean share of the rows that lie in so many cells is above ``share`` by a standard error.

        Args:
            queries: (n_queries, dim) float32.
            rows: (n_queries, n) int64, -1 where there is none.
            share: the mean share of them that is to be in the cells.
        """
        order = np.argsort(-((queries * self.scales) @ self.centers.T.astype(np.float32)), axis=1)
        ranks = np.empty_like(order)
        np.put_along_axis(ranks, order, np.arange(order.shape[1])[None], axis=1)
        ranks = np.take_along_axis(ranks, self._cell_of[rows], axis=1)
        n_rows = np.maximum((rows >= 0).sum(axis=1), 1)
        n_cells, n_all = 1, len(self.centers)
        while n_cells < n_all:
            held = ((ranks < n_cells) & (rows >= 0)).sum(axis=1) / n_rows
            if held.mean() - standard_error(held) >= share:
                break
            n_cells = min(max(n_cells + 1, int(n_cells * _FINE)), n_all)
        return n_cells

    @cached_property
    def _cell_of(self) -> np.ndarray:
        """(n_candidates,) int64, the cell of each candidate."""
        cell_of = np.empty(len(self.members), dtype=np.int64)
        cell_of[self.members] = np.repeat(np.arange(len(self.centers)), np.diff(self.starts))
        return cell_of


def _means(embeddings: np.ndarray, rows: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the means (n, dim) float32 of runs of ``rows``, which begin at ``starts`` (n + 1,)."""
    dim = embeddings.shape[1]
    sums = np.zeros((len(starts) - 1, dim))
    run_of = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    for part, runs in zip(_in_parts(rows), _in_parts(run_of), strict=True):
        first = np.flatnonzero(np.diff(runs, prepend=-1))
        sums[runs[first]] += np.add.reduceat(embeddings[part], first, axis=0)
    means: np.ndarray = (sums / np.diff(starts)[:, None]).astype(np.float32)
    return means


def _in_parts(values: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(values), _ROWS_AT_ONCE):
        yield values[start : start + _ROWS_AT_ONCE]
