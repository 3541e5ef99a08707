"""How long to wait before something that failed is tried again."""

from __future__ import annotations


class Backoff:
    """Pauses that double, so that what keeps failing is tried more and more rarely.

    Args:
        first_seconds: the first pause.
        longest_seconds: what no pause exceeds.
    """

    def __init__(self, first_seconds: float, longest_seconds: float) -> None:
        self._first_seconds = first_seconds
        self._longest_seconds = longest_seconds
        self._next_seconds = first_seconds

    def pause_seconds(self) -> float:
        """Return the next pause."""
        pause = self._next_seconds
        self._next_seconds = min(2 * pause, self._longest_seconds)
        return pause

    def reset(self) -> None:
        """Begin with the first pause again: something succeeded."""
        self._next_seconds = self._first_seconds
