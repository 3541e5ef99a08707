from pathlib import Path

from typer.testing import CliRunner

from benchmarks.commands import app
from benchmarks.eligibility import EligibilityReport


def test_it_measures_masks_of_every_kind(tower_index: Path, tmp_path: Path) -> None:
    folders = ["--corpus", str(tower_index), "--output", str(tmp_path)]
    done = CliRunner().invoke(app, ["eligibility", *folders, "--backend", "scann"])
    assert done.exit_code == 0, done.stderr
    report = EligibilityReport.model_validate_json((tmp_path / "eligibility.json").read_text())
    points = {point.mask: point for point in report.points}
    kinds = ["random, 50.0% eligible", "best 50.0% eligible", "best 100 excluded"]
    assert set(kinds) <= set(points)
    for point in points.values():
        assert point.recall >= report.recall - 0.03, point.mask
        assert 100 == sum(point.methods.values())
        assert point.mask in done.stdout
    assert {"index": 100} == points["random, 100.0% eligible"].methods


def test_a_backend_that_is_not_there_is_a_sentence(tower_index: Path, tmp_path: Path) -> None:
    folders = ["--corpus", str(tower_index), "--output", str(tmp_path)]
    done = CliRunner().invoke(app, ["eligibility", *folders, "--backend", "faiss"])
    assert (done.exit_code, done.stdout) == (1, "")
    assert "no backend 'faiss'; it has" in done.stderr
