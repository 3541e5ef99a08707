"""Asking a server for its health, as orchestrators do: every few seconds, so it must cost little.

What reads the command line is the standard library's: Typer takes as long to import as gRPC.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from server.connection import open_channel, retrying, tls_credentials, with_server_name

TIMEOUT_SECONDS = 3.0


def main(arguments: Sequence[str]) -> int:
    """Ask a server whether it answers searches.

    Args:
        arguments: of the command line.

    Returns:
        The exit status: 1 if it does not, 2 if it could not be asked.
    """
    asked = _parser().parse_args(arguments)
    try:
        credentials = tls_credentials(asked.authority)
    except OSError as error:
        _complain(f"cannot read {error.filename}: {error.strerror}")
        return 2
    try:
        if is_serving(asked.address, credentials=credentials, server_name=asked.server_name):
            return 0
    except UnicodeEncodeError as error:
        _complain(f"{asked.address!r} is no address: {error}")
        return 2
    _complain(f"{asked.address} does not answer searches")
    return 1


def _complain(sentence: str) -> None:
    sys.stderr.write(f"error: {sentence}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m server health",
        description="Ask a server whether it answers searches; exit with 1 if not. For probes.",
        epilog="Example: python -m server health --address localhost:50051",
    )
    parser.add_argument("--address", default="localhost:50051", help="where the server listens")
    parser.add_argument(
        "--authority",
        type=Path,
        help="connect by TLS, to a server this authority (PEM) vouches for",
    )
    parser.add_argument(
        "--server-name", help="what the server's certificate is for, if not for the address"
    )
    return parser


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
    # In overload gRPC cancels a share of all calls, this one too; a server that is gone is gone.
    retries = retrying({"service": health.SERVICE_NAME}, codes=["CANCELLED"])
    options = with_server_name(retries, server_name)
    with open_channel(address, credentials, options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_SECONDS)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
