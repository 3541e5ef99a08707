"""From the wire to the domain: requests are translated here, and refused when out of bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from candidate_search.v1 import candidate_search_service_pb2 as pb

from indexer.filters import AllOf, AnyOf, Contains, Filter, InRange, IsNull, Negated, OneOf, Value
from server.domain import (
    CandidateQuery,
    Diversity,
    EmbeddingQuery,
    ExamplesQuery,
    FeatureValue,
    Mmr,
    PerGroup,
    Query,
    SearchRequest,
    UserQuery,
)
from server.errors import (
    CountOutOfRangeError,
    FilterInvalidError,
    LimitExceededError,
    NotFiniteError,
    QueryMissingError,
    UndecodableError,
)
from server.settings import Settings

DEFAULT_COUNT = 10

T = TypeVar("T")


class RequestDecoder:
    """Translates requests within the limits of the settings.

    Args:
        settings: the limits.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def decode(self, message: pb.SearchCandidatesRequest, offset: int = 0) -> SearchRequest:
        """Translate one search.

        Args:
            message: the search as it came.
            offset: how many candidates come before the page that is wanted.

        Raises:
            SearchError: if it is incomplete or out of bounds; the class says why.
        """
        limits = self._settings
        request = SearchRequest(
            query=self._query(message.query),
            count=self._count(message.candidate_count),
            exclusions=_limited(
                "excluded_candidate_ids", message.excluded_candidate_ids, limits.max_exclusion_count
            ),
            returned_fields=self._returned_fields(message.returned_fields),
            rank=message.rank,
            offset=offset,
        )
        if message.HasField("exclude_history"):
            request.exclude_history = message.exclude_history
        if message.unknown_user_policy:
            request.refuse_unknown_user = _refuses_unknown_user(message.unknown_user_policy)
        if message.HasField("filter"):
            request.filter = _FilterDecoder(limits).decode(message.filter)
        if message.HasField("min_score"):
            request.min_score = _finite("min_score", message.min_score)
        if message.HasField("diversity"):
            request.diversity = self._diversity(message.diversity, request.count)
        _set_search_mode(request, message)
        return request

    def _count(self, count: int) -> int:
        limit = self._settings.max_candidate_count
        if not 0 <= count <= limit:
            raise CountOutOfRangeError(
                f"candidate_count must lie between 0 (for {DEFAULT_COUNT}) and {limit}; "
                f"it is {count}",
                field="candidate_count",
                limit=limit,
                found=count,
            )
        return count or min(DEFAULT_COUNT, limit)

    def _returned_fields(self, names: Sequence[str]) -> Sequence[str]:
        limited = _limited("returned_fields", names, self._settings.max_returned_fields)
        return list(dict.fromkeys(limited)) if limited else limited

    def _query(self, query: pb.Query) -> Query:
        match query.WhichOneof("kind"):
            case "user_id":
                return UserQuery(_not_empty("query.user_id", query.user_id))
            case "user":
                return self._user(query.user)
            case "candidate_id":
                return CandidateQuery(_not_empty("query.candidate_id", query.candidate_id))
            case "embedding":
                return EmbeddingQuery(np.array(query.embedding.values, dtype=np.float32))
            case "examples":
                return self._examples(query.examples)
        raise QueryMissingError(
            "query must be one of user_id, user, candidate_id, embedding and examples; "
            "the request has none"
        )

    def _user(self, user: pb.UserContext) -> UserQuery:
        limits = self._settings
        history = _limited("query.user.history", user.history, limits.max_history_count)
        names = _limited("query.user.features", list(user.features), limits.max_feature_count)
        return UserQuery(
            user_id=user.user_id,
            history=[
                _not_empty("query.user.history.candidate_id", one.candidate_id) for one in history
            ],
            history_replaces=user.history_replaces,
            features={name: self._feature_value(name, user.features[name]) for name in names},
        )

    def _feature_value(self, name: str, message: pb.FeatureValue) -> FeatureValue:
        value, limit = _feature_value(name, message), self._settings.max_feature_characters
        n_characters = 0 if isinstance(value, int | float) else len("".join(value))
        if n_characters > limit:
            raise _exceeds(f"characters of query.user.features[{name}]", limit, n_characters)
        return value

    def _examples(self, examples: pb.Examples) -> ExamplesQuery:
        limit = self._settings.max_history_count
        liked, disliked = examples.liked_candidate_ids, examples.disliked_candidate_ids
        if not liked:
            raise QueryMissingError("examples must have at least one liked candidate")
        return ExamplesQuery(
            liked=_limited("query.examples.liked_candidate_ids", liked, limit),
            disliked=_limited("query.examples.disliked_candidate_ids", disliked, limit),
        )

    def _diversity(self, diversity: pb.Diversity, count: int) -> Diversity:
        match diversity.WhichOneof("kind"):
            case "mmr":
                return self._mmr(diversity.mmr, count)
            case "per_group":
                return _per_group(diversity.per_group, count)
        raise LimitExceededError("diversity must be mmr or per_group", field="diversity")

    def _mmr(self, mmr: pb.Mmr, count: int) -> Mmr:
        weight: float = getattr(mmr, "lambda") if mmr.HasField("lambda") else 0.5
        _in_range("diversity.mmr.lambda", weight, 0, 1)
        if mmr.pool:
            most = max(count, self._settings.max_candidate_count)
            _in_range("diversity.mmr.pool", mmr.pool, count, most)
        return Mmr(weight, mmr.pool)


