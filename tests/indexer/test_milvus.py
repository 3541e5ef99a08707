"""Milvus: what is loaded, what is refused, and what becomes of searches when it is gone."""

import base64
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest
from milvus_lite.adapter.grpc.servicer import MilvusServicer
from milvus_lite.db import MilvusLite
from pymilvus import MilvusClient
from pymilvus.grpc_gen import milvus_pb2_grpc

from indexer.backends import (
    BackendUnavailableError,
    BuildContext,
    IndexUnreachableError,
    SearchMethod,
)
from indexer.backends.milvus import (
    CollectionEntry,
    MilvusBuildParams,
    MilvusIndex,
    MilvusSearchParams,
)
from indexer.build import BuildOptions, build_bundle, retune_bundle
from indexer.bundle import IndexBundle
from indexer.engines import milvus
from indexer.engines.milvus_schema import storable
from indexer.filters import OneOf, Restriction
from indexer.metadata import typed_columns
from indexer.pruning import prune
from indexer.recall import recall_at_k
from tests.indexer.conftest import make_corpus
from tests.milvus_server import MilvusServer
from tests.server.authority import Authority

GRAPH = MilvusBuildParams(index_type="HNSW", M=8)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MilvusServer]:
    """A server of one's own, to be killed."""
    own = MilvusServer(tmp_path / "data")
    own.start()
    monkeypatch.setenv("CANDIDATE_SEARCH_MILVUS_URI", own.uri)
    yield own
    own.kill()


def collection_of(index: MilvusIndex) -> tuple[Any, str]:
    """The client and the collection behind an index."""
    return index._collection._milvus._connected(), index._entry.name


