"""What the towers read of a dataset."""

import dataclasses
import datetime as dt

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from tests.trainer.small import small_dataset
from trainer.datasets import Dataset
from trainer.errors import TrainingError
from trainer.features import Features
from trainer.inputs import collect_histories, describe, describe_users, told
from trainer.model_config import TowersConfig
from trainer.vocabulary import Vocabulary

CONFIG = TowersConfig(max_history_length=4)
EVERYTHING = TowersConfig(query=("history", "user_id", "demographics", "time"))


def with_columns(**columns: list[object]) -> Dataset:
    data = small_dataset([0, 1], [0, 1], None)
    candidates = data.candidates
    for name, values in columns.items():
        candidates = candidates.append_column(name, [values])
    return dataclasses.replace(data, candidates=candidates)


def with_users(data: Dataset, **columns: list[object]) -> Dataset:
    return dataclasses.replace(data, users=pa.table({"user_id": ["a", "b", "c"], **columns}))


def described(data: Dataset, config: TowersConfig) -> tuple[Features, dict[str, Vocabulary]]:
    users = describe_users(data, np.arange(len(data)), config)
    return describe(data.candidates, users, config)


def as_lists(arrays: list[np.ndarray]) -> list[list[int]]:
    return [array.tolist() for array in arrays]


def test_what_is_read_and_what_is_not_is_told() -> None:
    data = with_columns(
        genres=[["a", "b"], ["a"], ["a"], []],
        year=[1990, 1991, 1992, None],
        price=["1", "2", "3", "NA"],
        plot=["one two three", "one two three", "one two three", "four"],
    )
    features, _ = described(data, CONFIG)
    assert told(data.candidates, features, CONFIG) == (
        "Of candidates the towers read candidate_id, genres (1 label), year (a number); not price "
        "(no label of it stands in two candidates), plot (a text, which towers.content leaves out)"
    )
    nothing = TowersConfig(content=())
    data_of_days = with_columns(when=[dt.date(2026, 11, 30)] * 4)
    features, _ = described(data_of_days, nothing)
    assert told(data_of_days.candidates, features, nothing).endswith(
        "not when (of a type that no tower reads)"
    )
    features, _ = described(data, TowersConfig(candidate_ids=False, content=("text",)))
    sentence = told(data.candidates, features, TowersConfig(content=("text",)))
    assert sentence.startswith("Of candidates the towers read plot (3 words); not genres (a list, ")


def test_histories_are_in_time_order_and_equal_times_in_row_order() -> None:
    data = small_dataset([1, 0, 1, 1, 0], [3, 2, 1, 0, 3], [30, 20, 10, 30, 10])
    assert as_lists(collect_histories(data, np.arange(5), 4)) == [[3, 2], [1, 3, 0], []]


def test_histories_without_times_are_in_row_order_whatever_the_order_of_the_rows_asked_for() -> (
    None
):
    data = small_dataset([1, 0, 1, 1, 0], [3, 2, 1, 0, 3], None)
    expected = [[2, 3], [3, 1, 0], []]
    assert expected == as_lists(collect_histories(data, np.array([4, 2, 0, 3, 1]), 4))


def test_of_a_long_history_the_newest_stay() -> None:
    data = small_dataset([0, 0, 0], [0, 1, 2], [1, 2, 3])
    assert as_lists(collect_histories(data, np.arange(3), 2)) == [[1, 2], [], []]


def test_only_the_rows_asked_for_count() -> None:
    data = small_dataset([0, 0, 1], [0, 1, 2], [1, 2, 3])
    assert as_lists(collect_histories(data, np.array([1, 2]), 4)) == [[1], [2], []]


def test_the_towers_read_the_metadata_of_the_kinds_asked_for() -> None:
    data = with_columns(
        genres=[["x"], ["x", "y"], ["y"], None], year=[1990, 1991, 1992, None], maker=["a", "b"] * 2
    )
    config = CONFIG.model_copy(update={"content": ("list", "number")})
    features, vocabularies = described(data, config)
    assert [feature.name for feature in features.candidate] == ["candidate_id", "genres", "year"]
    assert vocabularies["genres"].tokens([0, 1]) == ["x", "y"]
    assert features.max_history_length == CONFIG.max_history_length


