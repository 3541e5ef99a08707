import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from indexer.backends import BACKENDS
from indexer.bundle import IndexBundle
from indexer.commands import app
from trainer.bundle import TowerBundle


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


@pytest.fixture
def own_build(own_files: dict[str, Path], tmp_path: Path) -> list[object]:
    vectors, ids, metadata = own_files.values()
    files = ["--embeddings", vectors, "--candidate-ids", ids, "--metadata", metadata]
    return ["build", *files, "--backend", "brute_force", "--output", tmp_path / "out"]


def test_build_verify_inspect_tune_and_prune(own_build: list[object], tmp_path: Path) -> None:
    first = run(*own_build, "--k", 2)
    assert first.exit_code == 0, first.output
    assert "brute_force" in first.stdout
    second = run(*own_build, "--json")
    report = json.loads(second.stdout)
    assert (report["tuned_on"], report["n_candidates"]) == ("candidates", 3)
    current = tmp_path / "out" / "current"
    assert IndexBundle.open(current).directory == Path(report["directory"])
    assert json.loads(run("inspect", current, "--json").stdout) == report
    assert "Default: brute_force is exact" in run("inspect", current).stdout
    assert "files intact" in run("verify", current).stdout
    assert json.loads(run("verify", current, "--json").stdout)["intact"]
    tuned = json.loads(run("tune", current, "--recall", 0.9, "--k", 2, "--json").stdout)
    assert (0.9, 2) == (tuned["default_recall_target"], tuned["default_k"])
    again = json.loads(run("tune", current, "--json").stdout)  # what was asked for stays asked for
    assert (0.9, 2) == (again["default_recall_target"], again["default_k"])
    older = run("tune", report["directory"])
    assert "It is not current: the index it was made of is not, either." in older.stderr
    assert IndexBundle.open(current).directory == Path(again["directory"])
    removed = json.loads(run("prune", tmp_path / "out", "--keep", 0, "--json").stdout)["removed"]
    assert len(removed) == 4
    assert "Nothing to remove" in run("prune", tmp_path / "out", "--keep", 0).stdout


def test_a_path_is_printed_as_it_is(own_build: list[object], tmp_path: Path) -> None:
    built = run(*own_build[:-1], tmp_path / "[v2]")
    directory = (tmp_path / "[v2]" / "current").resolve()
    assert f"Index: {directory}\n" in built.stdout
    assert f"{directory}: 4 files intact" in run("verify", directory).stdout


def test_an_index_in_milvus(own_files: dict[str, Path], tmp_path: Path, milvus_uri: str) -> None:
    vectors, ids, metadata = own_files.values()
    files = ["--embeddings", vectors, "--candidate-ids", ids, "--metadata", metadata]
    build = ["build", *files, "--backend", "milvus", "--output", tmp_path / "out"]
    refused = run(*build, "--milvus-uri", "https://me:hush@milvus")
    assert (refused.exit_code, "Traceback" in refused.output) == (1, False)
    assert "must hold no password" in refused.stderr
    assert not list((tmp_path / "out").glob("2*"))
    done = run(*build, "--milvus-uri", milvus_uri, "--json")
    assert done.exit_code == 0, done.output
    assert ["milvus"] == list(json.loads(done.stdout)["backends"])
    assert "files intact" in run("verify", tmp_path / "out" / "current").stdout


def test_an_index_may_be_published_beside_the_current_one(
    own_build: list[object], tmp_path: Path
) -> None:
    first = json.loads(run(*own_build, "--keep-current", "--json").stdout)["directory"]
    second = json.loads(run(*own_build, "--k", 2, "--keep-current", "--json").stdout)["directory"]
    assert first != second
    assert IndexBundle.open(tmp_path / "out" / "current").directory == Path(first)


