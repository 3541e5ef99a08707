"""The admin service: which index versions there are, and which of them answers.

Commands are carried out where the versions are, which with several workers is their parent, where
gRPC cannot run. So a command and its reply can be written down as bytes; they are not pickled, as
pipes between processes do by themselves, since a worker faces the network and its parent does not.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import grpc
import structlog
from candidate_search.v1 import admin_service_pb2 as pb
from google.protobuf.message import Message

from server.errors import InternalError, NotServingError, SearchError
from server.interceptors import Method, service_handler
from server.versions import Versions, VersionSummary

_log = structlog.get_logger(__name__)
SERVICE_NAME = pb.DESCRIPTOR.services_by_name["AdminService"].full_name

Execute = Callable[[str, Message], Awaitable[bytes]]
"""Carries out a method, given its name and request; returns the serialised response."""

_REQUEST_TYPES: dict[str, type[Message]] = {
    "ListVersions": pb.ListVersionsRequest,
    "VerifyVersion": pb.VerifyVersionRequest,
    "ActivateVersion": pb.ActivateVersionRequest,
    "RollBack": pb.RollBackRequest,
    "GetStatus": pb.GetStatusRequest,
}
_DONE, _REFUSED = b"+", b"-"


class AdminServicer:
    """Answers the calls of ``AdminService``.

    Args:
        execute: what carries them out, one after the other.
    """

    def __init__(self, execute: Execute) -> None:
        self._execute = execute

    def handler(self) -> grpc.GenericRpcHandler:
        """Return what a gRPC server calls."""
        methods: dict[str, Method] = {
            name: (partial(self._answer, name), request_type)
            for name, request_type in _REQUEST_TYPES.items()
        }
        return service_handler(SERVICE_NAME, methods)

    async def _answer(self, name: str, request: Message, seconds_left: float | None) -> bytes:
        del seconds_left  # what was begun is finished: another call can tell how it ended
        return await self._execute(name, request)


def execute(versions: Versions, name: str, request: Any) -> bytes:
    """Carry out a method of the admin service.

    Raises:
        SearchError: if it is refused; the class says why.
    """
    response: Message
    match name:
        case "ListVersions":
            response = pb.ListVersionsResponse(versions=map(_version, versions.catalogue()))
        case "VerifyVersion":
            versions.verify(request.version)
            response = pb.VerifyVersionResponse()
        case "ActivateVersion":
            share = request.traffic_share if request.HasField("traffic_share") else 1.0
            versions.activate(request.version, share)
            response = pb.ActivateVersionResponse(status=_status(versions))
        case "RollBack":
            versions.roll_back()
            response = pb.RollBackResponse(status=_status(versions))
        case _:
            response = pb.GetStatusResponse(status=_status(versions))
    return response.SerializeToString()


def asking(parent: Connection) -> Execute:
    """Return what has the parent carry out commands, one after the other."""
    thread = ThreadPoolExecutor(1, "admin")

    def ask(command: bytes) -> bytes:
        parent.send_bytes(command)
        return parent.recv_bytes()

    async def execute(name: str, request: Message) -> bytes:
        command = write_command(name, request)
        try:
            reply = await asyncio.get_running_loop().run_in_executor(thread, ask, command)
        except (EOFError, OSError) as error:
            raise NotServingError("the server is stopping") from error
        return read_reply(reply)

    return execute


def write_command(name: str, request: Message) -> bytes:
    """Return a method's name and its request as bytes."""
    return name.encode() + b"\n" + request.SerializeToString()


def reply_to(versions: Versions, command: bytes) -> bytes:
    """Carry out a command that was written down, and write down what became of it."""
    name, _, body = command.partition(b"\n")
    request_type = _REQUEST_TYPES[name.decode()]
    refusal: SearchError
    try:
        return _DONE + execute(versions, name.decode(), request_type.FromString(body))
    except SearchError as error:
        refusal = error
    except Exception:  # noqa: BLE001 - whoever waits must get a reply, and workers keep their parent
        _log.exception("admin command fails", method=name.decode())
        refusal = InternalError("the server failed; its log has the cause")
    parts = {"reason": refusal.reason, "message": str(refusal), "metadata": refusal.metadata}
    return _REFUSED + json.dumps(parts).encode()


def read_reply(reply: bytes) -> bytes:
    """Return the serialised response that a reply holds.

    Raises:
        SearchError: if it holds a refusal.
    """
    kind, content = reply[:1], reply[1:]
    if kind == _DONE:
        return content
    refusal = json.loads(content)
    (error,) = (one for one in SearchError.__subclasses__() if one.reason == refusal["reason"])
    raise error(refusal["message"], **refusal["metadata"])


def _version(summary: VersionSummary) -> pb.IndexVersion:
    return pb.IndexVersion(
        name=summary.name,
        state=pb.IndexVersionState.Value(f"INDEX_VERSION_STATE_{summary.state.name}"),
        refusal=summary.refusal,
    )


def _status(versions: Versions) -> pb.ServingStatus:
    served = versions.served
    return pb.ServingStatus(
        active_version=served.active.name,
        canary_version=served.canary.name if served.canary else "",
        canary_traffic_share=served.canary_share,
        previous_version=versions.previous or "",
        linked_version=versions.linked() or "",
        process_ids=versions.process_ids(),
    )
