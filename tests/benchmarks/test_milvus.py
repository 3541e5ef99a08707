import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.commands import app


@pytest.mark.slow
def test_our_index_and_server_stand_beside_pymilvus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.build.MEASURED_K", (100,))
    monkeypatch.setattr("indexer.tuning._MAX_TIMED", 3)
    arguments = ["milvus", "--size", "300x8", "--seconds", "1", "--output", str(tmp_path)]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (300, 8, 100) == (report["n_candidates"], report["dim"], report["k"])
    assert report["recall"] >= 0.95
    assert min(report["direct_us"], report["index_us"], report["server_us"]) > 0
    table = CliRunner().invoke(app, arguments).stdout
    assert all(way in table for way in ("pymilvus alone", "our index", "our server"))


def test_without_milvus_it_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexer.engines.milvus.unavailable", lambda: "pymilvus is not installed")
    done = CliRunner().invoke(app, ["milvus", "--output", str(tmp_path)])
    assert (done.exit_code, "pymilvus is not installed" in done.stderr) == (1, True)
