"""The floor of the serving stack: a grpc.aio server, on uvloop, that returns ready-made bytes.

Run as a process of its own: ``python -m benchmarks.null_server FILE``, where the file holds the
bytes of a response. It answers every method with them and prints the port it listens on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import grpc
import uvloop


class _AnyMethod(grpc.GenericRpcHandler):
    """Answers whatever is called with the same bytes."""

    def __init__(self, response: bytes) -> None:
        async def answer(request: bytes, context: Any) -> bytes:
            del request, context
            return response

        self._handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(answer)

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any]:
        del handler_call_details
        return self._handler


async def serve(handler: grpc.GenericRpcHandler) -> None:
    """Listen on a free loopback port, print it, and answer until the process ends."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"serving on 127.0.0.1:{port}\n")
    sys.stdout.flush()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(_AnyMethod(Path(sys.argv[1]).read_bytes())))