class TestWhatIsLoaded:
    def test_what_is_still_being_written_is_loaded_a_moment_later(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        load = MilvusClient.load_collection
        # The first is made by pymilvus itself, while there is nothing to be loaded.
        failures = [None, ValueError("not fully written")]

        def load_later(client: MilvusClient, *arguments: Any, **options: Any) -> None:
            if failures and (failure := failures.pop(0)):
                raise failure
            load(client, *arguments, **options)

        monkeypatch.setattr(MilvusClient, "load_collection", load_later)
        corpus = make_corpus(30)
        index = MilvusIndex.build(corpus.embeddings)
        assert not failures
        assert len(set(index.search(corpus.embeddings[:1], 30).rows[0])) == 30

    def test_rows_vectors_and_metadata(self) -> None:
        corpus = make_corpus(40)
        metadata = corpus.candidates.append_column("tags", pa.array([["a"], None] * 20))
        index = MilvusIndex.build(corpus.embeddings, context=BuildContext(metadata))
        client, name = collection_of(index)
        fields = ["row", "embedding", *index._entry.fields.values()]
        found = client.query(name, filter="row in [0, 39]", output_fields=fields)
        assert [
            (0, "c0", "Title 0", ["a"]),
            (39, "c39", "Title 39", None),
        ] == [(line["row"], *(line[field] for field in fields[2:])) for line in found]
        for line in found:
            np.testing.assert_array_equal(corpus.embeddings[line["row"]], line["embedding"][:-1])
        norms = [np.linalg.norm(line["embedding"]) for line in found]
        np.testing.assert_allclose(norms, index._exact.max_norm, rtol=1e-6)

    def test_the_same_content_is_the_same_collection(self) -> None:
        corpus = make_corpus(40)
        names = {MilvusIndex.build(corpus.embeddings)._entry.name for _ in range(2)}
        names.add(MilvusIndex.build(make_corpus(41).embeddings)._entry.name)
        context = BuildContext(corpus.candidates)
        names.add(MilvusIndex.build(corpus.embeddings, context=context)._entry.name)
        assert len(names) == 3

    def test_what_is_there_stays_in_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        embeddings = make_corpus(42).embeddings
        MilvusIndex.build(embeddings)
        monkeypatch.setattr("pymilvus.MilvusClient.release_collection", pytest.fail)
        assert MilvusIndex.build(embeddings).search(embeddings[:1], 3).rows.min() >= 0

    def test_the_flag_comes_before_the_environment(self, tmp_path: Path) -> None:
        there = str(tmp_path / "there.db")
        index = MilvusIndex.build(make_corpus(10).embeddings, context=BuildContext(location=there))
        client, name = collection_of(index)
        assert (there, [name]) == (index._entry.uri, client.list_collections())

    def test_what_milvus_cannot_hold_is_left_out(self) -> None:
        columns = {
            "short": pa.array(["x", None]),
            "long": pa.array(["x" * 65_536, ""]),
            "finite": pa.array([0.5, None]),
            "infinite": pa.array([np.inf, 0.5]),
            "lists": pa.array([["x"], None]),
            "lists with holes": pa.array([["x", None], []]),
            "long lists": pa.array([["x"] * 4097, []]),
            "integers": pa.array([1, None]),
            "nulls": pa.nulls(2, pa.string()),
        }
        kept = storable(typed_columns(pa.table(columns)))
        assert ["short", "finite", "lists", "integers", "nulls"] == list(kept)

    @pytest.mark.usefixtures("server")
    def test_a_load_that_was_killed_goes_on(self, tmp_path: Path) -> None:
        np.save(tmp_path / "vectors.npy", make_corpus(900).embeddings)
        program = (
            "import sys, numpy as np\n"
            "from indexer.backends import BuildContext\n"
            "from indexer.backends.milvus import MilvusIndex\n"
            "from indexer.engines import milvus\n"
            "milvus._MAX_BATCH_ROWS = 50\n"
            "announce = lambda what: print(what, flush=True)\n"
            "MilvusIndex.build(np.load(sys.argv[1]), context=BuildContext(announce=announce))\n"
        )
        command = [sys.executable, "-c", program, str(tmp_path / "vectors.npy")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            while process.stdout.readline() != "milvus: loading 450 of 900\n":
                assert process.poll() is None
            os.kill(process.pid, signal.SIGKILL)
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        begun = [line for line in done.stdout.splitlines() if "loading" in line]
        assert begun[0] != "milvus: loading 0 of 900"
        assert int(begun[0].split()[2]) >= 450
        assert begun[-1] == "milvus: loading 850 of 900"

    def test_what_does_not_find_itself_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            "indexer.backends.milvus.of_one_norm",
            lambda vectors, norm: np.zeros((len(vectors), 9), np.float32),  # noqa: ARG005
        )
        with pytest.raises(IndexUnreachableError, match=r"finds 0\.\d+ of what an exact search"):
            MilvusIndex.build(make_corpus(301).embeddings)


class TestRefusals:
    def test_no_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CANDIDATE_SEARCH_MILVUS_URI")
        with pytest.raises(BackendUnavailableError, match=r"give --milvus-uri, or set CANDIDATE_"):
            MilvusIndex.build(make_corpus(5).embeddings)

    @pytest.mark.parametrize(
        ("uri", "message"),
        [
            ("somewhere", r"'somewhere' is no place for Milvus: give an address such as"),
            ("https://root:hush@milvus:19530", r"must hold no password; leave it out, and set"),
        ],
    )
    def test_a_place_that_is_none(self, uri: str, message: str) -> None:
        with pytest.raises(BackendUnavailableError, match=message) as caught:
            MilvusIndex.build(make_corpus(5).embeddings, context=BuildContext(location=uri))
        assert "hush" not in str(caught.value)

    def test_a_setting_that_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CANDIDATE_SEARCH_MILVUS_TIMEOUT_SECONDS", "0")
        with pytest.raises(BackendUnavailableError, match="_TIMEOUT_SECONDS: Input should be gre"):
            MilvusIndex.build(make_corpus(5).embeddings)

    def test_without_the_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        assert "pip install '.[milvus]'" in str(MilvusIndex.unavailable())
        with pytest.raises(BackendUnavailableError, match=r"pip install '\.\[mil"):
            MilvusIndex.build(make_corpus(5).embeddings)


@pytest.fixture(scope="module")
def graph() -> MilvusIndex:
    corpus = make_corpus(2000)
    return MilvusIndex.build(corpus.embeddings, GRAPH, BuildContext(corpus.candidates))


class TestSearching:
    def test_what_milvus_does_not_return_is_searched_here(self, graph: MilvusIndex) -> None:
        query = graph.embeddings[:1]
        exact = graph._exact.search(query, 5)
        found = graph.search(query, 5, graph.exhaustive_params())
        np.testing.assert_array_equal(exact.rows, found.rows)
        assert graph._is_made_here(milvus.MAX_RESULTS + 1, MilvusSearchParams(ef=10))

    def test_what_is_measured_after_a_build_is_what_is_searched_later(
        self, graph: MilvusIndex
    ) -> None:
        first = graph.search(graph.embeddings[:50], 10, MilvusSearchParams(ef=10))
        client, name = collection_of(graph)
        client.release_collection(name)
        client.load_collection(name)
        later = graph.search(graph.embeddings[:50], 10, MilvusSearchParams(ef=10))
        np.testing.assert_array_equal(first.rows, later.rows)
        exact = graph._exact.search(graph.embeddings[:50], 10)
        assert recall_at_k(first, exact).mean() < 1  # as a graph's, which is not a scan's

    def test_milvus_filters(self, graph: MilvusIndex, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("indexer.backends.milvus._CALL_COST", 0.0)
        monkeypatch.setattr("indexer.backends.milvus._STEP_COST", 0.01)
        titles = tuple(f"Title {row}" for row in range(0, 2000, 4))
        eligible = np.zeros(2000, dtype=bool)
        eligible[::4] = True
        excluded = graph._exact.search(graph.embeddings[:1], 1, eligible).rows[0]
        eligible[excluded] = False
        monkeypatch.setattr(
            graph._exact, "search", lambda *_: pytest.fail("it was scanned"), raising=True
        )
        found = graph.search(
            graph.embeddings[:1],
            10,
            MilvusSearchParams(ef=500),
            eligible,
            Restriction(OneOf("title", titles), excluded),
        )
        assert (found.rows >= 0).all()
        assert eligible[found.rows[0]].all()
        assert found.method is SearchMethod.INDEX
        monkeypatch.undo()
        exact = graph._exact.search(graph.embeddings[:1], 10, eligible)
        assert len(np.intersect1d(exact.rows, found.rows)) >= 9

    def test_another_collection_is_refused(self, graph: MilvusIndex, tmp_path: Path) -> None:
        graph.save(tmp_path)
        shorter = MilvusIndex.load(tmp_path, graph.embeddings[:1999].copy(), GRAPH)
        with pytest.raises(IndexUnreachableError, match="has 2000 rows, not 1999"):
            shorter.search(graph.embeddings[:1], 5, MilvusSearchParams(ef=10))

    def test_a_collection_that_is_gone_is_missed(self, tmp_path: Path) -> None:
        index = MilvusIndex.build(make_corpus(30).embeddings)
        index.save(tmp_path)
        CollectionEntry.read(tmp_path).collection(30, milvus.MilvusSettings.read()).drop()
        with pytest.raises(IndexUnreachableError, match="cannot be used"):
            index.search(index.embeddings[:1], 5)


class OnlyWith(grpc.ServerInterceptor):
    """Refuses calls without a token, as Milvus does where people must say who they are."""

    def __init__(self, token: str) -> None:
        self._expected = ("authorization", base64.b64encode(token.encode()).decode())

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        if self._expected in details.invocation_metadata:
            return continuation(details)
        code, why = grpc.StatusCode.UNAUTHENTICATED, "who are you?"
        return grpc.unary_unary_rpc_method_handler(lambda _, context: context.abort(code, why))


@pytest.fixture
def guarded_uri(tmp_path: Path) -> Iterator[str]:
    """A server that speaks TLS only, with those who know the token."""
    authority = Authority(tmp_path, "authority")
    certificate, key = (path.read_bytes() for path in authority.issue("milvus"))
    server = grpc.server(ThreadPoolExecutor(2), interceptors=[OnlyWith("root:hush")])
    collections = MilvusLite(str(tmp_path / "data"))
    milvus_pb2_grpc.add_MilvusServiceServicer_to_server(MilvusServicer(collections), server)
    credentials = grpc.ssl_server_credentials([(key, certificate)])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    yield f"https://127.0.0.1:{port}"
    server.stop(0)
    collections.close()


def test_secrets_come_from_the_environment_and_stay_there(
    guarded_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv("CANDIDATE_SEARCH_MILVUS_URI")
    monkeypatch.setenv("CANDIDATE_SEARCH_MILVUS_TIMEOUT_SECONDS", "2")
    embeddings, context = make_corpus(20).embeddings, BuildContext(location=guarded_uri)
    for name, value in (
        ("TOKEN", "root:wrong"),
        ("TLS_AUTHORITY", str(tmp_path / "authority.pem")),
        ("TOKEN", "root:hush"),
    ):
        with pytest.raises(IndexUnreachableError, match=f"Milvus at {guarded_uri} cannot be used"):
            MilvusIndex.build(embeddings, context=context)
        monkeypatch.setenv(f"CANDIDATE_SEARCH_MILVUS_{name}", value)
    index = MilvusIndex.build(embeddings, context=context)
    assert len(index.search(embeddings[:1], 5).rows[0]) == 5
    index.save(tmp_path)
    assert "hush" not in (tmp_path / "collection.json").read_text() + caplog.text


def test_prune_drops_what_no_version_searches(
    milvus_uri: str, queries: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.tuning._MAX_TIMED", 3)  # what is measured is not what is tested
    options = BuildOptions(k=5, backends=("milvus",), milvus_uri=milvus_uri)
    built = [build_bundle(make_corpus(n), queries, tmp_path, options) for n in (31, 32)]
    shared = retune_bundle(IndexBundle.open(built[1]), None, options)
    old, new = (CollectionEntry.read(directory / "milvus") for directory in built)
    client, _ = collection_of(IndexBundle.open(shared).index("milvus"))
    serving = IndexBundle.open(built[0])
    assert prune(tmp_path, 0) == (([built[1]], [built[0]]), ([], []))
    assert client.has_collection(old.name)
    del serving
    assert prune(tmp_path, 0) == (([built[0]], []), ([old.name], []))
    assert (False, True) == tuple(client.has_collection(one.name) for one in (old, new))
    build_bundle(make_corpus(33), queries, tmp_path, options)
    monkeypatch.setenv("CANDIDATE_SEARCH_MILVUS_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("CANDIDATE_SEARCH_MILVUS_TIMEOUT_SECONDS", "0.5")
    with pytest.raises(IndexUnreachableError, match=f"collection {new.name} is still there"):
        prune(tmp_path, 0)


def test_an_outage_is_told_and_gone_when_it_ends(
    server: MilvusServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANDIDATE_SEARCH_MILVUS_TIMEOUT_SECONDS", "1")
    index = MilvusIndex.build(make_corpus(200).embeddings)
    query = index.embeddings[:1]
    before = index.search(query, 5)
    server.kill()
    for _ in range(3):
        start = time.monotonic()
        with pytest.raises(IndexUnreachableError, match=f"Milvus at {server.uri} cannot be used"):
            index.search(query, 5)
        assert time.monotonic() - start < 10
    server.start()
    deadline = time.monotonic() + 30
    while True:
        try:
            after = index.search(query, 5)
            break
        except IndexUnreachableError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    np.testing.assert_array_equal(before.rows, after.rows)
    np.testing.assert_array_equal(before.scores, after.scores)
