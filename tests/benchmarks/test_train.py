"""The training benchmark, on catalogues small enough for a test."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.commands import app
from benchmarks.train import TOWERS, TUTORIALS, CatalogueReport, Speed, TrainReport


def catalogue(n_candidates: int, towers: float, tutorials: float) -> CatalogueReport:
    return CatalogueReport(
        n_candidates=n_candidates,
        n_interactions=10,
        speeds=[
            Speed(
                model=model,
                batch_size=batch_size,
                batch_interactions=batch_size,
                interactions_per_second=speed,
            )
            for model, batch_size, speed in (
                (TOWERS, 1, towers / 2),
                (TOWERS, 2, towers),
                (TUTORIALS, 1, tutorials),
            )
        ],
        peak_bytes=1,
    )


def test_models_are_compared_at_their_best_batch_sizes() -> None:
    report = TrainReport(dim=4, catalogues=[catalogue(10, 300, 200), catalogue(20, 240, 100)])
    assert report.catalogues[0].best(TOWERS).batch_size == 2
    assert report.catalogues[0].ratio == pytest.approx(1.5)
    assert report.scaling == pytest.approx(0.8)


@pytest.mark.slow
def test_both_models_are_trained_for_real(tmp_path: Path) -> None:
    sizes = ("--candidates", "1000", "--interactions", "13000", "--dim", "4", "--seconds", "0.1")
    done = CliRunner().invoke(app, ["train", *sizes, "--output", str(tmp_path)])
    assert done.exit_code == 0, done.stderr
    assert "1,000" in done.stdout
    report = TrainReport.model_validate_json((tmp_path / "train.json").read_text())
    (measured,) = report.catalogues
    assert {TOWERS, TUTORIALS} == {speed.model for speed in measured.speeds}
    assert all(speed.interactions_per_second > 0 for speed in measured.speeds)
    assert measured.peak_bytes > 2**20
    assert report.scaling == 1
    assert (tmp_path / "train.png").read_bytes().startswith(b"\x89PNG")
