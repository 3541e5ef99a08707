"""What all clients share: a connection, what its calls carry, and how they fail."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc

from server.client_results import failure

CLIENT_CERTIFICATE = "CANDIDATE_SEARCH_CLIENT_CERTIFICATE"
CLIENT_KEY = "CANDIDATE_SEARCH_CLIENT_KEY"
"""Variables that name the files (PEM) of the command line's own certificate and key."""

Channel = TypeVar("Channel", bound=grpc.Channel | grpc.aio.Channel)


class Connection(Generic[Channel]):
    """A channel, and what every call over it carries.

    Args:
        channel: what calls are made over.
        timeout_seconds: the deadline of each call that does not bring its own.
        token: what shows who calls, if the server has a file of tokens.

    Raises:
        ValueError: if the token holds what no token does, such as the end of a file's line.
    """

    def __init__(self, channel: Channel, timeout_seconds: float, token: str | None) -> None:
        if token is not None and not (token.isascii() and token.isprintable()):
            raise ValueError("a token holds printable ASCII characters only; strip() it")
        self._channel = channel
        self._timeout_seconds = timeout_seconds
        self._metadata = () if token is None else (("authorization", f"Bearer {token}"),)

    @contextmanager
    def _call(self, timeout_seconds: float | None = None) -> Iterator[dict[str, Any]]:
        """Yield what a call is made with, and raise what gRPC says of it in our own words."""
        if timeout_seconds is None:
            timeout_seconds = self._timeout_seconds
        try:
            yield {"timeout": timeout_seconds, "metadata": self._metadata}
        except grpc.RpcError as error:
            raise failure(error) from error


class BlockingConnection(Connection[grpc.Channel]):
    """A connection for programs without an event loop, to be closed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


def retrying(
    *calls: Mapping[str, str], codes: Sequence[str] = ("UNAVAILABLE", "CANCELLED")
) -> Sequence[tuple[str, Any]]:
    """Return options of a channel that makes calls again which find the server unavailable.

    Args:
        calls: which, by ``service`` and, where not all of it are meant, ``method``.
        codes: what the server is found to be. A worker that drains, or has too much to do, cancels
            what it has not begun.
    """
    policy = {
        "maxAttempts": 5,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": list(codes),
    }
    config = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [{"name": calls, "retryPolicy": policy}],
    }
    return (
        ("grpc.service_config", json.dumps(config)),
        # Sooner than the default of a second, so that the retries meet the worker that takes over.
        ("grpc.initial_reconnect_backoff_ms", 100),
    )


def tls_credentials(authority: Path | None) -> grpc.ChannelCredentials | None:
    """Return what the command line connects by TLS with; None, for in the clear, without authority.

    The environment names the certificate and key of its own, where a server wants clients to have
    them.

    Raises:
        OSError: if a file cannot be read, or one of the two is not named.
    """
    if authority is None:
        return None
    key = certificate = None
    if os.environ.get(CLIENT_KEY) or os.environ.get(CLIENT_CERTIFICATE):
        key, certificate = map(_named_in_environment, (CLIENT_KEY, CLIENT_CERTIFICATE))
    return grpc.ssl_channel_credentials(authority.read_bytes(), key, certificate)


def _named_in_environment(variable: str) -> bytes:
    if not os.environ.get(variable):  # gRPC ends the process over one without the other
        raise FileNotFoundError(
            errno.ENOENT, "key and certificate go together, name both", variable
        )
    return Path(os.environ[variable]).read_bytes()


def with_server_name(
    options: Sequence[tuple[str, Any]], server_name: str | None
) -> Sequence[tuple[str, Any]]:
    """Return a channel's options, with the name that the server's certificate is for, if given."""
    if not server_name:
        return options
    return (*options, ("grpc.ssl_target_name_override", server_name))


def open_channel(
    target: str,
    credentials: grpc.ChannelCredentials | None,
    options: Sequence[tuple[str, Any]] = (),
) -> grpc.Channel:
    """Return a channel; without credentials, in the clear."""
    if credentials is None:
        return grpc.insecure_channel(target, options)
    return grpc.secure_channel(target, credentials, options)
