"""The whole way, as a user goes it: fit, build, serve, query; each program a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.rpc import status_pb2

from indexer.bundle import IndexBundle
from server.client import Examples, Like, SearchClient, User, search_request
from trainer.bundle import TowerBundle
from trainer.datasets import Dataset, load_dataset
from trainer.splits import split

pytestmark = pytest.mark.usefixtures("uncovered")

ROOT = Path(__file__).parents[1]
DATASET = "movielens/100k" if "TFDS_DATA_DIR" in os.environ else "sample"
EPOCHS = "4"


def run_program(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Towers that have seen the leave-last-out train part, and the indexes over them."""
    root = tmp_path_factory.mktemp("artifacts")
    run_program(
        *("trainer", "fit", "--dataset", DATASET, "--output", root / "towers"),
        *("--split", "leave-last-out", "--no-refit", "--no-ranker", "--epochs", EPOCHS),
    )
    towers = root / "towers" / "current"
    run_program("indexer", "build", "--towers", towers, "--output", root / "indexes")
    return root


@pytest.fixture(scope="module")
def towers(artifacts: Path) -> TowerBundle:
    return TowerBundle.open(artifacts / "towers" / "current")


@pytest.fixture(scope="module")
def bundle(artifacts: Path) -> IndexBundle:
    return IndexBundle.open(artifacts / "indexes" / "current")


@pytest.fixture(scope="module")
def server(artifacts: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The server's process and address; after the tests it must stop cleanly."""
    index = artifacts / "indexes" / "current"
    process = subprocess.Popen(
        [sys.executable, "-m", "server", "serve", "--index", str(index), "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = (re.search(r"127\.0\.0\.1:\d+", line) for line in process.stdout)
        match = next(found for found in lines if found)
        yield process, match[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def client(server: tuple[subprocess.Popen[str], str]) -> Iterator[SearchClient]:
    with SearchClient(server[1], timeout_seconds=30) as client:
        yield client


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset(DATASET)


def test_answers_over_grpc_equal_exact_search_in_process(
    client: SearchClient, towers: TowerBundle, bundle: IndexBundle
) -> None:
    assert towers.query.user_ids is not None
    assert towers.query.query_embeddings is not None
    for user_row in range(0, len(towers.query.user_ids), 50):
        scores = bundle.corpus.embeddings @ towers.query.query_embeddings[user_row]
        scores[towers.query.history(user_row)] = -np.inf
        expected = np.argsort(-scores, kind="stable")[:20]
        user = User(towers.query.user_ids.token(user_row))
        actual = client.search(user, count=20, exact=True)
        assert bundle.corpus.candidate_ids.tokens(expected) == actual.ids
        np.testing.assert_allclose(scores[expected], actual.scores, rtol=1e-5)


def test_heldout_recall_over_grpc_is_what_the_trainer_measured(
    client: SearchClient, towers: TowerBundle, dataset: Dataset
) -> None:
    heldout = split(dataset, "leave-last-out").test
    users = dataset.user_ids.tokens(dataset.user_rows[heldout])
    candidates = dataset.candidate_ids.tokens(dataset.candidate_rows[heldout])
    found = []
    for start in range(0, len(users), 256):
        requests = [search_request(User(u), exact=True) for u in users[start : start + 256]]
        for answer, candidate in zip(
            client.search_batch(requests), candidates[start : start + 256], strict=True
        ):
            assert not isinstance(answer, Exception)
            found.append(candidate in answer.ids)
    expected = towers.manifest.evaluation["metrics"]["heldout_recall@10"]
    assert expected == pytest.approx(np.mean(found), abs=1e-3)


def test_every_backend_answers_a_known_user(client: SearchClient) -> None:
    info = client.index_info()
    names = [backend.name for backend in info.backends]
    assert set(names) >= {"brute_force", "annoy"}
    exact = client.search(User("42"), count=10, exact=True)
    for name in names:
        answer = client.search(User("42"), count=10, backend=name)
        assert name == answer.plan.backend
        assert len(set(answer.ids) & set(exact.ids)) >= 7


def test_a_new_user_is_served_from_the_history_in_the_request(
    client: SearchClient, bundle: IndexBundle
) -> None:
    liked = bundle.corpus.candidate_ids.tokens([3, 5, 8])
    by_history = client.search(User(history=liked), count=10)
    assert len(by_history) == 10
    assert not set(by_history.ids) & set(liked)
    by_examples = client.search(Examples(liked=liked), count=10)
    assert len(by_examples) == 10
    assert not set(by_examples.ids) & set(liked)


def test_more_like_this_leaves_the_seed_out(client: SearchClient, bundle: IndexBundle) -> None:
    seed = bundle.corpus.candidate_ids.token(0)
    assert seed not in client.search(Like(seed), count=20).ids


def test_the_command_line_searches(server: tuple[subprocess.Popen[str], str]) -> None:
    target = server[1]
    arguments = ("server", "search", "--address", target, "--user", "42", "--count", "3")
    table = run_program(*arguments)
    assert "score" in table
    answer = json.loads(run_program(*arguments, "--json"))
    assert len(answer["candidates"]) == 3


def test_the_server_has_not_mapped_tensorflow(
    server: tuple[subprocess.Popen[str], str],
) -> None:
    assert "tensorflow" not in Path(f"/proc/{server[0].pid}/maps").read_text()


def test_a_client_that_knows_only_the_proto_is_answered(
    server: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    """No generated stubs, none of our code: messages made from the .proto at run time."""
    messages = _messages_of_the_proto(tmp_path)
    request = messages["candidate_search.v1.SearchCandidatesRequest"](candidate_count=4)
    request.query.user_id = "42"
    response_type = messages["candidate_search.v1.SearchCandidatesResponse"]
    with grpc.insecure_channel(server[1]) as channel:
        call = channel.unary_unary(
            "/candidate_search.v1.CandidateSearchService/SearchCandidates",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response_type.FromString,
        )
        response = call(request, timeout=10)
    assert len(response.candidate_ids) == 4
    assert len(response.scores) == 4


def _messages_of_the_proto(directory: Path) -> dict[str, Any]:
    file = "candidate_search/v1/candidate_search_service.proto"
    described = directory / "service.binpb"
    includes = (ROOT / "protos", Path(status_pb2.__file__).parents[2])
    # In a process of its own: the compiler's native library does not bear TensorFlow's beside it.
    run_program(
        *("grpc_tools.protoc", *(f"-I{path}" for path in includes), "--include_imports"),
        *(f"--descriptor_set_out={described}", file),
    )
    files = descriptor_pb2.FileDescriptorSet.FromString(described.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for one in files.file:
        pool.Add(one)
    return dict(message_factory.GetMessageClassesForFiles([file], pool))
