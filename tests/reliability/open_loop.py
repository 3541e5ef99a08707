"""Calls at a rate, whatever becomes of earlier ones, from a process of its own.

``python -m tests.reliability.open_loop TARGET METHOD SECONDS RATE CONNECTIONS TIMEOUT`` reads the
request from stdin and writes a line for each call: its status, seconds from when it was due, and
how late it was started. A rate of 0 keeps 8 calls in flight instead: what a server can do.
"""

import asyncio
import sys
from itertools import cycle
from time import perf_counter
from typing import Any

import grpc
import uvloop

SERVICE = "candidate_search.v1.CandidateSearchService"
N_IN_FLIGHT = 8


async def main(
    target: str,
    name: str,
    seconds: float,
    rate: float,
    connections: int,
    timeout_seconds: float,
) -> None:
    request = sys.stdin.buffer.read()
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(target, options) for _ in range(connections)]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))
    methods = cycle([channel.unary_unary(f"/{SERVICE}/{name}") for channel in channels])

    async def call(due: float) -> None:
        method: Any = next(methods)
        start = perf_counter()
        try:
            await method(request, timeout=timeout_seconds)
            code = "OK"
        except grpc.RpcError as error:
            code = error.code().name
        lines.append(f"{code} {perf_counter() - due:.6f} {start - due:.6f}\n")

    async def keep_calling() -> None:
        while perf_counter() < end:
            await call(perf_counter())

    lines: list[str] = []
    due = perf_counter()
    end = due + seconds
    if rate:
        calls = set()
        while due < end:
            await asyncio.sleep(max(0.0, due - perf_counter()))
            calls.add(asyncio.create_task(call(due)))
            due += 1 / rate
        await asyncio.gather(*calls)
    else:
        await asyncio.gather(*(keep_calling() for _ in range(N_IN_FLIGHT)))
    await asyncio.gather(*(channel.close() for channel in channels))
    sys.stdout.writelines(lines)


if __name__ == "__main__":
    where, method_name, seconds, rate, connections, timeout = sys.argv[1:]
    uvloop.run(
        main(where, method_name, float(seconds), float(rate), int(connections), float(timeout))
    )
