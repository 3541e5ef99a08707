"""The search algorithms, one file each, and the registry of them all."""

from __future__ import annotations

from typing import Any

from indexer.backends.annoy import AnnoyIndex
from indexer.backends.base import (
    BackendUnavailableError,
    BuildContext,
    Index,
    IndexUnreachableError,
    LocalIndex,
)
from indexer.backends.brute_force import BruteForceIndex
from indexer.backends.milvus import MilvusIndex
from indexer.backends.params import BuildParams, Measured, SearchParams, Series
from indexer.backends.scann import ScannIndex
from indexer.exact import Neighbors, SearchMethod

__all__ = [
    "BACKENDS",
    "BackendUnavailableError",
    "BuildContext",
    "BuildParams",
    "Index",
    "IndexUnreachableError",
    "LocalIndex",
    "Measured",
    "Neighbors",
    "SearchMethod",
    "SearchParams",
    "Series",
    "available_backends",
]

BACKENDS: dict[str, type[LocalIndex[Any, Any]]] = {
    backend.name: backend for backend in (BruteForceIndex, AnnoyIndex, ScannIndex, MilvusIndex)
}
"""Every backend by name, whether or not its library is installed."""


def available_backends() -> dict[str, type[LocalIndex[Any, Any]]]:
    """Return the backends whose libraries are installed here."""
    return {name: kind for name, kind in BACKENDS.items() if kind.unavailable() is None}
