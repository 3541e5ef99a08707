"""Gathering: calls that come in at about the same time are answered in one go.

A server that is called often spends much of its time fetching code and data back into the
processor's caches, which gRPC's work for one call and ours for another drive out in turn. Stage by
stage for several calls, the same work takes about half as long. So a call that has company is held
until those that gRPC has announced are here; a call that has none is answered at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from server.limits import InFlight

# An announced call takes two trips through gRPC's thread until it is here, and then announces the
# next: after so many turns of the event loop without one, there is none. With 32 calls in flight,
# 3 turns were measured to gather 4, and 5 to gather 15.
TURNS = 5
_LONGEST_SECONDS = 0.003  # some clients announce calls and send no request
_WORTHWHILE = 4  # waiting for fewer was measured to cost as much as it saves

T = TypeVar("T")
R = TypeVar("R")


class Gathering(Generic[T, R]):
    """Holds calls on the event loop until they are answered in one go.

    Args:
        in_flight: what knows of calls that are announced.
        answer: answers several; it raises nothing, and what is an exception among the answers is
            raised to that caller.
        most: calls that are answered in one go, at most; 1 for no gathering.
    """

    def __init__(
        self,
        in_flight: InFlight,
        answer: Callable[[Sequence[T]], Sequence[R | Exception]],
        most: int,
    ) -> None:
        self._in_flight = in_flight
        self._answer = answer
        self._most = most
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._was_worthwhile = False
        self._turn: asyncio.Handle | None = None
        self._deadline: asyncio.Handle | None = None

    @property
    def has_company(self) -> bool:
        """Whether a call that is here had better wait for others."""
        if self._most == 1:
            return False
        return bool(self._waiting) or self._was_worthwhile or self._in_flight.n_coming > 0

    async def join(self, call: T) -> R:
        """Return the answer to a call, given with those to others."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._waiting.append((call, future))
        if len(self._waiting) == 1:
            self._deadline = loop.call_later(_LONGEST_SECONDS, self._wait_no_longer)
        if len(self._waiting) >= self._most:
            self._answer_all()
        else:
            self._await_turn(TURNS)
        return await future

    def _await_turn(self, n_left: int) -> None:
        """Look again when the event loop has done all there is to do now."""
        if self._turn is not None:
            self._turn.cancel()
        self._turn = asyncio.get_running_loop().call_soon(self._look, n_left - 1)

    def _look(self, n_left: int) -> None:
        if self._in_flight.n_coming > 0:
            return  # it looks again when it is here
        if n_left > 0:
            self._await_turn(n_left)
        else:
            self._answer_all()

    def _wait_no_longer(self) -> None:
        self._in_flight.forget_coming()
        self._answer_all()

    def _answer_all(self) -> None:
        for handle in (self._turn, self._deadline):
            if handle is not None:
                handle.cancel()
        gathered = [(call, future) for call, future in self._waiting if not future.done()]
        self._waiting.clear()
        self._was_worthwhile = len(gathered) >= _WORTHWHILE
        answers = self._answer([call for call, _ in gathered])
        for (_, future), answer in zip(gathered, answers, strict=True):
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
