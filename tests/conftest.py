"""What tests of several packages share."""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

from indexer.build import BuildOptions, build_bundle
from indexer.embed import embed_candidates
from tests.uncovered import measuring_no_coverage
from trainer.bundle import TowerBundle

# No deadlines: how long a test takes says nothing on a shared machine. What runs before landing
# tries the same examples every time; elsewhere they are drawn afresh.
settings.register_profile("everywhere", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("everywhere")


def pytest_collection_finish() -> None:
    """Leave what imports made out of every collection of garbage, of which TensorFlow asks many."""
    gc.freeze()


@pytest.fixture(scope="module")
def uncovered() -> Iterator[None]:
    """For a module all of whose lines others run too."""
    with measuring_no_coverage():
        yield


@pytest.fixture(scope="module")
def many_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For a module whose tests start many processes that have to find one another in time.

    They do not while another such module's do the same on the same few cores.
    """
    with _one_at_a_time(tmp_path_factory, "many_processes"):
        yield


@pytest.fixture(scope="session")
def sample_towers(tmp_path_factory: pytest.TempPathFactory) -> TowerBundle:
    """The towers of the sample dataset, trained for two epochs in a process of its own."""
    with _one_at_a_time(tmp_path_factory, "towers") as root:
        if not (root / "current").exists():
            command = [sys.executable, "-m", "trainer", "fit", "--output", root]
            options = ["--config", Path(__file__).with_name("sample_towers.toml")]
            with measuring_no_coverage():
                subprocess.run([*command, *options], check=True, capture_output=True)
        return TowerBundle.open(root / "current")


@pytest.fixture(scope="session")
def tower_index(sample_towers: TowerBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample dataset's candidates, indexed."""
    with _one_at_a_time(tmp_path_factory, "indexes") as root:
        if not (root / "current").exists():
            candidates = embed_candidates(sample_towers)
            queries = sample_towers.tuning_queries[:100]
            build_bundle(candidates, queries, root, BuildOptions(), towers=sample_towers)
        return (root / "current").resolve()


@contextmanager
def _one_at_a_time(tmp_path_factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """Yield a folder that all processes of this test run share, to one of them at a time."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # each process has a folder of its own in that of the run
    with FileLock(root / f"{name}.lock"):
        yield root / name
