"""The service: from the wire to the domain and back, and the refusal of what is out of bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, TypeVar

import grpc
from candidate_search.v1 import candidate_search_service_pb2 as pb

from server.decoding import RequestDecoder
from server.domain import SearchResult
from server.encoding import (
    FoundEncoder,
    explanation_message,
    index_info_message,
    plan_message,
    response_message,
)
from server.engine import Engine, PreparedSearch
from server.errors import LimitExceededError, NotServingError, OverloadedError
from server.explaining import explain
from server.interceptors import method_handler, new_request_id, status_of
from server.paging import PageTokens
from server.settings import Settings

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["CandidateSearchService"].full_name

_SEARCHES_IN_A_ROW = 8  # of a batch, before other calls get their turn

T = TypeVar("T")


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
        self._index_version = engine.bundle.manifest.version
        self._decoder = RequestDecoder(settings)
        self._page_tokens = PageTokens(self._index_version, page_token_key)
        self._index_info = index_info_message(engine, settings)
        self._encoder = encoder
        self._plan_message = lru_cache(maxsize=4096)(plan_message)
        self._threads = ThreadPoolExecutor(settings.long_search_threads, "long-search")
        self._n_long = 0

    def handler(self) -> grpc.GenericRpcHandler:
        """Return what a gRPC server calls."""
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "SearchCandidates": method_handler(
                self.search_candidates, pb.SearchCandidatesRequest, pb.SearchCandidatesResponse
            ),
            "BatchSearchCandidates": method_handler(
                self.batch_search_candidates,
                pb.BatchSearchCandidatesRequest,
                pb.BatchSearchCandidatesResponse,
            ),
            "ExplainSearch": method_handler(
                self.explain_search, pb.ExplainSearchRequest, pb.ExplainSearchResponse
            ),
            "GetIndexInfo": method_handler(
                self.get_index_info, pb.GetIndexInfoRequest, pb.GetIndexInfoResponse
            ),
        }
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    async def search_candidates(
        self, request: pb.SearchCandidatesRequest
    ) -> pb.SearchCandidatesResponse:
        """Search for one query."""
        if not self.is_serving:
            raise NotServingError("the server is starting or stopping; try again")
        page_token = request.page_token
        request.ClearField("page_token")
        search = request.SerializeToString(deterministic=True)
        offset = self._page_tokens.offset(page_token, search) if page_token else 0
        prepared = self._engine.prepare(self._decoder.decode(request, offset))
        result = await self._run(prepared)
        next_page_token = ""
        if result.has_more:
            next_page_token = self._page_tokens.sign(search, offset + len(result.rows))
        return self._response(request, result, next_page_token)

    async def batch_search_candidates(
        self, batch: pb.BatchSearchCandidatesRequest
    ) -> pb.BatchSearchCandidatesResponse:
        """Search for several queries, each with a response or a status."""
        n_requests, limit = len(batch.requests), self._settings.max_batch_size
        if not 1 <= n_requests <= limit:
            raise LimitExceededError(
                f"a batch has 1 to {limit} requests, not {n_requests}",
                field="requests",
                limit=limit,
                found=n_requests,
            )
        results = []
        for i, request in enumerate(batch.requests):
            if i % _SEARCHES_IN_A_ROW == _SEARCHES_IN_A_ROW - 1:
                await asyncio.sleep(0)
            results.append(await self._result(request))
        return pb.BatchSearchCandidatesResponse(results=results)

    async def explain_search(self, message: pb.ExplainSearchRequest) -> pb.ExplainSearchResponse:
        """Make one search in every way there is, and compare."""
        if message.request.page_token:
            raise LimitExceededError(
                "only a first page can be explained; leave page_token empty", field="page_token"
            )
        request = self._decoder.decode(message.request)
        explanation = await self.run_beside(lambda: explain(self._engine, request))
        return explanation_message(explanation, self._engine)

    async def get_index_info(self, request: pb.GetIndexInfoRequest) -> pb.GetIndexInfoResponse:
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

    async def _result(self, request: pb.SearchCandidatesRequest) -> pb.BatchResult:
        """Return one result of a batch; whatever fails, fails alone."""
        try:
            return pb.BatchResult(response=await self.search_candidates(request))
        except Exception as error:  # noqa: BLE001 - whatever it is, it becomes a status
            return pb.BatchResult(status=status_of(error, new_request_id()))

    async def _run(self, prepared: PreparedSearch) -> SearchResult:
        if prepared.is_long:
            return await self.run_beside(lambda: self._engine.run(prepared))
        # A short search costs less than handing it to a thread.
        return self._engine.run(prepared)

    def _response(
        self, request: pb.SearchCandidatesRequest, result: SearchResult, next_page_token: str
    ) -> pb.SearchCandidatesResponse:
        response = response_message(result, request.returned_fields, self._engine, self._encoder)
        response.plan.CopyFrom(self._plan_message(result.plan))
        response.index_version = self._index_version
        response.next_page_token = next_page_token
        return response
