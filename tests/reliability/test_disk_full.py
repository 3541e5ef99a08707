"""A full disk: the old version stays, nothing is left behind, and the user reads a sentence."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from indexer.bundle import IndexBundle
from tests.server.published import current, publish

N, DIM = 500, 32
EMBEDDINGS_BYTES = N * DIM * 4
SOME_SIZES = (EMBEDDINGS_BYTES // 2, 2 * EMBEDDINGS_BYTES)
MANY_SIZES = tuple(range(0, 4 * EMBEDDINGS_BYTES, EMBEDDINGS_BYTES // 4))


@pytest.mark.parametrize(
    "sizes", [SOME_SIZES, pytest.param(MANY_SIZES, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_an_index_that_does_not_fit_changes_nothing(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    """Files may grow to a limit only, which meets the writers of the backends' libraries too."""
    root = tmp_path / "indexes"
    before = publish(root, 1)
    rng = np.random.default_rng(0)
    np.save(tmp_path / "vectors.npy", rng.normal(size=(N, DIM)).astype(np.float32))
    (tmp_path / "ids.txt").write_text("\n".join(map(str, range(N))))
    n_failed = 0
    for size in sizes:
        built = build(tmp_path, root, size)
        assert "Traceback" not in built.stderr
        if built.returncode:
            n_failed += 1
            assert "there is no room for the new version" in " ".join(built.stderr.split())
            assert {before, "current"} == {path.name for path in root.iterdir()}
            assert before == current(root / "current")
        IndexBundle.open(root / "current").check()
    assert n_failed > 0


def build(sources: Path, root: Path, file_size_limit: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "indexer", "build", "--output", str(root), "--k", "10"]
    own = ["--embeddings", "vectors.npy", "--candidate-ids", "ids.txt"]
    limits = (file_size_limit, file_size_limit)
    # Measuring the coverage of the child would need a file that it may not write.
    environment = {name: value for name, value in os.environ.items() if "COV" not in name}
    return subprocess.run(
        [*command, *own],
        check=False,
        capture_output=True,
        text=True,
        cwd=sources,
        env=environment,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits),
    )
