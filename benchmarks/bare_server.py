"""The server without what protects and observes it, to see what that costs.

Run as a process of its own: ``python -m benchmarks.bare_server INDEX``. It gathers, decodes,
searches and encodes with the server's own parts and prints the port; it knows no deadlines, no
limits, no metrics, one version, and no statuses for errors.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import uvloop
from candidate_search.v1 import candidate_search_service_pb2 as pb

from benchmarks.null_server import serve
from server.decoding import RequestDecoder
from server.domain import SearchResult
from server.encoding import other_fields
from server.errors import SearchError
from server.gathering import Gathering
from server.limits import InFlight
from server.loading import IndexVersion, load, with_page_token_key
from server.settings import Settings


class _BareServer(grpc.GenericRpcHandler):
    """Answers every method as a search."""

    def __init__(self, version: IndexVersion, settings: Settings) -> None:
        self._version = version
        self._decoder = RequestDecoder(settings)
        self._in_flight = InFlight(sys.maxsize)
        self._gathering = Gathering(self._in_flight, self._answers, settings.max_gathered_searches)
        self._handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(
            self._search_candidates
        )

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Return what handles a call."""
        del handler_call_details
        self._in_flight.announce()
        return self._handler

    async def _search_candidates(self, body: bytes, context: Any) -> bytes:
        del context
        with self._in_flight:
            if self._gathering.has_company:
                return await self._gathering.join(body)
            (answer,) = self._answers([body])
            return _raised(answer)

    def _answers(self, bodies: Sequence[bytes]) -> list[bytes | Exception]:
        requests = [pb.SearchCandidatesRequest.FromString(body) for body in bodies]
        tokens = [_all_but_token(request) for request in requests]
        engine = self._version.engine
        searches = list(map(self._decoder.decode, requests))
        results = (
            [engine.search(searches[0])] if len(searches) == 1 else engine.search_together(searches)
        )
        return [
            result if isinstance(result, SearchError) else self._encoded(request, token, result)
            for request, token, result in zip(requests, tokens, results, strict=True)
        ]

    def _encoded(
        self, request: pb.SearchCandidatesRequest, all_but_token: bytes, result: SearchResult
    ) -> bytes:
        version, token = self._version, ""
        if result.has_more:
            token = version.page_tokens.sign(all_but_token, len(result.rows))
        found = version.encoder.encode(result.rows, result.scores)
        others = other_fields(result, request.returned_fields, version.engine, token)
        return b"".join([found, version.plan_fields(result.plan), others])


def _all_but_token(request: pb.SearchCandidatesRequest) -> bytes:
    request.ClearField("page_token")
    return request.SerializeToString(deterministic=True)


def _raised(answer: bytes | Exception) -> bytes:
    if isinstance(answer, Exception):
        raise answer
    return answer


if __name__ == "__main__":
    settings = with_page_token_key(Settings(index=Path(sys.argv[1])))
    uvloop.run(serve(_BareServer(load(settings), settings)))
