"""Which index versions there are, which of them answer, and how another one takes over.

A version is loaded and tried beside the one that answers, and takes over in one step. One that is
refused changes nothing: the reason is kept, and told to whoever asks.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Protocol

import structlog

from indexer.backends import BackendUnavailableError
from server import metrics
from server.backoff import Backoff
from server.errors import (
    LimitExceededError,
    NoPreviousVersionError,
    SearchError,
    VersionRefusedError,
    VersionUnknownError,
)
from server.loading import IndexVersion, load, settle_memory
from server.settings import Settings
from trainer.publish import BundleError, follow, versions

_log = structlog.get_logger(__name__)
_FIRST_RETRY_SECONDS, _LONGEST_RETRY_SECONDS = 1.0, 300.0
_NEVER = float("inf")
_N_CHECKSUMS = 1 << 32


@dataclass(frozen=True, eq=False)
class Served:
    """The versions that answer: one, and perhaps another on trial with a share of the searches.

    Attributes:
        active: what answers.
        canary: the version on trial.
        canary_share: the share of searches that the canary answers, in (0, 1).
    """

    active: IndexVersion
    canary: IndexVersion | None = None
    canary_share: float = 0.0

    def versions(self) -> tuple[IndexVersion, ...]:
        """Return them: one or two."""
        return (self.active,) if self.canary is None else (self.active, self.canary)

    def version_for(self, search: bytes) -> IndexVersion:
        """Return what answers a search, given as bytes: always the same for the same search.

        So the pages of a search come from one version.
        """
        if self.canary is None or zlib.crc32(search) >= self.canary_share * _N_CHECKSUMS:
            return self.active
        return self.canary


class Crew(Protocol):
    """The processes that answer."""

    def verify(self, load: Callable[[], object]) -> None:
        """Load a version, and let it go again.

        Raises:
            BundleError: if it is refused.
        """

    def take_over(self, make: Callable[[], Served]) -> Served:
        """Have other versions answer instead of those before; return them when they do.

        Args:
            make: loads them; it raises ``BundleError`` if they are refused.

        Raises:
            BundleError: if they cannot; those before go on.
        """

    def process_ids(self) -> Sequence[int]:
        """Return the ids of the processes that answer searches."""


class VersionState(Enum):
    """What a version is to a server; the names are the wire's."""

    AVAILABLE = "available"
    ACTIVE = "active"
    CANARY = "canary"
    PREVIOUS = "previous"
    REFUSED = "refused"


@dataclass(frozen=True)
class VersionSummary:
    """One version on disk."""

    name: str
    state: VersionState
    refusal: str = ""
    """Why it was refused when it was last tried."""


