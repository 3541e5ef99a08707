"""The service: from the wire to the domain and back, and the refusal of what is out of bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeVar

import grpc
from candidate_search.v1 import candidate_search_service_pb2 as pb

from server.decoding import RequestDecoder
from server.domain import SearchRequest, SearchResult
from server.encoding import (
    FoundEncoder,
    batch_response,
    batch_status,
    explanation_message,
    index_info_message,
    other_fields,
    plan_fields,
)
from server.engine import Engine
from server.errors import LimitExceededError, NotServingError, OverloadedError, SearchError
from server.explaining import explain
from server.interceptors import method_handler, new_request_id, status_of
from server.paging import PageTokens
from server.settings import Settings

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["CandidateSearchService"].full_name

_SEARCHES_IN_A_ROW = 32  # of a batch, before other calls get their turn

T = TypeVar("T")


@dataclass(slots=True)
class _Call:
    """A search that a caller asked for."""

    request: pb.SearchCandidatesRequest
    all_but_token: bytes
    """The request without its page token: the same for all pages."""
    search: SearchRequest
    is_long: bool


class CandidateSearchServicer:
    """Answers the calls of ``CandidateSearchService`` from one engine.

    Args:
        engine: what searches.
        encoder: what puts into responses what was found.
        settings: the limits.
        page_token_key: what signs page tokens; workers that share a port share it.
    """

    def __init__(
        self, engine: Engine, encoder: FoundEncoder, settings: Settings, page_token_key: bytes
    ) -> None:
        self.is_serving = False
        self._engine = engine
        self._settings = settings
        index_version = engine.bundle.manifest.version
        self._decoder = RequestDecoder(settings)
        self._page_tokens = PageTokens(index_version, page_token_key)
        self._index_info = index_info_message(engine, settings).SerializeToString()
        self._encoder = encoder
        self._plan_fields = lru_cache(4096)(partial(plan_fields, index_version=index_version))
        self._threads = ThreadPoolExecutor(settings.long_search_threads, "long-search")
        self._n_long = 0

    def handler(self) -> grpc.GenericRpcHandler:
        """Return what a gRPC server calls."""
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "SearchCandidates": method_handler(self.search_candidates, pb.SearchCandidatesRequest),
            "BatchSearchCandidates": method_handler(
                self.batch_search_candidates, pb.BatchSearchCandidatesRequest
            ),
            "ExplainSearch": method_handler(self.explain_search, pb.ExplainSearchRequest),
            "GetIndexInfo": method_handler(self.get_index_info, pb.GetIndexInfoRequest),
        }
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    async def search_candidates(self, request: pb.SearchCandidatesRequest) -> bytes:
        """Search for one query."""
        call = self._begin(request)
        # A short search costs less than handing it to a thread.
        result = (
            await self._search_beside(call) if call.is_long else self._engine.search(call.search)
        )
        return self._end(call, result)

    async def batch_search_candidates(self, batch: pb.BatchSearchCandidatesRequest) -> bytes:
        """Search for several queries, each with a response or a status."""
        n_requests, limit = len(batch.requests), self._settings.max_batch_size
        if not 1 <= n_requests <= limit:
            raise LimitExceededError(
                f"a batch has 1 to {limit} requests, not {n_requests}",
                field="requests",
                limit=limit,
                found=n_requests,
            )
        results: list[bytes] = []
        for start in range(0, n_requests, _SEARCHES_IN_A_ROW):
            results += await self._results(batch.requests[start : start + _SEARCHES_IN_A_ROW])
            await asyncio.sleep(0)
        return b"".join(results)

    async def explain_search(self, message: pb.ExplainSearchRequest) -> bytes:
        """Make one search in every way there is, and compare."""
        if message.request.page_token:
            raise LimitExceededError(
                "only a first page can be explained; leave page_token empty", field="page_token"
            )
        request = self._decoder.decode(message.request)
        explanation = await self.run_beside(lambda: explain(self._engine, request))
        return explanation_message(explanation, self._engine).SerializeToString()

    async def get_index_info(self, request: pb.GetIndexInfoRequest) -> bytes:
        """Describe the index."""
        del request
        return self._index_info

    async def run_beside(self, work: Callable[[], T]) -> T:
        """Do long work beside the event loop, or refuse it if much is waiting already."""
        limit = self._settings.long_search_threads + self._settings.long_search_queue
        if self._n_long >= limit:
            raise OverloadedError(
                f"{limit} long searches are being made or waiting, and more are not accepted; "
                "try again later, or search an approximate backend without a filter",
                limit=limit,
            )
        self._n_long += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._n_long -= 1

    def close(self) -> None:
        """End the threads of long searches."""
        self._threads.shutdown(cancel_futures=True)

    def _begin(self, request: pb.SearchCandidatesRequest) -> _Call:
        """Translate a request, or refuse it."""
        if not self.is_serving:
            raise NotServingError("the server is starting or stopping; try again")
        page_token = request.page_token
        request.ClearField("page_token")
        all_but_token = request.SerializeToString(deterministic=True)
        offset = self._page_tokens.offset(page_token, all_but_token) if page_token else 0
        search = self._decoder.decode(request, offset)
        return _Call(request, all_but_token, search, self._engine.is_long(search))

    def _end(self, call: _Call, result: SearchResult) -> bytes:
        """Translate a result."""
        next_page_token = ""
        if result.has_more:
            offset = call.search.offset + len(result.rows)
            next_page_token = self._page_tokens.sign(call.all_but_token, offset)
        found = self._encoder.encode(result.rows, result.scores)
        returned_fields = call.request.returned_fields
        others = other_fields(result, returned_fields, self._engine, next_page_token)
        return b"".join([found, self._plan_fields(result.plan), others])

    async def _search_beside(self, call: _Call) -> SearchResult:
        return await self.run_beside(lambda: self._engine.search(call.search))

    async def _results(self, requests: Sequence[pb.SearchCandidatesRequest]) -> list[bytes]:
        """Return some of a batch's results; a search that is refused is refused alone."""
        calls = [self._begin_or_error(request) for request in requests]
        short = [one.search for one in calls if isinstance(one, _Call) and not one.is_long]
        answers = iter(self._engine.search_together(short))
        results = []
        for call in calls:
            try:
                results.append(batch_response(await self._response(call, answers)))
            except SearchError as error:
                results.append(batch_status(status_of(error, new_request_id())))
        return results

    def _begin_or_error(self, request: pb.SearchCandidatesRequest) -> _Call | SearchError:
        try:
            return self._begin(request)
        except SearchError as error:
            return error

    async def _response(
        self, call: _Call | SearchError, answers: Iterator[SearchResult | SearchError]
    ) -> bytes:
        """Return the response to one call of a batch; the short ones are answered already."""
        if isinstance(call, SearchError):
            raise call
        if call.is_long:
            return self._end(call, await self._search_beside(call))
        answer = next(answers)
        if isinstance(answer, SearchError):
            raise answer
        return self._end(call, answer)
