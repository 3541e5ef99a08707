"""Data at the edge of sense: each trains, or is refused with a sentence."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from trainer.bundle import TowerBundle
from trainer.commands.app import app
from trainer.commands.data import load
from trainer.config import DataConfig

HEADER = "user_id,candidate_id"


def fit(directory: Path, interactions: str, *arguments: str, candidates: str = "") -> str:
    """Fit small towers to files; returns stderr, which begins with the exit code."""
    (directory / "interactions.csv").write_text(interactions)
    files = ["--interactions", str(directory / "interactions.csv")]
    if candidates:
        (directory / "candidates.csv").write_text(candidates)
        files += ["--candidates", str(directory / "candidates.csv")]
    small = ["--epochs", "1", "--dim", "4", "--no-ranker", "--output", str(directory / "towers")]
    done = CliRunner().invoke(app, ["fit", *files, *small, *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return f"{done.exit_code} {done.stderr}"


@pytest.mark.no_cover  # larger data run the same lines
@pytest.mark.parametrize(
    ("interactions", "arguments", "candidates", "n_users", "n_candidates"),
    [
        pytest.param(f"{HEADER}\nu,a\n", ("--split", "none"), "", 1, 1, id="one interaction"),
        pytest.param(f"{HEADER}\nu,a\nu,b\nu,c\n", (), "", 1, 3, id="one user"),
        pytest.param(
            f"{HEADER}\nu,a\nv,a\nw,a\n", ("--split", "none"), "", 3, 1, id="one candidate"
        ),
        pytest.param(
            f"{HEADER}\nu,a\nu,a\nu,b\nv,b\nv,b\nv,a\n", (), "", 2, 2, id="duplicate interactions"
        ),
        pytest.param(
            f"{HEADER},rating\nu,a,5\nu,b,5\nv,a,1\n",
            ("--min-rating", "3", "--split", "none"),
            "",
            *(2, 2),
            id="a user without history",
        ),
        pytest.param(
            f"{HEADER}\nu,a\nu,b\nv,a\nv,b\n",
            ("--split", "none"),
            "candidate_id,title,genre\na,A,x\nb,B,y\nc,C,x\n",
            *(2, 3),
            id="a candidate without interactions",
        ),
    ],
)
def test_few_data_train(
    interactions: str,
    arguments: tuple[str, ...],
    candidates: str,
    n_users: int,
    n_candidates: int,
    tmp_path: Path,
) -> None:
    said = fit(tmp_path, interactions, *arguments, candidates=candidates)
    assert said.startswith("0 "), said
    bundle = TowerBundle.open(tmp_path / "towers" / "current")
    assert (n_users, n_candidates) == (bundle.manifest.n_users, bundle.manifest.n_candidates)
    for embeddings in (bundle.query.query_embeddings, bundle.tuning_queries):
        assert embeddings is not None
        assert len(embeddings) > 0
        assert np.isfinite(embeddings).all()


@pytest.mark.parametrize(
    ("interactions", "sentence"),
    [
        (
            f"{HEADER}\nu,a\nv,b\n",
            "no interaction to learn from: the train rows are empty; --split",
        ),
        (
            f"{HEADER}\nu,a\nu,a\nv,b\nv,b\n",
            "not in their train rows; `fit --split none` trains without measuring",
        ),
        (f"{HEADER},rating\nu,a,5\nu,b,nan\n", "line 3, column rating: expected a number, found"),
        (f"{HEADER},rating\nu,a,5\nu,b,\n", "line 3, column rating: expected a number, found ''"),
        (f"{HEADER},timestamp\nu,a,5\nu,b,\n", "line 3, column timestamp: expected seconds"),
    ],
)
def test_too_few_and_bad_data_are_refused_and_nothing_is_published(
    interactions: str, sentence: str, tmp_path: Path
) -> None:
    said = fit(tmp_path, interactions)
    assert said.startswith("1 ")
    assert sentence in said
    assert not (tmp_path / "towers" / "current").exists()


def test_too_few_data_to_find_the_number_of_epochs_are_told_apart(tmp_path: Path) -> None:
    said = fit(tmp_path, f"{HEADER}\nu,a\nv,b\n", "--split", "none", "--patience", "1")
    assert said.startswith("1 ")
    assert "which --patience 0 leaves out: there is no interaction to learn from" in said


@pytest.mark.parametrize(
    ("interactions", "sentence"),
    [
        (f"{HEADER}\nu,a\nu,b\n", "i has no timestamps: what is later in its rows counts as later"),
        (f"{HEADER},timestamp\nu,a,5\nu,b,5\n", "i has one timestamp only: what is later in its"),
        (f"{HEADER},timestamp\nu,a,5\nu,b,6\n", ""),
    ],
)
def test_where_times_tell_no_order_the_rows_do_and_it_is_said(
    interactions: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "i.csv").write_text(interactions)
    load(DataConfig(interactions=tmp_path / "i.csv"))
    said = capsys.readouterr().err
    assert said.startswith(sentence) if sentence else not said
