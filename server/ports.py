"""The addresses that a server listens on, and what to say where one is taken."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

CHOOSE_ANOTHER = "choose another address with --host and --port, or --port 0 for any that is free"
CHOOSE_ANOTHER_FOR_METRICS = "choose another port for Prometheus with --metrics-port"


class PortTakenError(Exception):
    """The address cannot be listened on; the message is meant for the user."""


def address(host: str, port: int) -> str:
    """Return ``host:port`` as gRPC and people write it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextmanager
def held_port(host: str, port: int, advice: str) -> Iterator[int]:
    """Yield a port that nobody listens on, and that nobody else is given meanwhile.

    Workers that share a port would share it with a second server as well, without a word; so it is
    first asked for by a socket that does not share.

    Args:
        host: the address.
        port: the port; 0 for any that is free.
        advice: what to do if it is taken.

    Raises:
        PortTakenError: if it is taken.
    """
    with ExitStack() as stack:
        try:
            with probe_port(host, port) as probe:
                free_port: int = probe.getsockname()[1]
            held = stack.enter_context(socket.socket(probe.family))
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind((host, free_port))
        except OSError as error:
            where = address(host, port)
            reason = error.strerror or error
            raise PortTakenError(f"cannot listen on {where}: {reason}; {advice}") from error
        yield free_port


def why_not(host: str, port: int) -> str:
    """Return why an address cannot be listened on, and how to mend it."""
    try:
        probe_port(host, port).close()
    except OSError as error:
        return f"{error.strerror or error}; {CHOOSE_ANOTHER}"
    return CHOOSE_ANOTHER


def probe_port(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address, which fails where anybody listens on it.

    Raises:
        OSError: if the address is taken, or is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound
