"""Steady load from several threads, every answer checked against the version that it names."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from indexer.bundle import IndexBundle
from indexer.exact import ExactScorer
from server.client import Embedding, SearchClient, SearchFailedError

QUERIES = np.random.default_rng(5).normal(size=(20, 8)).astype(np.float32)
COUNT = 5

Oracle = Mapping[str, Sequence[Sequence[str]]]
"""The ids that each version finds for each of the queries."""


def oracle_of(root: Path) -> Oracle:
    """Return what each version of a folder answers, from its vectors alone."""
    found = {}
    for directory in root.glob("2*"):
        corpus = IndexBundle.open(directory).corpus
        rows = ExactScorer(corpus.embeddings).search(QUERIES, COUNT).rows
        found[directory.name] = [corpus.candidate_ids.tokens(line) for line in rows]
    return found


@dataclass
class Outcome:
    """What became of the calls."""

    answered: Counter[str] = field(default_factory=Counter)
    """Right answers by version."""
    mixed: list[str] = field(default_factory=list)
    """Answers that are not those of the version that they name."""
    failed: list[str] = field(default_factory=list)
    calls: list[tuple[float, float]] = field(default_factory=list)
    """Of each when it ended, by ``time.monotonic``, and how many seconds it took with retries."""


@contextmanager
def steady_load(address: str, oracle: Oracle, n_threads: int = 4) -> Iterator[Outcome]:
    """Search exactly, again and again, while the block runs."""
    outcome, over = Outcome(), threading.Event()

    def search() -> None:
        with SearchClient(address, timeout_seconds=30) as client:
            while not over.is_set():
                for number, query in enumerate(QUERIES):
                    _search(client, number, query, oracle, outcome)

    threads = [threading.Thread(target=search) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    try:
        yield outcome
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _search(
    client: SearchClient, number: int, query: np.ndarray, oracle: Oracle, outcome: Outcome
) -> None:
    start = time.monotonic()
    try:
        found = client.search(Embedding(query), count=COUNT, exact=True)
    except SearchFailedError as error:
        outcome.failed.append(str(error))
        return
    finally:
        ended = time.monotonic()
        outcome.calls.append((ended, ended - start))
    if found.ids == oracle[found.index_version][number]:
        outcome.answered[found.index_version] += 1
    else:
        outcome.mixed.append(f"{found.index_version}: {found.ids}")
