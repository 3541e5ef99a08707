"""Peers that do not speak gRPC, or too slowly, or too much: others go on, and they are closed."""

import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from candidate_search.v1 import candidate_search_service_pb2 as pb
from candidate_search.v1.candidate_search_service_pb2_grpc import CandidateSearchServiceStub

from server.client import Embedding, SearchClient
from tests.server.processes import n_descriptors, serving, wait_for
from tests.server.published import publish

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
PING = bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + b"12345678"
QUERY = Embedding([1.0] * 8)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    publish(root, 1)
    return root / "current"


@pytest.fixture(params=[100, pytest.param(1000, marks=pytest.mark.slow)])
def n_sockets(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


def send_nothing(peer: socket.socket) -> None:
    del peer


def send_half_a_preface(peer: socket.socket) -> None:
    peer.sendall(PREFACE[:5])


def send_garbage(peer: socket.socket) -> None:
    peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(range(256)))


def flood_with_pings(peer: socket.socket) -> None:
    peer.sendall(PREFACE + SETTINGS + 1000 * PING)


@pytest.mark.parametrize(
    "send", [send_nothing, send_half_a_preface, send_garbage, flood_with_pings]
)
def test_others_are_answered_and_the_sockets_closed(
    index: Path, n_sockets: int, send: Callable[[socket.socket], None]
) -> None:
    flags = ("--handshake-timeout-seconds", "2")
    with serving(index, *flags) as (process, address), SearchClient(address) as client:
        client.search(QUERY)
        before = n_descriptors(process.pid)
        with connected(address, n_sockets) as peers:
            for peer in peers:
                try:
                    send(peer)
                except OSError:
                    continue  # closed while it was still talking
            for _ in range(20):
                assert len(client.search(QUERY, timeout_seconds=30)) == 10
            assert all(is_closed_within(peer, seconds=30) for peer in peers)
        wait_for(lambda: n_descriptors(process.pid) <= before + 2)
        assert len(client.search(QUERY)) == 10


def test_connections_beyond_the_limit_are_closed_as_they_come(index: Path) -> None:
    with serving(index, "--max-connections", "3") as (_, address):
        with connected(address, 4) as peers:
            assert [False, True, True, True] == sorted(map(greets, peers))
        with SearchClient(address) as client:
            assert len(client.search(QUERY)) == 10


def test_a_byte_a_second_is_too_slow(index: Path, n_sockets: int) -> None:
    flags = ("--handshake-timeout-seconds", "3")
    with (
        serving(index, *flags) as (process, address),
        SearchClient(address) as client,
    ):
        client.search(QUERY)
        before = n_descriptors(process.pid)
        with connected(address, n_sockets) as peers:
            send_slowly(peers, client)
            assert all(is_closed_within(peer, seconds=10) for peer in peers)
        wait_for(lambda: n_descriptors(process.pid) <= before + 2)


def send_slowly(peers: Sequence[socket.socket], client: SearchClient) -> None:
    """Send bytes with a pause after each, while another client is answered."""
    for byte in PREFACE[:8]:
        for peer in peers:
            try:
                peer.sendall(bytes([byte]))
            except OSError:
                continue  # closed already
        assert len(client.search(QUERY, timeout_seconds=30)) == 10
        time.sleep(0.5)


def test_headers_beyond_the_limit_are_refused(index: Path) -> None:
    with serving(index) as (_, address), grpc.insecure_channel(address) as channel:
        stub = CandidateSearchServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetIndexInfo(pb.GetIndexInfoRequest(), metadata=(("x-long", "x" * 20_000),))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert stub.GetIndexInfo(pb.GetIndexInfoRequest()).candidate_count > 0


