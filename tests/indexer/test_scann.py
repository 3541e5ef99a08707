"""What only ScaNN does."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from indexer.backends import BACKENDS, available_backends
from indexer.backends import scann as backend
from indexer.exact import SearchMethod
from indexer.recall import recall_at_k

pytestmark = pytest.mark.skipif(
    BACKENDS["scann"].unavailable() is not None, reason=str(BACKENDS["scann"].unavailable())
)


def test_tensorflow_stays_out_and_importable() -> None:
    script = (
        "import sys\n"
        "from indexer.backends import BACKENDS\n"
        "assert BACKENDS['scann'].unavailable() is None\n"
        "assert 'tensorflow' not in sys.modules\n"
        "assert 'tensorflow' not in open('/proc/self/maps').read()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_without_the_library_the_rest_works(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "scann"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scann", None)
    backend._library.cache_clear()
    try:
        assert list(available_backends()) == ["brute_force", "annoy", "milvus"]
        assert "Linux wheels only" in str(BACKENDS["scann"].unavailable())
        with pytest.raises(backend.BackendUnavailableError, match="Linux wheels only"):
            BACKENDS["scann"].build(np.ones((20, 2), dtype=np.float32))
    finally:
        backend._library.cache_clear()


@pytest.fixture
def saved(tmp_path):
    embeddings = np.random.default_rng(0).standard_normal((50, 4), dtype=np.float32)
    index = backend.ScannIndex.build(embeddings)
    index.save(tmp_path)
    return tmp_path, embeddings, index.build_params


def test_a_loaded_index_has_no_threads(saved) -> None:
    """A forked process, which would have none of them, could not let it go."""
    before = len(list(Path("/proc/self/task").iterdir()))
    index = backend.ScannIndex.load(*saved)
    assert before == len(list(Path("/proc/self/task").iterdir()))
    assert index.search(saved[1][:1], 1).rows.shape == (1, 1)


def test_a_planted_pickle_is_refused(saved) -> None:
    directory, embeddings, params = saved
    (directory / "scann_docids.pkl").write_bytes(b"anything")
    with pytest.raises(ValueError, match=r"scann_docids.pkl must not exist: it would be unpickled"):
        backend.ScannIndex.load(directory, embeddings, params)


@pytest.mark.parametrize(
    "path",
    [
        '"../x.npy"',
        '"/etc/passwd"',
        "'/etc/passwd'",
        '"\\057etc/passwd"',
        '"" "/etc/passwd"',
        "\n'/etc/passwd'",
        '".."',
    ],
)
def test_files_outside_the_folder_are_refused(saved, path: str) -> None:
    directory, embeddings, params = saved
    assets = directory / "scann_assets.pbtxt"
    assets.write_text(assets.read_text().replace('"hashed_dataset.npy"', path))
    with pytest.raises(ValueError, match="lists other things than files in its folder"):
        backend.ScannIndex.load(directory, embeddings, params)


def test_an_index_is_saved_twice(tmp_path: Path) -> None:
    embeddings = np.random.default_rng(0).standard_normal((2000, 8), dtype=np.float32)
    index = backend.ScannIndex.build(embeddings, backend.ScannBuildParams(num_leaves=16))
    index.save(tmp_path)
    index.save(tmp_path)
    loaded = backend.ScannIndex.load(tmp_path, embeddings, index.build_params)
    expected = index.search(embeddings[:9], 5).rows
    np.testing.assert_array_equal(expected, loaded.search(embeddings[:9], 5).rows)


@pytest.mark.parametrize("norm", [1e9, 1e16])
def test_norms_that_end_the_process_in_a_tree_are_refused(norm: float) -> None:
    embeddings = np.random.default_rng(0).standard_normal((100, 4), dtype=np.float32)
    embeddings[7] *= np.float32(norm)
    params = backend.ScannBuildParams(num_leaves=16)
    with pytest.raises(ValueError, match=r"norms up to 1e\+08, and row 7 has .*e\+"):
        backend.ScannIndex.build(embeddings, params)
    index = backend.ScannIndex.build(embeddings, backend.ScannBuildParams())
    assert 7 in index.search(embeddings[7:8], 1).rows


def test_a_tree_of_more_leaves_than_candidates_is_refused() -> None:
    embeddings = np.random.default_rng(0).standard_normal((30, 4), dtype=np.float32)
    params = backend.ScannBuildParams(num_leaves=40)
    with pytest.raises(ValueError, match="40 leaves takes at least 40 candidates, not 30"):
        backend.ScannIndex.build(embeddings, params)


@pytest.fixture(scope="module")
def saved_tree(tmp_path_factory):
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((30, 16))
    embeddings = centres[rng.integers(0, 30, 20_000)] + 0.5 * rng.standard_normal((20_000, 16))
    embeddings = embeddings.astype(np.float32)
    index = backend.ScannIndex.build(embeddings, backend.ScannBuildParams(num_leaves=140, avq=4.0))
    directory = tmp_path_factory.mktemp("tree")
    index.save(directory)
    return directory, embeddings, index.build_params


def test_among_eligible_candidates_parts_of_its_leaves_are_searched(saved_tree) -> None:
    embeddings = saved_tree[1]
    index = backend.ScannIndex.load(*saved_tree)
    queries = embeddings[:50] + 0.1
    exact = BACKENDS["brute_force"].build(embeddings)
    params = backend.ScannSearchParams(
        leaves_to_search=10, pre_reorder_num_neighbors=200, final_num_neighbors=45
    )
    params = index.prepared_for_masks(params, queries, exact.search(queries, 70), recall=0.99)
    assert params.cells_to_search is not None
    eligible = np.random.default_rng(1).random(20_000) < 0.3
    found = index.search(queries, 20, params, eligible)
    assert found.method is SearchMethod.INDEX
    assert eligible[found.rows].all()
    assert recall_at_k(found, exact.search(queries, 20, eligible=eligible)).mean() >= 0.97
    one_by_one = [index.search(one[None], 20, params, eligible).rows[0] for one in queries]
    np.testing.assert_array_equal(one_by_one, found.rows)


def test_an_index_of_before_there_were_parts(saved_tree, tmp_path) -> None:
    directory, embeddings, params = saved_tree
    before = shutil.copytree(directory, tmp_path / "before")
    shutil.rmtree(before / "cells")
    index = backend.ScannIndex.load(before, embeddings, params)
    eligible = np.arange(20_000) % 2 == 0
    params = index.default_search_params(20)
    assert params == index.prepared_for_masks(params, embeddings[:9], None, recall=0.99)
    found = index.search(embeddings[:1], 20, params, eligible)
    assert found.method is SearchMethod.OVER_FETCH
    assert np.count_nonzero(found.rows >= 0) == 20


def test_parts_of_another_corpus_are_refused(saved_tree, tmp_path) -> None:
    directory, embeddings, params = saved_tree
    other = shutil.copytree(directory, tmp_path / "other")
    np.save(other / "cells" / "coarse.npy", np.zeros((20_000, 15), np.int8))
    with pytest.raises(ValueError, match="holds no cells of 20000 vectors"):
        backend.ScannIndex.load(other, embeddings, params)


def test_recall_holds_where_candidates_of_unusual_vectors_are_excluded() -> None:
    """Beside those, bytes tell the others badly apart: the first proposals are not the best."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3000, 16)).astype(np.float32)
    vectors[:30] *= 10
    queries = rng.normal(size=(100, 16)).astype(np.float32)
    best = BACKENDS["brute_force"].build(vectors).search(queries, 160)
    index = BACKENDS["scann"].build(vectors)
    params = index.params_at(235, index.default_search_params(10), 10)
    found = index.search_without(queries, 10, best.rows[:, :150], 235, params)
    recalls = [np.isin(*rows).mean() for rows in zip(found.rows, best.rows[:, 150:], strict=True)]
    assert np.mean(recalls) > 0.97
