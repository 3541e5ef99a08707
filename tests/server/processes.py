"""Servers as processes of their own, for the tests that need one."""

import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving(index: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Yield a server's process and address; nothing of it is left afterwards."""
    command = [sys.executable, "-m", "server", "serve", "--index", str(index), "--port", "0"]
    process = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"serving on (127\.0\.0\.1:\d+)\n", line)
        assert found is not None, (line, process.poll())
        yield process, found[1]
    finally:
        process.kill()
        process.wait()


def children(process_id: int) -> list[int]:
    """Return the ids of a process's children; none if it has ended."""
    try:
        ids = Path(f"/proc/{process_id}/task/{process_id}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(one) for one in ids.split()]


def parent_of_workers(process_id: int) -> int:
    """Return the process that forks the workers of a server that was started with several."""
    (parent,) = children(process_id)
    return parent


def workers(process_id: int) -> list[int]:
    """Return the ids of a server's workers; while a version is tried, what tries it is with them.

    Args:
        process_id: of the server, which was started with several.
    """
    return [worker for parent in children(process_id) for worker in children(parent)]


def processes(process_id: int) -> list[int]:
    """Return the ids of a process and of all that descend from it."""
    return [process_id, *(one for child in children(process_id) for one in processes(child))]


def n_descriptors(process_id: int) -> int:
    """Return how many files, sockets and pipes a process has open."""
    return len(list(Path(f"/proc/{process_id}/fd").iterdir()))


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Return when a condition holds, which it must in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def free_port() -> int:
    """Return a port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def scrape(port: int) -> dict[str, float]:
    """Return what a server tells Prometheus: samples by name and labels, as they are written."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        name: float(value)
        for name, value in re.findall(r"^(candidate\S*) (\S+)$", text, re.MULTILINE)
    }
