"""The benchmark of embedding on Ray, on a catalogue small enough for a test."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.commands import app
from benchmarks.embedding import Embedding, RayReport
from benchmarks.processes import cpu_seconds, descendants, peak_bytes, title


def embedding(cpu_us: float) -> Embedding:
    return Embedding(
        n_candidates=10,
        n_workers=2,
        cpu_us=cpu_us,
        wall_us=cpu_us / 2,
        start_seconds=1,
        seconds=2,
        main_peak_bytes=4,
        worker_peak_bytes=5,
        all_peak_bytes=14,
    )


def test_ray_is_compared_with_what_ran_before_and_after() -> None:
    alone = embedding(2.0), embedding(4.0)
    report = RayReport(dim=8, alone=alone, on_ray=embedding(3.75), assembling_seconds=1)
    assert report.ratio == pytest.approx(0.8)
    assert report.alone[0].rate == pytest.approx(500_000)


def test_what_a_process_takes_counts_its_descendants() -> None:
    work = "b = bytearray(60 << 20); del b; sum(range(4 * 10**6)); print(flush=True); input()"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}])"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as parent:  # type: ignore[call-overload]
        parent.stdout.readline()
        (worker,) = descendants(parent.pid)
        assert {parent.pid, worker} <= set(descendants(os.getpid()))
        assert "bytearray" in title(worker)
        assert cpu_seconds(parent.pid) > cpu_seconds(worker) > 0
        assert peak_bytes(worker) > 60 << 20 > peak_bytes(parent.pid)
        parent.stdin.write(b"\n")


def test_what_has_ended_takes_nothing() -> None:
    with subprocess.Popen(["/bin/true"]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert 0 == peak_bytes(ended.pid)
    assert 0 == peak_bytes(ended.pid) == cpu_seconds(ended.pid)
    assert ("", []) == (title(ended.pid), descendants(ended.pid))


@pytest.mark.slow
def test_both_ways_are_measured_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr("benchmarks.workloads._N_TRAINED", 1000)
    arguments = ["ray", "--candidates", "200000", "--dim", "8", "--output", str(tmp_path)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "one process again" in done.stdout
    report = RayReport.model_validate_json((tmp_path / "ray.json").read_text())
    assert report.on_ray.n_workers >= 1
    assert min(report.ratio, report.assembling_seconds, report.on_ray.start_seconds) > 0
    for one in (*report.alone, report.on_ray):
        assert one.n_candidates == 200_000
        assert 0 < one.worker_peak_bytes <= one.all_peak_bytes
        assert one.seconds >= one.start_seconds
    assert not (tmp_path / "ray-shards").exists()
