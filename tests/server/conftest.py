"""A real server over small real indexes: one with towers, one of embeddings alone."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest
from candidate_search.v1.candidate_search_service_pb2_grpc import CandidateSearchServiceStub

from indexer.build import BuildOptions, build_bundle
from indexer.bundle import IndexBundle
from indexer.corpus import Corpus
from server.client import SearchClient
from server.engine import Engine
from server.loading import load, with_page_token_key
from server.serve import Worker
from server.settings import Settings
from server.versions import Served
from tests.server.published import publish
from trainer.vocabulary import Vocabulary

TINY_TITLES = ["Alpha", "Beta", "Gamma", None, "Epsilon", "Alphabet"]


class RunningServer:
    """A worker on a free loopback port, on an event loop of its own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = with_page_token_key(settings)
        self._served = Served(load(self._settings))
        self.engine: Engine = self._served.active.engine
        self.port = 0
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        self._started.wait(60)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def keep_busy(self, seconds: float) -> None:
        """Have the event loop do nothing else for so long, from now on."""
        self._loop.call_soon_threadsafe(time.sleep, seconds)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self.worker = Worker(self._served, self._settings)
        try:
            self.port = await self.worker.start(0)
        finally:
            self._started.set()
        await self._stop.wait()
        await self.worker.stop()


@pytest.fixture(scope="session")
def vector_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 embeddings of unequal norms, with metadata of every type and nulls; no towers."""
    return build_bundle(
        vector_corpus(), None, tmp_path_factory.mktemp("vectors"), BuildOptions(k=10)
    )


def vector_corpus() -> Corpus:
    rng = np.random.default_rng(7)
    n = 300
    embeddings = rng.normal(size=(n, 8)).astype(np.float32) * rng.lognormal(size=(n, 1))
    embeddings = embeddings.astype(np.float32)
    embeddings[7] = embeddings[3]
    embeddings[11] = 0
    ids = Vocabulary([f"c{row}" for row in range(n)])
    candidates = pa.table(
        {
            "candidate_id": ids.array,
            "title": [TINY_TITLES[row % 6] for row in range(n)],
            "year": pa.array([None if row % 10 == 0 else 1950 + row % 70 for row in range(n)]),
            "price": [row / 4 for row in range(n)],
            "is_new": [None if row % 7 == 0 else row % 2 == 0 for row in range(n)],
            "tags": [[["a", "b"], ["b"], [], None][row % 4] for row in range(n)],
        }
    )
    return Corpus(ids, embeddings, candidates, np.arange(n, 0, -1, dtype=np.float32) % 50)


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions, of which the second is current."""
    root = tmp_path_factory.mktemp("published")
    publish(root, 1)
    publish(root, 2)
    return root / "current"


@pytest.fixture(scope="session")
def start() -> Iterator[Callable[..., RunningServer]]:
    """Start servers that end with the session."""
    running: list[RunningServer] = []

    def start_one(index: Path, **settings: Any) -> RunningServer:
        running.append(RunningServer(Settings(index=index, port=0, **settings)))
        return running[-1]

    yield start_one
    for one in running:
        one.close()


@pytest.fixture(scope="session")
def server(start: Callable[..., RunningServer], tower_index: Path) -> RunningServer:
    return start(tower_index)


@pytest.fixture(scope="session")
def vector_server(start: Callable[..., RunningServer], vector_index: Path) -> RunningServer:
    return start(vector_index)


@pytest.fixture(scope="session")
def client(server: RunningServer) -> Iterator[SearchClient]:
    with SearchClient(server.address) as connected:
        yield connected


@pytest.fixture(scope="session")
def vector_client(vector_server: RunningServer) -> Iterator[SearchClient]:
    with SearchClient(vector_server.address) as connected:
        yield connected


@pytest.fixture(scope="session")
def stub(server: RunningServer) -> Iterator[CandidateSearchServiceStub]:
    """What a client that knows only the ``.proto`` has."""
    with grpc.insecure_channel(server.address) as channel:
        yield CandidateSearchServiceStub(channel)


@pytest.fixture(scope="session")
def bundle(tower_index: Path) -> IndexBundle:
    return IndexBundle.open(tower_index)
