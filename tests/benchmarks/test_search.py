import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.commands import app
from benchmarks.contenders import RECALL_TARGETS
from benchmarks.search import SearchReport


def search_arguments(index: Path, output: Path) -> list[str]:
    folders = ["--corpus", str(index), "--output", str(output)]
    return ["search", *folders, "--seconds-per-point", "0.01"]


@pytest.fixture(scope="module")
def report_and_folder(
    tower_index: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SearchReport, Path]:
    output = tmp_path_factory.mktemp("benchmarks")
    done = CliRunner().invoke(
        app,
        [*search_arguments(tower_index, output), "--json"],
    )
    assert done.exit_code == 0, done.stderr
    return SearchReport.model_validate_json(done.stdout), output


def test_every_backend_has_its_operating_points_and_a_sweep(
    report_and_folder: tuple[SearchReport, Path],
) -> None:
    report, _ = report_and_folder
    for backend in report.build_seconds:
        points = [point for point in report.points if point.contender == backend]
        names = [point.name for point in points if point.name is not None]
        assert 1 <= len(names) <= len(RECALL_TARGETS)
        assert backend == "brute_force" or len(points) > len(names)


def test_recall_is_measured_and_exact_search_has_all_of_it(
    report_and_folder: tuple[SearchReport, Path],
) -> None:
    report, _ = report_and_folder
    for point in report.points:
        assert 0 <= point.recall_at_100 <= 1
        if point.name == "exhaustive":
            assert point.recall_at_10 == 1
            assert point.recall_at_100 == 1


def test_what_is_chosen_is_set_against_the_cheapest_that_delivers(
    report_and_folder: tuple[SearchReport, Path],
) -> None:
    report, _ = report_and_folder
    (exact,) = (point for point in report.points if point.contender == "brute_force")
    fast = exact.latency.model_copy(update={"cpu_us": exact.latency.cpu_us / 4})
    swept = {"contender": "scann", "name": None, "recall_at_100": 0.951, "latency": fast}
    named = {"contender": "scann", "name": "0.99", "recall_at_100": 0.99}
    points = [exact, exact.model_copy(update=swept), exact.model_copy(update=named)]
    made = report.model_copy(update={"points": tuple(points)})
    assert 4.0 == pytest.approx(made.cost_of_asking("scann", 0.95))
    assert 1.0 == made.cost_of_asking("scann", 0.97)
    assert made.cost_of_asking("scann", 0.995) is None
    assert 1.0 == made.cost_of_asking("brute_force", 0.95)


def test_json_and_picture_are_written(report_and_folder: tuple[SearchReport, Path]) -> None:
    report, folder = report_and_folder
    assert SearchReport.model_validate(json.loads((folder / "search.json").read_text())) == report
    assert (folder / "search.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_fits_a_terminal(tower_index: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app,
        search_arguments(tower_index, tmp_path),
    )
    assert done.exit_code == 0, done.stderr
    assert "brute_force" in done.stdout
    assert "…" not in done.stdout


def test_scann_alone_finds_what_our_index_finds(tower_index: Path, tmp_path: Path) -> None:
    arguments = [*search_arguments(tower_index, tmp_path), "--scann-alone", "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.stderr
    report = SearchReport.model_validate_json(done.stdout)
    ours, alone = (
        {p.name: p for p in report.points if p.contender == contender and p.name}
        for contender in ("scann", "ScaNN alone")
    )
    assert ours.keys() == alone.keys()
    for name, point in alone.items():
        assert ours[name].search_params == point.search_params
        assert abs(ours[name].recall_at_100 - point.recall_at_100) < 0.02


def test_no_bundle_is_a_sentence(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["search", "--corpus", str(tmp_path), "--output", str(tmp_path / "out")]
    )
    assert done.exit_code == 1
    assert "is not a bundle" in done.stderr
    assert "Traceback" not in done.output
