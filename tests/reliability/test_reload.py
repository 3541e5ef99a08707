"""Versions replace each other under load: no call fails, and none is answered by two versions."""

import re
import signal
import time
from pathlib import Path

import pytest

from server.admin_client import AdminClient
from server.client import (
    Embedding,
    SearchClient,
    SearchFailedError,
    SearchResults,
    search_request,
)
from tests.reliability.steady_load import QUERIES, Oracle, oracle_of, steady_load
from tests.server.processes import processes, serving, wait_for, workers
from tests.server.published import copied, current, point_at, publish

FLAT = 1.05  # memory after all swaps, in that after a fifth of them


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("published")
    publish(directory, 1)
    publish(directory, 2)
    return directory


@pytest.fixture
def link(root: Path, tmp_path: Path) -> Path:
    return copied(root, tmp_path / "indexes")


@pytest.fixture(scope="module")
def oracle(root: Path) -> Oracle:
    return oracle_of(root)


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("n_swaps", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_versions_swap_under_load(link: Path, oracle: Oracle, workers: str, n_swaps: int) -> None:
    with serving(link, "--admin", "--workers", workers) as (process, address):
        settled = 0.0
        with AdminClient(address) as admin, steady_load(address, oracle) as outcome:
            for n_done in range(n_swaps):
                (other,) = oracle.keys() - {admin.status().active_version}
                assert other == admin.activate(other).active_version
                if n_done == n_swaps // 5:
                    settled = memory_bytes(process.pid, int(workers))
            time.sleep(0.5)
        assert outcome.failed == []
        assert outcome.mixed == []
        assert outcome.answered.keys() == oracle.keys()
        final = memory_bytes(process.pid, int(workers))
        print(f"{n_swaps} swaps, {outcome.answered.total()} answers, {final / settled:.3f} memory")  # noqa: T201
        if n_swaps >= 100:
            assert final <= FLAT * settled
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_link_is_followed_under_load(link: Path, oracle: Oracle, workers: str) -> None:
    before = current(link)
    (other,) = oracle.keys() - {before}
    with (
        serving(link, "--workers", workers) as (_, address),
        steady_load(address, oracle) as outcome,
    ):
        wait_for(lambda: outcome.answered[before] > 0)
        point_at(link, other)
        wait_for(lambda: outcome.answered[other] > 0)
    assert (outcome.failed, outcome.mixed) == ([], [])


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_canary_answers_beside_the_active_version(
    link: Path, oracle: Oracle, workers: str
) -> None:
    active = current(link)
    (canary,) = oracle.keys() - {active}
    with (
        serving(link, "--admin", "--workers", workers) as (_, address),
        AdminClient(address) as admin,
        SearchClient(address) as client,
    ):
        status = admin.activate(canary, 0.5)
        assert (status.active_version, status.canary_version) == (active, canary)
        assert len(status.process_ids) == int(workers)
        results = [client.search(Embedding(query), exact=True) for query in QUERIES]
        assert {active, canary} == {one.index_version for one in results}
        batch = client.search_batch(
            search_request(Embedding(query), exact=True) for query in QUERIES
        )
        assert all(isinstance(one, SearchResults) for one in batch)
        assert [one.index_version for one in results] == [
            one.index_version for one in batch if isinstance(one, SearchResults)
        ]
        assert admin.roll_back().canary_version == ""
        assert {active} == {client.search(Embedding(query)).index_version for query in QUERIES}


def test_a_refused_version_leaves_the_old_one_serving(link: Path, oracle: Oracle) -> None:
    before = current(link)
    (other,) = oracle.keys() - {before}
    (link.parent / other / "embeddings.npy").write_bytes(b"")
    with (
        serving(link, "--admin", "--workers", "2") as (process, address),
        AdminClient(address) as admin,
        SearchClient(address) as client,
    ):
        before_workers = workers(process.pid)
        with pytest.raises(SearchFailedError, match=r"VERSION_REFUSED: .*embeddings.npy"):
            admin.activate(other)
        assert before == client.search(Embedding(QUERIES[0])).index_version
        assert before_workers == workers(process.pid)
        refused = {one.name: one.refusal for one in admin.versions()}
        assert "embeddings.npy" in refused[other]


def memory_bytes(process_id: int, n_workers: int) -> float:
    """Return the memory of a server, what processes share counted once, when old workers ended.

    Without mapped files: how much of those is counted hangs on what else runs on this machine.
    """
    n_processes = n_workers + 2 if n_workers > 1 else 1
    wait_for(lambda: len(processes(process_id)) == n_processes)
    total = 0.0
    for one in processes(process_id):
        lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        total += next(
            1024 * float(line.split()[1]) for line in lines if line.startswith("Pss_Anon:")
        )
    return total


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_version_that_was_replaced_leaves_memory(link: Path, workers: str) -> None:
    started_with = current(link)
    (other,) = (one.name for one in link.parent.glob("2*") if one.name != started_with)
    with (
        serving(link, "--admin", "--workers", workers) as (process, address),
        AdminClient(address) as admin,
    ):
        for active in (other, started_with):
            admin.activate(active)
            wait_for(lambda active=active: mapped_versions(process.pid) == {active})


@pytest.mark.slow
def test_versions_of_every_backend_of_this_machine_swap(tmp_path: Path) -> None:
    """Some have threads, which no fork of their process has."""
    backends = ("brute_force", "annoy", "scann")
    first, second = (publish(tmp_path, seed, backends) for seed in (1, 2))
    with (
        serving(tmp_path / "current", "--admin", "--workers", "2") as (process, address),
        AdminClient(address, timeout_seconds=20) as admin,
    ):
        for version in (first, second):
            assert version == admin.activate(version).active_version
        wait_for(lambda: len(processes(process.pid)) == 4)


def mapped_versions(process_id: int) -> set[str]:
    """Return the versions whose files a server and its workers have in memory."""
    found: set[str] = set()
    for one in processes(process_id):
        try:
            maps = Path(f"/proc/{one}/maps").read_text()
        except (FileNotFoundError, ProcessLookupError):  # a worker that ended meanwhile
            continue
        found.update(re.findall(r"/indexes/(\d{8}T\d{6}Z-[0-9a-f]{8})/", maps))
    return found
