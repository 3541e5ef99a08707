import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from indexer import build
from indexer.backends import BACKENDS, BackendUnavailableError
from indexer.build import (
    BuildOptions,
    build_bundle,
    choose_default,
    measured_depths,
    retune_bundle,
)
from indexer.bundle import BackendEntry, IndexBundle, OperatingPoint, write_corpus
from indexer.corpus import Corpus, CorpusError, read_corpus
from tests.indexer.conftest import make_corpus
from trainer.publish import resolve

ONLY_BRUTE_FORCE = BuildOptions(backends=("brute_force",))


def test_the_manifest_says_what_was_measured(built: IndexBundle) -> None:
    manifest = built.manifest
    assert (
        manifest.n_candidates,
        manifest.dim,
        manifest.tower_version,
        manifest.tuned_on,
    ) == (300, 8, None, "queries")
    for entry in manifest.backends.values():
        assert {10, 20, 30, 100, 300} == {point.k for point in entry.operating_points}
        for point in entry.operating_points:
            assert 0 <= point.recall_low <= point.recall <= point.recall_high <= 1
            assert 0 < point.p50_microseconds <= point.p99_microseconds
    assert manifest.default_reason.startswith(f"{manifest.default_backend} is ")


@pytest.mark.parametrize(
    ("values", "kind"),
    [([{"a": 1}] * 300, "struct"), (pa.array([2**64 - 1] * 300, pa.uint64()), "uint64")],
)
def test_columns_that_cannot_be_served_are_refused_by_name(
    tmp_path: Path, values: Any, kind: str
) -> None:
    corpus = make_corpus()
    extra = dataclasses.replace(
        corpus, candidates=corpus.candidates.append_column("extra", pa.array(values))
    )
    with pytest.raises(CorpusError, match=f"column 'extra' is of type {kind}.*; candidates have"):
        build_bundle(extra, None, tmp_path, ONLY_BRUTE_FORCE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("queries", [None, np.empty((0, 8), dtype=np.float32)])
def test_without_queries_candidates_stand_in(tmp_path: Path, queries: np.ndarray | None) -> None:
    corpus = make_corpus(has_bias_dimension=True)
    bundle = IndexBundle.open(build_bundle(corpus, queries, tmp_path, ONLY_BRUTE_FORCE))
    assert bundle.manifest.tuned_on == "candidates"
    np.testing.assert_array_equal(corpus.embeddings[:, :-1], bundle.tuning_queries[:, :-1])
    np.testing.assert_array_equal(np.ones(300), bundle.tuning_queries[:, -1])


def test_queries_of_zeros_tell_nothing(tmp_path: Path) -> None:
    corpus = make_corpus()
    sparse = np.array(corpus.embeddings)
    sparse[::2] = 0
    bundle = build_bundle(
        dataclasses.replace(corpus, embeddings=sparse), None, tmp_path, ONLY_BRUTE_FORCE
    )
    stand_ins = IndexBundle.open(bundle).tuning_queries
    assert (150, True) == (len(stand_ins), np.any(stand_ins, axis=1).all())
    queries = np.zeros((4, corpus.dim), np.float32)
    with pytest.raises(CorpusError, match="the queries are all zero"):
        build_bundle(corpus, queries, tmp_path, ONLY_BRUTE_FORCE)
    queries[2] = 1
    tuned = retune_bundle(IndexBundle.open(bundle), queries, BuildOptions(k=10))
    np.testing.assert_array_equal(queries[2:3], IndexBundle.open(tuned).tuning_queries)


def test_what_is_published_is_what_was_indexed_though_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, ids = tmp_path / "v.npy", tmp_path / "ids.txt"
    np.save(vectors, make_corpus().embeddings)
    ids.write_text("".join(f"c{row}\n" for row in range(300)))
    corpus = read_corpus(vectors, ids)

    def write_another(directory: Path, corpus: Corpus, queries: np.ndarray) -> None:
        write_corpus(directory, corpus, queries)
        with vectors.open("r+b") as file:
            file.seek(-corpus.embeddings.nbytes, os.SEEK_END)
            file.write(np.random.default_rng(1).normal(size=(300, 8)).astype(np.float32).tobytes())

    monkeypatch.setattr(build, "write_corpus", write_another)
    bundle = IndexBundle.open(build_bundle(corpus, None, tmp_path / "out", BuildOptions(k=10)))
    queries = bundle.corpus.embeddings[:20]
    assert not np.array_equal(queries, corpus.embeddings[:20])
    exact = np.argsort(-(queries @ bundle.corpus.embeddings.T), axis=1, kind="stable")[:, :10]
    for name in bundle.backend_names:
        choice = bundle.choose(10, recall_target=1.0, backend=name)
        found = bundle.index(name).search(queries, 10, choice.params)
        np.testing.assert_array_equal(exact, found.rows)


def test_one_candidate_and_one_query(tmp_path: Path) -> None:
    corpus = make_corpus(n=1)
    queries = np.ones((1, 8), dtype=np.float32)
    bundle = IndexBundle.open(build_bundle(corpus, queries, tmp_path, BuildOptions()))
    for name in bundle.backend_names:
        choice = bundle.choose(1, backend=name)
        assert bundle.index(name).search(queries, 1, choice.params).rows[0, 0] == 0


@pytest.mark.skipif(
    BACKENDS["scann"].unavailable() is not None, reason=str(BACKENDS["scann"].unavailable())
)
def test_what_a_library_cannot_take_is_refused_with_its_row(tmp_path: Path) -> None:
    corpus = make_corpus(n=10_000)
    corpus.embeddings[5] *= np.float32(1e12)
    options = BuildOptions(backends=("scann",))
    with pytest.raises(CorpusError, match=r"scann cannot be built: .* row 5 has"):
        build_bundle(corpus, None, tmp_path, options)
    assert list(tmp_path.iterdir()) == []


def test_queries_of_another_dimension_are_refused(tmp_path: Path) -> None:
    queries = np.ones((5, 7), dtype=np.float32)
    with pytest.raises(CorpusError, match="queries have dimension 7, the candidates 8"):
        build_bundle(make_corpus(), queries, tmp_path, ONLY_BRUTE_FORCE)
    assert list(tmp_path.iterdir()) == []


def test_a_backend_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BackendUnavailableError, match="unknown backend 'faiss'"):
        build_bundle(make_corpus(), None, tmp_path, BuildOptions(backends=("faiss",)))
    monkeypatch.setattr(BACKENDS["scann"], "unavailable", lambda: "ScaNN is not installed")
    with pytest.raises(BackendUnavailableError, match="ScaNN is not installed"):
        build_bundle(make_corpus(), None, tmp_path, BuildOptions(backends=("scann",)))
    bundle = IndexBundle.open(build_bundle(make_corpus(n=20), None, tmp_path, BuildOptions()))
    assert {"brute_force", "annoy"} == set(bundle.backend_names)


