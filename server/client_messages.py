"""What the Python client asks and gets, and its translation to and from the wire.

Import these names from ``server.client``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypedDict, Unpack

import grpc
from candidate_search.v1 import candidate_search_service_pb2 as pb
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]

_STATUS_KEY = "grpc-status-details-bin"

FieldValue: TypeAlias = str | int | float | bool | list[str] | None
FilterValue: TypeAlias = str | int | float | bool


@dataclass(frozen=True)
class User:
    """A user: ``User("42")`` as trained, with anything else as they are now.

    Attributes:
        user_id: as trained; empty for a user without an id.
        history: candidate ids, oldest first; they follow the history known from training.
        history_replaces: whether they take its place.
        features: values of the query tower's other features.
    """

    user_id: str = ""
    history: Sequence[str] = ()
    history_replaces: bool = False
    features: Mapping[str, str | float | Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Like:
    """More like this candidate."""

    candidate_id: str


@dataclass(frozen=True)
class Embedding:
    """A vector in the candidates' space; NumPy arrays will do."""

    values: Iterable[float]


@dataclass(frozen=True)
class Examples:
    """Candidates like the liked, unlike the disliked."""

    liked: Sequence[str]
    disliked: Sequence[str] = ()


Query: TypeAlias = User | Like | Embedding | Examples


class SearchOptions(TypedDict, total=False):
    """What may be asked of a search besides its query; the ``.proto`` says the limits."""

    count: int
    """Candidates wanted; 10."""
    exclude: Sequence[str]
    """Ids that must not be returned."""
    exclude_history: bool
    """Whether what the user did is left out; True."""
    where: Condition
    """What the metadata must meet: ``Field("year").between(1990, 1999)``."""
    min_score: float
    """The lowest score returned."""
    diversity: Mmr | PerGroup
    """How to trade score for variety."""
    backend: str
    """The backend to search; at most one of this, ``exact`` and ``recall_target``."""
    exact: bool
    """Whether to score every eligible candidate."""
    recall_target: float
    """The least expected recall, in (0, 1]."""
    unknown_user: Literal["fallback", "error"]
    """Popular candidates or an error for a user of whom nothing is known; fallback."""
    rank: bool
    """Whether the ranking model orders the candidates of the answer; False."""
    returned_fields: Sequence[str]
    """Metadata columns wanted."""
    page_token: str
    """``next_page_token`` of the page before this one."""


@dataclass(frozen=True)
class Mmr:
    """Maximal marginal relevance; ``weight`` is that of the score against variety, in [0, 1]."""

    weight: float = 0.5
    pool: int = 0


@dataclass(frozen=True)
class PerGroup:
    """At most ``max_count`` candidates with one value of the column ``field``."""

    field: str
    max_count: int = 1


@dataclass(frozen=True)
class Condition:
    """A condition on metadata; combine with ``&``, ``|`` and ``~``."""

    message: pb.Filter

    def __and__(self, other: Condition) -> Condition:
        return Condition(
            pb.Filter(all_of=pb.FilterList(filters=[self.message, other.message])),
        )

    def __or__(self, other: Condition) -> Condition:
        return Condition(
            pb.Filter(any_of=pb.FilterList(filters=[self.message, other.message])),
        )

    def __invert__(self) -> Condition:
        return Condition(pb.Filter(negated=self.message))


@dataclass(frozen=True)
class Field:
    """A metadata column, to make conditions of."""

    name: str

    def equals(self, value: FilterValue) -> Condition:
        """Holds where the value is this one."""
        return self._condition(equals=_filter_value(value))

    def one_of(self, values: Iterable[FilterValue]) -> Condition:
        """Holds where the value is one of these."""
        return self._condition(one_of=pb.FilterValueList(values=map(_filter_value, values)))

    def between(
        self, minimum: FilterValue | None = None, maximum: FilterValue | None = None
    ) -> Condition:
        """Holds where the value lies between the bounds, both included; None is no bound."""
        bounds = pb.FilterRange()
        if minimum is not None:
            bounds.minimum.CopyFrom(_filter_value(minimum))
        if maximum is not None:
            bounds.maximum.CopyFrom(_filter_value(maximum))
        return self._condition(range=bounds)

    def contains(self, value: FilterValue) -> Condition:
        """Holds where a list has this item, or a text this part."""
        return self._condition(contains=_filter_value(value))

    def is_null(self) -> Condition:
        """Holds where there is no value."""
        return self._condition(is_null=True)

    def _condition(self, **test: Any) -> Condition:
        return Condition(pb.Filter(condition=pb.FieldCondition(field=self.name, **test)))


