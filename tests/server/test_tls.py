"""TLS: rotation under load, and what is refused."""

import shutil
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from typer.testing import CliRunner

from server import health
from server.client import Embedding, SearchClient, SearchFailedError
from server.commands import app
from server.connection import CLIENT_CERTIFICATE, CLIENT_KEY
from server.settings import Settings
from server.tls import CertificateError, certificates
from tests.server.authority import Authority
from tests.server.processes import serving
from tests.server.published import publish

QUERY = Embedding([1.0] * 8)
N_ROTATIONS = 4


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    publish(root, 1)
    return root / "current"


def flags(certificate: Path, key: Path, *others: str) -> list[str]:
    return ["--tls-certificate", str(certificate), "--tls-key", str(key), *others]


def search(address: str, credentials: grpc.ChannelCredentials | None) -> int:
    with SearchClient(address, credentials=credentials, timeout_seconds=10) as client:
        return len(client.search(QUERY))


def served_serial(address: str) -> int:
    """Return the serial number of the certificate that the server shows now."""
    host, _, port = address.rpartition(":")
    pem = ssl.get_server_certificate((host, int(port)))
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


def serial(certificate: Path) -> int:
    return x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number


@contextmanager
def new_connections(address: str, root: bytes) -> Iterator[None]:
    """Search over one new connection after the other while the block runs; none may fail."""
    over = threading.Event()

    def keep_searching() -> int:
        n_searched = 0
        while not over.is_set():
            # With credentials of its own, since gRPC shares connections whose credentials are one.
            assert 10 == search(address, grpc.ssl_channel_credentials(root))
            n_searched += 1
        return n_searched

    with ThreadPoolExecutor() as threads:
        searching = [threads.submit(keep_searching) for _ in range(2)]
        try:
            yield
        finally:
            over.set()
        assert all(one.result() > N_ROTATIONS for one in searching)


def test_certificates_rotate_while_calls_succeed_and_bad_ones_change_nothing(
    index: Path, tmp_path: Path
) -> None:
    authority = Authority(tmp_path, "authority")
    root = authority.path.read_bytes()
    trusting = grpc.ssl_channel_credentials(root)
    certificate, key = authority.issue("server")
    with serving(index, *flags(certificate, key)) as (_, address):
        with (
            new_connections(address, root),
            SearchClient(address, credentials=trusting) as lasting,
        ):
            for number in range(N_ROTATIONS):
                fresh_certificate, fresh_key = authority.issue(f"fresh-{number}")
                fresh_certificate.replace(certificate)
                fresh_key.replace(key)
                assert serial(certificate) == served_serial(address)
                assert 10 == search(address, trusting) == len(lasting.search(QUERY))
            in_force = serial(certificate)
            certificate.write_text("no certificate")
            assert in_force == served_serial(address)
            assert 10 == search(address, trusting) == len(lasting.search(QUERY))
        trusted = ["health", "--address", address, "--authority", str(authority.path)]
        assert CliRunner().invoke(app, trusted).exit_code == 0
        assert CliRunner().invoke(app, [*trusted, "--server-name", "localhost"]).exit_code == 0
        assert CliRunner().invoke(app, [*trusted, "--server-name", "elsewhere"]).exit_code == 1
        other = Authority(tmp_path, "other")
        strange = grpc.ssl_channel_credentials(other.path.read_bytes())
        for credentials in (strange, None):
            with pytest.raises(SearchFailedError, match=r"UNAVAILABLE|DEADLINE_EXCEEDED"):
                search(address, credentials)


