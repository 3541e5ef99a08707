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


class Collections(NamedTuple):
    """What became of the collections that removed versions searched."""

    dropped: list[str]
    left: list[str]
    """Those at another address than the one of the same name that a kept version searches: two
    addresses may be one place."""


class _Place(NamedTuple):
    """Where a collection is; one content has the same name at every address."""

    uri: str
    name: str


def prune(root: Path, keep: int) -> tuple[Pruned, Collections]:
    """Remove all but the newest ``keep`` versions, and never the current one or one in use here.

    Raises:
        BundleError: if there is no such folder, or a version cannot be read or removed.
        BackendUnavailableError: if collections are to be dropped, and pymilvus is not installed.
        IndexUnreachableError: if they are, and Milvus does not answer.
        ValueError: if ``keep`` is negative.
    """
    entries = _entries(versions(root))
    settings = MilvusSettings.read() if entries else None
    pruned = prune_versions(root, keep)
    collections = Collections([], [])
    if settings is None:
        return pruned, collections
    places = {_place(entry, settings): entry for entry in entries.values()}
    kept_places = {_place(entry, settings) for one, entry in entries.items() if one.exists()}
    kept_names = {place.name for place in kept_places}
    for place in sorted(places.keys() - kept_places):
        if place.name in kept_names:
            collections.left.append(f"{place.name} at {place.uri}")
        else:
            _drop(places[place], settings)
            collections.dropped.append(place.name)
    return pruned, collections


def _drop(entry: CollectionEntry, settings: MilvusSettings) -> None:
    try:
        entry.collection(0, settings).drop()
    except (BackendUnavailableError, IndexUnreachableError) as error:
        raise type(error)(
            f"the versions are removed, but collection {entry.name} is still there; drop it by "
            f"hand: {error}"
        ) from error


def _place(entry: CollectionEntry, settings: MilvusSettings) -> _Place:
    return _Place(settings.uri or entry.uri, entry.name)


def _entries(directories: Iterable[Path]) -> dict[Path, CollectionEntry]:
    """Return what versions say of their collections, by the version, of those that have any."""
    folders = (directory / MilvusIndex.name for directory in directories)
    return {folder.parent: _read(folder) for folder in folders if folder.is_dir()}


def _read(folder: Path) -> CollectionEntry:
    try:
        return CollectionEntry.read(folder)
    except (OSError, ValueError) as error:
        raise BundleError(
            f"what {folder} says of its collection cannot be read, so that nothing was removed; "
            f"remove {folder.parent} by hand: {error}"
        ) from error
