"""What can be wrong with a request, in the words of the domain.

One class for each reason a caller can be refused for. The message says what was expected, what
came and how to mend it; the metadata repeats its dynamic parts for programs. Which status each
class becomes on the wire is ``server.interceptors``'s business.
"""

from __future__ import annotations

from typing import ClassVar


class SearchError(Exception):
    """A request that is refused.

    Args:
        message: what was expected, what came and how to mend it.
        metadata: the dynamic parts of the message by name.
    """

    reason: ClassVar[str]

    def __init__(self, message: str, **metadata: object) -> None:
        super().__init__(message)
        self.metadata = {name: str(value) for name, value in metadata.items()}


class QueryMissingError(SearchError):
    """The request does not say what to retrieve for."""

    reason = "QUERY_MISSING"


class CountOutOfRangeError(SearchError):
    """``candidate_count`` is negative or too large."""

    reason = "COUNT_OUT_OF_RANGE"


class DimensionMismatchError(SearchError):
    """An embedding has more or fewer values than the index's."""

    reason = "DIMENSION_MISMATCH"


class NotFiniteError(SearchError):
    """A number is not finite, or an embedding so long that its scores would not be."""

    reason = "NOT_FINITE"


class LimitExceededError(SearchError):
    """A value or the size of something lies outside what the server answers."""

    reason = "LIMIT_EXCEEDED"


class FilterInvalidError(SearchError):
    """A filter is incomplete, or tests a column for what its type cannot be."""

    reason = "FILTER_INVALID"


class FieldUnknownError(SearchError):
    """A metadata column or a feature that the index does not have."""

    reason = "FIELD_UNKNOWN"


class BackendUnknownError(SearchError):
    """A backend that the index does not have."""

    reason = "BACKEND_UNKNOWN"


class UndecodableError(SearchError):
    """Bytes that are no request, or a page token that this server did not sign."""

    reason = "UNDECODABLE"


class UserUnknownError(SearchError):
    """Nothing is known of the user, and the caller asked for an error then."""

    reason = "USER_UNKNOWN"


class CandidateUnknownError(SearchError):
    """The candidate to find others like is not in the corpus, or newer than what must read it."""

    reason = "CANDIDATE_UNKNOWN"


class NoQueryTowerError(SearchError):
    """The index has no query tower, and the query needs one."""

    reason = "NO_QUERY_TOWER"


class NoRankerError(SearchError):
    """The index has no ranking model."""

    reason = "NO_RANKER"


class PageTokenExpiredError(SearchError):
    """A page token of another index version, or of another search."""

    reason = "PAGE_TOKEN_EXPIRED"


class OverloadedError(SearchError):
    """The server has as much to do as it accepts."""

    reason = "OVERLOADED"


class NotServingError(SearchError):
    """The server is starting or stopping."""

    reason = "NOT_SERVING"


class EngineUnreachableError(SearchError):
    """The index is kept by an engine outside of the server, which does not answer."""

    reason = "ENGINE_UNREACHABLE"


class VersionUnknownError(SearchError):
    """There is no such index version beside the one that answers."""

    reason = "VERSION_UNKNOWN"


class VersionRefusedError(SearchError):
    """An index version is damaged, or does not deliver what it promises."""

    reason = "VERSION_REFUSED"


class NoPreviousVersionError(SearchError):
    """There is no version to roll back to."""

    reason = "NO_PREVIOUS_VERSION"


class UnauthenticatedError(SearchError):
    """The call carries no valid credentials."""

    reason = "UNAUTHENTICATED"


class PermissionDeniedError(SearchError):
    """The caller may not make this call."""

    reason = "PERMISSION_DENIED"


class InternalError(SearchError):
    """A fault of the server's own; the log has it under the request id."""

    reason = "INTERNAL"
