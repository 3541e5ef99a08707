"""What is found for a candidate is like it: of its genres, and no more popular than the corpus."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from indexer.bundle import IndexBundle
from server.domain import CandidateQuery, SearchRequest
from server.engine import Engine

DATASET = "movielens/100k" if "TFDS_DATA_DIR" in os.environ else "sample"


def likeness(index: Path) -> tuple[float, float]:
    """Measure ten results for every candidate that somebody has interacted with.

    Returns:
        Their median rank by popularity, divided by the corpus's; and the mean overlap of their
        genres with the candidate's (intersection over union), divided by that of any two
        candidates.
    """
    bundle = IndexBundle.open(index)
    engine, ids, popularity = Engine(bundle), bundle.corpus.candidate_ids, bundle.corpus.popularity
    rank = np.argsort(np.argsort(-popularity, kind="stable"), kind="stable")
    genres = [set(names) for names in bundle.corpus.candidates.column("genres").to_pylist()]
    n = len(ids)
    overlaps = np.array([[len(a & b) / max(1, len(a | b)) for b in genres] for a in genres])
    asked = np.flatnonzero(popularity > 0)
    found = np.array(
        [engine.search(SearchRequest(CandidateQuery(ids.token(row)), 10)).rows for row in asked]
    )
    alike = overlaps[asked[:, None], found].mean()
    by_chance = overlaps[~np.eye(n, dtype=bool)].mean()
    return float(np.median(rank[found]) / ((n - 1) / 2)), float(alike / by_chance)


def test_towers_that_hardly_learned_find_what_is_somewhat_alike(tower_index: Path) -> None:
    popularity, genres = likeness(tower_index)
    assert 0.5 < popularity < 2
    assert genres > 1.3


@pytest.mark.slow
def test_more_like_this_means_alike(tmp_path: Path) -> None:
    for arguments in (
        ("trainer", "fit", "--dataset", DATASET, "--split", "none", "--no-ranker"),
        ("indexer", "build", "--towers", str(tmp_path / "trainer" / "current")),
    ):
        output = ("--output", str(tmp_path / arguments[0]))
        subprocess.run([sys.executable, "-m", *arguments, *output], check=True, capture_output=True)
    popularity, genres = likeness(tmp_path / "indexer" / "current")
    print(f"popularity rank {popularity:.2f} of the corpus's, genres {genres:.2f} times chance")  # noqa: T201
    assert 0.5 < popularity < 2
    assert genres >= 2
