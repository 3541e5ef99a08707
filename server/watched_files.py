"""Files that are read anew when they are replaced."""

from __future__ import annotations

from pathlib import Path

_Stamp = tuple[int, int, int]
"""What tells that a file was replaced: its number, time and size."""


class WatchedFiles:
    """Tells when files were replaced, each time once.

    It looks before they are read: what replaces them during that is told of the next time.

    Args:
        paths: the files.
    """

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._seen = self._stamps()

    def were_replaced(self) -> bool:
        """Return whether any was replaced, removed or brought back since the last look."""
        before, self._seen = self._seen, self._stamps()
        return before != self._seen

    def _stamps(self) -> list[_Stamp | None]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: Path) -> _Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