def test_without_content_the_towers_read_ids_alone() -> None:
    config = CONFIG.model_copy(update={"content": ()})
    features, _ = described(with_columns(year=[1, 2, 3, 4]), config)
    assert [feature.name for feature in features.candidate] == ["candidate_id"]


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("release year", [1, 2, 3, 4], "'release year' cannot be an input.*rename"),
        ("added", [dt.date(2000, 1, 1)] * 4, "'added': a column of type"),
    ],
)
def test_a_column_that_no_tower_can_read_is_refused(
    name: str, values: list[object], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        described(with_columns(**{name: values}), CONFIG)


def test_content_without_ids_is_all_there_is_of_a_candidate() -> None:
    config = CONFIG.model_copy(update={"candidate_ids": False})
    features, _ = described(with_columns(year=[1, 2, 3, 4]), config)
    assert ["year"] == [feature.name for feature in features.candidate]
    with pytest.raises(TrainingError, match="nothing is known of the candidates"):
        described(with_columns(), config)
    with pytest.raises(ValidationError, match="cannot both be off"):
        TowersConfig(candidate_ids=False, content=())


def test_a_query_is_read_by_the_switches_that_are_on() -> None:
    data = with_users(
        small_dataset([0, 1], [0, 1], [5, 7]), job=["baker", "baker", "pilot"], age=[30, 40, 50]
    )
    assert ["history"] == [feature.name for feature in described(data, CONFIG)[0].query]
    features, vocabularies = described(data, EVERYTHING)
    expected = [
        *(("history", "history"), ("user_id", "id"), ("job", "category")),
        *(("age", "number"), ("time", "number")),
    ]
    assert expected == [(feature.name, feature.kind) for feature in features.query]
    assert ["a", "b", "c"] == vocabularies["user_id"].tokens([0, 1, 2])
    assert ["baker"] == vocabularies["job"].array.to_pylist()


def test_the_time_of_a_query_is_that_of_the_last_interaction_of_the_train_rows() -> None:
    data = small_dataset([0, 0, 0, 1], [0, 1, 2, 3], [50, 10, 90, 70])
    users = describe_users(data, np.array([0, 1, 3]), TowersConfig(query=("time",)))
    assert [50, 70, None] == users["time"].to_pylist()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (small_dataset([0], [0], [1]), "nothing is known of the users of small: give --users FILE"),
        (with_users(small_dataset([0], [0], None), age=[1, 2, 3]), "small has no timestamps"),
        (
            with_users(small_dataset([0], [0], [1]), description=["x"] * 3),
            "'description' has the name of the query's description: rename it",
        ),
        (
            with_users(small_dataset([0], [0], [1]), time=[1, 2, 3]),
            "'time' has the name of the query's",
        ),
        (
            with_users(small_dataset([0], [0], [1]), history=[1, 2, 3]),
            "'history' has the name of",
        ),
        (
            with_users(small_dataset([0], [0], [1]), candidate_rows=[1, 2, 3]),
            "'candidate_rows' has the name that their histories are kept under",
        ),
        (
            with_users(small_dataset([0], [0], [1]), **{"my job": [1, 2, 3]}),
            "users' column 'my job'",
        ),
    ],
)
def test_what_cannot_be_read_of_users_is_refused(data: Dataset, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        described(data, EVERYTHING)


def test_what_only_the_ranking_model_reads_has_a_name_of_its_own_too() -> None:
    users = with_users(small_dataset([0], [0], [1]), history=["x"] * 3)
    with pytest.raises(TrainingError, match="'history' has the name of the query's history"):
        described(users, TowersConfig())


def test_a_column_of_candidates_that_is_named_like_the_users_ids_is_refused() -> None:
    data = small_dataset([0], [0], [1])
    sellers = pa.array(["s", "t"] * data.n_candidates)[: data.n_candidates]
    sold = dataclasses.replace(data, candidates=data.candidates.append_column("user_id", sellers))
    with pytest.raises(TrainingError, match="candidates' column 'user_id' has the name of an id"):
        described(sold, TowersConfig())


def test_a_column_that_is_not_read_may_have_any_name() -> None:
    data = small_dataset([0], [0], [1])
    texts = pa.array(["a text of some words"] * data.n_candidates)
    named = dataclasses.replace(data, candidates=data.candidates.append_column("a text", texts))
    assert "a text" not in {feature.name for feature in described(named, CONFIG)[0].candidate}
    reading = TowersConfig(content=("text",))
    with pytest.raises(TrainingError, match="candidates' column 'a text' cannot be an input"):
        described(named, reading)
