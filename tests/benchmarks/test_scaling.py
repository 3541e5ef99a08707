import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.commands import app
from benchmarks.scaling import ScalingPoint
from benchmarks.scaling_report import capacity_table
from benchmarks.timing import Latency


def test_it_measures_every_size(tmp_path: Path) -> None:
    sizes = ["--size", "300x8", "--size", "600x4"]
    arguments = ["scaling", *sizes, "--output", str(tmp_path)]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.stderr
    points = json.loads(done.stdout)
    assert [(300, 8), (600, 4)] == [(point["n_candidates"], point["dim"]) for point in points]
    assert [300 * 8 * 4, 600 * 4 * 4] == [point["vectors_bytes"] for point in points]
    for point in points:
        assert point["recall"] >= 0.92
        assert min(point["speedup"], point["batch_cpu_us"], point["latency"]["p50_us"]) > 0
    table = CliRunner().invoke(app, arguments).stdout
    assert all(word in table for word in ("candidates", "300", "600", points[0]["backend"]))
    assert "…" not in table
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_capacity_is_told_by_candidates_and_dimension() -> None:
    def point(n_candidates: int, dim: int, us: float) -> ScalingPoint:
        return ScalingPoint(
            n_candidates=n_candidates,
            dim=dim,
            backend="scann",
            recall=0.96,
            latency=Latency(n_calls=1, mean_us=us, p50_us=us, p95_us=us, p99_us=us, cpu_us=us),
            batch_cpu_us=10.0,
            speedup=8.0,
            vectors_bytes=n_candidates * dim * 4,
            index_bytes=500_000,
            build_seconds=1.0,
        )

    points = [point(10_000, 64, 20.0), point(100_000, 64, 40.0), point(10_000, 128, 25.0)]
    table = capacity_table(points)
    cells = [list(column.cells) for column in table.columns]
    assert [
        ["10,000", "100,000"],
        ["50,000", "25,000"],
        ["3.1", "26.1"],
        ["40,000", ""],
        ["5.6", ""],
    ] == cells
    assert [160.0, 320.0, 200.0] == [one.exact_cpu_us for one in points]


@pytest.mark.parametrize("size", ["300", "0x8"])
def test_a_size_that_is_none_is_a_sentence(tmp_path: Path, size: str) -> None:
    done = CliRunner().invoke(app, ["scaling", "--size", size, "--output", str(tmp_path)])
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"as in 1000000x64, not '{size}'" in done.stderr
