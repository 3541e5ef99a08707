"""The server without what protects and observes it, to see what that costs.

Run as a process of its own: ``python -m benchmarks.bare_server INDEX``. It decodes, searches and
encodes with the server's own parts and prints the port it listens on; it knows no deadlines, no
limits, no metrics, one version, and no statuses for errors.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import grpc
import uvloop
from candidate_search.v1 import candidate_search_service_pb2 as pb

from benchmarks.null_server import serve
from server.decoding import RequestDecoder
from server.encoding import other_fields
from server.loading import IndexVersion, load, with_page_token_key
from server.servicer import SERVICE_NAME
from server.settings import Settings


def _handler(version: IndexVersion, settings: Settings) -> grpc.RpcMethodHandler[bytes, bytes]:
    decoder = RequestDecoder(settings)

    async def search_candidates(body: bytes, context: Any) -> bytes:
        del context
        request = pb.SearchCandidatesRequest.FromString(body)
        request.ClearField("page_token")
        all_but_token = request.SerializeToString(deterministic=True)
        result = version.engine.search(decoder.decode(request))
        token = version.page_tokens.sign(all_but_token, len(result.rows)) if result.has_more else ""
        found = version.encoder.encode(result.rows, result.scores)
        others = other_fields(result, request.returned_fields, version.engine, token)
        return b"".join([found, version.plan_fields(result.plan), others])

    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(
        search_candidates
    )
    return handler


if __name__ == "__main__":
    settings = with_page_token_key(Settings(index=Path(sys.argv[1])))
    handlers = {"SearchCandidates": _handler(load(settings), settings)}
    uvloop.run(serve(grpc.method_handlers_generic_handler(SERVICE_NAME, handlers)))
