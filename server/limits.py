"""How much work the server takes on, and how much of it fits into the time a caller gives it."""

from __future__ import annotations

from dataclasses import replace

from server.domain import Notice, NoticeCode, SearchRequest
from server.errors import OverloadedError
from server.planning import Planner

# Long enough for most of what waits to be answered, short enough for a client that retries within
# its default deadline of seconds. Chosen, not measured: what is best depends on the load.
RETRY_AFTER_SECONDS = 0.1

# Of a caller's time; the rest is for the way here and back, and for searches that take longer than
# the median that was measured. Chosen, not measured: networks and machines differ.
_SHARE_FOR_SEARCHING = 0.5


class InFlight:
    """Counts the calls that are coming and being answered, and refuses those beyond a limit.

    Args:
        limit: the most calls at once.

    Attributes:
        count: the calls that are being answered.
        n_ended: the calls that have been.
        n_coming: the calls that gRPC has announced and whose request is not here yet.
    """

    def __init__(self, limit: int) -> None:
        self.count = 0
        self.n_ended = 0
        self.n_coming = 0
        self._limit = limit

    def announce(self) -> None:
        """Count a call as coming."""
        self.n_coming += 1

    def forget_coming(self) -> None:
        """Count no call as coming any more: some callers give up before they send a request."""
        self.n_coming = 0

    def __enter__(self) -> None:
        """Count a call.

        Raises:
            OverloadedError: if there are as many as may be; this one is not counted.
        """
        self.n_coming = max(0, self.n_coming - 1)
        if self.count >= self._limit:
            raise OverloadedError(
                f"{self._limit} calls are being answered, and more are not accepted; "
                f"try again after {RETRY_AFTER_SECONDS} seconds",
                limit=self._limit,
            )
        self.count += 1

    def __exit__(self, *_: object) -> None:
        """Count a call no longer."""
        self.count -= 1
        self.n_ended += 1


def fitted(
    search: SearchRequest, planner: Planner, seconds_left: float, n_ahead: float
) -> tuple[SearchRequest, Notice | None]:
    """Return a search that can be made in the time that is left, and the notice if it is another.

    Where the search as asked for would take too long by the indexer's measurements, it is the one
    of the highest recall that does not, or else the cheapest. A filtered search stays as it is:
    what it costs depends on the filter.

    Args:
        search: what is asked for.
        planner: what would choose the index.
        seconds_left: until the caller gives up.
        n_ahead: how many searches like it are made before.

    Raises:
        BackendUnknownError: if the search asks for a backend that there is not.
    """
    asked = planner.choose(search, search.count)
    available_micros = 1e6 * _SHARE_FOR_SEARCHING * seconds_left
    if (1 + n_ahead) * asked.expected_micros <= available_micros or search.filter is not None:
        return search, None
    cheapest = asked
    for target in planner.recall_targets:
        cheaper = replace(search, exact=False, backend=None, recall_target=target)
        choice = planner.choose(cheaper, search.count)
        if choice.expected_micros < cheapest.expected_micros:
            search, cheapest = cheaper, choice
        if choice.expected_micros <= available_micros:
            break
    if cheapest is asked:
        return search, None
    message = (
        f"{1e3 * seconds_left:.0f} ms were left, and the search as asked for takes longer; "
        f"its recall is that of the target {search.recall_target:g}"
    )
    return search, Notice(NoticeCode.DEGRADED, message)
