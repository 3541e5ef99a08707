"""Whatever the admin service is sent, the answer is a response or a refusal; the server lives."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from candidate_search.v1 import admin_service_pb2 as pb
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.admin_client import AdminClient
from tests.server.processes import serving
from tests.server.published import point_at, publish, publish_changed
from tests.server.test_fuzz import fields_below, fields_set

REQUESTS: dict[str, type[Message]] = {
    method.name: getattr(pb, method.input_type.name)
    for method in pb.DESCRIPTOR.services_by_name["AdminService"].methods
}
# A worker that drains, since another version takes over, cancels what it has not begun.
ANSWERS = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
}
GOOD, ACTIVE, DAMAGED = "<good>", "<active>", "<damaged>"

names = st.text(max_size=40) | st.sampled_from(
    [GOOD, ACTIVE, DAMAGED, "", ".", "..", "current", "../..", "/etc", "a\0b", "20200101T000000Z-0"]
)
shares = st.none() | st.floats() | st.floats(0, 1) | st.sampled_from([0.0, 5e-324, 1.0, 1.5])
requests = st.one_of(
    st.builds(pb.ListVersionsRequest),
    st.builds(pb.VerifyVersionRequest, version=names),
    st.builds(pb.ActivateVersionRequest, version=names, traffic_share=shares),
    st.builds(pb.RollBackRequest),
    st.builds(pb.GetStatusRequest),
)
many = settings(
    max_examples=75, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Target:
    """A server with a good version beside the active one, and a damaged one."""

    def __init__(self, address: str, channel: grpc.Channel, versions: dict[str, str]) -> None:
        self.address = address
        self.versions = versions
        self._channel = channel

    def outcome(self, method: str, body: bytes) -> grpc.StatusCode:
        """Return how a call ends."""
        call: Any = self._channel.unary_unary(f"/candidate_search.v1.AdminService/{method}")
        try:
            call(body, timeout=30)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
        return grpc.StatusCode.OK


@pytest.fixture(scope="module", params=["1", pytest.param("2", marks=pytest.mark.slow)])
def target(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Target]:
    root = tmp_path_factory.mktemp("published")
    versions = {GOOD: publish(root, 1), ACTIVE: publish(root, 2)}
    versions[DAMAGED] = publish_changed(root / "current", "embeddings.npy", b"")
    point_at(root / "current", versions[ACTIVE])
    flags = ["--admin", "--workers", request.param, "--log-level", "error"]
    with (
        serving(root / "current", *flags) as (process, address),
        grpc.insecure_channel(address) as channel,
    ):
        yield Target(address, channel, versions)
        with AdminClient(address) as admin:
            assert {one.name for one in admin.versions()} == set(versions.values())
        assert process.poll() is None


@given(request_=requests)
@many
def test_any_message_is_answered_or_refused(target: Target, request_: Any) -> None:
    if "version" in request_.DESCRIPTOR.fields_by_name:
        request_.version = target.versions.get(request_.version, request_.version)
    method = request_.DESCRIPTOR.name.removesuffix("Request")
    assert target.outcome(method, request_.SerializeToString()) in ANSWERS


@given(method=st.sampled_from(list(REQUESTS)), body=st.binary(max_size=100))
@many
def test_any_bytes_are_answered_or_refused(target: Target, method: str, body: bytes) -> None:
    assert target.outcome(method, body) in ANSWERS


@pytest.mark.parametrize("method", ["VerifyVersion", "ActivateVersion"])
def test_a_long_name_is_refused(target: Target, method: str) -> None:
    body = pb.VerifyVersionRequest(version="é" * 500_000).SerializeToString()
    assert grpc.StatusCode.NOT_FOUND == target.outcome(method, body)


@pytest.mark.parametrize("method", ["VerifyVersion", "ActivateVersion"])
def test_a_name_that_is_no_text_is_undecodable(target: Target, method: str) -> None:
    assert grpc.StatusCode.INVALID_ARGUMENT == target.outcome(method, b"\x0a\x02\xff\xfe")


@pytest.mark.slow
def test_two_thousand_damaged_requests_for_each_method_are_answered_or_refused(
    target: Target,
) -> None:
    """Half are random, half are a request of which some bytes were changed."""
    rng = np.random.default_rng(0)
    sound = pb.ActivateVersionRequest(
        version=target.versions[ACTIVE], traffic_share=1.0
    ).SerializeToString()
    codes = Counter[grpc.StatusCode]()
    for number in range(2_000 * len(REQUESTS)):
        body = bytearray(rng.bytes(rng.integers(100)) if number % 2 else sound)
        for position in rng.integers(len(body) or 1, size=3 if body else 0):
            body[position] = rng.integers(256)
        codes[target.outcome(list(REQUESTS)[number // 2 % len(REQUESTS)], bytes(body))] += 1
    print(dict(codes))  # noqa: T201
    assert codes.keys() <= ANSWERS


def test_every_method_and_field_is_tried() -> None:
    """So that one that is added to the .proto is not forgotten here."""
    tried: set[str] = set()

    @given(requests)
    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    def try_some(request_: Message) -> None:
        tried.add(request_.DESCRIPTOR.full_name)
        tried.update(fields_set(request_))

    try_some()
    for request_type in REQUESTS.values():
        descriptor = request_type.DESCRIPTOR
        assert {descriptor.full_name} | fields_below(descriptor) <= tried
