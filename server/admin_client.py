"""The Python client of the admin service; needs nothing but gRPC and protobuf.

from server.admin_client import AdminClient

with AdminClient("localhost:50051") as admin:
    admin.activate("20261122T101953Z-5a4b8e5f", traffic_share=0.05)
    admin.roll_back()
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import grpc
from candidate_search.v1 import admin_service_pb2 as pb
from candidate_search.v1.admin_service_pb2_grpc import AdminServiceStub

from server.client_messages import failure, token_metadata

DEFAULT_TIMEOUT_SECONDS = 300.0  # a version is hashed and tried before it takes over


class AdminClient:
    """A client for those who run a server.

    Every method raises ``SearchFailedError`` if the call is refused or does not get through in
    time.

    Args:
        target: ``host:port``, or any name that gRPC resolves.
        timeout_seconds: the deadline of each call.
        credentials: for TLS; None connects in the clear.
        token: one of the role admin, if the server has a file of tokens.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | None = None,
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._metadata = token_metadata(token)
        if credentials is None:
            self._channel = grpc.insecure_channel(target)
        else:
            self._channel = grpc.secure_channel(target, credentials)
        self._stub = AdminServiceStub(self._channel)

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

    def versions(self) -> Sequence[pb.IndexVersion]:
        """Return the versions on disk, oldest first."""
        response: pb.ListVersionsResponse = self._call(
            self._stub.ListVersions, pb.ListVersionsRequest()
        )
        return response.versions

    def verify(self, version: str) -> None:
        """Have the server verify and try a version; a bad one is a ``SearchFailedError``."""
        self._call(self._stub.VerifyVersion, pb.VerifyVersionRequest(version=version))

    def activate(self, version: str, traffic_share: float = 1.0) -> pb.ServingStatus:
        """Have a version answer all searches, or a share of them as a canary."""
        request = pb.ActivateVersionRequest(version=version, traffic_share=traffic_share)
        response: pb.ActivateVersionResponse = self._call(self._stub.ActivateVersion, request)
        return response.status

    def roll_back(self) -> pb.ServingStatus:
        """End the canary's trial; without one, return to the version that answered before."""
        response: pb.RollBackResponse = self._call(self._stub.RollBack, pb.RollBackRequest())
        return response.status

    def status(self) -> pb.ServingStatus:
        """Return what answers now."""
        response: pb.GetStatusResponse = self._call(self._stub.GetStatus, pb.GetStatusRequest())
        return response.status

    def _call(self, method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=self._timeout_seconds, metadata=self._metadata)
        except grpc.RpcError as error:
            raise failure(error) from error
