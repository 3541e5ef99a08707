"""Atomic, durable, hashed directories: the one way anything is published.

A bundle is a directory of files with a manifest that lists every other file with its size and
SHA-256. It is written under a temporary name beside its siblings, flushed to disk, and renamed
into place, so that a visible bundle is a complete bundle; ``current`` is a relative symbolic link
to the newest one, replaced by a rename as well. What a manifest says beyond this belongs to the
package that owns the bundle.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer.errors import TrainerError

MANIFEST = "manifest.json"
MANIFEST_HASH = "manifest.sha256"
SIGNATURE = "manifest.ed25519"
"""Of the manifest, made after publication by those who want to; it is no part of the content."""
CURRENT = "current"

# NumPy tells of what it could not write without a number.
_NO_SPACE = frozenset({errno.EDQUOT, errno.EFBIG, errno.ENOSPC, None})
_STAGING = ".staging-"
_ours: set[str] = set()  # what this process has staged
_VERSION = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")
_HASHING_THREADS = 2
_MAX_LINKS = 40  # as many as Linux follows


class BundleError(TrainerError):
    """A bundle cannot be read, verified or written; the message is meant for the user."""


class FileEntry(BaseModel):
    """What a manifest promises about one file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str
    size_bytes: int


class Manifest(BaseModel):
    """What every bundle says about itself.

    ``version``, ``created_at`` and ``files`` are filled in by ``commit``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int
    kind: str
    version: str = ""
    created_at: str = ""
    producers: dict[str, str] = Field(default_factory=dict)
    """Versions of the packages that made the bundle, by name."""
    files: dict[str, FileEntry] = Field(default_factory=dict)
    """Every file of the bundle but the manifest itself, by relative POSIX path."""


M = TypeVar("M", bound=Manifest)


@contextmanager
def staging(root: Path, schema: type[Manifest] | None = None) -> Iterator[Path]:
    """Yield a fresh directory in which to write a bundle of ``root``; gone if the block fails.

    Directories that a killed process left behind are removed on the way.

    Args:
        root: the folder that holds the versions.
        schema: the manifest class of the kind of bundle; None where there is to be no manifest.

    Raises:
        BundleError: if ``root`` is no folder for bundles of this kind, nothing can be written under
            it, or not as much as the block writes.
    """
    check_root(root, schema)
    staged = root / staging_name(secrets.token_hex(4))
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(root)
        staged.mkdir()
    except OSError as error:
        raise BundleError(
            f"{root} must be a folder that can be written to: {error.strerror}"
        ) from error
    try:
        yield staged
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise BundleError(
            f"there is no room for the new version under {root}: {error}; nothing was changed"
        ) from error
    finally:
        # After a commit the directory has been renamed and there is nothing to remove.
        shutil.rmtree(staged, ignore_errors=True)


def staging_name(suffix: str) -> str:
    """Return the name of a folder or link that this process makes and soon removes or renames.

    It tells whose it is: process ids mean nothing where several machines share a folder.
    """
    name = f"{_our_prefix()}{os.getpid()}-{suffix}"
    _ours.add(name)
    return name


def copy_content(directory: Path, staged: Path, replaced: Sequence[str]) -> None:
    """Copy the files of a bundle into a staged directory, to be published with some others.

    Args:
        directory: the bundle.
        staged: a directory from ``staging``.
        replaced: the files that are not copied, beside what ``commit`` writes and the signature.
    """
    ignored = shutil.ignore_patterns(*replaced, MANIFEST, MANIFEST_HASH, SIGNATURE)
    shutil.copytree(directory, staged, ignore=ignored, dirs_exist_ok=True)


def commit(staged: Path, root: Path, manifest: M, *, make_current: bool = True) -> Path:
    """Publish a staged directory and point ``current`` at it.

    Args:
        staged: a directory from ``staging(root)``, complete but for its manifest.
        root: the folder that holds the versions.
        manifest: what the bundle says about itself; version, time and files are filled in here.
        make_current: whether ``current`` is to lead there; where there is none yet, it does.

    Returns:
        The directory of the new version, ``root/<version>``.

    Raises:
        BundleError: if the staged directory holds a link or a special file.
    """
    files = {name: _entry(staged / name) for name in _list_files(staged)}
    created_at = datetime.now(UTC)
    complete = manifest.model_copy(
        update={
            "version": f"{created_at:%Y%m%dT%H%M%SZ}-{_content_hash(manifest, files)[:8]}",
            "created_at": created_at.isoformat(timespec="seconds"),
            "files": files,
        }
    )
    text = complete.model_dump_json(indent=2).encode() + b"\n"
    (staged / MANIFEST).write_bytes(text)
    (staged / MANIFEST_HASH).write_text(hashlib.sha256(text).hexdigest() + "\n")
    _flush_tree(staged)
    final = root / complete.version
    if not final.exists():  # else the same content was published within this second
        staged.rename(final)
        _flush(root)
    if make_current or not (root / CURRENT).is_symlink():
        activate(final)
    return final


def activate(directory: Path) -> None:
    """Point ``current``, beside ``directory``, at it in one step."""
    link = directory.parent / staging_name(secrets.token_hex(4))
    link.symlink_to(directory.name)
    link.replace(directory.parent / CURRENT)
    _flush(directory.parent)


def follow(link: Path) -> Path:
    """Return where a link leads, and others behind it.

    Raises:
        OSError: if they lead nowhere, or in a circle.
    """
    path = link
    for _ in range(_MAX_LINKS):
        if not path.is_symlink():
            return path
        path = path.parent / path.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(link))


def resolve(path: Path) -> Path:
    """Follow ``current`` once, so that a later publication cannot change what is being read.

    Raises:
        BundleError: if there is no bundle at ``path``, or nobody may look for one there.
    """
    try:
        directory = follow(path)
        is_there = directory.exists()
        is_bundle = is_there and (directory / MANIFEST).is_file()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    if not is_there:
        if path.is_symlink():
            raise BundleError(f"{path} leads to {directory}, and there is nothing there")
        raise BundleError(f"there is nothing at {path}")
    if not is_bundle:
        hint = ""
        if (path / CURRENT).is_symlink():
            hint = f"; did you mean {path / CURRENT}?"
        raise BundleError(f"{path} is not a bundle: it has no {MANIFEST}{hint}")
    return directory


def read_manifest(directory: Path, schema: type[M]) -> M:
    """Read a manifest and check it against its own hash, its kind and its schema.

    Args:
        directory: a bundle.
        schema: the manifest class of the kind of bundle that is expected; the defaults of its
            ``kind`` and ``format_version`` are what must be found.

    Raises:
        BundleError: if the manifest is missing, damaged, of another kind or of another format.
    """
    try:
        text = (directory / MANIFEST).read_bytes()
        promised = (directory / MANIFEST_HASH).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{directory} is not a readable bundle: {error}") from error
    if hashlib.sha256(text).hexdigest() != promised:
        raise BundleError(f"{directory / MANIFEST} is damaged: it does not match {MANIFEST_HASH}")
    try:
        content = json.loads(text)
    except ValueError as error:
        raise BundleError(f"{directory / MANIFEST} is not JSON: {error}") from error
    for field in ("kind", "format_version"):
        expected = schema.model_fields[field].default
        found = content.get(field) if isinstance(content, dict) else None
        if found != expected:
            raise BundleError(
                f"{directory}: expected {field} {expected!r}, found {found!r}; give "
                "another bundle, or make it again with this version"
            )
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise BundleError(f"{directory / MANIFEST} does not fit its schema: {error}") from error


def verify_files(directory: Path, manifest: Manifest) -> None:
    """Check that a bundle holds exactly the files its manifest lists, unchanged.

    Raises:
        BundleError: if a file is missing, extra, a link, of another size or of another content, or
            cannot be read.
    """
    found = set(_list_files(directory)) - {MANIFEST, MANIFEST_HASH, SIGNATURE}
    listed = set(manifest.files)
    if missing := sorted(listed - found):
        raise BundleError(f"{directory}: missing {', '.join(missing)}")
    if extra := sorted(found - listed):
        raise BundleError(f"{directory}: not in the manifest: {', '.join(extra)}")
    for name, entry in manifest.files.items():
        size_bytes = (directory / name).stat().st_size
        if size_bytes != entry.size_bytes:
            raise BundleError(
                f"{directory / name}: expected {entry.size_bytes} bytes, found {size_bytes}"
            )
    # The largest first, and other threads run while one hashes: it takes no longer than that file.
    names = sorted(listed, key=lambda name: -manifest.files[name].size_bytes)
    with ThreadPoolExecutor(_HASHING_THREADS) as threads:
        entries = threads.map(lambda name: _entry(directory / name), names)
        for name, entry in zip(names, entries, strict=True):
            if entry != manifest.files[name]:
                raise BundleError(
                    f"{directory / name} is damaged: its SHA-256 is not the manifest's"
                )


def versions(root: Path) -> list[Path]:
    """Return the published versions under ``root``, oldest first."""
    if not root.is_dir():
        return []
    found = (p for p in root.iterdir() if _VERSION.fullmatch(p.name))
    return sorted(p for p in found if not p.is_symlink() and (p / MANIFEST).is_file())


def check_root(root: Path, schema: type[Manifest] | None = None) -> None:
    """Refuse a folder that is none for versions, or one for versions of another kind.

    Args:
        root: the folder, which need not be there.
        schema: the manifest class of the kind of bundle, if there is to be a manifest.

    Raises:
        BundleError: if it is a bundle or within one, holds bundles of another kind, has a
            ``current`` that is no link, or cannot be read.
    """
    link = root / CURRENT
    try:
        around = [
            folder
            for folder in (root, *root.absolute().parents)
            if (folder / MANIFEST).is_file() and (folder / MANIFEST_HASH).is_file()
        ]
        is_taken = link.exists() and not link.is_symlink()
    except OSError as error:
        raise BundleError(f"{root} cannot be read: {error.strerror}") from error
    if around:
        raise BundleError(
            f"{root} is a bundle, or within one; give the folder that holds the versions, such as "
            f"{follow(around[0]).parent}"
        )
    if is_taken:
        raise BundleError(
            f"{link} must be a link to the newest version, and is none (some copies follow links): "
            "rename it first"
        )
    if schema is None or not (link / MANIFEST).is_file():
        return
    expected, found = schema.model_fields["kind"].default, _kind(link)
    if found not in (None, expected):
        raise BundleError(
            f"{root} is a folder of {found}, as {CURRENT} shows; give another one for {expected}"
        )


def _kind(directory: Path) -> object:
    """Return what kind of bundle a manifest, intact or not, says that it is of."""
    try:
        content = json.loads((directory / MANIFEST).read_bytes())
    except ValueError:
        return None
    return content.get("kind") if isinstance(content, dict) else None


def _list_files(directory: Path) -> list[str]:
    """Return the relative POSIX paths of all files below ``directory``, sorted."""
    names = []
    for path in sorted(directory.rglob("*")):
        if path.is_symlink():
            raise BundleError(f"{path} is a link; a bundle holds plain files only")
        if path.is_dir():
            continue
        if not path.is_file():
            raise BundleError(f"{path} is not a plain file")
        names.append(path.relative_to(directory).as_posix())
    return names


def _entry(path: Path) -> FileEntry:
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            return FileEntry(sha256=sha256, size_bytes=file.tell())
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error


def _content_hash(manifest: Manifest, files: dict[str, FileEntry]) -> str:
    digest = hashlib.sha256(manifest.model_dump_json().encode())
    for name, entry in files.items():
        digest.update(f"{name}\0{entry.sha256}\0".encode())
    return digest.hexdigest()


def _flush_tree(directory: Path) -> None:
    for path in directory.rglob("*"):
        _flush(path)
    _flush(directory)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _our_prefix() -> str:
    return f"{_STAGING}{socket.gethostname()}_"  # no host's name holds an underscore


def _remove_abandoned(root: Path) -> None:
    """Remove what killed processes of this machine left under ``root``."""
    prefix = _our_prefix()
    for path in root.glob(f"{prefix}*-*"):
        process_id = path.name.removeprefix(prefix).partition("-")[0]
        if not process_id.isdigit() or path.name in _ours:
            continue
        # In a container the process that was killed had our id, and its name is that of this one.
        if int(process_id) != os.getpid() and _is_alive(int(process_id)):
            continue
        if path.is_symlink():
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
