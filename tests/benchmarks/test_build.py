from pathlib import Path

from typer.testing import CliRunner

from benchmarks.build import BuildReport
from benchmarks.commands import app
from indexer.bundle import IndexBundle


def test_builds_are_measured_beside_the_libraries_alone(tower_index: Path, tmp_path: Path) -> None:
    folders = ["--corpus", str(tower_index), "--output", str(tmp_path)]
    done = CliRunner().invoke(app, ["build", *folders])
    assert done.exit_code == 0, done.stderr
    report = BuildReport.model_validate_json((tmp_path / "build.json").read_text())
    assert ["annoy", "scann"] == sorted(one.backend for one in report.backends)
    for one in report.backends:
        assert 0 < one.alone.seconds < 60
        assert 0 < one.ours.seconds < 60
        assert one.tuning_seconds > 0
        assert min(one.alone.peak_bytes, one.ours.peak_bytes) > report.vectors_bytes
        assert one.backend in done.stdout
    assert 0 < report.hash_seconds <= report.load_seconds


def test_an_index_of_no_library_has_nothing_to_build(
    vector_bundle: IndexBundle, tmp_path: Path
) -> None:
    folders = ["--corpus", str(vector_bundle.directory), "--output", str(tmp_path)]
    done = CliRunner().invoke(app, ["build", *folders])
    assert (done.exit_code, done.stdout) == (1, "")
    assert "neither Annoy nor ScaNN" in done.stderr
