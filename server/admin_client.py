"""The Python client of the admin service; needs nothing but gRPC and protobuf.

from server.admin_client import AdminClient

with AdminClient("localhost:50051") as admin:
    admin.activate("20261122T101953Z-5a4b8e5f", traffic_share=0.05)
    admin.roll_back()
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from candidate_search.v1 import admin_service_pb2 as pb
from candidate_search.v1.admin_service_pb2_grpc import AdminServiceStub

from server.connection import BlockingConnection, open_channel, retrying, with_server_name

DEFAULT_TIMEOUT_SECONDS = 300.0  # a version is hashed and tried before it takes over

# Not RollBack, which done twice goes back to where it came from.
_RETRIED = ("ListVersions", "VerifyVersion", "ActivateVersion", "GetStatus")
_CHANNEL_OPTIONS = retrying(
    *({"service": "candidate_search.v1.AdminService", "method": name} for name in _RETRIED)
)


class AdminClient(BlockingConnection):
    """A client for those who run a server.

    Every method raises ``SearchFailedError`` if the call is refused or does not get through in
    time.

    Args:
        target: ``host:port``, or any name that gRPC resolves.
        timeout_seconds: the deadline of each call.
        credentials: for TLS; None connects in the clear.
        server_name: what the server's certificate is for, if not for the target.
        token: one of the role admin, if the server has a file of tokens.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        credentials: grpc.ChannelCredentials | None = None,
        server_name: str | None = None,
        token: str | None = None,
    ) -> None:
        options = with_server_name(_CHANNEL_OPTIONS, server_name)
        channel = open_channel(target, credentials, options)
        super().__init__(channel, timeout_seconds, token)
        self._stub = AdminServiceStub(channel)

    def versions(self) -> Sequence[pb.IndexVersion]:
        """Return the versions on disk, oldest first."""
        with self._call() as options:
            return self._stub.ListVersions(pb.ListVersionsRequest(), **options).versions

    def verify(self, version: str) -> None:
        """Have the server verify and try a version; a bad one is a ``SearchFailedError``."""
        with self._call() as options:
            self._stub.VerifyVersion(pb.VerifyVersionRequest(version=version), **options)

    def activate(self, version: str, traffic_share: float = 1.0) -> pb.ServingStatus:
        """Have a version answer all searches, or a share of them as a canary."""
        request = pb.ActivateVersionRequest(version=version, traffic_share=traffic_share)
        with self._call() as options:
            return self._stub.ActivateVersion(request, **options).status

    def roll_back(self) -> pb.ServingStatus:
        """End the canary's trial; without one, return to the version that answered before."""
        with self._call() as options:
            return self._stub.RollBack(pb.RollBackRequest(), **options).status

    def status(self) -> pb.ServingStatus:
        """Return what answers now."""
        with self._call() as options:
            return self._stub.GetStatus(pb.GetStatusRequest(), **options).status
