"""Signatures over index bundles: who published a version, beside that it is whole.

An Ed25519 signature (RFC 8032) of the manifest, which holds the hash of every other file. Hashes
tell that a bundle is as it was published; anybody who can write to the folder can publish. A
server that was given a public key serves only what the private key has signed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from trainer.publish import MANIFEST, SIGNATURE, BundleError, resolve

Key = TypeVar("Key", Ed25519PrivateKey, Ed25519PublicKey)


def sign(index: Path, private_key: Path) -> Path:
    """Sign a published version; return its directory.

    Args:
        index: a version's directory, or a link to one.
        private_key: an Ed25519 key (PEM without a password).

    Raises:
        BundleError: if there is no bundle, it cannot be written to, or the key cannot be used.
    """
    directory = resolve(index)
    key = _read_key(private_key, partial(load_pem_private_key, password=None), Ed25519PrivateKey)  # type: ignore[type-abstract]
    fresh = directory.with_name(f".{directory.name}.signature")
    try:
        fresh.write_bytes(key.sign((directory / MANIFEST).read_bytes()))
        fresh.replace(directory / SIGNATURE)
    except OSError as error:
        raise BundleError(f"cannot sign {directory}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
    return directory


def check_signature(directory: Path, public_key: Path) -> None:
    """Check that the holder of a key has signed a version.

    Args:
        directory: the version's.
        public_key: an Ed25519 key (PEM).

    Raises:
        BundleError: if the version is not signed, by another key or for other content, or the key
            cannot be used.
    """
    key = _read_key(public_key, load_pem_public_key, Ed25519PublicKey)  # type: ignore[type-abstract]
    try:
        key.verify((directory / SIGNATURE).read_bytes(), (directory / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise BundleError(f"{directory} is not signed; `python -m server sign` does it") from error
    except OSError as error:
        raise BundleError(f"cannot read {error.filename}: {error.strerror}") from error
    except InvalidSignature as error:
        raise BundleError(f"{directory} was not signed by the holder of {public_key}") from error


def _read_key(path: Path, load: Callable[[bytes], object], kind: type[Key]) -> Key:
    try:
        key = load(path.read_bytes())
    except (OSError, TypeError, ValueError) as error:
        raise BundleError(f"cannot read the key {path}: {error}") from error
    if not isinstance(key, kind):
        raise BundleError(
            f"{path} is no Ed25519 key; `openssl genpkey -algorithm ed25519` makes one"
        )
    return key
