from pathlib import Path

import numpy as np
import pytest

from indexer.backends import BACKENDS, BackendUnavailableError
from indexer.build import BuildOptions, build_bundle, measured_depths
from indexer.bundle import IndexBundle
from indexer.corpus import CorpusError
from tests.indexer.conftest import make_corpus

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
        assert {10, 20, 100, 300} == {point.k for point in entry.operating_points}
        for point in entry.operating_points:
            assert 0 <= point.recall_low <= point.recall <= point.recall_high <= 1
            assert 0 < point.p50_microseconds <= point.p99_microseconds
    assert manifest.default_reason.startswith(f"{manifest.default_backend} is the fastest")


@pytest.mark.parametrize("queries", [None, np.empty((0, 8), dtype=np.float32)])
def test_without_queries_candidates_stand_in(tmp_path: Path, queries: np.ndarray | None) -> None:
    corpus = make_corpus(has_bias_dimension=True)
    bundle = IndexBundle.open(build_bundle(corpus, queries, tmp_path, ONLY_BRUTE_FORCE))
    assert bundle.manifest.tuned_on == "candidates"
    np.testing.assert_array_equal(corpus.embeddings[:, :-1], bundle.tuning_queries[:, :-1])
    np.testing.assert_array_equal(np.ones(300), bundle.tuning_queries[:, -1])


def test_one_candidate_and_one_query(tmp_path: Path) -> None:
    corpus = make_corpus(n=1)
    queries = np.ones((1, 8), dtype=np.float32)
    bundle = IndexBundle.open(build_bundle(corpus, queries, tmp_path, BuildOptions()))
    for name in bundle.backend_names:
        choice = bundle.choose(1, backend=name)
        assert bundle.index(name).search(queries, 1, choice.params).rows[0, 0] == 0


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


@pytest.mark.parametrize(
    ("n_candidates", "k", "expected"),
    [
        (5000, 100, [10, 100, 1000]),
        (5000, 50, [10, 50, 100, 1000]),
        (60, 100, [10, 60]),
        (3, 1, [1, 3]),
    ],
)
def test_depths(n_candidates: int, k: int, expected: list[int]) -> None:
    assert expected == measured_depths(n_candidates, k)
