import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from indexer.backends import BACKENDS
from indexer.bundle import IndexBundle
from indexer.corpus import Corpus
from indexer.recall import recall_at_k
from trainer.pruning import prune
from trainer.publish import BundleError


@pytest.fixture
def copy(built: IndexBundle, tmp_path: Path) -> Path:
    """A copy of the bundle, to be damaged."""
    return Path(shutil.copytree(built.directory, tmp_path / built.directory.name))


def test_it_holds_the_corpus(built: IndexBundle, corpus: Corpus) -> None:
    np.testing.assert_array_equal(corpus.embeddings, built.corpus.embeddings)
    np.testing.assert_array_equal(corpus.popularity, built.corpus.popularity)
    assert corpus.candidates == built.corpus.candidates
    assert built.corpus.candidate_ids.row("c7") == 7
    assert built.query is None


def test_it_is_not_pruned_while_it_is_open_nor_while_its_files_are_hashed(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned_meanwhile = []
    monkeypatch.setattr(
        "indexer.bundle.verify_files", lambda *_: pruned_meanwhile.append(prune(copy.parent, 0))
    )
    bundle = IndexBundle.open(copy)
    assert [([], [copy])] == pruned_meanwhile
    assert prune(copy.parent, 0) == ([], [copy])
    del bundle
    assert prune(copy.parent, 0) == ([copy], [])


def test_it_holds_every_backend(built: IndexBundle) -> None:
    assert set(BACKENDS) == set(built.backend_names)
    assert built.manifest.default_backend == built.backend_names[0]


@pytest.mark.parametrize("name", ["embeddings.npy", "popularity.npy", "tuning_queries.npy"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_array_is_named(copy: Path, name: str, content: bytes) -> None:
    (copy / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{copy / name} (is not a readable|must be a single)"):
        IndexBundle.open(copy, verify=False).check()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("candidates.parquet", b"PAR1", "candidates.parquet is not a readable Parquet file: "),
        ("candidates.parquet", {"id": ["a"]}, "candidates.parquet has no column 'candidate_id'"),
        ("candidates.parquet", {"candidate_id": ["a"] * 300}, "'a' stands in row 0 and in row 1"),
        ("candidates.parquet", {"candidate_id": ["a"]}, "1 candidate ids, but 300 rows of embed"),
        ("popularity.npy", np.zeros(2, np.float32), "300 candidate ids, but 2 rows of popularity"),
        (
            "embeddings.npy",
            np.ones((300, 7), np.float32),
            r"has shape \(300, 7\), the manifest says",
        ),
        (
            "tuning_queries.npy",
            np.ones((9, 7), np.float32),
            r"has shape \(9, 7\), the dimension is",
        ),
    ],
)
def test_parts_that_do_not_fit_are_named(copy: Path, name: str, content: Any, message: str) -> None:
    if isinstance(content, np.ndarray):
        np.save(copy / name, content)
    elif isinstance(content, dict):
        pq.write_table(pa.table(content), copy / name)
    else:
        (copy / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{copy}.*{message}"):
        IndexBundle.open(copy, verify=False).check()


@pytest.mark.parametrize("name", BACKENDS)
def test_its_indexes_are_exact_when_asked(
    built: IndexBundle, queries: np.ndarray, name: str
) -> None:
    index = built.index(name)
    exact = built.index("brute_force").search(queries, 20)
    found = index.search(queries, 20, index.exhaustive_params())
    np.testing.assert_array_equal(exact.rows, found.rows)
    np.testing.assert_array_equal(exact.scores, found.scores)
    assert index is built.index(name)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("target", [0.9, 0.95, 0.99])
def test_operating_points_deliver(
    built: IndexBundle, queries: np.ndarray, name: str, target: float
) -> None:
    choice = built.choose(20, recall_target=target, backend=name)
    exact = built.index("brute_force").search(queries, 20)
    found = built.index(choice.backend).search(queries, 20, choice.params)
    assert (name, True) == (choice.backend, choice.point.recall_target >= target)
    assert recall_at_k(found, exact).mean() >= target - 0.01


def test_without_a_wish_it_is_the_default(built: IndexBundle) -> None:
    choice = built.choose(20)
    assert built.manifest.default_backend == choice.backend
    assert built.manifest.default_recall_target <= choice.point.recall_target


def test_what_was_never_measured_is_searched_exhaustively(built: IndexBundle) -> None:
    assert built.choose(5000, backend="annoy").point.name == "exhaustive"
    assert built.choose(10, recall_target=0.999, backend="scann").point.name == "exhaustive"


def test_a_point_holds_for_fewer_results_but_not_for_more(built: IndexBundle) -> None:
    points = {built.choose(k, backend="annoy").point.k for k in (1, 9, 10)}
    assert points <= {10, 20, 30, 100, 300}
    assert built.choose(11, backend="annoy").point.k >= 20


def test_what_was_measured_for_more_promises_nothing_for_few(
    built: IndexBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing but an exhaustive search finds the best ten, another backend is the default."""
    entry = built.manifest.backends["annoy"]
    points = tuple(p for p in entry.operating_points if p.k > 10 or p.name == "exhaustive")
    backends = {
        **built.manifest.backends,
        "annoy": entry.model_copy(update={"operating_points": points}),
    }
    changed = {"backends": backends, "default_backend": "annoy"}
    monkeypatch.setattr(built, "manifest", built.manifest.model_copy(update=changed))
    assert built.choose(5, backend="annoy").point.name == "exhaustive"
    assert not built.choose(11, backend="annoy").is_makeshift
    assert {"annoy"} == {built.choose(11).backend, built.choose(20).backend}
    assert built.choose(5).backend != "annoy"
    assert built.choose(5).point.recall_target >= built.manifest.default_recall_target


@pytest.mark.parametrize("target", [0.0, -1.0, 1.01, float("nan")])
def test_a_recall_that_cannot_be(built: IndexBundle, target: float) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        built.choose(10, recall_target=target)


def test_an_unknown_backend_is_refused_with_the_known_ones(built: IndexBundle) -> None:
    with pytest.raises(ValueError, match=r"unknown backend 'faiss'; this index has .*annoy"):
        built.index("faiss")


class TestDamage:
    def test_every_flipped_bit_is_found(self, copy: Path) -> None:
        for path in sorted(p for p in copy.rglob("*") if p.is_file()):
            content = path.read_bytes()
            damaged = bytearray(content)
            damaged[len(content) // 2] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(BundleError):
                IndexBundle.open(copy)
            path.write_bytes(content)
        IndexBundle.open(copy).check()

    def test_a_missing_file(self, copy: Path) -> None:
        (copy / "popularity.npy").unlink()
        with pytest.raises(BundleError, match=r"missing popularity\.npy"):
            IndexBundle.open(copy)

    def test_an_extra_file(self, copy: Path) -> None:
        (copy / "scann" / "scann_docids.pkl").write_bytes(b"")
        with pytest.raises(BundleError, match=r"not in the manifest: scann/scann_docids\.pkl"):
            IndexBundle.open(copy)

    def test_swapped_files(self, copy: Path) -> None:
        one, other = copy / "embeddings.npy", copy / "tuning_queries.npy"
        one.rename(copy / "x")
        other.rename(one)
        (copy / "x").rename(other)
        with pytest.raises(BundleError, match=r"expected \d+ bytes, found"):
            IndexBundle.open(copy)

    def test_a_manifest_of_another_kind(self, copy: Path) -> None:
        manifest = json.loads((copy / "manifest.json").read_text())
        text = json.dumps({**manifest, "kind": "towers"}).encode()
        (copy / "manifest.json").write_bytes(text)
        (copy / "manifest.sha256").write_text(hashlib.sha256(text).hexdigest())
        with pytest.raises(BundleError, match="expected kind 'index', found 'towers'"):
            IndexBundle.open(copy)


def test_a_bundle_that_was_built_long_ago_still_answers() -> None:
    """Users keep theirs: whoever changes what is on disk reads this one as well, or says so."""
    (directory,) = (Path(__file__).parent / "frozen").iterdir()
    bundle = IndexBundle.open(directory)
    bundle.check()
    assert ("brute_force", "annoy") == bundle.backend_names
    assert [1990, 1994] == bundle.corpus.candidates["year"].to_pylist()[:5:4]
    query = np.eye(4, dtype=np.float32)[:1]
    for name in bundle.backend_names:
        found = bundle.index(name).search(query, 3)
        assert ([[8, 4, 0]], [[9.0, 5.0, 1.0]]) == (found.rows.tolist(), found.scores.tolist())
