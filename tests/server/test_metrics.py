"""What Prometheus reads: every call by its code, every search by its version, over all workers."""

import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from server.client import Embedding, SearchClient, SearchFailedError
from tests.server.processes import serving
from tests.server.published import current, publish

QUERY = Embedding([1.0] * 8)


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    publish(root, 1, ("brute_force", "annoy"))
    return root / "current"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def scrape(port: int) -> dict[str, float]:
    """Return the samples by name and labels, as they are written."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        name: float(value)
        for name, value in re.findall(r"^(candidate\S*) (\S+)$", text, re.MULTILINE)
    }


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
        samples = scrape(port)
        calls = 'candidate_search_requests_total{code="%s",method="SearchCandidates"}'
        assert (16, 8) == (samples[calls % "OK"], samples[calls % "INVALID_ARGUMENT"])
        seconds = 'candidate_search_request_seconds_count{method="SearchCandidates"}'
        assert 24 == samples[seconds]
        searches = (
            'candidate_search_searches_total{backend="annoy",index_version="%s",'
            'search_method="index"}'
        )
        assert samples[searches % version] >= 8
        assert samples['candidate_search_stage_seconds_count{stage="search"}'] >= 1
        assert samples["candidate_search_peak_memory_bytes"] > 1e6
        recall = f'{{backend="annoy",index_version="{version}"}}'
        deadline = time.monotonic() + 30
        while f"candidate_search_live_recall_count{recall}" not in (samples := scrape(port)):
            assert time.monotonic() < deadline
        n_compared = samples[f"candidate_search_live_recall_count{recall}"]
        assert 0.5 <= samples[f"candidate_search_live_recall_sum{recall}"] / n_compared <= 1


def test_a_port_for_prometheus_that_is_taken_is_told_in_a_sentence(link: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        flags = ["--index", str(link), "--port", "0", "--metrics-port", port]
        command = [sys.executable, "-m", "server", "serve", *flags]
        ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port} for Prometheus" in ended.stderr
    assert "Traceback" not in ended.stderr
