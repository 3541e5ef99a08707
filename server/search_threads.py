"""Threads beside the event loop, for searches that would hold it up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import TypeVar

from server.errors import OverloadedError

T = TypeVar("T")


class SearchThreads:
    """Makes some searches at the same time, has some wait, and refuses more.

    Args:
        kind: what they are called in refusals.
        n_threads: how many are made at the same time.
        queue_length: how many may wait.
        instead: what a caller who is refused may do rather than try again.

    Attributes:
        count: those that are being made or wait.
    """

    def __init__(self, kind: str, n_threads: int, queue_length: int, instead: str = "") -> None:
        self.count = 0
        self._lock = threading.Lock()
        self._n_threads = n_threads
        self._limit = n_threads + queue_length
        self._refusal = (
            f"{self._limit} {kind} searches are being made or waiting, and more are not accepted; "
            f"try again later{instead}"
        )
        self._threads = ThreadPoolExecutor(n_threads, f"{kind}-search")

    @property
    def n_ahead(self) -> float:
        """How many searches come before another one, for each thread."""
        return self.count / self._n_threads

    async def run(self, work: Callable[[], T], deadline: float | None = None) -> T:
        """Do something on a thread.

        Args:
            work: what to do.
            deadline: when it need not be begun any more, by ``time.monotonic``.

        Raises:
            OverloadedError: if much is waiting.
            TimeoutError: if its turn came after the deadline.
        """
        if self.count >= self._limit:
            raise OverloadedError(self._refusal, limit=self._limit)

        def work_in_time() -> T:
            # gRPC calls off what has expired, unless the event loop is too busy to do so.
            if deadline is not None and monotonic() >= deadline:
                raise TimeoutError
            return work()

        self._add(1)
        future = self._threads.submit(work_in_time)
        # Whose caller has gone may still keep a thread busy.
        future.add_done_callback(lambda _: self._add(-1))
        return await asyncio.wrap_future(future)

    def _add(self, n: int) -> None:
        with self._lock:
            self.count += n

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(cancel_futures=True)
