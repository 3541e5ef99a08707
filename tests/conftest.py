"""What tests of several packages share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from indexer.build import BuildOptions, build_bundle
from indexer.embed import embed_candidates
from trainer.bundle import TowerBundle

# No deadlines: how long a test takes says nothing on a shared machine. What runs before landing
# tries the same examples every time; elsewhere they are drawn afresh.
settings.register_profile("everywhere", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("everywhere")


@pytest.fixture(scope="session")
def sample_towers(tmp_path_factory: pytest.TempPathFactory) -> TowerBundle:
    """The towers of the sample dataset, trained for two epochs in a process of its own."""
    root = tmp_path_factory.mktemp("towers")
    command = [sys.executable, "-m", "trainer", "fit", "--dataset", "sample", "--split", "none"]
    subprocess.run([*command, "--epochs", "2", "--output", root], check=True, capture_output=True)
    return TowerBundle.open(root / "current")


@pytest.fixture(scope="session")
def tower_index(sample_towers: TowerBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample dataset's candidates, indexed."""
    return build_bundle(
        embed_candidates(sample_towers),
        sample_towers.tuning_queries[:100],
        tmp_path_factory.mktemp("indexes"),
        BuildOptions(),
        towers=sample_towers,
    )
