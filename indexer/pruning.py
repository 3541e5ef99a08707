"""Old index versions go, and with them what an engine outside keeps for no other version."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from indexer.backends import IndexUnreachableError
from indexer.backends.milvus import CollectionEntry, MilvusIndex
from indexer.engines.milvus import MilvusSettings
from trainer.publish import Pruned, versions
from trainer.publish import prune as prune_versions


def prune(root: Path, keep: int) -> tuple[Pruned, list[str]]:
    """Remove all but the newest ``keep`` versions, and never the current one or one in use here.

    Returns:
        What became of the versions, and the names of the collections that were dropped.

    Raises:
        BundleError: if there is no such folder, or a version cannot be removed.
        BackendUnavailableError: if collections are to be dropped, and pymilvus is not installed.
        IndexUnreachableError: if they are, and Milvus does not answer.
        ValueError: if ``keep`` is negative.
    """
    before = _collections(versions(root))
    pruned = prune_versions(root, keep)
    orphans = {name: before[name] for name in before.keys() - _collections(versions(root)).keys()}
    for name, entry in sorted(orphans.items()):
        try:
            entry.collection(0, MilvusSettings.read()).drop()
        except IndexUnreachableError as error:
            raise IndexUnreachableError(
                f"the versions are removed, but collection {name} is still there; drop it by hand: "
                f"{error}"
            ) from error
    return pruned, sorted(orphans)


def _collections(directories: Iterable[Path]) -> dict[str, CollectionEntry]:
    """Return by name the collections that versions search."""
    folders = (directory / MilvusIndex.name for directory in directories)
    entries = (CollectionEntry.read(folder) for folder in folders if folder.is_dir())
    return {entry.name: entry for entry in entries}
