"""What only ScaNN does."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from indexer.backends import BACKENDS, available_backends
from indexer.backends import scann as backend

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


@pytest.mark.parametrize("path", ["../x.npy", "/etc/passwd"])
def test_files_outside_the_folder_are_refused(saved, path: str) -> None:
    directory, embeddings, params = saved
    assets = directory / "scann_assets.pbtxt"
    assets.write_text(assets.read_text().replace("hashed_dataset.npy", path))
    with pytest.raises(ValueError, match=f"names a file outside its folder: {path}"):
        backend.ScannIndex.load(directory, embeddings, params)


def test_a_tree_of_more_leaves_than_candidates_is_refused() -> None:
    embeddings = np.random.default_rng(0).standard_normal((30, 4), dtype=np.float32)
    params = backend.ScannBuildParams(num_leaves=40)
    with pytest.raises(ValueError, match="40 leaves takes at least 40 candidates, not 30"):
        backend.ScannIndex.build(embeddings, params)
