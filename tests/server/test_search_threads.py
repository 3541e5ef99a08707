"""Threads beside the event loop: how many searches are made, wait, and are refused."""

import asyncio
import threading
import time

import pytest

from server.errors import OverloadedError
from server.search_threads import SearchThreads


def test_what_is_beyond_threads_and_queue_is_refused() -> None:
    async def run() -> None:
        beside, go = SearchThreads("long", 1, 1, ", or not"), threading.Event()
        waiting = [asyncio.ensure_future(beside.run(go.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        assert (2, 2.0) == (beside.count, beside.n_ahead)
        with pytest.raises(OverloadedError, match=r"2 long searches are .* later, or not"):
            await beside.run(go.wait)
        go.set()
        assert [True, True] == await asyncio.gather(*waiting)
        assert 0 == beside.count
        beside.close()

    asyncio.run(run())


def test_a_thread_whose_caller_has_gone_is_counted_until_it_ends() -> None:
    async def run() -> None:
        beside, begun, go = SearchThreads("long", 1, 1), threading.Event(), threading.Event()

        def work() -> None:
            begun.set()
            go.wait()

        made = asyncio.ensure_future(beside.run(work))
        queued = asyncio.ensure_future(beside.run(work))
        await asyncio.to_thread(begun.wait)
        made.cancel()
        queued.cancel()
        await asyncio.gather(made, queued, return_exceptions=True)
        assert 1 == beside.count  # what waited is not begun any more
        go.set()
        await asyncio.to_thread(beside.close)
        assert 0 == beside.count

    asyncio.run(asyncio.wait_for(run(), 10))


def test_what_is_late_is_not_begun() -> None:
    async def run() -> None:
        beside = SearchThreads("long", 1, 1)
        with pytest.raises(TimeoutError):
            await beside.run(lambda: pytest.fail("it was begun"), time.monotonic())
        assert 0 == beside.count
        beside.close()

    asyncio.run(run())
