import importlib.util

import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.peers import (
    PEERS,
    PeersMissingError,
    build_peers,
    check_installed,
    peers_named,
)
from benchmarks.workloads import generate_corpus, parse_size
from indexer.exact import ExactScorer
from indexer.recall import recall_at_k

MODULES = ("faiss", "hnswlib", "usearch", "voyager")


def is_missing(module: str) -> bool:
    return importlib.util.find_spec(module) is None


@pytest.mark.skipif(any(map(is_missing, MODULES)), reason="the `peers` extra is not installed")
def test_every_peer_finds_most_of_the_exact_answer() -> None:
    corpus, queries = generate_corpus(2_000, 15, n_queries=50)
    corpus.embeddings.flags.writeable = False
    scorer = ExactScorer(corpus.embeddings)
    exact = scorer.search(queries, 10)
    names = []
    for peer in build_peers(corpus.embeddings, lambda _: None):
        names.append(peer.name)
        assert peer.build_seconds > 0
        assert peer.size_bytes > corpus.embeddings.nbytes / 2  # vectors, whole or in halves
        recalls = [
            recall_at_k(scorer.rescore(queries, setting.search(queries), 10), exact).mean()
            for ladder in peer.ladders(10)
            for setting in ladder
        ]
        assert recalls[0] <= recalls[-1] + 0.01
        assert recalls[-1] > 0.7, peer.name
    assert [peer.name for peer in PEERS] == names


def test_peers_are_chosen_by_name() -> None:
    assert PEERS == peers_named([])
    assert ["hnswlib", "FAISS IVF-PQ"] == [p.name for p in peers_named(["hnswlib", "faiss ivf-pq"])]
    with pytest.raises(
        BenchmarkError, match="unknown peer 'nmslib'; there are FAISS IVF-Flat, FAISS"
    ):
        peers_named(["hnswlib", "nmslib"])


def test_a_missing_library_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PEERS[-1], "library", "no_such_library")
    with pytest.raises(PeersMissingError, match=r"no_such_library is not installed.*pip install"):
        check_installed(PEERS[-1:])


@pytest.mark.parametrize("text", ["", "10", "x64", "1e6x64", "0x4", "10x-4"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BenchmarkError, match="as in 1000000x64"):
        parse_size(text)


def test_a_size_is_rows_and_dimension() -> None:
    assert parse_size("1000x64") == (1000, 64)
