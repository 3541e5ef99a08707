"""Queries that are more than a history: each feature trains, travels and is served alike."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from indexer.embed import embed_candidates
from server.domain import ExamplesQuery, UserQuery
from server.embedder import SHORT_HISTORY, Embedder, QueryTower
from server.errors import FieldUnknownError, UndecodableError
from server.similarity import Directions
from trainer.bundle import TowerBundle
from trainer.cold_start import measure_descriptions
from trainer.datasets import Dataset, load_dataset
from trainer.export import export
from trainer.features import encode_candidates
from trainer.inputs import describe, describe_users
from trainer.model_config import TowersConfig
from trainer.refresh import RefreshError, refresh
from trainer.towers import TwoTowers
from trainer.trained_towers import Towers
from trainer.training import fit
from trainer.warm_start import warm_start

N_USERS, N_LIKED = 40, 5
ALL = ("history", "user_id", "demographics", "time")


def two_tastes() -> Dataset:
    """Half of the users like the first five candidates, the others the last five.

    Id, age, town, hobbies and time of a user, and the genre of a candidate, all tell the taste. The
    last user has done nothing.
    """
    rng = np.random.default_rng(0)
    tastes = np.arange(N_USERS) % 2
    liked = np.stack([rng.permutation(N_LIKED)[:3] + N_LIKED * taste for taste in tastes[:-1]])
    user_rows = np.repeat(np.arange(N_USERS - 1, dtype=np.int32), 3)
    return Dataset(
        name="two tastes",
        users=pa.table(
            {
                "user_id": [f"u{n:02}" for n in range(N_USERS)],
                "age": [20 + 40 * int(taste) for taste in tastes],
                "town": [("Oslo", "Rome")[taste] for taste in tastes],
                "hobbies": [(["ski", "read"], ["swim", "read"])[taste] for taste in tastes],
            }
        ),
        candidates=pa.table(
            {
                "candidate_id": [f"c{n}" for n in range(2 * N_LIKED)],
                "genres": [["snow"]] * N_LIKED + [["sun"]] * N_LIKED,
            }
        ),
        user_rows=user_rows,
        candidate_rows=liked.reshape(-1).astype(np.int32),
        timestamps=1_000_000 * tastes[user_rows] + np.arange(len(user_rows)),
    )


DATA = two_tastes()
ROWS = np.arange(len(DATA))


def trained(epochs: int = 20, **options: object) -> Towers:
    config = TowersConfig(
        dim=8, width=8, epochs=epochs, learning_rate=0.03, batch_size=10, **options
    )
    return fit(DATA, ROWS, config, seed=1)


@pytest.mark.parametrize("query", [("user_id",), ("demographics",), ("time",), ALL])
def test_each_feature_finds_the_taste_and_travels(query: tuple[str, ...], tmp_path: Path) -> None:
    towers = trained(query=query)
    users = np.arange(N_USERS - 1)
    scores = towers.embed_users(users) @ towers.embed_candidates().T
    found = np.argsort(-scores, axis=1)[:, :N_LIKED]
    assert (found // N_LIKED == users[:, None] % 2).mean() > 0.95
    bundle = TowerBundle.open(export(towers, DATA, ROWS, tmp_path, seed=1))
    expected = [feature.name for feature in towers.features.query]
    assert expected == [feature.name for feature in bundle.query.features.query]
    assert list(query) == bundle.manifest.config["query"]


@pytest.mark.parametrize("options", [{"content": ()}, {"candidate_ids": False}, {}])
def test_towers_are_collaborative_content_based_or_hybrid(
    options: dict[str, object], tmp_path: Path
) -> None:
    towers = trained(**options)
    queries = towers.embed_queries([np.array([0, 1]), np.array([8, 9])])
    found = np.argsort(-queries @ towers.embed_candidates().T, axis=1)[:, :N_LIKED]
    assert [{0}, {1}] == [set(line // N_LIKED) for line in found]
    bundle = TowerBundle.open(export(towers, DATA, ROWS, tmp_path, seed=1))
    served = embed_candidates(bundle).embeddings
    np.testing.assert_allclose(towers.embed_candidates(), served, atol=1e-5)


@pytest.fixture(scope="module")
def towers() -> Towers:
    return trained(query=ALL)


@pytest.fixture(scope="module")
def bundle(towers: Towers, tmp_path_factory: pytest.TempPathFactory) -> TowerBundle:
    root = tmp_path_factory.mktemp("towers")
    return TowerBundle.open(export(towers, DATA, ROWS, root, seed=1))


def embedder_of(bundle: TowerBundle) -> Embedder:
    corpus = embed_candidates(bundle)
    directions = Directions(corpus.embeddings, has_bias_dimension=True)
    return Embedder(corpus, directions, bundle.query)


@pytest.fixture(scope="module")
def embedder(bundle: TowerBundle) -> Embedder:
    return embedder_of(bundle)


def test_a_user_without_a_train_row_is_as_unknown_as_any(towers: Towers) -> None:
    table = towers.model.query_tower.context.table("user_id").numpy()
    assert table[1:N_USERS].any(axis=1).all()
    assert not table[N_USERS].any()


def test_a_known_user_is_served_with_what_the_bundle_knows(
    bundle: TowerBundle, embedder: Embedder, towers: Towers
) -> None:
    assert {"age": 60, "town": "Rome", "hobbies": ["swim", "read"], "time": 1_000_005} == (
        bundle.query.user_values(1)
    )
    known = embedder.embed(UserQuery("u01")).vector
    np.testing.assert_allclose(towers.embed_users(np.array([1]))[0], known, atol=1e-5)
    same = embedder.embed(UserQuery("u01", features={"time": 1_000_005.0})).vector
    np.testing.assert_allclose(known, same, atol=1e-5)
    moved = embedder.embed(UserQuery("u01", features={"town": "Oslo"})).vector
    assert np.abs(known - moved).max() > 1e-3


def test_an_unknown_user_is_served_from_features_alone(embedder: Embedder) -> None:
    vectors = [
        embedder.embed(UserQuery(features={"town": town})).vector
        for town in ("Oslo", "Rome", "Atlantis")
    ]
    assert all(vector is not None for vector in vectors)
    assert len({vector.tobytes() for vector in vectors}) == 3
    nobody = embedder.embed(UserQuery("nobody", history=["c0"], features={"town": "Atlantis"}))
    known_by_history = embedder.embed(UserQuery("nobody", history=["c0"]))
    np.testing.assert_array_equal(known_by_history.vector, nobody.vector)
    assert embedder.embed(UserQuery("nobody")).vector is None


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        ({"shoe_size": 44.0}, FieldUnknownError, "they read age, town, hobbies, time, description"),
        ({"user_id": "u01"}, FieldUnknownError, "read no feature 'user_id'"),
        ({"town": 3.0}, UndecodableError, "'town' takes a text, not 3.0"),
        ({"hobbies": "ski"}, UndecodableError, "'hobbies' takes texts, not 'ski'"),
        ({"time": "now"}, UndecodableError, "'time' takes a number, not 'now'"),
    ],
)
def test_a_feature_that_is_not_read_or_not_like_this_is_refused(
    features: dict[str, object], error: type[Exception], message: str, embedder: Embedder
) -> None:
    with pytest.raises(error, match=message):
        embedder.embed(UserQuery("u01", features=features))


def test_a_description_finds_what_it_describes(embedder: Embedder, bundle: TowerBundle) -> None:
    candidates = embed_candidates(bundle).embeddings
    snow, sun = (
        embedder.embed(UserQuery(features={"description": text})).vector
        for text in ("some SNOW", "sun, please")
    )
    assert snow[-1] == sun[-1] == 0
    assert set(range(N_LIKED)) == set(np.argsort(-candidates @ snow)[:N_LIKED].tolist())
    assert set(range(N_LIKED)).isdisjoint(np.argsort(-candidates @ sun)[:N_LIKED].tolist())
    known = embedder.embed(UserQuery("u01")).vector
    both = embedder.embed(UserQuery("u01", features={"description": "snow"})).vector
    np.testing.assert_allclose((known + snow) / 2, both, atol=1e-5)


def test_a_description_that_says_nothing_of_candidates_is_no_query(embedder: Embedder) -> None:
    assert embedder.embed(UserQuery(features={"description": "xyzzy"})).vector is None
    known = embedder.embed(UserQuery("u01")).vector
    same = embedder.embed(UserQuery("u01", features={"description": "xyzzy"})).vector
    np.testing.assert_allclose(known, same, atol=1e-5)
    with pytest.raises(UndecodableError, match=r"'description' takes a text, not 3\.0"):
        embedder.embed(UserQuery(features={"description": 3.0}))


@pytest.mark.parametrize("options", [{"content": ()}, {"query": ("demographics",)}])
def test_towers_without_content_in_histories_take_no_description(
    options: dict[str, object], tmp_path: Path
) -> None:
    towers = trained(epochs=1, **options)
    embedder = embedder_of(TowerBundle.open(export(towers, DATA, ROWS, tmp_path, seed=1)))
    with pytest.raises(FieldUnknownError, match="read no feature 'description'"):
        embedder.embed(UserQuery(features={"description": "snow"}))
    with pytest.raises(ValueError, match="read no content in histories"):
        towers.embed_descriptions({})


def test_a_refresh_reads_newer_times_and_knows_new_users_by_all_but_their_ids(
    bundle: TowerBundle, tmp_path: Path
) -> None:
    newcomer = DATA.users.slice(1, 1).set_column(0, "user_id", pa.array(["v"]))
    older = pc.add(DATA.users["age"], 1)
    users = pa.concat_tables([DATA.users.set_column(1, "age", older), newcomer])
    newer = dataclasses.replace(
        DATA,
        users=users,
        user_rows=np.append(DATA.user_rows, [1, N_USERS]).astype(np.int32),
        candidate_rows=np.append(DATA.candidate_rows, [9, 9]).astype(np.int32),
        timestamps=np.append(DATA.timestamps, [1_500_000, 1_500_000]),
    )
    query = TowerBundle.open(refresh(bundle, newer, tmp_path).directory).query
    assert {"age": 61, "town": "Rome", "hobbies": ["swim", "read"], "time": 1_500_000} == (
        query.user_values(1)
    )
    assert {"age": 60, "town": "Rome", "hobbies": ["swim", "read"], "time": 1_500_000} == (
        query.user_values(N_USERS)
    )
    tower, known = QueryTower(query), query.query_embeddings
    for row, user_id in ((1, "u01"), (N_USERS, "")):
        values = {"user_id": user_id, **query.user_values(row)}
        np.testing.assert_allclose(tower.embed(query.history(row), values), known[row], atol=1e-5)


@pytest.mark.parametrize("length", [0, 1, SHORT_HISTORY, SHORT_HISTORY + 1, 512, 600])
def test_a_history_of_any_length_is_embedded_as_in_training(
    towers: Towers, bundle: TowerBundle, length: int
) -> None:
    history = np.random.default_rng(length).integers(DATA.n_candidates, size=length)
    values = {"user_id": "u01", **bundle.query.user_values(1)}
    (expected,) = towers.embed_users(np.array([1]), [history] * 2)
    actual = QueryTower(bundle.query).embed(history, values)
    np.testing.assert_allclose(expected, actual, atol=1e-5)


def test_users_columns_of_another_type_are_refused_for_a_refresh(
    bundle: TowerBundle, tmp_path: Path
) -> None:
    changed = DATA.users.set_column(1, "age", pa.array([["old"]] * N_USERS))
    with pytest.raises(RefreshError, match=r"not of the types that .* was trained with"):
        refresh(bundle, dataclasses.replace(DATA, users=changed), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_warm_start_takes_over_what_is_read_beside_the_history(
    towers: Towers, bundle: TowerBundle
) -> None:
    users = describe_users(DATA, ROWS, towers.config).slice(1)
    features, vocabularies = describe(DATA.candidates, users, towers.config)
    corpus = encode_candidates(features, vocabularies, DATA.candidates)
    model = TwoTowers(features, corpus, towers.config, seed=9)
    warm_start(model, features, vocabularies, bundle)
    ours, theirs = model.query_tower.context, towers.model.query_tower.context
    for name in ("age", "town", "time"):
        np.testing.assert_array_equal(theirs.table(name), ours.table(name))
    np.testing.assert_array_equal(theirs.table("user_id")[2:], ours.table("user_id")[1:])


def test_towers_that_read_no_history_serve_who_they_know_and_leave_the_rest_to_popularity(
    tmp_path: Path,
) -> None:
    towers = trained(epochs=1, query=("user_id",))
    embedder = embedder_of(TowerBundle.open(export(towers, DATA, ROWS, tmp_path, seed=1)))
    assert embedder.embed(UserQuery("u01", history=["c0"])).vector is not None
    stranger = embedder.embed(UserQuery("nobody", history=["c0"]))
    assert stranger.vector is None
    assert [0] == stranger.history.tolist()
    assert embedder.embed(ExamplesQuery(["c0"])).by_cosine


@pytest.mark.slow
@pytest.mark.skipif("TFDS_DATA_DIR" not in os.environ, reason="TFDS_DATA_DIR is not set")
def test_on_movielens_genres_and_titles_find_what_they_name() -> None:
    movies = load_dataset("movielens/100k")
    config = TowersConfig(content=("category", "list", "number", "text"), epochs=40)
    words = measure_descriptions(movies, fit(movies, np.arange(len(movies)), config, seed=0))
    assert words is not None
    assert words.labelled > 4 * words.labelled_by_chance
    assert words.found > 30 * words.found_by_chance
