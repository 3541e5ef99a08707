"""The admin service and its command line, against a server of its own."""

import errno
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from candidate_search.v1 import admin_service_pb2 as pb
from structlog.testing import capture_logs
from typer.testing import CliRunner

from server import admin
from server.admin_client import AdminClient
from server.client import SearchFailedError
from server.commands import app
from server.errors import InternalError
from server.versions import VersionSummary
from tests.server.processes import serving
from tests.server.published import current


@pytest.fixture(scope="module")
def address(link: Path) -> Iterator[str]:
    with serving(link, "--admin") as (_, listening):
        yield listening


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["admin", *arguments], env={"COLUMNS": "200"})


def test_versions_are_activated_and_rolled_back(address: str, link: Path) -> None:
    second = current(link)
    (first,) = (one.name for one in link.parent.glob("2*") if one.name != second)
    listed = run("versions", "--address", address).output
    assert f"{first} │ available" in listed
    assert f"{second} │ active" in listed
    assert run("verify", first, "--address", address).output == f"{first} is sound\n"
    activated = json.loads(run("activate", first, "--address", address).output)
    assert (first, second) == (activated["active_version"], activated["previous_version"])
    rolled_back = json.loads(run("roll-back", "--address", address).output)
    assert second == rolled_back["active_version"]
    trial = run("activate", first, "--traffic-share", "0.1", "--address", address)
    assert 0.1 == json.loads(trial.output)["canary_traffic_share"]
    run("roll-back", "--address", address)
    shown = json.loads(run("status", "--address", address).output)
    assert "canary_version" not in shown
    assert second == shown["linked_version"]


def test_a_refusal_is_a_sentence(address: str) -> None:
    refused = run("activate", "20200101T000000Z-00000000", "--address", address)
    assert refused.exit_code == 1
    assert "error: VERSION_UNKNOWN: there is no index version" in refused.output


@pytest.mark.parametrize("token", ["secret\n", "geheimnüss"])
def test_a_token_that_is_none_is_a_sentence(token: str) -> None:
    refused = run("versions", "--token", token)
    assert (1, True) == (refused.exit_code, "error: a token holds printable" in refused.output)


def test_it_is_not_answered_unless_asked_for(vector_server: Any) -> None:
    with (
        AdminClient(vector_server.address) as client,
        pytest.raises(SearchFailedError, match="UNIMPLEMENTED"),
    ):
        client.status()


class DrainingServer(grpc.GenericRpcHandler):
    """Cancels the first call of each method, as a worker that drains does."""

    def __init__(self) -> None:
        self.called: Counter[str] = Counter()

    def service(self, handler_call_details: Any) -> Any:
        name = handler_call_details.method.rpartition("/")[2]

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            del request
            self.called[name] += 1
            if self.called[name] == 1:
                context.abort(grpc.StatusCode.CANCELLED, "draining")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


def test_calls_that_a_draining_worker_cancels_are_made_again_where_that_is_safe() -> None:
    server, calls = grpc.server(ThreadPoolExecutor(1)), DrainingServer()
    server.add_generic_rpc_handlers((calls,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with AdminClient(f"127.0.0.1:{port}") as client:
            client.versions()
            client.verify("v")
            client.activate("v")
            client.status()
            with pytest.raises(SearchFailedError, match="CANCELLED"):
                client.roll_back()
    finally:
        server.stop(0)
    assert calls.called.pop("RollBack") == 1
    assert {2} == set(calls.called.values())


class UnreadableVersions:
    """Versions on a disk that cannot be read."""

    def catalogue(self) -> list[VersionSummary]:
        raise OSError(errno.EIO, "Input/output error", "/secret/indexes")


def test_a_command_that_fails_is_replied_to_without_a_path() -> None:
    """The parent of several workers goes on, and the worker that asked does not wait for ever."""
    versions: Any = UnreadableVersions()
    command = admin.write_command("ListVersions", pb.ListVersionsRequest())
    with capture_logs() as logs:
        reply = admin.reply_to(versions, command)
    assert ["admin command fails"] == [one["event"] for one in logs]
    with pytest.raises(InternalError, match="the server failed") as caught:
        admin.read_reply(reply)
    assert "secret" not in str(caught.value)
