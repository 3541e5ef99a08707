"""A load client for machines without h2load, in a process of its own.

``python -m benchmarks.load_client TARGET METHOD SECONDS IN_FLIGHT RATE CONNECTIONS`` reads the
request from stdin and writes one float64 for each call to stdout: microseconds, or NaN if it
failed.
"""

from __future__ import annotations

import asyncio
import sys
from itertools import cycle
from time import perf_counter
from typing import TypeAlias

import grpc
import numpy as np
import uvloop

_Call: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"


class _Loader:
    """Makes calls over several connections, each call on the next one."""

    def __init__(self, target: str, method: str, request: bytes, connections: int) -> None:
        # Channels of one process share a connection unless they are told not to.
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(target, options) for _ in range(connections)]
        self.latencies_us: list[float] = []
        self._channels = channels
        calls: list[_Call] = [channel.unary_unary(method) for channel in channels]
        self._calls = cycle(calls)
        self._request = request

    async def keep_in_flight(self, n_calls: int, seconds: float) -> None:
        """Closed loop: so many calls are always in flight."""
        end = perf_counter() + seconds

        async def keep_calling() -> None:
            while (now := perf_counter()) < end:
                await self._call(now)

        await asyncio.gather(*(keep_calling() for _ in range(n_calls)))

    async def call_at_rate(self, rate: float, seconds: float) -> None:
        """Open loop: calls start when they are due, whatever became of earlier ones."""
        calls, due = set(), perf_counter()
        end = due + seconds
        while due < end:
            await asyncio.sleep(max(0.0, due - perf_counter()))
            # Counted from when it was due: a late start is latency as well.
            calls.add(asyncio.create_task(self._call(due)))
            due += 1 / rate
        await asyncio.gather(*calls)

    async def close(self) -> None:
        """Close the connections."""
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def _call(self, due: float) -> None:
        try:
            await next(self._calls)(self._request)
            self.latencies_us.append((perf_counter() - due) * 1e6)
        except grpc.aio.AioRpcError:
            self.latencies_us.append(float("nan"))


async def _main(arguments: list[str], request: bytes) -> list[float]:
    target, method, seconds, in_flight, rate, connections = arguments
    loader = _Loader(target, method, request, int(connections))
    if rate:
        await loader.call_at_rate(float(rate), float(seconds))
    else:
        await loader.keep_in_flight(int(in_flight), float(seconds))
    await loader.close()
    return loader.latencies_us


if __name__ == "__main__":
    _latencies_us = uvloop.run(_main(sys.argv[1:], sys.stdin.buffer.read()))
    sys.stdout.buffer.write(np.array(_latencies_us, dtype=np.float64).tobytes())
