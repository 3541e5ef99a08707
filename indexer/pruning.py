"""Old index versions go, and with them what an engine outside keeps for no other version."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from indexer.backends import BackendUnavailableError, IndexUnreachableError
from indexer.backends.milvus import CollectionEntry, MilvusIndex
from indexer.engines.milvus import MilvusSettings
from trainer.pruning import Pruned
from trainer.pruning import prune as prune_versions
from trainer.publish import BundleError, versions


class _Place(NamedTuple):
    """Where a collection is; one content has the same name at every address."""

    uri: str
    name: str


def prune(root: Path, keep: int) -> tuple[Pruned, list[str]]:
    """Remove all but the newest ``keep`` versions, and never the current one or one in use here.

    Returns:
        What became of the versions, and the names of the collections that were dropped.

    Raises:
        BundleError: if there is no such folder, or a version cannot be read or removed.
        BackendUnavailableError: if collections are to be dropped, and pymilvus is not installed.
        IndexUnreachableError: if they are, and Milvus does not answer.
        ValueError: if ``keep`` is negative.
    """
    entries = _entries(versions(root))
    if not entries:
        return prune_versions(root, keep), []
    settings = MilvusSettings.read()
    before = _by_place(entries, settings)
    pruned = prune_versions(root, keep)
    kept = _by_place(_entries(versions(root)), settings)
    orphans = sorted(before.keys() - kept.keys())
    for place in orphans:
        try:
            before[place].collection(0, settings).drop()
        except (BackendUnavailableError, IndexUnreachableError) as error:
            raise type(error)(
                f"the versions are removed, but collection {place.name} is still there; drop it by "
                f"hand: {error}"
            ) from error
    return pruned, [place.name for place in orphans]


def _entries(directories: Iterable[Path]) -> list[CollectionEntry]:
    """Return what versions say of their collections."""
    folders = (directory / MilvusIndex.name for directory in directories)
    return [_read(folder) for folder in folders if folder.is_dir()]


def _by_place(
    entries: Iterable[CollectionEntry], settings: MilvusSettings
) -> dict[_Place, CollectionEntry]:
    return {_Place(settings.uri or entry.uri, entry.name): entry for entry in entries}


def _read(folder: Path) -> CollectionEntry:
    try:
        return CollectionEntry.read(folder)
    except (OSError, ValueError) as error:
        raise BundleError(
            f"what {folder} says of its collection cannot be read, so that nothing was removed; "
            f"remove {folder.parent} by hand: {error}"
        ) from error
