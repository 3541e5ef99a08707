"""Candidates in leaves, of which a query looks into the few that promise most.

So does an index that keeps each vector with the nearest of some centres (an inverted file: Sivic
and Zisserman 2003).
"""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np

_FEW_LEAVES = 1 << 16  # 16 bits are sorted several times as fast as 64


class Leaves(NamedTuple):
    """A corpus in leaves; made by ``of``.

    Attributes:
        centers: (n_leaves, dim) float32, of which the inner product with a query tells how
            promising a leaf is.
        members: (n_candidates,) int32, every row once, those of a leaf together.
        starts: (n_leaves + 1,) int64, where each leaf begins in ``members``; the last is the end.
        coarse: (n_candidates, dim) int8, about the embeddings of ``members`` divided by ``scales``:
            what is together in a leaf is together in memory.
        scales: (dim,) float32.
    """

    centers: np.ndarray
    members: np.ndarray
    starts: np.ndarray
    coarse: np.ndarray
    scales: np.ndarray

    @classmethod
    def of(
        cls, centers: np.ndarray, leaf_of: np.ndarray, coarse: np.ndarray, scales: np.ndarray
    ) -> Self:
        """Put candidates into leaves.

        Args:
            centers: (n_leaves, dim) float32.
            leaf_of: (n_candidates,) integers, the leaf of each candidate.
            coarse: (n_candidates, dim) int8, leaf by leaf; may be memory-mapped.
            scales: (dim,) float32.

        Raises:
            ValueError: if a candidate is in no leaf that there is.
        """
        n_leaves = len(centers)
        if not 0 <= int(leaf_of.min(initial=0)) <= int(leaf_of.max(initial=0)) < n_leaves:
            raise ValueError(f"a candidate is in none of the {n_leaves} leaves")
        sizes = np.bincount(leaf_of, minlength=n_leaves)
        return cls(
            centers=np.ascontiguousarray(centers, dtype=np.float32),
            members=members_by_leaf(leaf_of),
            starts=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            coarse=coarse.view(np.ndarray),
            scales=scales,
        )


def members_by_leaf(leaf_of: np.ndarray) -> np.ndarray:
    """Return the rows (n_candidates,) int32, leaf by leaf, each leaf's in rising order.

    Args:
        leaf_of: (n_candidates,) integers from 0, the leaf of each candidate.
    """
    is_few = leaf_of.max(initial=0) < _FEW_LEAVES
    by_leaf = leaf_of.astype(np.uint16 if is_few else np.int64)
    return np.argsort(by_leaf, kind="stable").astype(np.int32)


class LeafCounts(NamedTuple):
    """What was in the leaves that were searched, the most promising first.

    Attributes:
        n_seen: (n_queries, n_searched) int64, the candidates in the leaves so far.
        n_kept: (n_queries, n_searched) int64, the eligible ones among them.
    """

    n_seen: np.ndarray
    n_kept: np.ndarray
