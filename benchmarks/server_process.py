"""Servers that run in processes of their own, as their users run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from benchmarks.errors import BenchmarkError
from server.settings import ENVIRONMENT_PREFIX, Settings

_LISTENING = re.compile(r"serving on (\S+:\d+)")
_STOP_SECONDS = 30
_SETTINGS = {f"{ENVIRONMENT_PREFIX}{name.upper()}" for name in (*Settings.model_fields, "config")}


class ServerProcess(NamedTuple):
    """A server's process and where it listens."""

    pid: int
    target: str


@contextmanager
def server_process(
    arguments: Sequence[str], *, on_line: Callable[[str], None] = lambda _: None
) -> Iterator[ServerProcess]:
    """Run one of our servers for as long as the block lasts; no process is left behind.

    As it ships: settings in the environment are not for it.

    Args:
        arguments: what follows ``python -m``.
        on_line: told what the server prints until it listens.

    Raises:
        BenchmarkError: if it ends before it listens.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _SETTINGS}
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        yield ServerProcess(process.pid, _target(process, on_line))
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _target(process: subprocess.Popen[str], on_line: Callable[[str], None]) -> str:
    """Read what a server prints until it says where it listens."""
    for line in process.stdout or ():
        on_line(line.rstrip())
        if match := _LISTENING.search(line):
            return match[1]
    raise BenchmarkError(f"the server ended with exit code {process.wait()} before it listened")
