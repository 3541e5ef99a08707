"""Variety among the candidates that are returned, at the price of some score.

Maximal marginal relevance: Carbonell and Goldstein, "The use of MMR, diversity-based reranking for
reordering documents and producing summaries", SIGIR 1998.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from indexer.metadata import MetadataType
from server.domain import Diversity, Mmr, PerGroup
from server.errors import FieldUnknownError
from server.metadata import Metadata
from server.retrieval import Found
from server.similarity import Directions

# What finding a candidate of all, in order, and its group takes, in numbers that a scan reads
# meanwhile; measured.
_GROUPING_FLOATS = 2_600
_POOL_PER_RESULT = 5  # candidates to choose among, for each that is wanted


class Diversifier:
    """Chooses among what was found in one corpus; safe to use from several threads.

    Args:
        metadata: the columns that groups are made of.
        directions: the directions that similarity is measured by.
    """

    def __init__(self, metadata: Metadata, directions: Directions) -> None:
        self._metadata = metadata
        self._directions = directions
        self._groups: dict[str, np.ndarray] = {}

    def check(self, diversity: Diversity | None) -> None:
        """Refuse groups by a column that is not there, or has several values a candidate.

        Raises:
            FieldUnknownError: if it is so.
        """
        if isinstance(diversity, PerGroup):
            self._group_of(diversity.field)

    def depth(self, diversity: Diversity | None, count: int, n: int) -> int:
        """Return how many candidates to choose ``n`` among, for pages of ``count``."""
        match diversity:
            case None:
                return n
            case Mmr(_, pool):
                # Not by n: deeper answers must begin as the shallower ones do.
                return pool or _POOL_PER_RESULT * count
            case PerGroup():
                return _POOL_PER_RESULT * n

    def reach(self, diversity: Diversity | None, count: int, depth: int) -> int:
        """Return how many candidates all pages of ``count`` can hold, ``depth`` at most."""
        if isinstance(diversity, Mmr):
            return min(depth, self.depth(diversity, count, depth))
        return depth

    def widens(self, diversity: Diversity | None) -> bool:
        """Whether more must be searched while too few are chosen."""
        return isinstance(diversity, PerGroup)

    def cost(self, diversity: Diversity | None, count: int, shape: tuple[int, ...]) -> int:
        """Return about how many numbers a scan reads while a page is chosen, at worst.

        Args:
            diversity: how.
            count: of the page.
            shape: of the corpus, (n_candidates, dim).
        """
        n_candidates, dim = shape
        match diversity:
            case None:
                return 0
            case Mmr():
                return count * self.depth(diversity, count, count) * dim
            case PerGroup():
                return n_candidates * _GROUPING_FLOATS

    def choose(self, diversity: Diversity | None, found: Found, n: int) -> Found:
        """Choose ``n`` of what was found, or fewer if it has no more to choose."""
        match diversity:
            case None:
                return found
            case Mmr(weight):
                directions = self._directions.of_rows(found.rows)
                chosen = choose_by_mmr(found.scores, directions, weight, n)
            case PerGroup(field, max_count):
                chosen = choose_per_group(self._group_of(field)[found.rows], max_count, n)
        return Found(found.rows[chosen], found.scores[chosen], found.method)

    def kept(self, diversity: Diversity | None, joined: Found) -> Found:
        """Return pages that were chosen apart, joined, without what is too many of a group."""
        if isinstance(diversity, PerGroup):
            return self.choose(diversity, joined, len(joined.rows))
        return joined

    def _group_of(self, field: str) -> np.ndarray:
        """Return the group (n_candidates,) int64 of each candidate; -1 is none."""
        if field not in self._groups:
            column = self._metadata.column(field)
            if self._metadata.types[field] is MetadataType.STRING_LIST:
                raise FieldUnknownError(
                    f"column {field!r} holds lists; groups need one value a candidate", field=field
                )
            self._groups[field] = encode_groups(column)
        return self._groups[field]


def choose_by_mmr(scores: np.ndarray, directions: np.ndarray, weight: float, n: int) -> np.ndarray:
    """Choose ``n`` candidates by maximal marginal relevance.

    The scores are first stretched to [0, 1] over the pool, so that ``weight`` means the same
    whatever the length of the query's embedding.

    Args:
        scores: (n_pool,) float32, non-increasing.
        directions: (n_pool, dim) float32, the candidates' embeddings at unit length.
        weight: of the score against variety, in [0, 1].
        n: how many to choose.

    Returns:
        (min(n, n_pool),) int64 positions in the pool in the order of choice; ties go to the better
        score. The first choices do not depend on ``n``.
    """
    n = min(n, len(scores))
    chosen = np.empty(n, dtype=np.int64)
    relevance = _stretched(scores)
    similarity = np.full(len(scores), -1.0, dtype=np.float32)
    values = relevance
    for i in range(n):
        chosen[i] = best = int(np.argmax(values))
        np.maximum(similarity, directions @ directions[best], out=similarity)
        values = weight * relevance - (1.0 - weight) * similarity
        values[chosen[: i + 1]] = -np.inf
    return chosen


def choose_per_group(groups: np.ndarray, max_count: int, n: int) -> np.ndarray:
    """Choose the first ``n`` candidates of which no group has more than ``max_count``.

    Args:
        groups: (n_pool,) int64, the group of each candidate, best first; -1 is no group.
        max_count: the most of one group.
        n: how many to choose.

    Returns:
        Positions in the pool, ascending; fewer than ``n`` if the pool has no more.
    """
    by_group = np.argsort(groups, kind="stable")
    is_first = np.diff(groups[by_group], prepend=-2) != 0
    places = np.arange(len(groups))
    n_before = np.empty_like(places)  # of the same group
    n_before[by_group] = places - np.maximum.accumulate(np.where(is_first, places, 0))
    return np.flatnonzero((n_before < max_count) | (groups < 0))[:n]


def encode_groups(column: pa.Array) -> np.ndarray:
    """Return the group (n_candidates,) int64 of each value of a column; -1 is null."""
    groups: np.ndarray = column.dictionary_encode().indices.fill_null(-1).to_numpy()
    return groups.astype(np.int64)


def _stretched(scores: np.ndarray) -> np.ndarray:
    """Return scores (n,) as a new array, the best at 1 and the worst at 0."""
    spread = scores.max() - scores.min() if len(scores) else 0.0
    stretched: np.ndarray = (scores - scores.min()) / spread if spread else np.ones_like(scores)
    return stretched
