"""A load client for machines without h2load, in a process of its own.

``python -m benchmarks.load_client TARGET METHOD SECONDS IN_FLIGHT RATE`` reads the request from
stdin and writes one float64 for each call to stdout: microseconds, or NaN if it failed.
"""

from __future__ import annotations

import asyncio
import sys
import time

import grpc
import numpy as np
import uvloop


async def _load(
    target: str, method: str, request: bytes, seconds: float, in_flight: int, rate: float | None
) -> list[float]:
    latencies_us: list[float] = []
    async with grpc.aio.insecure_channel(target) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        end = time.perf_counter() + seconds

        async def make_one(due: float) -> None:
            try:
                await call(request)
                latencies_us.append((time.perf_counter() - due) * 1e6)
            except grpc.aio.AioRpcError:
                latencies_us.append(float("nan"))

        async def keep_calling() -> None:
            while (now := time.perf_counter()) < end:
                await make_one(now)

        async def call_at_rate(rate: float) -> None:
            calls, due = set(), time.perf_counter()
            while due < end:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                # Counted from when it was due: a late start is latency as well.
                calls.add(asyncio.create_task(make_one(due)))
                due += 1 / rate
            await asyncio.gather(*calls)

        if rate is None:
            await asyncio.gather(*(keep_calling() for _ in range(in_flight)))
        else:
            await call_at_rate(rate)
    return latencies_us


if __name__ == "__main__":
    _target, _method, _seconds, _in_flight, _rate = sys.argv[1:]
    _latencies = uvloop.run(
        _load(
            _target,
            _method,
            sys.stdin.buffer.read(),
            float(_seconds),
            int(_in_flight),
            float(_rate) if _rate else None,
        )
    )
    sys.stdout.buffer.write(np.array(_latencies, dtype=np.float64).tobytes())
