"""What Prometheus reads: every call by its code, every search by its version, over all workers."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from candidate_search.v1 import candidate_search_service_pb2 as pb
from structlog.testing import capture_logs

from indexer.bundle import IndexBundle
from server import metrics
from server.client import Embedding, Like, SearchClient, SearchFailedError, search_request
from server.domain import SearchRequest
from server.interceptors import service_handler
from server.ports import probe_port
from tests.server.processes import free_port, processes, scrape, serving, wait_for, workers
from tests.server.published import current, publish

QUERY = Embedding([1.0] * 8)


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    publish(root, 1, ("brute_force", "annoy"))
    return root / "current"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_every_call_is_counted_whoever_answered_it(link: Path, workers: str) -> None:
    port, version = free_port(), current(link)
    flags = ("--metrics-port", str(port), "--workers", workers, "--live-recall-share", "1")
    with serving(link, *flags) as (_, address):
        for _ in range(8):
            with SearchClient(address) as client:
                client.search(QUERY, backend="annoy")
                client.search(QUERY, exact=True)
                with pytest.raises(SearchFailedError):
                    client.search(QUERY, count=-1)
        seconds = 'candidate_search_request_seconds_count{method="SearchCandidates"}'
        wait_for(lambda: scrape(port).get(seconds) == 24)  # workers count together once a second
        samples = scrape(port)
        calls = 'candidate_search_requests_total{code="%s",method="SearchCandidates"}'
        assert (16, 8) == (samples[calls % "OK"], samples[calls % "INVALID_ARGUMENT"])
        searches = (
            'candidate_search_searches_total{backend="annoy",index_version="%s",'
            'search_method="index"}'
        )
        assert 8 == samples[searches % version]
        assert samples['candidate_search_stage_seconds_count{stage="search"}'] >= 1
        assert samples["candidate_search_peak_memory_bytes"] > 1e6
        assert samples["candidate_search_workers"] == int(workers)
        assert 0.01 < samples["candidate_search_cpu_seconds_total"] < 60
        recall = f'{{backend="annoy",index_version="{version}"}}'
        wait_for(lambda: f"candidate_search_live_expected_recall_count{recall}" in scrape(port))
        samples = scrape(port)
        n_promised = samples[f"candidate_search_live_expected_recall_count{recall}"]
        promised = samples[f"candidate_search_live_expected_recall_sum{recall}"] / n_promised
        points = IndexBundle.open(link).manifest.backends["annoy"].operating_points
        assert any(promised == pytest.approx(point.recall) for point in points)
        n_compared = samples[f"candidate_search_live_recall_count{recall}"]
        assert 0.5 <= samples[f"candidate_search_live_recall_sum{recall}"] / n_compared <= 1


def test_counts_outlive_workers_and_versions_and_take_no_more_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    publish(tmp_path / "index", 1, ("brute_force",))
    port, link = free_port(), tmp_path / "index" / "current"
    calls = 'candidate_search_requests_total{code="OK",method="SearchCandidates"}'
    n_searches = 0

    def search() -> None:
        nonlocal n_searches
        n_searches += 1
        with SearchClient(address) as client:
            client.search(QUERY)
        wait_for(lambda: scrape(port).get(calls) == n_searches)

    with serving(link, "--metrics-port", str(port), "--workers", "2") as (process, address):
        for number in (2, 3):
            search()
            before = set(workers(process.pid))
            os.kill(min(before), signal.SIGKILL)
            wait_for(lambda before=before: len(set(workers(process.pid)) & before) == 1)
            wait_for(lambda: len(workers(process.pid)) == 2)
            search()
            before = set(workers(process.pid))
            publish(tmp_path / "index", number, ("brute_force",))
            wait_for(lambda before=before: not set(workers(process.pid)) & before)
        search()
        # The supervisor, a parent and its two workers, and those that take over from these.
        assert 4 <= len(list(tmp_path.glob("temporary/*/*.slot"))) <= 7
        wait_for(lambda: len(processes(process.pid)) == 4)
        wait_for(lambda: len(list(tmp_path.glob("temporary/*/*livesum*"))) <= 4)


def counted(counter: Any) -> float:
    value: float = counter._value.get()
    return value


@pytest.mark.parametrize("seconds", [0.1, 1.005])  # which clients round up to 1.01
def test_what_callers_did_not_wait_for_is_no_cancellation_of_theirs(seconds: float) -> None:
    async def answer(_: object, __: float | None) -> bytes:
        await asyncio.sleep(10)
        return b""

    async def call() -> None:
        server = grpc.aio.server()
        methods = {"Slow": (answer, pb.GetIndexInfoRequest)}
        server.add_generic_rpc_handlers((service_handler("test.Slowness", methods),))  # type: ignore[arg-type]
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            method = channel.unary_unary("/test.Slowness/Slow")
            with pytest.raises(grpc.aio.AioRpcError, match="DEADLINE_EXCEEDED"):
                await method(b"", timeout=seconds)
            given_up = method(b"")
            await asyncio.sleep(0.1)
            given_up.cancel()
            await asyncio.sleep(0.1)
        await server.stop(None)
        metrics.settle()

    ended = [metrics.REQUESTS.labels("Slow", code) for code in ("DEADLINE_EXCEEDED", "CANCELLED")]
    before = [counted(one) for one in ended]
    asyncio.run(call())
    assert [one + 1 for one in before] == [counted(one) for one in ended]


def test_what_batches_refuse_is_counted(vector_client: SearchClient) -> None:
    refusals = metrics.BATCH_REFUSALS.labels("NOT_FOUND")
    before = counted(refusals)
    vector_client.search_batch([search_request(Like("nothing")), search_request(QUERY)])
    assert before + 1 == counted(refusals)


def test_calls_without_a_token_are_counted_by_methods_that_there_are(
    link: Path, tmp_path: Path
) -> None:
    tokens, port = tmp_path / "tokens", free_port()
    tokens.write_text(f"read {'r' * 20}\n")
    flags = ("--token-file", str(tokens), "--metrics-port", str(port))
    with serving(link, *flags) as (_, address), grpc.insecure_channel(address) as channel:
        service = "candidate_search.v1.CandidateSearchService"
        for method in (f"{service}/SearchCandidates", f"{service}/MadeUp", "evil/SearchCandidates"):
            call = channel.unary_unary(f"/{method}")
            with pytest.raises(grpc.RpcError):
                call(b"", timeout=10)  # type: ignore[arg-type]
        samples = scrape(port)
    refused = 'candidate_search_requests_total{code="UNAUTHENTICATED",method="%s"}'
    assert (1, 2) == (samples[refused % "SearchCandidates"], samples[refused % "unknown"])
    assert "MadeUp" not in str(samples)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_for_prometheus_that_is_taken_is_told_in_a_sentence(
    link: Path, workers: str
) -> None:
    port = str(free_port())
    with serving(link, "--metrics-port", port, "--workers", workers):
        flags = ["--index", str(link), "--port", "0", "--metrics-port", port, "--workers", "2"]
        command = [sys.executable, "-m", "server", "serve", *flags]
        ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert (
        f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another port for "
        "Prometheus with --metrics-port"
    ) in ended.stderr
    assert "Traceback" not in ended.stderr


def test_prometheus_may_come_by_ipv6() -> None:
    try:
        probe_port("::1", 0).close()
    except OSError as error:
        pytest.skip(f"there is no IPv6 here: {error}")
    port = metrics.listen("::1", 0)
    with urllib.request.urlopen(f"http://[::1]:{port}/metrics", timeout=10) as answer:
        assert b"candidate_search_calls_in_flight" in answer.read()


def test_peers_that_stall_are_hung_up_on(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metrics._SilentHandler, "timeout", 0.5)
    port = metrics.listen("127.0.0.1", 0)
    n_threads = threading.active_count()
    peers = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]
    for number, peer in enumerate(peers):
        peer.sendall(b"GET /metrics HTTP/1.1\r\nX:"[: number or None])
    assert scrape(port)
    for peer in peers:
        peer.settimeout(10)
        assert peer.recv(1) == b""
        peer.close()
    wait_for(lambda: threading.active_count() <= n_threads)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_any_port_will_do_for_prometheus(link: Path, workers: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "server", "serve", "--index", str(link), "--port", "0"]
    flags = ["--metrics-port", "0", "--workers", workers, "--log-format", "json"]
    log = tmp_path / "log"
    with log.open("w") as written:
        process = subprocess.Popen(
            [*command, *flags], stdout=subprocess.PIPE, stderr=written, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
    try:
        ports = set(re.findall(r"http://127\.0\.0\.1:(\d+)/metrics", log.read_text()))
        assert len(ports) == 1  # all workers answer on one
        assert "candidate_search_calls_in_flight" in scrape(int(ports.pop()))
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.mark.parametrize(("flags", "n_directories"), [((), 0), (("--metrics-port", "0"), 1)])
def test_files_to_count_in_are_made_only_for_prometheus(
    link: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str],
    n_directories: int,
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with serving(link, "--workers", "2", *flags):
        assert n_directories == len(list(tmp_path.glob("candidate-search-metrics-*")))


def test_a_comparison_that_fails_is_logged_and_callers_do_not_notice(
    start: Callable[..., Any], vector_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(vector_index, live_recall_share=1.0)
    search = server.engine.search

    def fail_if_exact(request: SearchRequest) -> Any:
        if request.exact:
            raise ZeroDivisionError
        return search(request)

    monkeypatch.setattr(server.engine, "search", fail_if_exact)
    with capture_logs() as logs, SearchClient(server.address) as client:
        for _ in range(20):
            assert len(client.search(QUERY, backend="annoy")) == 10
        wait_for(lambda: logs)
    assert ["live recall fails"] == [one["event"] for one in logs]
