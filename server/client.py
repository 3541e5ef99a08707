"""The Python client of a candidate-search server; needs nothing but gRPC and protobuf.

    from server.client import SearchClient, User

    with SearchClient("localhost:50051") as client:
        for candidate in client.search(User("42"), count=10, returned_fields=["title"]):
            print(candidate.id, candidate.score, candidate.fields["title"])

``AsyncSearchClient`` is the same with ``await``. Every call has a deadline. Calls that find the
server unavailable are made again a few times, and calls are spread over all addresses that the
target resolves to (``dns:///search.example:50051``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, Unpack

import grpc
from candidate_search.v1 import candidate_search_service_pb2 as pb
from candidate_search.v1.candidate_search_service_pb2_grpc import CandidateSearchServiceStub

from server.client_messages import (
    Candidate,
    Condition,
    Embedding,
    Examples,
    Field,
    Like,
    Mmr,
    Notice,
    PerGroup,
    Query,
    SearchFailedError,
    SearchOptions,
    SearchResults,
    User,
    batch_results,
    failure,
    search_request,
    search_results,
    token_metadata,
)

__all__ = [
    "AsyncSearchClient",
    "Candidate",
    "Condition",
    "Embedding",
    "Examples",
    "Field",
    "Like",
    "Mmr",
    "Notice",
    "PerGroup",
    "Query",
    "SearchClient",
    "SearchFailedError",
    "SearchOptions",
    "SearchResults",
    "User",
    "search_request",
]

DEFAULT_TIMEOUT_SECONDS = 5.0

_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": "candidate_search.v1.CandidateSearchService"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                # A worker that drains cancels what reaches it after its last call began.
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        }
    ],
}
_CHANNEL_OPTIONS = (
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # Sooner than the default of a second, so that the retries meet the worker that takes over.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
)


class SearchClient:
    """A client for programs without an event loop; safe to share between threads.

    Every method raises ``SearchFailedError`` if the call is refused or does not get through in
    time.

    Args:
        target: ``host:port``, or any name that gRPC resolves.
        timeout_seconds: the deadline of each call that does not bring its own.
        credentials: for TLS; None connects in the clear.
        token: what the server's file of tokens lists, if it has one.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | None = None,
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._metadata = token_metadata(token)
        if credentials is None:
            self._channel = grpc.insecure_channel(target, options=_CHANNEL_OPTIONS)
        else:
            self._channel = grpc.secure_channel(target, credentials, options=_CHANNEL_OPTIONS)
        self._stub = CandidateSearchServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._channel.close()

    def search(
        self,
        query: Query,
        *,
        timeout_seconds: float | None = None,
        **options: Unpack[SearchOptions],
    ) -> SearchResults:
        """Search for one query."""
        request = search_request(query, **options)
        with _call(timeout_seconds or self._timeout_seconds, self._metadata) as call_options:
            return search_results(self._stub.SearchCandidates(request, **call_options))

    def search_batch(
        self,
        requests: Iterable[pb.SearchCandidatesRequest],
        *,
        timeout_seconds: float | None = None,
    ) -> list[SearchResults | SearchFailedError]:
        """Search for several queries, made by ``search_request``; a refused one is its error."""
        batch = pb.BatchSearchCandidatesRequest(requests=requests)
        with _call(timeout_seconds or self._timeout_seconds, self._metadata) as call_options:
            return batch_results(self._stub.BatchSearchCandidates(batch, **call_options))

    def explain(
        self,
        query: Query,
        *,
        timeout_seconds: float | None = None,
        **options: Unpack[SearchOptions],
    ) -> pb.ExplainSearchResponse:
        """Make one search in every way the index can, and compare."""
        request = pb.ExplainSearchRequest(request=search_request(query, **options))
        with _call(timeout_seconds or self._timeout_seconds, self._metadata) as call_options:
            return self._stub.ExplainSearch(request, **call_options)

    def index_info(self, *, timeout_seconds: float | None = None) -> pb.GetIndexInfoResponse:
        """Describe the index that is being served."""
        with _call(timeout_seconds or self._timeout_seconds, self._metadata) as call_options:
            return self._stub.GetIndexInfo(pb.GetIndexInfoRequest(), **call_options)


class AsyncSearchClient:
    """The client for programs with an event loop; made and used within one.

    Every method raises ``SearchFailedError`` if the call is refused or does not get through in
    time.

    Args:
        target: ``host:port``, or any name that gRPC resolves.
        timeout_seconds: the deadline of each call that does not bring its own.
        credentials: for TLS; None connects in the clear.
        token: what the server's file of tokens lists, if it has one.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | None = None,
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._metadata = token_metadata(token)
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(target, options=_CHANNEL_OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(target, credentials, options=_CHANNEL_OPTIONS)
        self._stub = CandidateSearchServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._channel.close()

    async def search(
        self,
        query: Query,
        *,
        timeout_seconds: float | None = None,
        **options: Unpack[SearchOptions],
    ) -> SearchResults:
        """Search for one query."""
        request = search_request(query, **options)
        with _call(timeout_seconds or self._timeout_seconds, self._metadata) as call_options:
            return search_results(await self._stub.SearchCandidates(request, **call_options))

    async def search_batch(
        self,
        requests: Iterable[pb.SearchCandidatesRequest],
        *,
        timeout_seconds: float | None = None,
    ) -> list[SearchResults | SearchFailedError]:
        """Search for several queries, made by ``search_request``; a refused one is its error."""
        batch = pb.BatchSearchCandidatesRequest(requests=requests)
        with _call(timeout_seconds or self._timeout_seconds, self._metadata) as call_options:
            return batch_results(await self._stub.BatchSearchCandidates(batch, **call_options))

    async def explain(
        self,
        query: Query,
        *,
        timeout_seconds: float | None = None,
        **options: Unpack[SearchOptions],
    ) -> pb.ExplainSearchResponse:
        """Make one search in every way the index can, and compare."""
        request = pb.ExplainSearchRequest(request=search_request(query, **options))
        with _call(timeout_seconds or self._timeout_seconds, self._metadata) as call_options:
            return await self._stub.ExplainSearch(request, **call_options)

    async def index_info(self, *, timeout_seconds: float | None = None) -> pb.GetIndexInfoResponse:
        """Describe the index that is being served."""
        with _call(timeout_seconds or self._timeout_seconds, self._metadata) as call_options:
            return await self._stub.GetIndexInfo(pb.GetIndexInfoRequest(), **call_options)


@contextmanager
def _call(
    timeout_seconds: float, metadata: tuple[tuple[str, str], ...]
) -> Iterator[dict[str, Any]]:
    """Yield what every call is made with, and raise what gRPC says of it in our own words."""
    try:
        yield {"timeout": timeout_seconds, "metadata": metadata}
    except grpc.RpcError as error:
        raise failure(error) from error