@dataclass(frozen=True)
class Candidate:
    """One candidate of an answer."""

    id: str
    score: float
    fields: Mapping[str, FieldValue]
    ranking_score: float | None = None
    """The ranking model's, if it was asked."""


@dataclass(frozen=True)
class Notice:
    """Something the caller should know about an answer: ``COLD_START``, ``UNKNOWN_IDS``..."""

    code: str
    message: str
    ids: Sequence[str]
    count: int


@dataclass(frozen=True)
class SearchResults:
    """The candidates found, best first; iterate for one at a time, or take the parallel lists.

    Attributes:
        ids: candidate ids.
        scores: their scores.
        ranking_scores: the ranking model's scores, if it was asked.
        columns: the returned fields by name, each parallel to ``ids``.
        notices: what to know about this answer.
        plan: how it was searched for.
        index_version: which index answered.
        next_page_token: of the next page; empty when there is none.
    """

    ids: list[str]
    scores: list[float]
    ranking_scores: list[float]
    columns: dict[str, list[FieldValue]]
    notices: list[Notice]
    plan: pb.SearchPlan
    index_version: str
    next_page_token: str

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Candidate]:
        ranking_scores: Sequence[float | None] = self.ranking_scores or [None] * len(self.ids)
        for i, (candidate_id, score) in enumerate(zip(self.ids, self.scores, strict=True)):
            fields = {name: values[i] for name, values in self.columns.items()}
            yield Candidate(candidate_id, score, fields, ranking_scores[i])


