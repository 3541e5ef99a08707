"""What a search is asked and what it answers, free of any transport.

The engine and its stages speak in these; ``server.decoding`` and ``server.encoding`` translate them
from and to the wire, whose comments say what each field means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

import numpy as np

from indexer.filters import Filter

FeatureValue: TypeAlias = str | float | Sequence[str]


@dataclass(slots=True)
class UserQuery:
    """A user: as known from training, and as they are now if anything is added."""

    user_id: str = ""
    history: Sequence[str] = ()
    """Candidate ids, oldest first."""
    history_replaces: bool = False
    features: Mapping[str, FeatureValue] = field(default_factory=dict)

    @property
    def adds_nothing(self) -> bool:
        """Whether this is the user exactly as trained."""
        return not (self.history or self.history_replaces or self.features)


@dataclass(slots=True)
class CandidateQuery:
    """Candidates like this one."""

    candidate_id: str


@dataclass(slots=True)
class EmbeddingQuery:
    """A vector (dim,) float32 in the candidates' space."""

    vector: np.ndarray


@dataclass(slots=True)
class ExamplesQuery:
    """Candidates like the liked, unlike the disliked."""

    liked: Sequence[str]
    disliked: Sequence[str] = ()


Query: TypeAlias = UserQuery | CandidateQuery | EmbeddingQuery | ExamplesQuery


@dataclass(slots=True, frozen=True)
class Mmr:
    """Choose each candidate for its score and against its resemblance to those chosen before."""

    weight: float = 0.5
    """Of the score against variety, in [0, 1]; the ``lambda`` of the paper."""
    pool: int = 0
    """How many of the best to choose among; 0 means five times the count."""


@dataclass(slots=True, frozen=True)
class PerGroup:
    """At most ``max_count`` candidates with the same value of the column ``field``."""

    field: str
    max_count: int = 1


Diversity: TypeAlias = Mmr | PerGroup


@dataclass(slots=True)
class SearchRequest:
    """One search; the defaults are the wire's."""

    query: Query
    count: int = 10
    exclusions: Sequence[str] = ()
    exclude_history: bool = True
    filter: Filter | None = None
    min_score: float | None = None
    diversity: Diversity | None = None
    backend: str | None = None
    exact: bool = False
    recall_target: float | None = None
    refuse_unknown_user: bool = False
    rank: bool = False
    returned_fields: Sequence[str] = ()
    offset: int = 0
    """How many candidates come before the page that is wanted."""


class SearchMethod(Enum):
    """How candidates were searched for; the names are the wire's."""

    INDEX = "index"
    OVER_FETCH = "over-fetch"
    MASKED_SCAN = "masked scan"
    EXACT = "exact"
    POPULARITY = "popularity"


@dataclass(slots=True, frozen=True, eq=False)
class SearchPlan:
    """How candidates are searched for; one object for all searches that are made alike."""

    backend: str
    method: SearchMethod
    search_params: Mapping[str, float] = field(default_factory=dict)
    expected_recall: float | None = None
    exact: bool = False


class NoticeCode(Enum):
    """What a notice is about; the names are the wire's."""

    COLD_START = "cold start"
    DEGRADED = "degraded"
    FEWER_ELIGIBLE = "fewer eligible"
    UNKNOWN_IDS = "unknown ids"


@dataclass(slots=True)
class Notice:
    """Something the caller should know about an answer."""

    code: NoticeCode
    message: str
    ids: Sequence[str] = ()
    count: int = 0


@dataclass(slots=True)
class SearchResult:
    """What was found, best first."""

    rows: np.ndarray
    """(n,) int64"""
    scores: np.ndarray
    """(n,) float32, parallel to ``rows``"""
    plan: SearchPlan
    ranking_scores: np.ndarray | None = None
    """(n,) float32, parallel to ``rows``, non-increasing, if they were asked for"""
    notices: list[Notice] = field(default_factory=list)
    has_more: bool = False
    """Whether another page follows, though it may turn out empty."""
    stage_nanos: Mapping[str, int] = field(default_factory=dict)
    """Wall time by stage, in order."""