class Versions:
    """The versions of one index, for one thread.

    Args:
        settings: where the versions are, and how they are loaded.
        active: the version that answers.
        crew: what answers.
    """

    def __init__(self, settings: Settings, active: IndexVersion, crew: Crew) -> None:
        self.served = Served(active)
        self.previous: str | None = None
        self._settings = settings
        self._crew = crew
        self._root = active.engine.bundle.directory.parent
        self._refusals: dict[str, str] = {}
        # From the start, so that Prometheus sees the first change as one.
        self._n_taken_over = metrics.VERSION_CHANGES.labels("took over")
        self._n_refused = metrics.VERSION_CHANGES.labels("refused")
        linked = self.linked()
        # The link may lead elsewhere by now than to what was loaded.
        has_moved = linked not in (None, active.engine.bundle.directory.name)
        self._followed = active.name if has_moved else linked
        self._retry_at = _NEVER
        self._backoff = Backoff(_FIRST_RETRY_SECONDS, _LONGEST_RETRY_SECONDS)

    def linked(self) -> str | None:
        """Return the version that the watched link names; None where there is no link."""
        link = self._settings.index
        try:
            return follow(link).name if link.is_symlink() else None
        except OSError:
            return None

    def process_ids(self) -> Sequence[int]:
        """Return the ids of the processes that answer searches."""
        return self._crew.process_ids()

    def catalogue(self) -> list[VersionSummary]:
        """Return the versions on disk, oldest first."""
        return [self._summary(directory.name) for directory in versions(self._root)]

    def verify(self, name: str) -> None:
        """Load and try a version, and let it go again.

        Raises:
            VersionUnknownError: if there is no such version.
            VersionRefusedError: if it is damaged or does not deliver.
        """
        self._check_known(name)
        with self._refusing(name):
            self._crew.verify(partial(self._load, name))
        self._refusals.pop(name, None)

    def activate(self, name: str, traffic_share: float = 1.0) -> None:
        """Have a version answer all searches, or a share of them as a canary.

        Raises:
            VersionUnknownError: if there is no such version.
            VersionRefusedError: if it cannot take over; what answered before goes on.
            LimitExceededError: if the share is not in (0, 1], or the canary is the active version.
        """
        if not 0 < traffic_share <= 1:
            raise LimitExceededError(
                f"traffic_share must be above 0 and at most 1, not {traffic_share}",
                field="traffic_share",
                found=traffic_share,
            )
        active_name = self.served.active.name
        if traffic_share < 1:
            if name == active_name:
                raise LimitExceededError(
                    f"{name} answers already; traffic_share is for another version beside it",
                    field="traffic_share",
                    found=traffic_share,
                )
            active, load_canary = self.served.active, self._loader(name)
            self._take_over(name, lambda: Served(active, load_canary(), traffic_share))
        elif name != active_name:
            load_active = self._loader(name)
            self._take_over(name, lambda: Served(load_active()))
            self.previous = active_name
        elif self.served.canary is not None:
            self._end_trial()

    def roll_back(self) -> None:
        """End the canary's trial; without one, have the previous version answer again.

        Raises:
            NoPreviousVersionError: if there is neither.
            VersionUnknownError: if the previous version is gone from the disk.
            VersionRefusedError: if it cannot take over.
        """
        if self.served.canary is not None:
            self._end_trial()
        elif self.previous is not None:
            self.activate(self.previous)
        else:
            raise NoPreviousVersionError(
                "no other version has answered since this server was started; "
                "activate one by its name"
            )

    def follow_link(self) -> None:
        """Activate what the watched link names, if that changed or is to be tried again.

        A version that somebody activated by name stays until the link changes. What cannot take
        over is logged, and tried again after a pause that grows: it may still be being copied.
        """
        linked = self.linked()
        if linked != self._followed:
            self._followed = linked
            self._backoff.reset()
        elif time.monotonic() < self._retry_at:
            return
        self._retry_at = _NEVER
        if linked is None:
            _log.warning("the link is gone, or leads nowhere", link=str(self._settings.index))
        if linked is None or linked == self.served.active.name:
            return
        try:
            self.activate(linked)
        except SearchError as error:
            if isinstance(error, VersionUnknownError):  # else it is counted already
                self._n_refused.inc()
            _log.error("index version refused", index_version=linked, reason=str(error))
        except Exception:  # noqa: BLE001 - not even an unreadable disk may end a server that serves
            _log.exception("index version fails to take over", index_version=linked)
        else:
            return
        self._retry_at = time.monotonic() + self._backoff.pause_seconds()

    def _check_known(self, name: str) -> None:
        known = [directory.name for directory in versions(self._root)]
        if name not in known:
            raise VersionUnknownError(
                f"there is no index version {name!r} beside the one that answers; "
                f"there are {', '.join(known)}",
                version=name,
            )

    def _loader(self, name: str) -> Callable[[], IndexVersion]:
        """Return what loads a version, unless it is in memory.

        Raises:
            VersionUnknownError: if there is no such version.
        """
        canary = self.served.canary
        if canary is not None and canary.name == name:
            return lambda: canary
        self._check_known(name)
        return partial(self._load, name)

    def _load(self, name: str) -> IndexVersion:
        try:
            version = load(self._settings, self._root / name)
        except BundleError:
            raise
        except BackendUnavailableError as error:
            raise BundleError(str(error)) from error
        except Exception as error:
            # Whatever is wrong with a version must not end a server that has a good one.
            _log.exception("index version fails to load", index_version=name)
            raise BundleError(str(error)) from error
        if version.name != name:
            raise BundleError(f"{name} holds version {version.name}: name its folder so")
        return version

    def _end_trial(self) -> None:
        """Have the active version answer all searches again."""
        active = self.served.active
        self._take_over(active.name, lambda: Served(active))

    def _take_over(self, newcomer: str, make: Callable[[], Served]) -> None:
        """Have what ``make`` returns answer, which loads a version unless that is in memory."""
        try:
            with self._refusing(newcomer):
                served = self._crew.take_over(make)
        except VersionRefusedError:
            self._n_refused.inc()
            raise
        before, self.served = self.served, served
        self._retry_at = _NEVER
        self._refusals.pop(newcomer, None)
        settle_memory()
        self._n_taken_over.inc()
        event = "index version took over"
        if served.active.name == before.active.name:
            event = "canary ended" if served.canary is None else "canary began"
        _log.info(
            event,
            index_version=served.active.name,
            canary_version=served.canary.name if served.canary else None,
            canary_share=served.canary_share,
        )

    @contextmanager
    def _refusing(self, name: str) -> Iterator[None]:
        """Keep why a version is refused in the block, and tell the caller."""
        try:
            yield
        except BundleError as error:
            # It names the bundle's place on this machine, which is nobody's business.
            reason = str(error).replace(f"{self._root}/", "")
            self._refusals[name] = reason
            raise VersionRefusedError(
                f"index version {name} is refused: {reason}", version=name
            ) from error

    def _summary(self, name: str) -> VersionSummary:
        refusal = self._refusals.get(name)
        if name == self.served.active.name:
            return VersionSummary(name, VersionState.ACTIVE)
        if self.served.canary is not None and name == self.served.canary.name:
            return VersionSummary(name, VersionState.CANARY)
        if refusal is not None:
            return VersionSummary(name, VersionState.REFUSED, refusal)
        state = VersionState.PREVIOUS if name == self.previous else VersionState.AVAILABLE
        return VersionSummary(name, state)
