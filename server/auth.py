"""Who may call: bearer tokens with roles, and what may lie open without them."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from enum import IntEnum
from pathlib import Path
from typing import Any

import grpc
import structlog
from candidate_search.v1 import admin_service_pb2, candidate_search_service_pb2
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection_pb2

from server import metrics
from server.errors import PermissionDeniedError, SearchError, UnauthenticatedError
from server.interceptors import STATUS_CODES, abort
from server.settings import Settings, SettingsError
from server.watched_files import WatchedFiles

_log = structlog.get_logger(__name__)
_MIN_TOKEN_LENGTH = 16
_SCHEME = "bearer"  # in any case, as of all schemes of HTTP
_UNKNOWN_METHOD = "unknown"  # in metrics
_METHODS = frozenset(
    f"/{service.full_name}/{method.name}"
    for file in (candidate_search_service_pb2, admin_service_pb2, reflection_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
)
_ADMIN_PREFIX = f"/{admin_service_pb2.DESCRIPTOR.services_by_name['AdminService'].full_name}/"
# Orchestrators send no tokens, and learn nothing but whether searches are answered.
_OPEN_PREFIX = f"/{health.SERVICE_NAME}/"


class Role(IntEnum):
    """What a token allows; each role may do what those below it may."""

    READ = 1
    ADMIN = 2


class Tokens:
    """The tokens of a file, read anew when it is replaced; a bad file leaves the old ones valid.

    Each line is a role, ``read`` or ``admin``, and a token of at least 16 characters. Lines that
    begin with # are passed over.

    Args:
        path: the file.

    Raises:
        SettingsError: if it cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._watched = WatchedFiles(path)
        self._roles = _read(path)

    def refresh(self) -> None:
        """Read the file if it was replaced."""
        if not self._watched.were_replaced():
            return
        try:
            self._roles = _read(self._path)
        except SettingsError as error:
            _log.error("tokens refused, the old ones stay valid", reason=str(error))
        else:
            _log.info("tokens replaced", count=len(self._roles))

    def role(self, token: str) -> Role | None:
        """Return what a token allows; None if it is none of ours."""
        presented, found = _digest(token), None
        # All are compared, each in constant time: how long it takes tells nothing.
        for digest, role in self._roles.items():
            if hmac.compare_digest(digest, presented):
                found = role
        return found


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without a valid token, whatever the service; health apart.

    Args:
        tokens: the valid ones.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the method's own handler, or one that refuses."""
        error = self._refusal(handler_call_details)
        if error is None:
            # Not before: whoever is asked for a handler expects the call.
            return await continuation(handler_call_details)
        # Callers may make up methods, but no labels.
        method = handler_call_details.method
        label = method.rpartition("/")[2] if method in _METHODS else _UNKNOWN_METHOD
        metrics.REQUESTS.labels(label, STATUS_CODES[type(error)].name).inc()
        return _refusing(error)

    def _refusal(self, details: grpc.HandlerCallDetails) -> SearchError | None:
        if details.method.startswith(_OPEN_PREFIX):
            return None
        given = dict(details.invocation_metadata or ()).get("authorization", "")
        scheme, _, token = given.partition(" ") if isinstance(given, str) else ("", "", "")
        role = self._tokens.role(token) if scheme.lower() == _SCHEME else None
        if role is None:
            return UnauthenticatedError(
                "the call carries no valid token; send one as the metadata "
                "authorization: Bearer TOKEN"
            )
        if role < Role.ADMIN and details.method.startswith(_ADMIN_PREFIX):
            return PermissionDeniedError("the token's role is read; this call needs admin")
        return None


def check_exposure(settings: Settings) -> None:
    """Refuse to lay the admin service open, and warn loudly of anything else that lies open.

    Raises:
        SettingsError: if anybody on the network could change what is served.
    """
    if _is_loopback(settings.host):
        return
    if settings.admin and settings.token_file is None:
        raise SettingsError(
            f"admin: on {settings.host} anybody could change what is served; "
            "give --token-file, or listen on 127.0.0.1"
        )
    if settings.tls_certificate is None:
        _log.warning(
            "OPEN WITHOUT TLS: whoever reaches this port reads what is asked and answered; "
            "give --tls-certificate and --tls-key, or listen on 127.0.0.1",
            host=settings.host,
        )
    if settings.token_file is None and settings.tls_client_authority is None:
        _log.warning(
            "OPEN TO EVERYBODY: whoever reaches this port may search; give --token-file or "
            "--tls-client-authority, or listen on 127.0.0.1",
            host=settings.host,
        )


def _read(path: Path) -> dict[bytes, Role]:
    roles = {}
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"token_file: cannot read {path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        role, _, token = line.strip().partition(" ")
        # The line itself is not shown: it may hold a token.
        if role.upper() not in Role.__members__ or len(token.strip()) < _MIN_TOKEN_LENGTH:
            raise SettingsError(
                f"token_file: {path}, line {number}: expected read or admin, a space and a token "
                f"of at least {_MIN_TOKEN_LENGTH} characters"
            )
        roles[_digest(token.strip())] = Role[role.upper()]
    if not roles:
        raise SettingsError(f"token_file: {path} holds no token")
    return roles


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _refusing(error: SearchError) -> grpc.RpcMethodHandler[Any, Any]:
    async def refuse(_: object, context: Any) -> None:
        await abort(context, error)

    # As a stream, so that nothing of the request is read before it is refused.
    handler: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(refuse)
    return handler


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
