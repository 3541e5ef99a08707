"""Services that libraries bring: health and reflection, fitted to a server of our own.

Bodies are refused as everywhere: gRPC itself answers one that is no request with UNKNOWN, and with
what its decoder says. Streams, which only these services have, end when the server does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from server.errors import UndecodableError
from server.interceptors import Context, abort

# From the end of a server until that of its streams: for what they still have to tell.
_LAST_WORDS_SECONDS = 0.2

Handler = Any  # grpc.RpcMethodHandler, whose types are those of the API without an event loop


class Streams:
    """The streams that callers keep open for as long as they like, such as to watch the health.

    gRPC waits for them as for any call in flight; so a server that stops ends them itself.
    """

    def __init__(self) -> None:
        self._ends: set[asyncio.Timeout] = set()
        self._end_at: float | None = None  # in the time of the event loop

    def end(self) -> None:
        """Have all end in a moment, those that are still to come too."""
        self._end_at = asyncio.get_running_loop().time() + _LAST_WORDS_SECONDS
        for end in self._ends:
            end.reschedule(self._end_at)

    def bounded(self, answer: Any) -> Any:
        """Return what answers a stream as ``answer`` does, until all are to end."""

        async def answer_until_the_end(request: Any, context: Context) -> None:
            try:
                async with asyncio.timeout_at(self._end_at) as end:
                    self._ends.add(end)
                    try:
                        await answer(request, context)
                    finally:
                        self._ends.discard(end)
            except TimeoutError:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")

        return answer_until_the_end


class ForeignServices:
    """Takes the place of a server where a library adds its service to one.

    Args:
        server: what the service is added to.
        streams: what ends the streams of the service.
    """

    def __init__(self, server: grpc.aio.Server, streams: Streams) -> None:
        self._server = server
        self._streams = streams

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Do nothing: the same methods come again, with their names."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Add the methods of a service."""
        guarded = {name: _guarded(one, self._streams) for name, one in handlers.items()}
        generic = grpc.method_handlers_generic_handler(service, guarded)
        self._server.add_generic_rpc_handlers((generic,))


def _guarded(handler: Handler, streams: Streams) -> Handler:
    """Return a handler that decodes by itself, and refuses what is no request."""
    if handler.unary_unary is not None:
        answer = _answering_one(handler, handler.unary_unary)
        return grpc.unary_unary_rpc_method_handler(
            answer, response_serializer=handler.response_serializer
        )
    if handler.unary_stream is not None:
        answer = streams.bounded(_answering_one(handler, handler.unary_stream))
        return grpc.unary_stream_rpc_method_handler(
            answer, response_serializer=handler.response_serializer
        )
    answer = streams.bounded(_answering_many(handler))
    return grpc.stream_stream_rpc_method_handler(
        answer, response_serializer=handler.response_serializer
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
    async def guarded(bodies: AsyncIterator[bytes], context: Context) -> None:
        requests = (handler.request_deserializer(body) async for body in bodies)
        try:
            async for response in handler.stream_stream(requests, context):
                await context.write(response)
        except DecodeError:
            await _refuse(context)

    return guarded


async def _refuse(context: Context) -> NoReturn:
    await abort(context, UndecodableError("the body is no request of this method"))