class SearchFailedError(Exception):
    """A call that was refused or did not get through.

    Attributes:
        code: the status, as gRPC names it: ``NOT_FOUND``.
        reason: why, as the server names it: ``CANDIDATE_UNKNOWN``; empty if it did not answer.
        metadata: the dynamic parts of the message.
        request_id: under which the server's log knows the call; empty if it did not answer.
        retry_after_seconds: when an overloaded server may be asked again; None if it says nothing.
    """

    def __init__(
        self,
        code: str,
        message: str,
        reason: str,
        metadata: Mapping[str, str],
        request_id: str,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(f"{reason or code}: {message}")
        self.code = code
        self.reason = reason
        self.metadata = dict(metadata)
        self.request_id = request_id
        self.retry_after_seconds = retry_after_seconds


def search_request(query: Query, **options: Unpack[SearchOptions]) -> pb.SearchCandidatesRequest:
    """Return a search as the wire has it, for ``search_batch``.

    Raises:
        TypeError: if the query or an option is none of those there are.
    """
    if unknown := options.keys() - SearchOptions.__annotations__.keys():
        raise TypeError(
            f"no option {', '.join(sorted(unknown))}; "
            f"there are {', '.join(SearchOptions.__annotations__)}"
        )
    request = pb.SearchCandidatesRequest(
        query=_query(query),
        candidate_count=options.get("count", 0),
        excluded_candidate_ids=options.get("exclude", ()),
        exclude_history=options.get("exclude_history"),
        min_score=options.get("min_score"),
        rank=options.get("rank", False),
        returned_fields=options.get("returned_fields", ()),
        page_token=options.get("page_token", ""),
    )
    if "where" in options:
        request.filter.CopyFrom(options["where"].message)
    if "diversity" in options:
        request.diversity.CopyFrom(_diversity(options["diversity"]))
    if options.get("unknown_user") == "error":
        request.unknown_user_policy = pb.UNKNOWN_USER_POLICY_ERROR
    _set_mode(request, options)
    return request


def search_results(response: pb.SearchCandidatesResponse) -> SearchResults:
    """Read an answer."""
    return SearchResults(
        ids=list(response.candidate_ids),
        scores=list(response.scores),
        ranking_scores=list(response.ranking_scores),
        columns={column.name: _column(column) for column in response.columns},
        notices=[_notice(notice) for notice in response.notices],
        plan=response.plan,
        index_version=response.index_version,
        next_page_token=response.next_page_token,
    )


def batch_results(
    response: pb.BatchSearchCandidatesResponse,
) -> list[SearchResults | SearchFailedError]:
    """Read the answers to a batch, in order; a refused search is its error."""
    return [
        search_results(result.response)
        if result.WhichOneof("result") == "response"
        else _failure_of(result.status)
        for result in response.results
    ]


def token_metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    """Return the metadata that carries a token."""
    return () if token is None else (("authorization", f"Bearer {token}"),)


def failure(error: grpc.RpcError) -> SearchFailedError:
    """Read why a call failed."""
    trailing: Any = error.trailing_metadata()
    for key, value in trailing or ():
        if key == _STATUS_KEY:
            return _failure_of(status_pb2.Status.FromString(value))
    return SearchFailedError(error.code().name, error.details() or "", "", {}, "")


def _failure_of(status: status_pb2.Status) -> SearchFailedError:
    info, request_info = error_details_pb2.ErrorInfo(), error_details_pb2.RequestInfo()
    retry_info = error_details_pb2.RetryInfo()
    for detail in status.details:
        # Each unpacks only what is its own.
        detail.Unpack(info)
        detail.Unpack(request_info)
        detail.Unpack(retry_info)
    retry_after = retry_info.retry_delay.ToTimedelta().total_seconds()
    code = code_pb2.Code.Name(status.code)
    return SearchFailedError(
        code,
        status.message,
        info.reason,
        info.metadata,
        request_info.request_id,
        retry_after or None,
    )


def _query(query: Query) -> pb.Query:
    match query:
        case User():
            return _user_query(query)
        case Like(candidate_id):
            return pb.Query(candidate_id=candidate_id)
        case Embedding(values):
            return pb.Query(embedding=pb.Embedding(values=values))
        case Examples(liked, disliked):
            examples = pb.Examples(liked_candidate_ids=liked, disliked_candidate_ids=disliked)
            return pb.Query(examples=examples)
    raise TypeError(f"a query is a User, Like, Embedding or Examples, not {query!r}")


def _user_query(user: User) -> pb.Query:
    if user == User(user.user_id) and user.user_id:
        return pb.Query(user_id=user.user_id)
    context = pb.UserContext(
        user_id=user.user_id,
        history=[pb.Interaction(candidate_id=candidate_id) for candidate_id in user.history],
        history_replaces=user.history_replaces,
        features={name: _feature_value(value) for name, value in user.features.items()},
    )
    return pb.Query(user=context)


def _feature_value(value: str | float | Sequence[str]) -> pb.FeatureValue:
    if isinstance(value, str):
        return pb.FeatureValue(text=value)
    if isinstance(value, int | float):
        return pb.FeatureValue(number=value)
    return pb.FeatureValue(texts=pb.StringList(values=value))


def _filter_value(value: FilterValue) -> pb.FilterValue:
    if isinstance(value, str):
        return pb.FilterValue(text=value)
    if isinstance(value, bool):
        return pb.FilterValue(flag=value)
    if isinstance(value, int):
        return pb.FilterValue(integer=value)
    return pb.FilterValue(number=value)


def _diversity(diversity: Mmr | PerGroup) -> pb.Diversity:
    if isinstance(diversity, PerGroup):
        per_group = pb.PerGroup(field=diversity.field, max_count=diversity.max_count)
        return pb.Diversity(per_group=per_group)
    mmr = pb.Mmr(pool=diversity.pool)
    setattr(mmr, "lambda", diversity.weight)  # a keyword of Python
    return pb.Diversity(mmr=mmr)


def _set_mode(request: pb.SearchCandidatesRequest, options: SearchOptions) -> None:
    modes = [mode for mode in ("backend", "exact", "recall_target") if options.get(mode)]
    if len(modes) > 1:
        raise TypeError(f"only one of {', '.join(modes)} can say how to search")
    for mode in modes:
        setattr(request, mode, options[mode])  # type: ignore[literal-required]


def _notice(notice: pb.Notice) -> Notice:
    code = pb.NoticeCode.Name(notice.code).removeprefix("NOTICE_CODE_")
    return Notice(code, notice.message, list(notice.ids), notice.count)


def _column(column: pb.MetadataColumn) -> list[FieldValue]:
    kind = column.WhichOneof("values")
    values: list[FieldValue]
    if kind == "string_lists":
        values = [list(one.values) for one in column.string_lists.values]
    else:
        values = list(getattr(column, kind).values) if kind else []
    for position in column.null_positions:
        values[position] = None
    return values
