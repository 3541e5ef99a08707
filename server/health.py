"""Asking a server for its health, as orchestrators do."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from server.connection import open_channel

TIMEOUT_SECONDS = 3.0


def is_serving(
    address: str,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    server_name: str | None = None,
) -> bool:
    """Return whether a server answers searches; False if it does not answer at all.

    Args:
        address: where it listens.
        credentials: for TLS; None connects in the clear.
        server_name: what its certificate is for, if that is not the address.
    """
    options = (("grpc.ssl_target_name_override", server_name),) if server_name else ()
    with open_channel(address, credentials, options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_SECONDS)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
