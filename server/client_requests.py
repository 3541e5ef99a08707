"""What the Python client asks, and its translation to the wire.

Import these names from ``server.client``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar, Unpack

from candidate_search.v1 import candidate_search_service_pb2 as pb

FilterValue: TypeAlias = str | int | float | bool

T = TypeVar("T")


@dataclass(frozen=True)
class User:
    """A user: ``User("42")`` as trained, with anything else as they are now.

    Attributes:
        user_id: as trained; empty for a user without an id.
        history: candidate ids, oldest first; they follow the history known from training.
        history_replaces: whether they take its place.
        features: values of the query tower's other features; None is left out.
    """

    user_id: str = ""
    history: Sequence[str] = ()
    history_replaces: bool = False
    features: Mapping[str, str | float | Sequence[str] | None] = field(default_factory=dict)


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
        filters = [*self._parts("all_of"), *other._parts("all_of")]
        return Condition(pb.Filter(all_of=pb.FilterList(filters=filters)))

    def __or__(self, other: Condition) -> Condition:
        filters = [*self._parts("any_of"), *other._parts("any_of")]
        return Condition(pb.Filter(any_of=pb.FilterList(filters=filters)))

    def __invert__(self) -> Condition:
        return Condition(pb.Filter(negated=self.message))

    def __bool__(self) -> bool:
        # Python's `and` would leave one of two conditions out without a word.
        raise TypeError("combine conditions with &, | and ~, not with and, or and not")

    def _parts(self, kind: Literal["all_of", "any_of"]) -> Sequence[pb.Filter]:
        """Return what this combines in such a way already: one level deep, however many."""
        is_combined = self.message.WhichOneof("kind") == kind
        parts: pb.FilterList = getattr(self.message, kind)
        return parts.filters if is_combined else [self.message]


@dataclass(frozen=True)
class Field:
    """A metadata column, to make conditions of."""

    name: str

    def equals(self, value: FilterValue) -> Condition:
        """Holds where the value is this one."""
        return self._condition(equals=_filter_value(value))

    def one_of(self, values: Iterable[FilterValue]) -> Condition:
        """Holds where the value is one of these."""
        return self._condition(
            one_of=pb.FilterValueList(values=map(_filter_value, _several("one_of", values)))
        )

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
        excluded_candidate_ids=_ids("exclude", options.get("exclude", ())),
        exclude_history=options.get("exclude_history"),
        min_score=options.get("min_score"),
        rank=options.get("rank", False),
        returned_fields=_several("returned_fields", options.get("returned_fields", ())),
        page_token=options.get("page_token", ""),
    )
    if (condition := options.get("where")) is not None:
        if not isinstance(condition, Condition):
            raise TypeError(
                f"where takes a condition, such as Field('year').equals(1990), not {condition!r}"
            )
        request.filter.CopyFrom(condition.message)
    if (diversity := options.get("diversity")) is not None:
        request.diversity.CopyFrom(_diversity(diversity))
    request.unknown_user_policy = _unknown_user_policy(options.get("unknown_user", "fallback"))
    _set_mode(request, options)
    return request


def _query(query: Query) -> pb.Query:
    match query:
        case User():
            return _user_query(query)
        case Like(candidate_id):
            return pb.Query(candidate_id=_id("candidate_id", candidate_id))
        case Embedding(values):
            return pb.Query(embedding=pb.Embedding(values=_numbers(values)))
        case Examples(liked, disliked):
            examples = pb.Examples(
                liked_candidate_ids=_ids("liked", liked),
                disliked_candidate_ids=_ids("disliked", disliked),
            )
            return pb.Query(examples=examples)
    raise TypeError(f"a query is a User, Like, Embedding or Examples, not {query!r}")


def _numbers(values: Iterable[float]) -> Iterable[float]:
    shape = getattr(values, "shape", (0,))
    if len(shape) != 1:
        raise TypeError(f"an embedding is one vector, not an array of shape {tuple(shape)}")
    return values


def _user_query(user: User) -> pb.Query:
    user_id, history = _id("user_id", user.user_id), _ids("history", user.history)
    if not isinstance(user.features, Mapping):
        raise TypeError(f"features are values by name, not {user.features!r}")
    features = {
        name: _feature_value(name, value)
        for name, value in user.features.items()
        if value is not None
    }
    if user_id and not (history or user.history_replaces or features):
        return pb.Query(user_id=user_id)
    context = pb.UserContext(
        user_id=user_id,
        history=[pb.Interaction(candidate_id=candidate_id) for candidate_id in history],
        history_replaces=user.history_replaces,
        features=features,
    )
    return pb.Query(user=context)


def _ids(name: str, values: Iterable[str] | None) -> list[str]:
    return [_id(name, value) for value in _several(name, values)]


def _id(name: str, value: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name}: ids are texts, {str(value)!r} and not {value!r}")
    return value


def _several(name: str, values: Iterable[T] | None) -> list[T]:
    """Return values as a list; a text would be one of its letters."""
    if isinstance(values, str):
        raise TypeError(f"{name} takes several values: [{values!r}] instead of {values!r}")
    return [] if values is None else list(values)


def _plain(value: Any) -> Any:
    """Return NumPy's scalars as Python's, which gRPC takes."""
    return value.item() if getattr(value, "shape", None) == () else value


def _feature_value(name: str, value: str | float | Sequence[str]) -> pb.FeatureValue:
    if isinstance(value, str):
        return pb.FeatureValue(text=value)
    value = _plain(value)
    if isinstance(value, int | float):
        return pb.FeatureValue(number=value)
    return pb.FeatureValue(texts=pb.StringList(values=_several(name, value)))


def _filter_value(value: FilterValue) -> pb.FilterValue:
    value = _plain(value)
    if isinstance(value, str):
        return pb.FilterValue(text=value)
    if isinstance(value, bool):
        return pb.FilterValue(flag=value)
    if isinstance(value, int):
        return pb.FilterValue(integer=value)
    if not isinstance(value, float):
        raise TypeError(f"a column is compared with texts, numbers and flags, not with {value!r}")
    return pb.FilterValue(number=value)


def _diversity(diversity: Mmr | PerGroup) -> pb.Diversity:
    if isinstance(diversity, PerGroup):
        per_group = pb.PerGroup(field=diversity.field, max_count=diversity.max_count)
        return pb.Diversity(per_group=per_group)
    if not isinstance(diversity, Mmr):
        raise TypeError(
            f"diversity takes an Mmr or a PerGroup, such as Mmr(0.7), not {diversity!r}"
        )
    mmr = pb.Mmr(pool=diversity.pool)
    setattr(mmr, "lambda", diversity.weight)  # a keyword of Python
    return pb.Diversity(mmr=mmr)


def _unknown_user_policy(name: str) -> pb.UnknownUserPolicy.ValueType:
    match name:
        case "fallback":
            return pb.UNKNOWN_USER_POLICY_UNSPECIFIED
        case "error":
            return pb.UNKNOWN_USER_POLICY_ERROR
    raise ValueError(f"unknown_user must be 'fallback' or 'error', not {name!r}")


def _set_mode(request: pb.SearchCandidatesRequest, options: SearchOptions) -> None:
    chosen = {mode: options.get(mode) for mode in ("backend", "exact", "recall_target")}
    modes = [mode for mode, value in chosen.items() if value is not None and value is not False]
    if len(modes) > 1:
        raise TypeError(f"only one of {', '.join(modes)} can say how to search")
    for mode in modes:
        setattr(request, mode, options[mode])  # type: ignore[literal-required]
