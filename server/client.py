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

from collections.abc import Iterable
from types import TracebackType
from typing import Self, Unpack

import grpc
from candidate_search.v1 import candidate_search_service_pb2 as pb
from candidate_search.v1.candidate_search_service_pb2_grpc import CandidateSearchServiceStub

from server.client_requests import (
    Condition,
    Embedding,
    Examples,
    Field,
    Like,
    Mmr,
    PerGroup,
    Query,
    SearchOptions,
    User,
    search_request,
)
from server.client_results import (
    Candidate,
    Notice,
    SearchFailedError,
    SearchResults,
    batch_results,
    search_results,
)
from server.connection import (
    BlockingConnection,
    Connection,
    open_channel,
    retrying,
    with_server_name,
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

_CHANNEL_OPTIONS = (
    *retrying({"service": "candidate_search.v1.CandidateSearchService"}),
    ("grpc.max_receive_message_length", -1),  # the server answers what it accepted
    # Or all clients of a process would share one connection, which stays with one worker.
    ("grpc.use_local_subchannel_pool", 1),
)


class SearchClient(BlockingConnection):
    """A client for programs without an event loop; safe to share between threads.

    Every method raises ``SearchFailedError`` if the call is refused or does not get through in
    time.

    Args:
        target: ``host:port``, or any name that gRPC resolves.
        timeout_seconds: the deadline of each call that does not bring its own.
        credentials: for TLS; None connects in the clear.
        server_name: what the server's certificate is for, if not for the target.
        token: what the server's file of tokens lists, if it has one.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        credentials: grpc.ChannelCredentials | None = None,
        server_name: str | None = None,
        token: str | None = None,
    ) -> None:
        options = with_server_name(_CHANNEL_OPTIONS, server_name)
        channel = open_channel(target, credentials, options)
        super().__init__(channel, timeout_seconds, token)
        self._stub = CandidateSearchServiceStub(channel)

    def search(
        self,
        query: Query,
        *,
        timeout_seconds: float | None = None,
        **options: Unpack[SearchOptions],
    ) -> SearchResults:
        """Search for one query."""
        request = search_request(query, **options)
        with self._call(timeout_seconds) as call_options:
            return search_results(self._stub.SearchCandidates(request, **call_options))

    def search_batch(
        self,
        requests: Iterable[pb.SearchCandidatesRequest],
        *,
        timeout_seconds: float | None = None,
    ) -> list[SearchResults | SearchFailedError]:
        """Search for several queries, made by ``search_request``; a refused one is its error."""
        batch = pb.BatchSearchCandidatesRequest(requests=requests)
        with self._call(timeout_seconds) as call_options:
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
        with self._call(timeout_seconds) as call_options:
            return self._stub.ExplainSearch(request, **call_options)

    def index_info(self, *, timeout_seconds: float | None = None) -> pb.GetIndexInfoResponse:
        """Describe the index that is being served."""
        with self._call(timeout_seconds) as call_options:
            return self._stub.GetIndexInfo(pb.GetIndexInfoRequest(), **call_options)


class AsyncSearchClient(Connection[grpc.aio.Channel]):
    """The client for programs with an event loop; made and used within one.

    Every method raises ``SearchFailedError`` if the call is refused or does not get through in
    time.

    Args:
        target: ``host:port``, or any name that gRPC resolves.
        timeout_seconds: the deadline of each call that does not bring its own.
        credentials: for TLS; None connects in the clear.
        server_name: what the server's certificate is for, if not for the target.
        token: what the server's file of tokens lists, if it has one.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        credentials: grpc.ChannelCredentials | None = None,
        server_name: str | None = None,
        token: str | None = None,
    ) -> None:
        options = with_server_name(_CHANNEL_OPTIONS, server_name)
        if credentials is None:
            channel = grpc.aio.insecure_channel(target, options=options)
        else:
            channel = grpc.aio.secure_channel(target, credentials, options=options)
        super().__init__(channel, timeout_seconds, token)
        self._stub = CandidateSearchServiceStub(channel)

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
        with self._call(timeout_seconds) as call_options:
            return search_results(await self._stub.SearchCandidates(request, **call_options))

    async def search_batch(
        self,
        requests: Iterable[pb.SearchCandidatesRequest],
        *,
        timeout_seconds: float | None = None,
    ) -> list[SearchResults | SearchFailedError]:
        """Search for several queries, made by ``search_request``; a refused one is its error."""
        batch = pb.BatchSearchCandidatesRequest(requests=requests)
        with self._call(timeout_seconds) as call_options:
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
        with self._call(timeout_seconds) as call_options:
            return await self._stub.ExplainSearch(request, **call_options)

    async def index_info(self, *, timeout_seconds: float | None = None) -> pb.GetIndexInfoResponse:
        """Describe the index that is being served."""
        with self._call(timeout_seconds) as call_options:
            return await self._stub.GetIndexInfo(pb.GetIndexInfoRequest(), **call_options)
