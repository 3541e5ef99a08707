"""Which versions of a bundle stay: the newest, the current one, and those that somebody holds."""

from __future__ import annotations

import fcntl
import os
import shutil
import weakref
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from trainer.publish import CURRENT, MANIFEST, BundleError, follow, staging_name, versions


class Pruned(NamedTuple):
    """What became of the versions that were not to be kept."""

    removed: list[Path]
    in_use: list[Path]
    """Those that stay, as somebody on this machine holds them."""


def hold(directory: Path, holder: object) -> None:
    """Keep a version from being pruned on this machine for as long as an object lives.

    The forks of this process hold it as well, until they end. Where a file system knows no locks,
    nothing is held.

    Args:
        directory: the version.
        holder: the object.
    """
    descriptor = os.open(directory / MANIFEST, os.O_RDONLY)
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    weakref.finalize(holder, os.close, descriptor)


def prune(root: Path, keep: int) -> Pruned:
    """Remove all but the newest ``keep`` versions, and never the current one or one that is held.

    Raises:
        BundleError: if there is no such folder, ``current`` cannot be followed, or a version cannot
            be removed.
        ValueError: if ``keep`` is negative.
    """
    if keep < 0:
        raise ValueError(f"keep must be at least 0, not {keep}")
    if not root.is_dir():
        raise BundleError(f"{root} is no folder of bundles")
    try:
        current = follow(root / CURRENT).name  # perhaps by other links
    except OSError as error:
        raise BundleError(f"{root / CURRENT} cannot be followed: {error.strerror}") from error
    older = versions(root)[:-keep] if keep else versions(root)
    pruned = Pruned([], [])
    for directory in older:
        if directory.name == current:
            continue
        try:
            is_removed = _remove_unless_held(directory)
        except OSError as error:
            raise BundleError(
                f"{directory} cannot be removed: {error.strerror}; prune as a user, and on a "
                "machine, that may write to it"
            ) from error
        (pruned.removed if is_removed else pruned.in_use).append(directory)
    return pruned


def _remove_unless_held(directory: Path) -> bool:
    """Remove a version unless it is held; return whether it was removed."""
    with (directory / MANIFEST).open("r+b") as manifest:  # NFS locks only what can be written
        try:
            fcntl.flock(manifest, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # the file system knows no locks
            pass
        # Renamed first: a half-removed directory must not look like a bundle.
        doomed = directory.parent / staging_name(directory.name)
        directory.rename(doomed)
    shutil.rmtree(doomed)
    return True
