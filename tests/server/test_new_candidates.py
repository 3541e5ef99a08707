"""Candidates that came after the training: found by their content, passed over as history."""

import numpy as np
import pyarrow as pa
import pytest

from indexer.build import BuildOptions, build_bundle
from indexer.bundle import IndexBundle
from indexer.embed import embed_candidates
from server.domain import (
    CandidateQuery,
    ExamplesQuery,
    NoticeCode,
    Query,
    SearchRequest,
    SearchResult,
    UserQuery,
)
from server.engine import Engine
from server.errors import CandidateUnknownError
from trainer.bundle import TowerBundle
from trainer.datasets import Dataset, load_dataset
from trainer.refresh import refresh

KNOWN_USER, NOVICE = "42", "novice"


@pytest.fixture(scope="module")
def engine(sample_towers: TowerBundle, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """An index of towers that a candidate has come to since, which two users have seen.

    One of them has seen nothing else.
    """
    sample = load_dataset("sample")
    likeness = sample.candidates.slice(0, 1)
    newest = likeness.set_column(0, "candidate_id", pa.array(["new"]))
    seen_by = [sample.user_ids.row(KNOWN_USER), sample.n_users]
    novice = pa.table({"user_id": [NOVICE]})
    grown = Dataset(
        name="grown",
        users=pa.concat_tables([sample.users.select(["user_id"]), novice]),
        candidates=pa.concat_tables([sample.candidates, newest]),
        user_rows=np.append(sample.user_rows, seen_by).astype(np.int32),
        candidate_rows=np.append(sample.candidate_rows, [sample.n_candidates] * 2).astype(np.int32),
    )
    root = tmp_path_factory.mktemp("grown")
    done = refresh(sample_towers, grown, root / "towers", with_candidates=True)
    towers = TowerBundle.open(done.directory)
    options = BuildOptions(k=10, backends=("brute_force",))
    queries = towers.tuning_queries[:50]
    directory = build_bundle(
        embed_candidates(towers), queries, root / "indexes", options, towers=towers
    )
    return Engine(IndexBundle.open(directory))


def search(engine: Engine, query: Query, **options: object) -> tuple[list[str], SearchResult]:
    result = engine.search(SearchRequest(query, **options))  # type: ignore[arg-type]
    return engine.bundle.corpus.candidate_ids.tokens(result.rows), result


def everything(engine: Engine) -> int:
    return engine.bundle.manifest.n_candidates


def test_who_has_not_seen_it_finds_it(engine: Engine) -> None:
    found, _ = search(engine, UserQuery("7"), count=everything(engine))
    assert "new" in found


def test_who_has_seen_it_does_not(engine: Engine) -> None:
    found, _ = search(engine, UserQuery(KNOWN_USER), count=everything(engine))
    assert "new" not in found


def test_others_are_like_it(engine: Engine) -> None:
    found, result = search(engine, CandidateQuery("new"))
    assert "new" not in found
    genres = engine.bundle.corpus.candidates["genres"].to_pylist()
    alike = [not set(genres[-1]).isdisjoint(one) for one in genres]
    assert np.mean(alike) < np.mean([alike[row] for row in result.rows])


def test_as_history_it_changes_nothing_but_what_is_left_out(engine: Engine) -> None:
    known = engine.bundle.corpus.candidate_ids.token(5)
    without, _ = search(engine, UserQuery(history=[known]), count=everything(engine))
    beside, _ = search(engine, UserQuery(history=["new", known]), count=everything(engine))
    assert [one for one in without if one != "new"] == beside


@pytest.mark.parametrize("query", [UserQuery(history=["new"]), UserQuery(NOVICE)])
def test_a_history_of_it_alone_tells_nothing(engine: Engine, query: UserQuery) -> None:
    found, result = search(engine, query)
    assert [NoticeCode.COLD_START] == [notice.code for notice in result.notices]
    assert "new" not in found


def test_liked_alone_it_is_refused(engine: Engine) -> None:
    with pytest.raises(CandidateUnknownError, match="come since the towers were trained"):
        search(engine, ExamplesQuery(["new"]))
    found, _ = search(engine, ExamplesQuery(["new", engine.bundle.corpus.candidate_ids.token(5)]))
    assert 10 == len(found)


def test_it_is_ranked(engine: Engine) -> None:
    found, result = search(engine, UserQuery("7"), count=everything(engine), rank=True)
    assert result.ranking_scores is not None
    assert "new" in found
    assert np.isfinite(result.ranking_scores).all()


def test_the_ranking_model_passes_it_over_as_history(engine: Engine) -> None:
    known = engine.bundle.corpus.candidate_ids.token(5)
    _, without = search(engine, UserQuery(history=[known]), rank=True, exclusions=["new"])
    _, beside = search(engine, UserQuery(history=["new", known]), rank=True)
    np.testing.assert_array_equal(without.ranking_scores, beside.ranking_scores)
