"""Negative controls: each import rule is broken on purpose, and must be found broken."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BREACHES = {
    "layers": ("indexer/recall.py", "import server.engine"),
    "trainer-internals": ("server/planning.py", "import trainer.splits"),
    "indexer-internals": ("server/planning.py", "import indexer.tuning"),
    "no-tensorflow": ("trainer/bundle.py", "import tensorflow"),
    "annoy-in-one-file": ("indexer/recall.py", "import annoy"),
    "scann-in-one-file": ("indexer/recall.py", "import scann"),
    "milvus-in-one-file": ("indexer/recall.py", "import pymilvus"),
    "ray-in-one-file": ("indexer/recall.py", "import ray"),
    "engine-without-wire": ("server/engine.py", "import grpc"),
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The packages and their rules, free to be changed."""
    only_code = shutil.ignore_patterns("__pycache__", "*.so")
    for package in ("trainer", "indexer", "server", "benchmarks", "protos"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=only_code)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(directory: Path, contract: str) -> subprocess.CompletedProcess[str]:
    program = "import sys; from importlinter.cli import lint_imports_command as c; c()"
    return subprocess.run(
        [sys.executable, "-c", program, "--contract", contract, "--no-cache"],
        cwd=directory,
        env={"PYTHONPATH": f"{directory}:{directory / 'protos'}"},
        check=False,
        capture_output=True,
        text=True,
    )


def test_every_rule_has_a_negative_control() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    rules = [contract["id"] for contract in config["tool"]["importlinter"]["contracts"]]
    assert rules == list(BREACHES)


@pytest.mark.parametrize("contract", BREACHES)
def test_a_breach_is_found(copy: Path, contract: str) -> None:
    file, breach = BREACHES[contract]
    with (copy / file).open("a") as module:
        module.write(f"\n{breach}\n")
    done = lint(copy, contract)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 broken" in done.stdout


def test_the_rules_hold_without_a_breach(copy: Path) -> None:
    for contract in BREACHES:
        done = lint(copy, contract)
        assert done.returncode == 0, done.stdout + done.stderr
