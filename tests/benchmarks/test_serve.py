import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import load
from benchmarks.commands import app
from benchmarks.errors import BenchmarkError
from benchmarks.load import LoadError, put_load
from benchmarks.serve import ServeReport, benchmark_serve, null_server
from benchmarks.server_process import server_process
from indexer.bundle import IndexBundle
from server.client import SearchClient, User, search_request

METHOD = "/candidate_search.v1.CandidateSearchService/SearchCandidates"


@pytest.fixture
def without_h2load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load.shutil, "which", lambda _: None)


@pytest.mark.usefixtures("without_h2load")
@pytest.mark.parametrize("rate", [None, 100.0])
def test_our_client_loads_a_server(rate: float | None) -> None:
    with null_server(b"answer") as null:
        measured = put_load(null.target, METHOD, b"", null.pid, seconds=1, in_flight=4, rate=rate)
    assert measured.n_failed == 0
    assert measured.n_requests > 10
    assert 0 < measured.p50_us <= measured.p95_us <= measured.p99_us
    assert measured.cpu_us_per_request > 0
    if rate is not None:
        assert measured.n_requests == pytest.approx(100, abs=5)


@pytest.mark.usefixtures("without_h2load")
def test_no_server_is_a_sentence() -> None:
    with null_server(b"answer") as null, pytest.raises(LoadError, match="no request"):
        put_load("127.0.0.1:1", METHOD, b"", null.pid, seconds=1, in_flight=1)


@pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load is not installed")
def test_h2load_loads_a_server() -> None:
    with null_server(b"answer") as null:
        measured = put_load(null.target, METHOD, b"", null.pid, seconds=1, in_flight=4)
    assert measured.n_failed == 0
    assert measured.n_requests > 10
    assert measured.p50_us < 1e6


@pytest.mark.parametrize("tool", ["h2load", "our client"])
def test_requests_that_are_refused_are_no_answers(
    tool: str, tower_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tool != "h2load":
        monkeypatch.setattr(load.shutil, "which", lambda _: None)
    elif shutil.which("h2load") is None:
        pytest.skip("h2load is not installed")
    request = search_request(User("1")).SerializeToString()
    few = ("server", "serve", "--index", str(tower_index), "--port", "0")
    with server_process((*few, "--max-calls-in-flight", "1")) as server:
        target = (server.target, METHOD, request, server.pid)
        measured = put_load(*target, seconds=1, in_flight=32)
        assert 0 < measured.n_failed < measured.n_requests
        with pytest.raises(LoadError, match=r"no request to .* is answered"):
            put_load(server.target, METHOD, b"", server.pid, seconds=1, in_flight=1)


def test_settings_in_the_environment_are_not_for_what_is_measured(
    tower_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANDIDATE_SEARCH_MAX_CANDIDATE_COUNT", "1")
    with (
        server_process(("server", "serve", "--index", str(tower_index), "--port", "0")) as server,
        SearchClient(server.target) as client,
    ):
        assert len(client.search(User("1"), count=7)) == 7


def test_the_server_is_measured_beside_its_floor(tower_index: Path, tmp_path: Path) -> None:
    quickly = ["--seconds", "1", "--rounds", "1"]
    done = CliRunner().invoke(
        app, ["serve", "--corpus", str(tower_index), "--output", str(tmp_path), *quickly]
    )
    assert done.exit_code == 0, done.output
    report = ServeReport.model_validate_json((tmp_path / "serve.json").read_text())
    assert "floor" in done.stdout.lower()
    assert report.floor_ratio > 0
    assert report.protection_ratio > 0
    assert all(scenario.load.n_failed == 0 for scenario in report.scenarios)
    assert (tmp_path / "serve.png").read_bytes().startswith(b"\x89PNG")


def test_a_bundle_without_users_is_refused(vector_bundle: IndexBundle) -> None:
    with pytest.raises(BenchmarkError, match="no known users"):
        benchmark_serve(vector_bundle)
