"""Calls that have company are answered in one go, those that have none at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from server.client import Embedding, SearchClient
from server.gathering import Gathering
from server.limits import InFlight


def gathering(most: int = 4) -> tuple[Gathering[int, int], InFlight, list[list[int]]]:
    """Return one that doubles numbers and refuses 13, what announces calls, and what it did."""
    gathered: list[list[int]] = []

    def answer(numbers: Sequence[int]) -> list[int | Exception]:
        gathered.append(list(numbers))
        return [ValueError("13") if number == 13 else 2 * number for number in numbers]

    in_flight = InFlight(100)
    return Gathering(in_flight, answer, most), in_flight, gathered


async def come(calls: Gathering[int, int], in_flight: InFlight, number: int) -> int:
    """Join as an announced call does when it is here."""
    with in_flight:
        return await calls.join(number)


def test_a_call_without_others_has_no_company() -> None:
    calls, in_flight, _ = gathering()
    in_flight.announce()
    with in_flight:
        assert not calls.has_company
        in_flight.announce()
        assert calls.has_company


def test_one_at_most_is_no_company() -> None:
    calls, in_flight, _ = gathering(most=1)
    in_flight.announce()
    assert not calls.has_company


@pytest.mark.parametrize(("n", "sizes"), [(1, [1]), (3, [3]), (4, [4]), (6, [4, 2])])
def test_calls_are_answered_in_one_go_up_to_the_most(n: int, sizes: list[int]) -> None:
    calls, in_flight, gathered = gathering()

    async def all_of_them() -> list[int]:
        return await asyncio.gather(*(come(calls, in_flight, i) for i in range(n)))

    assert [2 * i for i in range(n)] == asyncio.run(all_of_them())
    assert sizes == list(map(len, gathered))


def test_an_announced_call_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.gathering._LONGEST_SECONDS", 60)  # however busy the machine
    calls, in_flight, gathered = gathering()

    async def late() -> list[int]:
        in_flight.announce()
        in_flight.announce()
        first = asyncio.create_task(come(calls, in_flight, 1))
        for _ in range(20):
            await asyncio.sleep(0)
        assert gathered == []
        return [await come(calls, in_flight, 2), await first]

    assert asyncio.run(late()) == [4, 2]
    assert gathered == [[1, 2]]


def test_an_announced_call_is_not_waited_for_for_long() -> None:
    calls, in_flight, _ = gathering()

    async def never() -> int:
        in_flight.announce()
        in_flight.announce()
        return await come(calls, in_flight, 3)

    assert asyncio.run(never()) == 6
    assert in_flight.n_coming == 0


def test_one_that_fails_fails_alone_and_one_that_gave_up_is_not_answered() -> None:
    calls, in_flight, gathered = gathering()

    async def three() -> list[Any]:
        tasks = [asyncio.create_task(come(calls, in_flight, i)) for i in (1, 13, 5)]
        await asyncio.sleep(0)
        tasks[2].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    one, refused, cancelled = asyncio.run(three())
    assert one == 2
    assert isinstance(refused, ValueError)
    assert isinstance(cancelled, asyncio.CancelledError)
    assert gathered == [[1, 13]]


def test_gathered_searches_are_answered_as_alone(start: Any, vector_index: Any) -> None:
    from server.metrics import SEARCHES_GATHERED  # noqa: PLC0415 - beside what it counts

    server = start(vector_index)
    queries = np.random.default_rng(0).normal(size=(200, server.engine.bundle.manifest.dim))
    before = SEARCHES_GATHERED._value.get()
    with SearchClient(server.address) as client, ThreadPoolExecutor(32) as threads:

        def found(query: np.ndarray) -> list[str]:
            return client.search(Embedding(query.tolist()), count=5).ids

        alone = [found(query) for query in queries]
        assert alone == list(threads.map(found, queries))
    assert SEARCHES_GATHERED._value.get() > before