def test_a_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(BACKENDS["annoy"], "_build", fail)
    with pytest.raises(MemoryError):
        build_bundle(make_corpus(), None, tmp_path, BuildOptions(backends=("annoy",)))
    assert list(tmp_path.iterdir()) == []


def test_a_recall_of_ones_own_is_tuned_for(built: IndexBundle) -> None:
    directory = retune_bundle(built, None, BuildOptions(recall_target=0.975, k=15))
    bundle = IndexBundle.open(directory)
    assert built.directory.parent == directory.parent
    assert bundle.manifest.default_recall_target == 0.975
    for name, entry in bundle.manifest.backends.items():
        assert {10, 15, 30, 100, 300} == {point.k for point in entry.operating_points}
        assert built.manifest.backends[name].build_params == entry.build_params
        assert {"0.90", "0.95", "0.975", "0.99", "exhaustive"} >= {
            point.name for point in entry.operating_points
        }
    same = built.manifest.files.keys() - {"manifest.json"}
    assert same == bundle.manifest.files.keys()


def test_only_the_current_index_is_replaced_when_it_is_tuned(tmp_path: Path) -> None:
    older, newer = (
        build_bundle(make_corpus(n), None, tmp_path, ONLY_BRUTE_FORCE) for n in (200, 300)
    )
    options = BuildOptions(k=7)
    tuned = retune_bundle(IndexBundle.open(older), None, options)
    assert resolve(tmp_path / "current") == newer
    assert IndexBundle.open(tuned).manifest.default_k == 7
    current = IndexBundle.open(tmp_path / "current")
    retune_bundle(current, None, options, make_current=False)
    assert resolve(tmp_path / "current") == newer
    tuned = retune_bundle(current, None, options)
    assert resolve(tmp_path / "current") == tuned


def test_an_index_is_tuned_on_other_queries(built: IndexBundle) -> None:
    queries = np.random.default_rng(9).standard_normal((40, 8), dtype=np.float32)
    before = built.tuning_queries.copy()
    bundle = IndexBundle.open(retune_bundle(built, queries, BuildOptions(k=20)))
    np.testing.assert_array_equal(queries, bundle.tuning_queries)
    np.testing.assert_array_equal(before, IndexBundle.open(built.directory).tuning_queries)


def entry(*p50s: float) -> BackendEntry:
    """A backend whose points for recalls 0.9, 0.95 and 1 take so many microseconds."""
    return BackendEntry(
        build_params={},
        operating_points=tuple(
            OperatingPoint(
                name=f"{target}",
                recall_target=target,
                k=100,
                search_params={},
                recall=target,
                recall_low=target,
                recall_high=target,
                p50_microseconds=p50,
                p99_microseconds=p50,
            )
            for target, p50 in zip((0.9, 0.95, 1.0), p50s, strict=True)
        ),
        build_seconds=0,
        size_bytes=0,
    )


@pytest.mark.parametrize(
    ("scann", "recall_target", "expected"),
    [
        (entry(10, 79, 500), 0.95, "scann is the fastest at recall@100 of 0.95: scann 79 µs"),
        (entry(10, 81, 500), 0.95, "brute_force is exact and no other is much faster"),
        (entry(10, 81, 500), 0.90, "scann is the fastest"),
        (entry(10, 81, 500), 0.96, "brute_force is exact"),
    ],
)
def test_the_default_is_the_cheapest_and_exact_wins_a_draw(
    scann: BackendEntry, recall_target: float, expected: str
) -> None:
    entries = {"scann": scann, "brute_force": entry(100, 100, 100)}
    default, reason = choose_default(entries, BuildOptions(recall_target=recall_target))
    assert expected.split(" ", 1)[0] == default
    assert reason.startswith(expected)


@pytest.mark.parametrize(
    ("n_candidates", "k", "expected"),
    [
        (5000, 100, [10, 30, 100, 300, 1000, 3000]),
        (2000, 50, [10, 30, 50, 100, 300, 1000, 2000]),
        (60, 100, [10, 30, 60]),
        (3, 1, [1, 3]),
    ],
)
def test_depths(n_candidates: int, k: int, expected: list[int]) -> None:
    assert expected == measured_depths(n_candidates, k)
