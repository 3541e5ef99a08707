"""Several workers on one port: they answer alike, and outlive each other."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from server.client import Embedding, Examples, Like, SearchClient
from tests.server.processes import children, serving

QUERIES = (Embedding([1.0] * 8), Like("c5"), Examples(["c1", "c2"], ["c3"]))


def test_workers_answer_what_one_answers(vector_index: Path, vector_client: SearchClient) -> None:
    with serving(vector_index, "--workers", "2") as (process, address):
        assert len(children(process.pid)) == 2
        for _ in range(8):  # each connection is dealt to one of the two
            with SearchClient(address) as client:
                for query in QUERIES:
                    alone = vector_client.search(query, count=20)
                    assert client.search(query, count=20).ids == alone.ids
        first = tokens(address)
        assert all(token == first[0] for token in first)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def tokens(address: str) -> list[str]:
    """Return the page token of one search from several connections: all workers must agree."""
    found = []
    for _ in range(8):
        with SearchClient(address) as client:
            found.append(client.search(QUERIES[0], count=3).next_page_token)
    return found


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_worker_that_dies_is_replaced_while_the_other_serves(
    vector_index: Path, number: signal.Signals
) -> None:
    with serving(vector_index, "--workers", "2") as (process, address):
        before = children(process.pid)
        os.kill(before[0], number)
        deadline = time.monotonic() + 20
        while len(set(children(process.pid)) - set(before)) == 0 and time.monotonic() < deadline:
            with SearchClient(address) as client:
                assert len(client.search(QUERIES[0])) == 10
        after = children(process.pid)
        assert before[1] in after
        assert len(after) == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_workers_end_with_their_parent(vector_index: Path) -> None:
    with serving(vector_index, "--workers", "2") as (process, _):
        orphans = children(process.pid)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 20
        while any(map(is_running, orphans)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(is_running, orphans))


def is_running(process_id: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{process_id}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_second_server_is_refused(vector_index: Path, workers: str) -> None:
    for first in ("1", "2"):
        with serving(vector_index, "--workers", first) as (_, address):
            port = address.rpartition(":")[2]
            command = ["server", "serve", "--index", str(vector_index), "--port", port]
            second = subprocess.run(
                [sys.executable, "-m", *command, "--workers", workers],
                check=False,
                capture_output=True,
                text=True,
                timeout=60,
            )
        assert second.returncode == 1
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in second.stderr
        assert "Traceback" not in second.stderr
