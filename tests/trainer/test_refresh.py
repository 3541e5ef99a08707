"""Newer histories under the same towers."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from indexer.embed import embed_candidates
from trainer.bundle import TowerBundle
from trainer.datasets import Dataset, load_dataset
from trainer.export import export
from trainer.features import USER_ID, encode_query
from trainer.inputs import collect_histories
from trainer.model_config import RankerConfig, TowersConfig
from trainer.ranking import fit as fit_ranker
from trainer.refresh import RefreshError, refresh
from trainer.splits import split
from trainer.trained_towers import Towers
from trainer.training import fit


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset("sample")


@pytest.fixture(scope="module")
def train_rows(dataset: Dataset) -> np.ndarray:
    return split(dataset, "temporal").train


@pytest.fixture(scope="module")
def towers(dataset: Dataset, train_rows: np.ndarray) -> Towers:
    return fit(dataset, train_rows, TowersConfig(dim=8, width=8, epochs=1), seed=0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("towers")


@pytest.fixture(scope="module")
def bundle(dataset: Dataset, train_rows: np.ndarray, towers: Towers, root: Path) -> TowerBundle:
    return TowerBundle.open(export(towers, dataset, train_rows, root, seed=0))


def histories_of(bundle: TowerBundle) -> dict[str, list[str]]:
    users = bundle.query.user_ids
    assert users is not None
    return {
        users.token(row): bundle.candidate_ids.tokens(bundle.query.history(row))
        for row in range(len(users))
    }


def test_histories_are_newer_and_all_else_is_as_it_was(
    bundle: TowerBundle, dataset: Dataset, towers: Towers, root: Path
) -> None:
    (bundle.directory / "manifest.ed25519").write_bytes(b"a signature of this manifest only")
    done = refresh(bundle, dataset, root)
    refreshed = TowerBundle.open(root / "current")
    assert (refreshed.directory, 500, 0) == (done.directory, done.n_users, done.n_left_out)
    changed = {
        name
        for name, entry in refreshed.manifest.files.items()
        if entry != bundle.manifest.files[name]
    }
    assert {"histories.parquet", "query_embeddings.npy", "model_card.md"} == changed
    assert bundle.manifest.files.keys() == refreshed.manifest.files.keys()
    assert bundle.manifest.version == refreshed.manifest.refreshed_from
    card = (refreshed.directory / "model_card.md").read_text()
    assert f"The models are those of {bundle.manifest.version}; " in card
    histories = collect_histories(dataset, np.arange(len(dataset)), len(dataset))
    expected = [dataset.candidate_ids.tokens(history) for history in histories]
    assert expected == list(histories_of(refreshed).values())
    np.testing.assert_allclose(
        towers.embed_queries(histories), refreshed.query.query_embeddings, atol=1e-5
    )


def small(user_ids: list[str], candidate_ids: list[str]) -> Dataset:
    """One interaction of each user, in a catalogue of its own."""
    users, candidates = sorted(set(user_ids)), sorted(set(candidate_ids))
    return Dataset(
        name="small",
        users=pa.table({"user_id": users}),
        candidates=pa.table({"candidate_id": candidates}),
        user_rows=np.array([users.index(one) for one in user_ids], dtype=np.int32),
        candidate_rows=np.array([candidates.index(one) for one in candidate_ids], dtype=np.int32),
    )


def test_new_users_are_known_and_new_candidates_are_left_out(
    bundle: TowerBundle, root: Path
) -> None:
    second, first = bundle.candidate_ids.tokens([7, 3])
    data = small(["zoe", "zoe", "amy", "amy"], [second, "never seen", first, second])
    done = refresh(bundle, data, root)
    assert (2, 1) == (done.n_users, done.n_left_out)
    expected = {"amy": [first, second], "zoe": [second]}
    assert expected == histories_of(TowerBundle.open(done.directory))


def test_what_is_mostly_of_another_catalogue_is_taken_by_force_only(
    bundle: TowerBundle, root: Path
) -> None:
    (first,) = bundle.candidate_ids.tokens([3])
    data = small(["amy", "zoe", "zoe"], [first, "never seen", "nor this"])
    with pytest.raises(RefreshError, match=r"of 1 of the 3 interactions in small only.*--force"):
        refresh(bundle, data, root)
    assert 2 == refresh(bundle, data, root, force=True).n_left_out


def test_users_left_without_an_interaction_that_the_towers_know_are_left_out(
    bundle: TowerBundle, root: Path
) -> None:
    (first,) = bundle.candidate_ids.tokens([3])
    done = refresh(bundle, small(["amy", "zoe"], ["never seen", first]), root)
    assert (1, 1) == (done.n_users, done.n_left_out)
    assert {"zoe": [first]} == histories_of(TowerBundle.open(done.directory))


def with_new_candidates(
    dataset: Dataset, ids: list[str], histories: dict[str, list[str]]
) -> Dataset:
    """A catalogue that has grown, listed in another order, with what users did in it."""
    newest = dataset.candidates.slice(0, len(ids)).set_column(
        0, "candidate_id", pa.array(ids, pa.string())
    )
    candidates = pa.concat_tables(
        [newest, dataset.candidates.slice(0).take(pa.array(np.arange(dataset.n_candidates)[::-1]))]
    )
    rows = {token: row for row, token in enumerate(candidates["candidate_id"].to_pylist())}
    users = sorted(histories)
    return Dataset(
        name="grown",
        users=pa.table({"user_id": users}),
        candidates=candidates,
        user_rows=np.repeat(
            np.arange(len(users), dtype=np.int32), [len(histories[user]) for user in users]
        ),
        candidate_rows=np.array(
            [rows[one] for user in users for one in histories[user]], dtype=np.int32
        ),
    )


def test_new_candidates_are_embedded_by_their_content_and_passed_over_in_histories(
    bundle: TowerBundle, dataset: Dataset, towers: Towers, tmp_path: Path
) -> None:
    n = dataset.n_candidates
    third, seventh = bundle.candidate_ids.tokens([3, 7])
    histories = {"amy": [third, "new 1", seventh], "zoe": [seventh]}
    grown = with_new_candidates(dataset, ["new 1", "new 2"], histories)
    title = grown.candidates.column_names.index("title")
    now = grown.candidates.set_column(
        title, "title", pa.array([f"Now {row}" for row in range(n + 2)])
    )
    now = now.append_column("active", pa.array([row > 0 for row in range(n + 2)]))
    grown = dataclasses.replace(grown, candidates=now)
    done = refresh(bundle, grown, tmp_path, with_candidates=True)
    assert (2, 2, 0) == (done.n_users, done.n_new_candidates, done.n_left_out)
    now = TowerBundle.open(done.directory)
    expected_ids = [*bundle.candidate_ids.array.to_pylist(), "new 1", "new 2"]
    assert expected_ids == now.candidate_ids.array.to_pylist()
    assert n + 2 == now.manifest.n_candidates
    assert f"Now {n + 1}" == now.candidates["title"][0].as_py()  # the last of the file
    assert [True, False] == now.candidates["active"].take([0, n]).to_pylist()
    assert histories == histories_of(now)
    assert [*bundle.popularity.tolist(), 1, 0] == now.popularity.tolist()
    np.testing.assert_allclose(
        towers.embed_queries([np.array([3, 7]), np.array([7])]),
        now.query.query_embeddings,
        atol=1e-5,
    )
    before, after = embed_candidates(bundle).embeddings, embed_candidates(now).embeddings
    np.testing.assert_array_equal(before, after[:n])
    unknown = dict(towers.corpus) | {"candidate_id": np.zeros((n, 1), np.int32)}
    by_content = towers.candidate_module.embed(
        *(unknown[feature.name][:2] for feature in towers.features.candidate)
    )
    np.testing.assert_allclose(by_content["embedding"], after[n:], atol=1e-5)


def test_candidates_come_again_and_again_and_weights_are_begun_with(
    bundle: TowerBundle, dataset: Dataset, tmp_path: Path
) -> None:
    (third,) = bundle.candidate_ids.tokens([3])
    bundles = [bundle]
    for ids in (["new 1"], ["new 1", "new 2"]):
        grown = with_new_candidates(dataset, ids, {"amy": [third, ids[-1]]})
        done = refresh(bundles[-1], grown, tmp_path, with_candidates=True)
        bundles.append(TowerBundle.open(done.directory))
    assert 2 == done.n_new_candidates
    assert dataset.n_candidates == bundles[-1].query.features.n_known
    assert [0, 1] == bundles[-1].popularity[-2:].tolist()
    data = small(["amy"] * 4, [third, third, "new 1", "new 2"])
    done = refresh(bundles[-1], data, tmp_path)
    assert (1, 2, 0) == (done.n_users, done.n_new_candidates, done.n_left_out)
    assert [1, 1] == TowerBundle.open(done.directory).popularity[-2:].tolist()
    config = TowersConfig(dim=8, width=8, epochs=1)
    rows = np.arange(len(grown))
    warm = fit(grown, rows, config, seed=0, start_from=TowerBundle.open(done.directory))
    assert (len(grown.candidates), 8) == warm.embed_candidates().shape


def test_new_candidates_of_which_the_towers_read_nothing_are_refused(
    bundle: TowerBundle, dataset: Dataset, train_rows: np.ndarray, tmp_path: Path
) -> None:
    (third,) = bundle.candidate_ids.tokens([3])
    grown = with_new_candidates(dataset, ["new"], {"amy": [third]})
    lacking = dataclasses.replace(grown, candidates=grown.candidates.drop_columns(["genres"]))
    genres = grown.candidates.column_names.index("genres")
    nothing = pa.nulls(len(grown.candidates), pa.list_(pa.string()))
    blank = grown.candidates.set_column(genres, "genres", nothing)
    for useless in (lacking, dataclasses.replace(grown, candidates=blank)):
        with pytest.raises(RefreshError, match=r"have no genres, which the towers of .* read"):
            refresh(bundle, useless, tmp_path, with_candidates=True)
    by_ids = fit(dataset, train_rows, TowersConfig(dim=8, width=8, epochs=1, content=()), seed=0)
    blind = TowerBundle.open(export(by_ids, dataset, train_rows, tmp_path / "ids", seed=0))
    with pytest.raises(RefreshError, match=r"candidates are new \(1\), and the towers .* train"):
        refresh(blind, grown, tmp_path, with_candidates=True)
    assert ["ids"] == [path.name for path in tmp_path.iterdir()]


def test_a_ranking_model_knows_its_users_by_the_lines_they_had(
    dataset: Dataset, train_rows: np.ndarray, towers: Towers, tmp_path: Path
) -> None:
    ages = pa.array(np.arange(dataset.n_users) % 3)
    rated = dataclasses.replace(dataset, users=dataset.users.append_column("age", ages))
    ranker = fit_ranker(rated, train_rows, RankerConfig(epochs=1, dim=2, members=1), seed=0)
    bundle = TowerBundle.open(export(towers, rated, train_rows, tmp_path, seed=0, ranker=ranker))
    known = rated.user_ids.token(5)
    candidate = bundle.candidate_ids.token(0)
    data = small(["a newcomer", known], [candidate, candidate])
    query = TowerBundle.open(refresh(bundle, data, tmp_path).directory).query
    assert query.user_ids is not None
    assert query.ranker is not None
    assert [*rated.user_ids.array.to_pylist(), "a newcomer"] == query.user_ids.array.to_pylist()
    assert [[0], []] == [query.history(5).tolist(), query.history(6).tolist()]
    assert [{"age": 2}, {"age": None}] == [query.user_values(row) for row in (5, 500)]
    features = query.ranker.features.model_copy(
        update={"query": tuple(f for f in query.ranker.features.query if f.name == USER_ID)}
    )
    tokens = [
        encode_query(features, {USER_ID: query.user_ids}, np.array([0]), {USER_ID: user})[USER_ID]
        for user in (known, "a newcomer")
    ]
    assert [6, 0] == np.concatenate(tokens).ravel().tolist()


def test_what_nothing_tells_the_ratings_of_is_taken_by_force(
    dataset: Dataset, bundle: TowerBundle, tmp_path: Path
) -> None:
    seen = bundle.manifest.trained_on.model_copy(update={"min_rating": 4.0})
    of_four = TowerBundle(bundle.directory, bundle.manifest.model_copy(update={"trained_on": seen}))
    unrated = dataclasses.replace(dataset, ratings=None)
    assert refresh(of_four, unrated, tmp_path, force=True).n_users == dataset.n_users


def test_what_is_known_of_users_stays_column_by_column(
    dataset: Dataset, train_rows: np.ndarray, towers: Towers, tmp_path: Path
) -> None:
    described = dataset.users.append_column("age", pa.array([20] * dataset.n_users))
    described = described.append_column("city", pa.array(["Ulm"] * dataset.n_users))
    rated = dataclasses.replace(dataset, users=described)
    ranker = fit_ranker(rated, train_rows, RankerConfig(epochs=1, dim=2, members=1), seed=0)
    bundle = TowerBundle.open(export(towers, rated, train_rows, tmp_path, seed=0, ranker=ranker))
    known, candidate = rated.user_ids.token(5), bundle.candidate_ids.token(0)
    data = small([known, "new"], [candidate, candidate])
    data = dataclasses.replace(data, users=data.users.append_column("age", pa.array([90, 91])))
    query = TowerBundle.open(refresh(bundle, data, tmp_path).directory).query
    values = [query.user_values(row) for row in (4, 5, 500)]
    known_age = 90 if data.users["user_id"][0].as_py() == known else 91
    assert [20, known_age, 181 - known_age] == [one["age"] for one in values]
    assert ["Ulm", "Ulm", None] == [one["city"] for one in values]


def test_towers_that_know_none_of_the_candidates_are_not_refreshed(
    bundle: TowerBundle, tmp_path: Path
) -> None:
    with pytest.raises(RefreshError, match="know none of the candidates in small: train"):
        refresh(bundle, small(["amy"], ["never seen"]), tmp_path)
    assert [] == list(tmp_path.iterdir())


def test_without_histories_there_is_nothing_to_refresh(
    dataset: Dataset, train_rows: np.ndarray, towers: Towers, tmp_path: Path
) -> None:
    directory = export(towers, dataset, train_rows, tmp_path, seed=0, with_histories=False)
    with pytest.raises(RefreshError, match="holds no histories to refresh"):
        refresh(TowerBundle.open(directory), dataset, tmp_path)


def test_histories_stay_of_the_same_ratings(
    dataset: Dataset, bundle: TowerBundle, tmp_path: Path
) -> None:
    with pytest.raises(RefreshError, match=r"are of all ratings: leave --min-rating out"):
        refresh(bundle, dataset.with_min_rating(4), tmp_path)
    assert 4 == dataset.with_min_rating(4).min_rating
    seen = bundle.manifest.trained_on.model_copy(update={"min_rating": 4.0})
    of_four = TowerBundle(bundle.directory, bundle.manifest.model_copy(update={"trained_on": seen}))
    with pytest.raises(RefreshError, match=r"rated 4 or more: give --min-rating 4"):
        refresh(of_four, dataset, tmp_path)
    unrated = dataclasses.replace(dataset, ratings=None)
    with pytest.raises(RefreshError, match=r"rated 4 or more, and .* has no ratings: add them"):
        refresh(of_four, unrated, tmp_path)
    assert not list(tmp_path.iterdir())
