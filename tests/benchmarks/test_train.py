"""The training benchmark, on catalogues small enough for a test."""

from pathlib import Path

import pytest

from benchmarks.train import TOWERS, TUTORIALS, CatalogueReport, Speed, TrainReport, benchmark_train
from benchmarks.train_report import draw_train


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


def test_both_models_are_trained_for_real(tmp_path: Path) -> None:
    report = benchmark_train([1_000], 2_000, dim=4, seconds=0.1, on_step=lambda _: None)
    (measured,) = report.catalogues
    assert {TOWERS, TUTORIALS} == {speed.model for speed in measured.speeds}
    assert all(speed.interactions_per_second > 0 for speed in measured.speeds)
    assert measured.peak_bytes > 2**20
    assert report.scaling == 1
    draw_train(report, tmp_path / "train.png")
    assert (tmp_path / "train.png").stat().st_size > 0