def test_users_do_not_lose_their_towers(
    own_build: list[object], tower_index: Path, sample_towers: TowerBundle, tmp_path: Path
) -> None:
    shutil.copytree(tower_index, tmp_path / "out" / tower_index.name)
    (tmp_path / "out" / "current").symlink_to(tower_index.name)
    refused = run(*own_build)
    assert 1 == refused.exit_code
    assert "would answer no users any more: give another --output" in " ".join(
        refused.stderr.split()
    )
    assert 0 == run(*own_build, "--keep-current").exit_code
    own = sample_towers.directory / "query_embeddings.npy"
    tune = ("tune", tmp_path / "out" / "current", "--queries")
    assert 0 == run(*tune, own, "--keep-current").exit_code
    other = tmp_path / "other" / "query_embeddings.npy"
    other.parent.mkdir()
    shutil.copy(own, other)
    (other.parent / "query_tower.tflite").write_bytes(b"another")
    refused = run(*tune, other)
    assert 1 == refused.exit_code
    assert "were embedded by other towers than" in " ".join(refused.stderr.split())
    assert tower_index.name == (tmp_path / "out" / "current").readlink().name
    (tmp_path / "out" / tower_index.name / "manifest.json").write_text("{}")
    assert 0 == run(*own_build).exit_code  # nobody is served by what cannot be opened


def test_few_queries_are_told_of(own_build: list[object], tmp_path: Path) -> None:
    np.save(tmp_path / "q.npy", np.ones((3, 2), np.float32))
    done = run(*own_build, "--queries", tmp_path / "q.npy")
    assert done.exit_code == 0
    assert "q.npy holds only 3 queries" in done.stderr


def test_a_place_for_something_else_is_refused_before_anything_is_read(
    own_build: list[object], tmp_path: Path
) -> None:
    run(*own_build)
    missing = ["build", "--embeddings", "missing.npy", "--candidate-ids", "missing.txt"]
    refused = run(*missing, "--output", tmp_path / "out" / "current")
    assert (1, True) == (refused.exit_code, "is a bundle, or within one" in refused.stderr)


def test_an_index_of_a_later_version_is_refused(own_build: list[object], tmp_path: Path) -> None:
    run(*own_build)
    directory = (tmp_path / "out" / "current").resolve()
    content = json.loads((directory / "manifest.json").read_bytes())
    content["backends"]["hnsw"] = content["backends"]["brute_force"]
    text = json.dumps(content).encode()
    (directory / "manifest.json").write_bytes(text)
    (directory / "manifest.sha256").write_text(hashlib.sha256(text).hexdigest())
    for command in ("verify", "tune"):
        refused = run(command, directory)
        assert refused.exit_code == 1
        assert "has the backends hnsw, which this version does not know" in refused.stderr


def test_verify_finds_damage(own_build: list[object], tmp_path: Path) -> None:
    run(*own_build)
    path = (tmp_path / "out" / "current").resolve() / "embeddings.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    result = run("verify", tmp_path / "out" / "current")
    assert result.exit_code == 1
    assert "embeddings.npy is damaged" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "give either --towers or --embeddings"),
        (["--embeddings", "v.npy"], 2, "--embeddings needs --candidate-ids"),
        (["--towers", "t", "--metadata", "m"], 2, "belong to --embeddings"),
        (["--towers", "missing"], 1, "there is nothing at missing"),
        (["--towers", "t", "--recall", "1.5"], 2, "at most 1, not 1.5"),
        (["--towers", "t", "--k", "0"], 2, "--k"),
        (["--towers", "t", "--seed", "-1"], 2, "--seed"),
        (["--towers", "t", "--ray-address", "x"], 2, "--ray-address belongs to --engine ray"),
        (["--towers", "t", "--shards", "x"], 2, "--shards belongs to --engine ray"),
        (["--engine", "ray", "--embeddings", "v"], 2, "embeds the candidates of --towers"),
        (["--towers", "t", "--milvus-uri", "x.db"], 2, "--milvus-uri belongs to --backend milvus"),
        (
            ["--embeddings", "missing.npy", "--candidate-ids", "x"],
            1,
            "there is no file missing.npy",
        ),
    ],
)
def test_mistakes_get_a_sentence(
    tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    result = run("build", "--output", tmp_path / "out", *arguments)
    assert code == result.exit_code
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_a_bad_row_is_named(own_build: list[object], own_files: dict[str, Path]) -> None:
    np.save(own_files["vectors.npy"], np.array([[1, 0], [0, np.nan], [1, 1]]))
    result = run(*own_build)
    assert result.exit_code == 1
    assert "row 1 of the embeddings holds a NaN" in result.stderr


def test_missing_backends_are_told(
    own_build: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BACKENDS["scann"], "unavailable", lambda: "ScaNN is not installed")
    assert "Not built: scann. ScaNN is not installed" in run(*own_build).stderr