@pytest.mark.parametrize("n_workers", ["1", "2"])
def test_methods_that_are_no_text_harm_nobody_for_long(index: Path, n_workers: str) -> None:
    """gRPC for Python stops listening over one."""
    with serving(index, "--workers", n_workers) as (process, address):
        with SearchClient(address) as client:
            for _ in range(3):
                # With several workers it may come upon one that is just beginning to listen anew.
                with connected(address, 1) as (peer,), suppress(ConnectionResetError):
                    peer.sendall(PREFACE + SETTINGS + headers(b"/\xff"))
                    read_until(peer, b"grpc-status")
                wait_for(lambda: is_listened_on(address), seconds=5)
                assert len(client.search(QUERY, timeout_seconds=10)) == 10
        with SearchClient(address) as client:
            assert len(client.search(QUERY)) == 10
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_calls_that_stall_are_cut_off(index: Path) -> None:
    """Some never end to ask, others never take the answer."""
    flags = ("--max-connection-age-seconds", "1", "--connection-grace-seconds", "1")
    watch = PREFACE + SETTINGS + headers(b"/grpc.health.v1.Health/Watch")
    half = PREFACE + SETTINGS + headers(b"/candidate_search.v1.CandidateSearchService/GetIndexInfo")
    with serving(index, *flags) as (process, address), SearchClient(address) as client:
        client.search(QUERY)
        before = n_descriptors(process.pid)
        with connected(address, 50) as peers:
            for peer in peers[::2]:
                peer.sendall(half + data(b"\0\0\0\1"))
            for peer in peers[1::2]:
                peer.sendall(watch + data(b"\0\0\0\0\0"))
            assert all(is_closed_within(peer, seconds=10) for peer in peers)
        wait_for(lambda: n_descriptors(process.pid) <= before + 2)
        assert len(client.search(QUERY)) == 10


def test_request_ids_that_no_trailer_can_repeat_are_replaced(index: Path) -> None:
    path = b"/candidate_search.v1.CandidateSearchService/GetIndexInfo"
    call = headers(path, ("x-request-id", "é")) + data(b"\0\0\0\0\1\xff")
    with serving(index) as (_, address), connected(address, 1) as (peer,):
        peer.sendall(PREFACE + SETTINGS + call)
        answer = read_until(peer, b"grpc-status")
    assert b"the body is no candidate_search.v1.GetIndexInfoRequest" in answer


def headers(path: bytes, *more: tuple[str, str]) -> bytes:
    """Return the frame that begins a call of a method; none of its headers is compressed."""
    fields = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": path,
        b":authority": b"x",
        b"content-type": b"application/grpc",
        b"te": b"trailers",
        **{name.encode(): value.encode() for name, value in more},
    }
    block = b"".join(
        b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value
        for name, value in fields.items()
    )
    return frame(kind=1, flags=4, payload=block)  # the headers end here


def data(payload: bytes) -> bytes:
    """Return a frame of that call's body, after which there may be more."""
    return frame(kind=0, flags=0, payload=payload)


def frame(kind: int, flags: int, payload: bytes) -> bytes:
    """Return a frame of the connection's first stream."""
    return len(payload).to_bytes(3) + bytes([kind, flags]) + (1).to_bytes(4) + payload


@contextmanager
def connected(address: str, n_sockets: int) -> Iterator[list[socket.socket]]:
    host, _, port = address.rpartition(":")
    peers = [socket.create_connection((host, int(port))) for _ in range(n_sockets)]
    try:
        yield peers
    finally:
        for peer in peers:
            peer.close()


def greets(peer: socket.socket) -> bool:
    """Return whether the server answers the beginning of HTTP/2."""
    peer.settimeout(10)
    try:
        peer.sendall(PREFACE + SETTINGS)
        return len(peer.recv(1)) == 1
    except ConnectionError:
        return False


def is_listened_on(address: str) -> bool:
    """Return whether somebody accepts connections."""
    try:
        with connected(address, 1):
            return True
    except ConnectionRefusedError:
        return False


def read_until(peer: socket.socket, expected: bytes) -> bytes:
    """Return what the other side sends, up to what is expected of it."""
    peer.settimeout(10)
    answer = b""
    while expected not in answer:
        received = peer.recv(65536)
        assert received, answer
        answer += received
    return answer


def is_closed_within(peer: socket.socket, seconds: float) -> bool:
    """Return whether the other side closes a connection in time."""
    peer.settimeout(seconds)
    try:
        while peer.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True
