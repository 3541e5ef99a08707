"""The command line of those who run a server: ``python -m server admin``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import grpc
import typer
from candidate_search.v1 import admin_service_pb2 as pb
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from server import connection
from server.admin_client import AdminClient
from server.client import SearchFailedError

app = typer.Typer(
    help="See which index versions a running server has, and choose which of them answers. The "
    "server must have been started with --admin.",
    no_args_is_help=True,
)

Address = Annotated[str, typer.Option(help="Where the server listens.")]
Token = Annotated[
    str | None,
    typer.Option(
        help="A token that the server knows; better in the environment than on the command line.",
        envvar="CANDIDATE_SEARCH_TOKEN",
    ),
]
Authority = Annotated[
    Path | None, typer.Option(help="Connect by TLS, to a server this authority (PEM) vouches for.")
]
ServerName = Annotated[
    str | None,
    typer.Option(help="What the server's certificate is for, if not for the address."),
]
Version = Annotated[str, typer.Argument(help="The version's name, as `admin versions` shows it.")]
LOCAL = "localhost:50051"


@app.command()
def versions(
    address: Address = LOCAL,
    token: Token = None,
    authority: Authority = None,
    server_name: ServerName = None,
) -> None:
    """List the versions on disk.

    Example: python -m server admin versions
    """
    with _connected(address, token, authority, server_name) as client:
        table = Table("version", "state", "why it was refused")
        for one in client.versions():
            state = pb.IndexVersionState.Name(one.state).removeprefix("INDEX_VERSION_STATE_")
            table.add_row(one.name, state.lower(), escape(one.refusal))
    Console().print(table)


@app.command()
def status(
    address: Address = LOCAL,
    token: Token = None,
    authority: Authority = None,
    server_name: ServerName = None,
) -> None:
    """Show what answers now, as JSON.

    Example: python -m server admin status
    """
    with _connected(address, token, authority, server_name) as client:
        _print(client.status())


@app.command()
def verify(
    version: Version,
    address: Address = LOCAL,
    token: Token = None,
    authority: Authority = None,
    server_name: ServerName = None,
) -> None:
    """Have a version hashed and tried; nothing changes.

    Example: python -m server admin verify 20261122T101953Z-5a4b8e5f
    """
    with _connected(address, token, authority, server_name) as client:
        client.verify(version)
    typer.echo(f"{version} is sound")


@app.command()
def activate(
    version: Version,
    traffic_share: Annotated[
        float, typer.Option(help="The share of searches that it answers; below 1, as a canary.")
    ] = 1.0,
    address: Address = LOCAL,
    token: Token = None,
    authority: Authority = None,
    server_name: ServerName = None,
) -> None:
    """Have a version answer, until the watched link names another or the server ends.

    Example: python -m server admin activate 20261122T101953Z-5a4b8e5f --traffic-share 0.05
    """
    with _connected(address, token, authority, server_name) as client:
        _print(client.activate(version, traffic_share))


@app.command()
def roll_back(
    address: Address = LOCAL,
    token: Token = None,
    authority: Authority = None,
    server_name: ServerName = None,
) -> None:
    """End the canary's trial; without one, return to the version that answered before.

    Example: python -m server admin roll-back
    """
    with _connected(address, token, authority, server_name) as client:
        _print(client.roll_back())


@contextmanager
def _connected(
    address: str, token: str | None, authority: Path | None, server_name: str | None
) -> Iterator[AdminClient]:
    """Yield a client, and say in a sentence what it is refused."""
    try:
        with AdminClient(
            address,
            token=token,
            credentials=tls_credentials(authority),
            server_name=server_name,
        ) as client:
            yield client
    except SearchFailedError as error:
        typer.echo(f"error: {told_of(error, address)}", err=True)
        raise typer.Exit(1) from error
    except ValueError as error:  # of a token that is none
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def told_of(error: SearchFailedError, address: str) -> str:
    """Return why a call failed, and what to look at where no server has said so."""
    if error.reason:
        return str(error)
    match error.code:
        case "UNAVAILABLE":
            return (
                f"no server answers at {address}: is one running there, as HOST:PORT? One with "
                f"TLS is reached with --authority. ({error})"
            )
        case "UNIMPLEMENTED":
            return (
                f"what listens at {address} knows no such call: is it this server, and, for "
                f"admin, was it started with --admin? ({error})"
            )
        case "DEADLINE_EXCEEDED":
            return f"{address} has not answered in time: is a server running there? ({error})"
    return str(error)


def tls_credentials(authority: Path | None) -> grpc.ChannelCredentials | None:
    """Return what connects by TLS; None, for in the clear, without an authority."""
    try:
        return connection.tls_credentials(authority)
    except OSError as error:
        raise typer.BadParameter(f"cannot read {error.filename}: {error.strerror}") from error


def _print(status: pb.ServingStatus) -> None:
    typer.echo(json.dumps(MessageToDict(status, preserving_proto_field_name=True), indent=2))
