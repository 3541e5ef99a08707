"""Several workers on one port: they answer alike, and outlive each other."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import Pipe
from pathlib import Path

import pytest

from server.admin_client import AdminClient
from server.client import Embedding, Examples, Like, SearchClient, SearchFailedError
from server.loading import load, with_page_token_key
from server.settings import Settings
from server.signals import Signals
from server.supervisor import Lifeline
from server.workers import Workers, _Process
from tests.server.processes import n_descriptors, parent_of_workers, serving, wait_for, workers
from tests.server.published import current

QUERIES = (Embedding([1.0] * 8), Like("c5"), Examples(["c1", "c2"], ["c3"]))


def test_the_clients_of_one_process_reach_all_workers(vector_index: Path) -> None:
    with serving(vector_index, "--workers", "2") as (process, address), ExitStack() as stack:
        clients = [stack.enter_context(SearchClient(address)) for _ in range(16)]
        for client in clients:
            client.search(QUERIES[0])
        n_descriptors_of = [n_descriptors(worker) for worker in workers(process.pid)]
        idle = min(n_descriptors_of)
        for client in clients:
            client.close()
        # Each worker has connections of some: all on one are as likely as 16 coins that fall alike.
        wait_for(lambda: all(n_descriptors(one) < idle for one in workers(process.pid)))


def test_workers_answer_what_one_answers(vector_index: Path, vector_client: SearchClient) -> None:
    with serving(vector_index, "--workers", "2") as (process, address):
        assert len(workers(process.pid)) == 2
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
        before = workers(process.pid)
        os.kill(before[0], number)
        deadline = time.monotonic() + 20
        while len(set(workers(process.pid)) - set(before)) == 0 and time.monotonic() < deadline:
            with SearchClient(address) as client:
                assert len(client.search(QUERIES[0])) == 10
        after = workers(process.pid)
        assert before[1] in after
        assert len(after) == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_workers_end_with_their_parent(vector_index: Path) -> None:
    with serving(vector_index, "--workers", "2") as (process, _):
        orphans = workers(process.pid)
        process.kill()
        process.wait()
        wait_for(lambda: not any(map(is_running, orphans)))


def is_running(process_id: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{process_id}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("n_workers", ["1", "2"])
def test_a_second_server_is_refused(vector_index: Path, n_workers: str) -> None:
    for first in ("1", "2"):
        with serving(vector_index, "--workers", first) as (_, address):
            port = address.rpartition(":")[2]
            command = ["server", "serve", "--index", str(vector_index), "--port", port]
            second = subprocess.run(
                [sys.executable, "-m", *command, "--workers", n_workers],
                check=False,
                capture_output=True,
                text=True,
                timeout=60,
            )
        assert second.returncode == 1
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in second.stderr
        assert "Traceback" not in second.stderr


@pytest.mark.parametrize("n_free", [0, 4])  # for not even a trial; for one worker of the two
def test_a_change_of_version_that_finds_no_room_changes_nothing(link: Path, n_free: int) -> None:
    before = current(link)
    (other,) = (one.name for one in link.parent.glob("2*") if one.name != before)
    with (
        serving(link, "--workers", "2", "--admin") as (process, address),
        AdminClient(address, timeout_seconds=30) as admin,
        SearchClient(address) as client,
    ):
        workers_before = workers(process.pid)
        with few_descriptors(parent_of_workers(process.pid), n_free):
            with pytest.raises(SearchFailedError, match=r"VERSION_REFUSED: .*Too many open files"):
                admin.activate(other)
            assert before == client.search(QUERIES[0]).index_version
            assert workers_before == workers(process.pid)
        assert other == admin.activate(other).active_version


def test_a_worker_that_cannot_be_replaced_yet_is_replaced_later(link: Path) -> None:
    with serving(link, "--workers", "2", "--admin") as (process, address):
        first, second = workers(process.pid)
        with few_descriptors(
            parent_of_workers(process.pid), -8
        ):  # nor is what the dead one had left room enough
            os.kill(first, signal.SIGKILL)
            time.sleep(1.0)
            assert [second] == workers(process.pid)
            with SearchClient(address) as client:
                assert len(client.search(QUERIES[0])) == 10
        wait_for(lambda: len(workers(process.pid)) == 2)


@contextmanager
def few_descriptors(process_id: int, n_free: int) -> Iterator[None]:
    """Let a process open only so many files more than it has; fewer if negative."""
    taken = [int(path.name) for path in Path(f"/proc/{process_id}/fd").iterdir()]
    before = resource.prlimit(process_id, resource.RLIMIT_NOFILE)
    resource.prlimit(process_id, resource.RLIMIT_NOFILE, (max(taken) + 1 + n_free, before[1]))
    try:
        yield
    finally:
        resource.prlimit(process_id, resource.RLIMIT_NOFILE, before)


def test_a_worker_that_does_not_come_to_serve_is_told_of(vector_index: Path) -> None:
    impatient = "from server import commands, workers; workers._START_SECONDS = 0; commands.app()"
    flags = ["--index", str(vector_index), "--port", "0", "--workers", "2"]
    refused = subprocess.run(
        [sys.executable, "-c", impatient, "serve", *flags],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (1, "") == (refused.returncode, refused.stdout)
    assert "error: a worker does not serve after 0 seconds\n" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_worker_that_does_not_stop_is_killed(link: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.workers._KILL_AFTER_SECONDS", 0.0)
    with Signals() as signals:
        crew = crew_of_one(link, signals, on_stop="")
        (process_id,) = crew.process_ids()
        crew.stop()
        assert [] == crew.process_ids()
    with pytest.raises(ProcessLookupError):
        os.kill(process_id, 0)


def test_a_stop_that_comes_while_others_are_ended_is_not_lost(link: Path) -> None:
    """As when a version fails to take over while the server is asked to stop."""
    with Signals() as signals:
        crew_of_one(link, signals, on_stop=f"kill -TERM {os.getpid()}; exit").stop()
        if not signals.stop_asked:  # it may have come after the last look
            signals.wait(1.0)
        assert signals.stop_asked


def crew_of_one(link: Path, signals: Signals, on_stop: str) -> Workers:
    """Return a crew whose only worker is a shell, which does something when it is to stop."""
    script = f"trap '{on_stop}' TERM; echo ready; while :; do sleep 0.02; done"
    child = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    ready, commands = Pipe()
    settings = with_page_token_key(Settings(index=link, drain_seconds=0))
    crew = Workers(settings, load(settings), 0, signals, Lifeline(*Pipe()))
    crew._processes.append(_Process(child.pid, time.monotonic(), ready, commands))
    return crew
