"""SIGTERM under load: what the server began to answer, it answers."""

import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import grpc
import pytest
from candidate_search.v1 import candidate_search_service_pb2 as pb
from candidate_search.v1.candidate_search_service_pb2_grpc import CandidateSearchServiceStub

from tests.server.published import publish

REQUEST = pb.SearchCandidatesRequest(query=pb.Query(embedding=pb.Embedding(values=[1.0] * 8)))
N_THREADS, N_BEFORE = 6, 100


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    publish(root, 1)
    return root / "current"


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("n_times", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_no_accepted_call_is_lost(index: Path, workers: str, n_times: int) -> None:
    for _ in range(n_times):
        codes, log = stop_under_load(index, workers)
        drained = re.findall(r"drained +cut_off=(\d+) ended=(\d+)", log)
        assert len(drained) == int(workers), log
        assert sum(int(ended) for _, ended in drained) == codes[grpc.StatusCode.OK]
        assert {"0"} == {cut_off for cut_off, _ in drained}
        never_begun = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        assert codes.keys() <= never_begun | {grpc.StatusCode.OK}


def stop_under_load(index: Path, workers: str) -> tuple[Counter[grpc.StatusCode], str]:
    """Return how calls ended that nobody made again, and the server's log."""
    command = [sys.executable, "-m", "server", "serve", "--index", str(index), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--workers", workers],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"NO_COLOR": "1"},
    )
    assert process.stdout is not None
    address = process.stdout.readline().split()[-1]
    codes: Counter[grpc.StatusCode] = Counter()
    enough = threading.Event()

    def call() -> None:
        options = (("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1))
        with grpc.insecure_channel(address, options=options) as channel:
            stub = CandidateSearchServiceStub(channel)
            while not codes[grpc.StatusCode.UNAVAILABLE] + codes[grpc.StatusCode.CANCELLED]:
                try:
                    stub.SearchCandidates(REQUEST, timeout=30)
                    codes[grpc.StatusCode.OK] += 1
                except grpc.RpcError as error:
                    codes[error.code()] += 1
                if codes[grpc.StatusCode.OK] >= N_BEFORE:
                    enough.set()

    threads = [threading.Thread(target=call) for _ in range(N_THREADS)]
    for thread in threads:
        thread.start()
    assert enough.wait(60)
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    _, log = process.communicate(timeout=60)
    assert process.returncode == 0
    return codes, log