class _FilterDecoder:
    """Translates one filter, counting its conditions on the way."""

    def __init__(self, limits: Settings) -> None:
        self._limits = limits
        self._n_conditions = 0

    def decode(self, message: pb.Filter, depth: int = 1) -> Filter:
        if depth > self._limits.max_filter_depth:
            raise _exceeds("filter depth", self._limits.max_filter_depth, depth)
        match message.WhichOneof("kind"):
            case "all_of":
                return AllOf(self._several("all_of", message.all_of, depth))
            case "any_of":
                return AnyOf(self._several("any_of", message.any_of, depth))
            case "negated":
                return Negated(self.decode(message.negated, depth + 1))
            case "condition":
                return self._condition(message.condition)
        raise FilterInvalidError(
            "a filter must be one of all_of, any_of, negated and condition; one has none"
        )

    def _several(self, name: str, filters: pb.FilterList, depth: int) -> tuple[Filter, ...]:
        if not filters.filters:
            raise FilterInvalidError(f"{name} needs at least one filter")
        return tuple(self.decode(one, depth + 1) for one in filters.filters)

    def _condition(self, condition: pb.FieldCondition) -> Filter:
        self._n_conditions += 1
        if self._n_conditions > self._limits.max_filter_conditions:
            limit = self._limits.max_filter_conditions
            raise _exceeds("filter conditions", limit, self._n_conditions)
        field = condition.field
        match condition.WhichOneof("test"):
            case "equals":
                return OneOf(field, (_value(field, condition.equals),))
            case "one_of":
                return OneOf(field, self._values(field, condition.one_of))
            case "range":
                return _range(field, condition.range)
            case "contains":
                return Contains(field, _value(field, condition.contains))
            case "is_null":
                return IsNull(field, condition.is_null)
        raise FilterInvalidError(
            f"the condition on {field!r} must be one of equals, one_of, range, contains and "
            "is_null; it has none",
            field=field,
        )

    def _values(self, field: str, message: pb.FilterValueList) -> tuple[Value, ...]:
        values = _limited("one_of.values", message.values, self._limits.max_filter_values)
        if not values:
            raise FilterInvalidError(f"one_of on {field!r} needs at least one value", field=field)
        return tuple(_value(field, value) for value in values)


def _range(field: str, bounds: pb.FilterRange) -> InRange:
    minimum = _value(field, bounds.minimum) if bounds.HasField("minimum") else None
    maximum = _value(field, bounds.maximum) if bounds.HasField("maximum") else None
    if minimum is None and maximum is None:
        raise FilterInvalidError(f"the range on {field!r} needs at least one bound", field=field)
    return InRange(field, minimum, maximum)


def _value(field: str, message: pb.FilterValue) -> Value:
    match message.WhichOneof("kind"):
        case "text":
            return message.text
        case "integer":
            return message.integer
        case "number":
            return _finite(f"filter value of {field}", message.number)
        case "flag":
            return message.flag
    raise FilterInvalidError(
        f"a value that {field!r} is compared with must be one of text, integer, number and flag; "
        "one has none",
        field=field,
    )


def _feature_value(name: str, message: pb.FeatureValue) -> FeatureValue:
    match message.WhichOneof("kind"):
        case "text":
            return message.text
        case "number":
            return _finite(f"query.user.features[{name}]", message.number)
        case "texts":
            return list(message.texts.values)
    raise UndecodableError(
        f"feature {name!r} must be one of text, number and texts; it has none", field=name
    )


def _per_group(per_group: pb.PerGroup, count: int) -> PerGroup:
    field = _not_empty("diversity.per_group.field", per_group.field)
    _in_range("diversity.per_group.max_count", per_group.max_count, 0, count)
    return PerGroup(field, per_group.max_count or 1)


def _set_search_mode(request: SearchRequest, message: pb.SearchCandidatesRequest) -> None:
    match message.WhichOneof("search_mode"):
        case "backend":
            request.backend = message.backend
        case "exact":
            request.exact = message.exact
        case "recall_target":
            target = message.recall_target
            if not 0 < target <= 1:
                raise LimitExceededError(
                    f"recall_target must lie above 0 and at most at 1; it is {target}",
                    field="recall_target",
                    found=target,
                )
            request.recall_target = target


def _refuses_unknown_user(policy: int) -> bool:
    if policy not in pb.UnknownUserPolicy.values():
        known = ", ".join(pb.UnknownUserPolicy.keys())
        raise LimitExceededError(
            f"unknown_user_policy must be one of {known}; it is {policy}",
            field="unknown_user_policy",
            found=policy,
        )
    return policy == pb.UNKNOWN_USER_POLICY_ERROR


def _limited(name: str, values: Sequence[T], limit: int) -> Sequence[T]:
    """Return repeated values as a list, once their number is checked."""
    if not values:
        return ()
    if len(values) > limit:
        raise _exceeds(name, limit, len(values))
    return list(values)


def _exceeds(name: str, limit: int, found: int) -> LimitExceededError:
    return LimitExceededError(
        f"{name}: at most {limit} are allowed, not {found}", field=name, limit=limit, found=found
    )


def _in_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # so that NaN is refused, too
        raise LimitExceededError(
            f"{name} must lie between {low} and {high}; it is {value:g}",
            field=name,
            limit=high,
            found=value,
        )


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise NotFiniteError(f"{name} must be finite; it is {value}", field=name)
    return value


def _not_empty(name: str, text: str) -> str:
    if not text:
        raise QueryMissingError(f"{name} is empty", field=name)
    return text
