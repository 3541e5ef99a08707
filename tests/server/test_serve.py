"""The server as a process: its port, its health, its end."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.server.processes import serving, wait_for

SERVING = health_pb2.HealthCheckResponse.SERVING
SERVICE = "candidate_search.v1.CandidateSearchService"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "120", **environment},
    )


def test_a_process_from_start_to_end(tower_index: Path) -> None:
    with serving(tower_index) as (process, address):
        with grpc.insecure_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for service in ("", SERVICE):
                request = health_pb2.HealthCheckRequest(service=service)
                assert health.Check(request).status == SERVING
        assert "tensorflow" not in Path(f"/proc/{process.pid}/maps").read_text()
        searched = run("search", "--user", "1", "--count", "3", "--json", "--address", address)
        candidates = json.loads(searched.stdout)["candidates"]
        assert len(candidates) == 3
        assert {"id", "score", "title", "genres"} == set(candidates[0])
        table = run("search", "--like", candidates[0]["id"], "--count", "2", "--address", address)
        assert "title" in table.stdout
        liked = ",".join(candidate["id"] for candidate in candidates)
        assert run("search", "--liked", liked, "--address", address).returncode == 0
        failed = run("search", "--like", "nothing", "--address", address)
        assert failed.returncode == 1
        assert (
            failed.stderr
        ) == "error: CANDIDATE_UNKNOWN: candidate 'nothing' is not in the corpus\n"
        port = address.rpartition(":")[2]
        second = run("serve", "--index", str(tower_index), "--port", port)
        assert second.returncode == 1
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in second.stderr
        assert "Traceback" not in second.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_waits_for_nobody_who_only_watches(vector_index: Path, workers: str) -> None:
    flags = ("--workers", workers, "--reflection", "--drain-seconds", "300")
    with serving(vector_index, *flags) as (process, address), ExitStack() as stack:
        watches = []
        for _ in range(8):  # each connection is dealt to one of the workers
            options = (("grpc.use_local_subchannel_pool", 1),)
            channel = stack.enter_context(grpc.insecure_channel(address, options=options))
            health = health_pb2_grpc.HealthStub(channel)
            watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
            assert next(watch).status == SERVING
            watches.append(watch)
        requests: SimpleQueue[Any] = SimpleQueue()
        stack.callback(requests.put, None)
        requests.put(reflection_pb2.ServerReflectionRequest(list_services=""))
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        described = stub.ServerReflectionInfo(iter(requests.get, None))
        assert next(described).list_services_response.service
        process.send_signal(signal.SIGTERM)
        for watch in watches:
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        for stream in (*watches, described):
            with pytest.raises(grpc.RpcError, match="the server is stopping"):
                next(stream)
            assert stream.code() == grpc.StatusCode.UNAVAILABLE
        assert process.wait(30) == 0


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, "1"), (signal.SIGINT, "2")])
def test_a_server_that_still_starts_ends_without_a_word(
    vector_index: Path, tmp_path: Path, number: signal.Signals, workers: str
) -> None:
    """By a handler: nothing ends the first process of a container by default."""
    tokens = tmp_path / "tokens"
    os.mkfifo(tokens)  # reading it takes for ever
    command = [sys.executable, "-m", "server", "serve", "--index", str(vector_index)]
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"  # where counts are kept
    ours.mkdir()
    theirs.mkdir()
    environment = {"TMPDIR": str(ours), "PROMETHEUS_MULTIPROC_DIR": str(theirs)}
    flags = ["--workers", workers, "--token-file", str(tokens), "--metrics-port", "0"]
    process = subprocess.Popen(
        [*command, "--port", "0", *flags],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    writers: list[int] = []  # as long as there is one, more may come

    def is_read() -> bool:
        with suppress(OSError):
            writers.append(os.open(tokens, os.O_WRONLY | os.O_NONBLOCK))
        return bool(writers)

    wait_for(is_read)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    os.close(writers[0])
    assert (0, "") == (process.returncode, stderr)
    assert (True, []) == (theirs.is_dir(), list(ours.iterdir()))


def test_log_lines_can_be_json(vector_index: Path) -> None:
    command = ["serve", "--index", str(vector_index), "--port", "0", "--log-format", "json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "server", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=60)
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert ["draining", "drained"] == [line["event"] for line in lines]
    assert {"info"} == {line["level"] for line in lines}


def test_reflection_is_behind_a_flag(
    start: Callable[..., Any], vector_index: Path, vector_server: Any
) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")

    def services(address: str) -> set[str]:
        with grpc.insecure_channel(address) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            (response,) = stub.ServerReflectionInfo(iter([request]))
            return {one.name for one in response.list_services_response.service}

    assert SERVICE in services(start(vector_index, reflection=True).address)
    with pytest.raises(grpc.RpcError) as caught:
        services(vector_server.address)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--index", "nowhere"], "there is nothing at nowhere"),
        (["serve", "--port", "many"], "port: .* not 'many'"),
        (["serve", "--workers", "2", "--token-file", "none"], "token_file: cannot read none"),
        (["serve", "--config", "none.toml"], "there is no settings file none.toml"),
        (["search"], "say one of --user"),
        (["search", "--user", "1", "--like", "2"], "say one of --user"),
        (["search", "--user", "1", "--address", "127.0.0.1:1"], "UNAVAILABLE"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(arguments: list[str], message: str) -> None:
    failed = run(*arguments)
    assert failed.returncode in {1, 2}
    assert re.search(message, failed.stderr)
    assert "Traceback" not in failed.stderr


def test_prints_the_settings_in_force() -> None:
    printed = run("serve", "--print-config", "--reflection", CANDIDATE_SEARCH_PORT="7").stdout
    assert "port = 7\n" in printed
    assert "reflection = true\n" in printed


def test_the_client_imports_nothing_of_the_server() -> None:
    code = "import sys, server.client; print(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    heavy = {"numpy", "pyarrow", "pydantic", "typer", "rich", "structlog", "tensorflow"}
    assert set() == heavy & set(printed.stdout.decode().split())
