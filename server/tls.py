"""TLS: the server's certificate and its authority for clients, read anew when they are replaced."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from server.settings import Settings
from server.watched_files import WatchedFiles

_log = structlog.get_logger(__name__)


class CertificateError(Exception):
    """A certificate cannot be used; the message is meant for the user."""


class Certificates:
    """The files of a server's TLS; the newest good ones are in force.

    Args:
        certificate: the server's certificate and what leads to its authority, as PEM.
        key: its private key, as PEM.
        client_authority: the authority of the clients' certificates, as PEM; None admits clients
            without one.

    Raises:
        CertificateError: if they cannot be used.
    """

    def __init__(self, certificate: Path, key: Path, client_authority: Path | None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_authority = client_authority
        self._watched = WatchedFiles(*filter(None, (certificate, key, client_authority)))
        self._in_force = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """Return what gRPC listens with, now and whenever it has to listen anew."""
        return grpc.dynamic_ssl_server_credentials(
            self._in_force,
            self._replaced,  # type: ignore[arg-type] # None leaves the one in force
            require_client_authentication=self._client_authority is not None,
        )

    def _replaced(self) -> grpc.ServerCertificateConfiguration | None:
        """Return what replaces the certificate in force; None if that goes on.

        Called for every connection. Bad files are told of once, and the old ones go on.
        """
        if not self._watched.were_replaced():
            return None
        try:
            self._in_force = self._read()
        except CertificateError as error:
            _log.error("certificate refused, the old one stays in force", reason=str(error))
            return None
        _log.info("certificate replaced")
        return self._in_force

    def _read(self) -> grpc.ServerCertificateConfiguration:
        try:
            certificate, key = self._certificate.read_bytes(), self._key.read_bytes()
            authority = self._client_authority.read_bytes() if self._client_authority else None
            leaf = x509.load_pem_x509_certificate(certificate)
            if authority is not None:
                x509.load_pem_x509_certificates(authority)
            fits = load_pem_private_key(key, password=None).public_key() == leaf.public_key()
        except (OSError, TypeError, ValueError) as error:
            raise CertificateError(
                f"cannot read the certificate {self._certificate}, its key {self._key} or the "
                f"clients' authority: {error}; PEM without a password is expected"
            ) from error
        if not fits:
            raise CertificateError(f"{self._key} is not the key of {self._certificate}")
        if leaf.not_valid_after_utc <= datetime.now(UTC):
            raise CertificateError(
                f"{self._certificate} expired on {leaf.not_valid_after_utc:%Y-%m-%d}; renew it"
            )
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authority)


def certificates(settings: Settings) -> Certificates | None:
    """Return the files of TLS that settings name; None if they name none.

    Raises:
        CertificateError: if only a part of them is named, or they cannot be used.
    """
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None and key is None and settings.tls_client_authority is None:
        return None
    if certificate is None or key is None:
        raise CertificateError("TLS needs both tls_certificate and tls_key")
    return Certificates(certificate, key, settings.tls_client_authority)
