"""Tokens: every method of every service without one, with a wrong one, and with each role."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from candidate_search.v1 import admin_service_pb2, candidate_search_service_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from server import auth
from server.admin_client import AdminClient
from server.auth import Role, TokenInterceptor, Tokens, check_exposure
from server.client import Embedding, SearchClient
from server.settings import Settings, SettingsError
from tests.server.processes import serving
from tests.server.published import publish

READ, ADMIN, WRONG = "r" * 20, "a" * 20, "w" * 20
METHODS = [
    f"/{service.full_name}/{method.name}"
    for module in (admin_service_pb2, candidate_search_service_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
] + ["/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"]


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.write_text(f"# of the tests\nread {READ}\n\nadmin {ADMIN}\n")
    return path


@pytest.fixture(scope="module")
def address(token_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("published")
    publish(root, 1)
    flags = ("--token-file", str(token_file), "--admin", "--reflection")
    with serving(root / "current", *flags) as (_, listening):
        yield listening


def code_of(address: str, method: str, authorization: str | None) -> grpc.StatusCode:
    metadata = () if authorization is None else (("authorization", authorization),)
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(method)
        try:
            call(b"", metadata=metadata, timeout=10)  # type: ignore[arg-type]
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


@pytest.mark.parametrize("method", METHODS)
def test_every_method_needs_a_token_and_some_the_role(address: str, method: str) -> None:
    unauthenticated = grpc.StatusCode.UNAUTHENTICATED
    for given in (None, "", WRONG, f"Bearer {WRONG}", READ, f"Basic {READ}", "Bearer "):
        assert unauthenticated == code_of(address, method, given)
    with_read = code_of(address, method, f"Bearer {READ}")
    assert ("AdminService" in method) == (with_read == grpc.StatusCode.PERMISSION_DENIED)
    with_admin = code_of(address, method, f"Bearer {ADMIN}")
    assert with_admin not in {unauthenticated, grpc.StatusCode.PERMISSION_DENIED}


def test_a_scheme_may_be_written_in_any_case(address: str) -> None:
    method = "/candidate_search.v1.CandidateSearchService/GetIndexInfo"
    assert grpc.StatusCode.OK == code_of(address, method, f"bearer {READ}")


def test_nobody_is_asked_to_expect_a_call_that_is_refused(tmp_path: Path) -> None:
    # Or the calls of others would be held until it comes.
    path = tmp_path / "tokens"
    path.write_text(f"admin {ADMIN}\n")
    interceptor, asked = TokenInterceptor(Tokens(path)), []

    async def find(details: Any) -> None:
        asked.append(details.invocation_metadata)

    for metadata in ((), (("authorization", f"Bearer {ADMIN}"),)):
        details: Any = SimpleNamespace(method=METHODS[0], invocation_metadata=metadata)
        asyncio.run(interceptor.intercept_service(find, details))
    assert [(("authorization", f"Bearer {ADMIN}"),)] == asked


def test_clients_send_their_token(address: str) -> None:
    with SearchClient(address, token=READ) as client:
        assert 10 == len(client.search(Embedding([1.0] * 8)))
    with AdminClient(address, token=ADMIN) as admin:
        assert 1 == len(admin.versions())


def test_health_is_answered_without(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert health_pb2.HealthCheckResponse.SERVING == answer.status


def test_tokens_are_replaced_and_a_bad_file_leaves_them(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"read {READ}\n")
    tokens = Tokens(path)
    assert (Role.READ, None) == (tokens.role(READ), tokens.role(ADMIN))
    path.write_text(f"admin {ADMIN}\n")
    tokens.refresh()
    assert (None, Role.ADMIN) == (tokens.role(READ), tokens.role(ADMIN))
    with capture_logs() as logs:
        for _ in range(3):  # each fault is told of once
            path.write_text(f"owner {WRONG}\n")
            tokens.refresh()
            tokens.refresh()
        path.unlink()
        tokens.refresh()
        tokens.refresh()
    assert Role.ADMIN is tokens.role(ADMIN)
    assert [logging.ERROR] * 4 == [logging.getLevelName(one["log_level"].upper()) for one in logs]
    assert WRONG not in str(logs)


def test_tokens_that_are_replaced_while_they_are_read_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"read {READ}\n")

    def read_too_early(path: Path) -> dict[bytes, Role]:
        roles = read(path)
        path.write_text(f"admin {ADMIN}\n")
        return roles

    read = auth._read
    with monkeypatch.context() as patched:
        patched.setattr(auth, "_read", read_too_early)
        tokens = Tokens(path)
    assert tokens.role(ADMIN) is None
    tokens.refresh()
    assert Role.ADMIN is tokens.role(ADMIN)


@pytest.mark.parametrize("line", ["", "read short", f"owner {WRONG}", WRONG])
def test_a_file_that_cannot_be_used_is_refused_without_showing_it(
    tmp_path: Path, line: str
) -> None:
    path = tmp_path / "tokens"
    path.write_text(line)
    with pytest.raises(SettingsError, match=r"token_file: .*") as caught:
        Tokens(path)
    assert WRONG not in str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "search.example"])
def test_what_lies_open_is_warned_of_and_admin_refused(host: str, token_file: Path) -> None:
    with capture_logs() as logs:
        check_exposure(Settings(host=host))
    assert ["OPEN WITHOUT TLS", "OPEN TO EVERYBODY"] == [
        one["event"].partition(":")[0] for one in logs
    ]
    with pytest.raises(SettingsError, match="anybody could change what is served"):
        check_exposure(Settings(host=host, admin=True))
    check_exposure(Settings(host=host, admin=True, token_file=token_file))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_lies_not_open(host: str) -> None:
    with capture_logs() as logs:
        check_exposure(Settings(host=host, admin=True))
    assert [] == logs
