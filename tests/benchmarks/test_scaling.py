import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app


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


@pytest.mark.parametrize("size", ["300", "0x8"])
def test_a_size_that_is_none_is_a_sentence(tmp_path: Path, size: str) -> None:
    done = CliRunner().invoke(app, ["scaling", "--size", size, "--output", str(tmp_path)])
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"as in 1000000x64, not '{size}'" in done.stderr
