"""While a version is loaded, workers that die are replaced, and the server can be stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from candidate_search.v1 import admin_service_pb2 as pb

from indexer.build import BuildOptions, build_bundle
from indexer.corpus import Corpus
from server.admin_client import AdminClient
from server.client import Embedding, SearchClient, SearchFailedError
from tests.server.processes import (
    children,
    parent_of_workers,
    processes,
    serving,
    wait_for,
    workers,
)
from tests.server.published import DIM, point_at, publish
from trainer.vocabulary import Vocabulary

SOON_SECONDS = 2.0
# The first takes half a second to load, the second well over ten.
SIZES = [200_000, pytest.param(4_000_000, marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=SIZES)
def link(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small version that is current, and a large one."""
    root = tmp_path_factory.mktemp("published")
    small = publish(root, 1)
    n: int = request.param
    ids = Vocabulary([str(row) for row in range(n)])
    embeddings = np.random.default_rng(0).normal(size=(n, DIM)).astype(np.float32)
    candidates = pa.table({"candidate_id": ids.array})
    corpus = Corpus(ids, embeddings, candidates, np.zeros(n, dtype=np.float32))
    build_bundle(corpus, None, root, BuildOptions(k=10, backends=("brute_force",)))
    point_at(root / "current", small)
    return root / "current"


@pytest.fixture
def large(link: Path) -> str:
    return max(path.name for path in link.parent.glob("2*") if path.name != link.readlink().name)


# A server whose disk does not answer when another version is loaded.
HANGS = """
import time
import server.loading
import server.versions
server.versions.load = lambda *_: time.sleep(60)
from server.__main__ import main
main()
"""


def test_a_single_process_can_be_stopped_meanwhile(tmp_path: Path) -> None:
    publish(tmp_path, 1)
    command = [sys.executable, "-c", HANGS, "serve", "--port", "0"]
    index = ["--index", str(tmp_path / "current")]
    with subprocess.Popen([*command, *index], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("serving on ")
        point_at(tmp_path / "current", publish(tmp_path, 2))
        time.sleep(1.5)  # it looks at the link every second
        process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        try:
            assert process.wait(30) == 0
        finally:
            process.kill()
        assert time.monotonic() - start < SOON_SECONDS


@contextmanager
def loading(
    link: Path, large: str
) -> Iterator[tuple[subprocess.Popen[str], str, Future[pb.ServingStatus], int]]:
    """Yield a server that loads, its address, what will become of it, and what does the loading."""
    with (
        serving(link, "--workers", "2", "--admin", "--drain-seconds", "1") as (process, address),
        AdminClient(address) as admin,
        ThreadPoolExecutor(1) as thread,
    ):
        known = set(processes(process.pid))
        status = thread.submit(admin.activate, large)
        wait_for(lambda: set(processes(process.pid)) - known)
        (trial,) = set(processes(process.pid)) - known
        yield process, address, status, trial


def test_a_worker_that_dies_meanwhile_is_replaced(link: Path, large: str) -> None:
    with loading(link, large) as (process, address, status, trial):
        os.kill(trial, signal.SIGSTOP)  # as where a disk does not answer
        before = set(workers(process.pid))
        os.kill(min(before - {trial}), signal.SIGKILL)
        start = time.monotonic()
        wait_for(lambda: set(workers(process.pid)) - before)
        seconds = time.monotonic() - start
        assert not status.done()
        os.kill(trial, signal.SIGCONT)
        assert large == status.result().active_version
        assert trial == parent_of_workers_soon(process.pid)
        with SearchClient(address) as client:
            assert large == client.search(Embedding([1.0] * DIM)).index_version
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    print(f"replaced within {seconds:.2f} s")  # noqa: T201
    assert seconds < SOON_SECONDS


def parent_of_workers_soon(process_id: int) -> int:
    """Return the parent of a server's workers, when the one before has ended."""
    wait_for(lambda: len(processes(process_id)) == 4)
    return parent_of_workers(process_id)


def test_the_server_stops_meanwhile(link: Path, large: str) -> None:
    with loading(link, large) as (process, _, status, trial):
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        seconds = time.monotonic() - start
        assert not Path(f"/proc/{trial}").exists()
        with pytest.raises(SearchFailedError):
            status.result()
    print(f"stopped within {seconds:.2f} s")  # noqa: T201
    assert seconds < SOON_SECONDS


def test_a_version_that_crashes_what_loads_it_is_refused(link: Path, large: str) -> None:
    with loading(link, large) as (process, address, status, trial):
        before = set(workers(process.pid)) - {trial}
        os.kill(trial, signal.SIGSEGV)
        with pytest.raises(SearchFailedError, match=r"VERSION_REFUSED: .*ended: SIGSEGV"):
            status.result()
        assert before == set(workers(process.pid))
        with AdminClient(address) as admin:
            assert ["SIGSEGV" in one.refusal for one in admin.versions()] == [False, True]


def test_the_server_stops_while_it_starts(link: Path, large: str) -> None:
    command = [sys.executable, "-m", "server", "serve", "--port", "0", "--workers", "2"]
    process = subprocess.Popen(
        [*command, "--index", str(link.parent / large)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: children(process.pid))
    process.send_signal(signal.SIGTERM)
    start = time.monotonic()
    assert ("", "") == process.communicate(timeout=30)
    assert process.returncode == 0
    assert time.monotonic() - start < SOON_SECONDS