def test_clients_need_a_certificate_of_the_authority(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, other = Authority(tmp_path, "authority"), Authority(tmp_path, "other")
    root = authority.path.read_bytes()

    def with_own(paths: tuple[Path, Path]) -> grpc.ChannelCredentials:
        certificate, key = (path.read_bytes() for path in paths)
        return grpc.ssl_channel_credentials(root, key, certificate)

    own = flags(*authority.issue("server"), "--tls-client-authority", str(authority.path))
    with serving(index, *own) as (_, address):
        client = authority.issue("client")
        assert 10 == search(address, with_own(client))
        asked = ["--address", address, "--authority", str(authority.path)]
        assert 1 == health.main(asked)
        for name, path, status in zip(
            (CLIENT_CERTIFICATE, CLIENT_KEY), client, (2, 0), strict=True
        ):
            monkeypatch.setenv(name, str(path))
            assert status == health.main(asked)  # one without the other is refused in a sentence
        for refused in (grpc.ssl_channel_credentials(root), with_own(other.issue("stranger"))):
            with pytest.raises(SearchFailedError, match=r"UNAVAILABLE|DEADLINE_EXCEEDED"):
                search(address, refused)


@pytest.fixture
def good(tmp_path: Path) -> tuple[Path, Path]:
    return Authority(tmp_path, "authority").issue("server")


def test_files_that_cannot_be_used_are_told_in_a_sentence(
    good: tuple[Path, Path], tmp_path: Path
) -> None:
    certificate, key = good
    expired, expired_key = Authority(tmp_path, "old").issue("expired", days=-1)
    garbage = tmp_path / "garbage"
    garbage.write_text("x")
    for message, files in {
        "needs both": {"tls_certificate": certificate},
        "needs both tls_certificate": {"tls_client_authority": certificate},
        "is not the key of": {"tls_certificate": certificate, "tls_key": expired_key},
        "expired on": {"tls_certificate": expired, "tls_key": expired_key},
        "cannot read the certificate": {"tls_certificate": garbage, "tls_key": key},
        "No such file": {"tls_certificate": tmp_path / "none", "tls_key": key},
    }.items():
        with pytest.raises(CertificateError, match=message):
            certificates(Settings(**files))
    assert certificates(Settings()) is None


def test_a_key_without_its_certificate_is_not_taken_halfway(
    good: tuple[Path, Path], tmp_path: Path
) -> None:
    """Between the two renames of a rotation the files do not fit each other."""
    loaded = certificates(Settings(tls_certificate=good[0], tls_key=good[1]))
    assert loaded is not None
    fresh = Authority(tmp_path, "next").issue("next")
    shutil.copyfile(fresh[1], good[1])
    assert loaded._replaced() is None
    shutil.copyfile(fresh[0], good[0])
    assert loaded._replaced() is not None
    assert loaded._replaced() is None


def test_what_listens_anew_shows_the_certificate_in_force(
    good: tuple[Path, Path], tmp_path: Path
) -> None:
    loaded = certificates(Settings(tls_certificate=good[0], tls_key=good[1]))
    assert loaded is not None
    fresh = Authority(tmp_path, "next").issue("next")
    with ThreadPoolExecutor(1) as threads:
        for step in range(3):
            if step == 1:
                for new, old in zip(fresh, good, strict=True):
                    shutil.copyfile(new, old)
            server = grpc.server(threads)
            port = server.add_secure_port("localhost:0", loaded.credentials())
            server.start()
            assert serial(good[0]) == served_serial(f"localhost:{port}")
            server.stop(None).wait()


@pytest.mark.parametrize("command", [["search", "--like", "nobody"], ["admin", "versions"]])
def test_commands_take_the_name_that_the_certificate_is_for(
    index: Path, tmp_path: Path, command: list[str]
) -> None:
    authority = Authority(tmp_path, "authority")
    with serving(index, *flags(*authority.issue("server"), "--admin")) as (_, address):
        asked = [*command, "--address", address, "--authority", str(authority.path)]
        asked.append("--server-name")
        answered = CliRunner().invoke(app, [*asked, "localhost"]).output
        assert "CANDIDATE_UNKNOWN" in answered or "active" in answered
        refused = CliRunner().invoke(app, [*asked, "elsewhere"])
        assert refused.exit_code == 1
        assert "Hostname Verification Check failed" in refused.output
