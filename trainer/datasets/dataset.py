"""What a dataset is, whichever source it comes from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from trainer.errors import TrainerError
from trainer.vocabulary import Vocabulary


class DatasetError(TrainerError):
    """What is wrong with a dataset, in words for the person who asked for it."""


class DatasetUnavailableError(DatasetError):
    """The dataset is known but cannot be had on this machine."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Users, candidates and their interactions.

    The line of a table is the row of a user or candidate everywhere else; ids are sorted by their
    bytes, so the same data has the same rows whatever order its source listed it in. Interactions
    keep the order of their source.

    Attributes:
        name: what was asked for, as in ``movielens/100k`` or ``sample``.
        users: ``user_id`` and the users' features, if any.
        candidates: ``candidate_id``, usually ``title``, and further metadata.
        user_rows: (n_interactions,) int32, who interacted.
        candidate_rows: (n_interactions,) int32, with what.
        timestamps: (n_interactions,) int64 seconds since 1970, or None where the source has none.
        ratings: (n_interactions,) float32, or None where the source has none.
        min_rating: what all of them are at least, if they were chosen so.
    """

    name: str
    users: pa.Table
    candidates: pa.Table
    user_rows: npt.NDArray[np.int32]
    candidate_rows: npt.NDArray[np.int32]
    timestamps: npt.NDArray[np.int64] | None = None
    ratings: npt.NDArray[np.float32] | None = None
    min_rating: float | None = None

    def __len__(self) -> int:
        return len(self.user_rows)

    @property
    def n_users(self) -> int:
        """Number of users, with or without interactions."""
        return len(self.users)

    @property
    def n_candidates(self) -> int:
        """Number of candidates, with or without interactions."""
        return len(self.candidates)

    @cached_property
    def user_ids(self) -> Vocabulary:
        """User ids and their rows."""
        return Vocabulary(self.users["user_id"])

    @cached_property
    def candidate_ids(self) -> Vocabulary:
        """Candidate ids and their rows."""
        return Vocabulary(self.candidates["candidate_id"])

    def with_min_rating(self, min_rating: float) -> Dataset:
        """Return the dataset with only the interactions rated at least ``min_rating``.

        Users and candidates stay, so that rows keep their meaning.

        Raises:
            DatasetError: if there are no ratings, or none is high enough.
        """
        if self.ratings is None:
            raise DatasetError(
                f"{self.name} has no ratings, so interactions cannot be narrowed to ratings of "
                f"at least {min_rating:g}: leave the minimum out, or add a rating column"
            )
        kept = np.flatnonzero(self.ratings >= min_rating)
        if not len(kept):
            raise DatasetError(
                f"no interaction of {self.name} is rated at least {min_rating:g}: "
                f"its highest rating is {self.ratings.max():g}"
            )
        return replace(self._with_interactions(kept), min_rating=min_rating)

    def with_candidates(
        self, candidates: pa.Table, new_rows: npt.NDArray[np.integer[Any]]
    ) -> Dataset:
        """Return the dataset over other candidates, with the interactions that they have.

        Args:
            candidates: as ``candidates``.
            new_rows: (n_candidates,) the row of each of today's candidates in them; -1: none.
        """
        narrowed = self._with_interactions(np.flatnonzero(new_rows[self.candidate_rows] >= 0))
        candidate_rows = new_rows[narrowed.candidate_rows].astype(np.int32)
        return replace(narrowed, candidates=candidates, candidate_rows=candidate_rows)

    def _with_interactions(self, kept: npt.NDArray[np.integer[Any]]) -> Dataset:
        return replace(
            self,
            user_rows=self.user_rows[kept],
            candidate_rows=self.candidate_rows[kept],
            timestamps=None if self.timestamps is None else self.timestamps[kept],
            ratings=None if self.ratings is None else self.ratings[kept],
        )


def sorted_unique(ids: pa.ChunkedArray) -> pa.StringArray:
    """Return every id once, in the order of their bytes: the rows of a dataset."""
    unique = pc.unique(ids)
    return unique.take(pc.sort_indices(unique))


def rows_of(ids: pa.ChunkedArray, known: pa.Array) -> npt.NDArray[np.int32]:
    """Return the position (n,) int32 of each id in ``known``, -1 where it is not there."""
    rows = pc.fill_null(pc.index_in(ids, value_set=known), -1)
    return np.asarray(rows, dtype=np.int32)
