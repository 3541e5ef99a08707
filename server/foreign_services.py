"""Services that libraries bring: health and reflection, with bodies refused as those of our own.

gRPC itself answers a body that is no request with UNKNOWN, and with what its decoder says.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from server.errors import UndecodableError
from server.interceptors import Context, abort

Handler = Any  # grpc.RpcMethodHandler, whose types are those of the API without an event loop


class ForeignServices:
    """Takes the place of a server where a library adds its service to one.

    Args:
        server: what the service is added to.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Do nothing: the same methods come again, with their names."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Add the methods of a service."""
        guarded = {name: _guarded(handler) for name, handler in handlers.items()}
        generic = grpc.method_handlers_generic_handler(service, guarded)
        self._server.add_generic_rpc_handlers((generic,))


def _guarded(handler: Handler) -> Handler:
    """Return a handler that decodes by itself, and refuses what is no request."""
    if handler.unary_unary is not None:
        answer = _answering_one(handler, handler.unary_unary)
        return grpc.unary_unary_rpc_method_handler(
            answer, response_serializer=handler.response_serializer
        )
    if handler.unary_stream is not None:
        answer = _answering_one(handler, handler.unary_stream)
        return grpc.unary_stream_rpc_method_handler(
            answer, response_serializer=handler.response_serializer
        )
    return grpc.stream_stream_rpc_method_handler(
        _answering_many(handler), response_serializer=handler.response_serializer
    )


def _answering_one(handler: Handler, answer: Any) -> Any:
    async def guarded(body: bytes, context: Context) -> Any:
        try:
            request = handler.request_deserializer(body)
        except DecodeError:
            await _refuse(context)
        try:
            return await answer(request, context)
        except NotImplementedError:  # else gRPC would log a traceback each time
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "the method is not implemented")

    return guarded


def _answering_many(handler: Handler) -> Any:
    async def guarded(bodies: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
        requests = (handler.request_deserializer(body) async for body in bodies)
        try:
            async for response in handler.stream_stream(requests, context):
                yield response
        except DecodeError:
            await _refuse(context)

    return guarded


async def _refuse(context: Context) -> NoReturn:
    await abort(context, UndecodableError("the body is no request of this method"))
