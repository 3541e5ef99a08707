"""Load on a gRPC server, from another process: h2load where it is installed, else our own client.

Closed loop: so many requests are always in flight. Open loop: requests start at a fixed rate,
whatever the server does, as they do in the world.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import grpc
import numpy as np
from pydantic import BaseModel, ConfigDict

from benchmarks.errors import BenchmarkError
from benchmarks.processes import cpu_seconds

_CLIENT = "benchmarks.load_client"
_PATIENCE_SECONDS = 30
_HTTP_OK = 200
_PREFIX_BYTES = 5  # of a gRPC message: whether it is compressed, and its length
_DATA_BYTES = re.compile(r"\((\d+)\) data$", re.MULTILINE)


class LoadError(BenchmarkError):
    """The load could not be made; the message is meant for the user."""


class Load(BaseModel):
    """What a server did under load."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_requests: int
    n_failed: int
    in_flight: int
    rate: float | None
    """Requests started a second, in open loop; None in closed loop."""
    requests_per_second: float
    p50_us: float
    p95_us: float
    p99_us: float
    cpu_us_per_request: float
    """Of the server, all its processes."""
    server_busy: float
    """Cores the server kept busy, on average. The rate is the server's only if it is about 1."""


def put_load(
    target: str,
    method: str,
    request: bytes,
    server_pid: int,
    *,
    seconds: int,
    in_flight: int,
    rate: float | None = None,
    connections: int = 1,
) -> Load:
    """Load a server and measure what it does.

    Args:
        target: ``host:port``.
        method: the full name, ``/package.Service/Method``.
        request: the bytes of the request message.
        server_pid: the process whose CPU time is counted, with its children.
        seconds: how long.
        in_flight: requests in flight, at most so many in open loop.
        rate: requests a second in open loop; None for closed loop.
        connections: over how many connections, each of which stays with one worker.

    Raises:
        LoadError: if the load generator fails, or the server answers nothing.
    """
    make = _h2load if shutil.which("h2load") else _python_load
    answer = answer_of(target, method, request)
    cpu_before, start = cpu_seconds(server_pid), time.perf_counter()
    shape = _Shape(seconds, in_flight, rate, connections)
    latencies_us, n_failed = make(target, method, request, shape, len(answer))
    elapsed = time.perf_counter() - start
    cpu = cpu_seconds(server_pid) - cpu_before
    if not len(latencies_us):
        raise LoadError(f"no request to {target}{method} was answered")
    p50, p95, p99 = np.percentile(latencies_us, (50, 95, 99))
    return Load(
        n_requests=len(latencies_us) + n_failed,
        n_failed=n_failed,
        in_flight=in_flight,
        rate=rate,
        requests_per_second=len(latencies_us) / seconds,
        p50_us=float(p50),
        p95_us=float(p95),
        p99_us=float(p99),
        cpu_us_per_request=cpu / (len(latencies_us) + n_failed) * 1e6,
        server_busy=cpu / elapsed,
    )


def answer_of(target: str, method: str, request: bytes) -> bytes:
    """Return what a server answers, as it is on the wire.

    Raises:
        LoadError: if it does not answer, or refuses.
    """
    with grpc.insecure_channel(target) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        try:
            return call(request, timeout=_PATIENCE_SECONDS)
        except grpc.RpcError as error:
            raise LoadError(f"no request to {target}{method} is answered: {error}") from error


class _Shape(NamedTuple):
    """How long, how much at once, and how fast."""

    seconds: int
    in_flight: int
    rate: float | None
    connections: int


def _h2load(
    target: str, method: str, request: bytes, shape: _Shape, answer_bytes: int
) -> tuple[np.ndarray, int]:
    """Load with h2load; returns latencies in microseconds and the number of failed requests.

    It takes what gRPC refuses for answered, so how much came back tells how many were.
    """
    with tempfile.TemporaryDirectory() as directory:
        body, log = Path(directory, "body"), Path(directory, "log")
        # A gRPC message on the wire: not compressed, its length, its bytes.
        body.write_bytes(struct.pack(">BI", 0, len(request)) + request)
        pace = [] if shape.rate is None else [f"--rps={shape.rate / shape.connections:g}"]
        streams = max(1, shape.in_flight // shape.connections)
        command = [
            *("h2load", f"--duration={shape.seconds}", f"--clients={shape.connections}"),
            *(f"--max-concurrent-streams={streams}", *pace),
            *(f"--data={body}", f"--log-file={log}"),
            *("--header=content-type: application/grpc", "--header=te: trailers"),
            f"http://{target}{method}",
        ]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode or not log.exists():
            raise LoadError(f"h2load failed: {done.stderr.strip() or done.stdout.strip()}")
        lines = np.loadtxt(log, dtype=np.int64, ndmin=2)
    latencies_us = lines[lines[:, 1] == _HTTP_OK, 2]
    (data_bytes,) = map(int, _DATA_BYTES.findall(done.stdout))
    n_answered = min(round(data_bytes / (_PREFIX_BYTES + answer_bytes)), len(latencies_us))
    return latencies_us[:n_answered], len(lines) - n_answered


def _python_load(
    target: str, method: str, request: bytes, shape: _Shape, answer_bytes: int
) -> tuple[np.ndarray, int]:
    """Load with a client of our own, in another process."""
    del answer_bytes
    arguments = [target, method, *("" if value is None else str(value) for value in shape)]
    done = subprocess.run(
        [sys.executable, "-m", _CLIENT, *arguments], input=request, check=False, capture_output=True
    )
    if done.returncode:
        raise LoadError(f"the load client failed: {done.stderr.decode().strip()}")
    latencies_us = np.frombuffer(done.stdout, dtype=np.float64)
    answered = ~np.isnan(latencies_us)
    return latencies_us[answered], int(np.count_nonzero(~answered))
