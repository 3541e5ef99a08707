import numpy as np
import pyarrow as pa
import pytest

from trainer.features import (
    DescriptionReader,
    Feature,
    Features,
    describe_column,
    encode_candidates,
    encode_histories,
    encode_query,
    tokenize,
)
from trainer.vocabulary import Vocabulary


def test_histories_keep_the_newest_and_pad_on_the_right() -> None:
    histories = [np.array([4, 0, 7]), np.array([2]), np.array([], dtype=np.int32)]
    assert encode_histories(histories, 2).tolist() == [[1, 8], [3, 0], [0, 0]]


def test_words_are_lower_case_and_without_punctuation() -> None:
    assert tokenize("Amélie's 2nd (2001)") == ["amélie", "s", "2nd", "2001"]


@pytest.mark.parametrize(
    ("values", "kind", "length", "tokens"),
    [
        ([["b", "a"], ["a", "c"], None, ["b"]], "list", 2, ["a", "b"]),
        (["red", "blue", None, "red", "grey", "blue"], "category", 1, ["blue", "red"]),
        ([True, False, None, False, True], "category", 1, ["False", "True"]),
        (["the red fox", "a red dog jumps", "the end"], "text", 4, ["red", "the"]),
    ],
)
def test_a_column_is_described_by_its_type(
    values: list[object], kind: str, length: int, tokens: list[str]
) -> None:
    feature, vocabulary = describe_column("x", pa.chunked_array([values]))
    assert feature == Feature(name="x", kind=kind, length=length, n_tokens=len(tokens))
    assert vocabulary is not None
    assert vocabulary.array.to_pylist() == tokens


def test_of_long_values_the_first_tokens_are_read_and_counted() -> None:
    long = [str(n) for n in range(70)]
    feature, vocabulary = describe_column("tags", pa.chunked_array([[long, long, ["69"]]]))
    assert (feature.length, feature.n_tokens) == (64, 64)
    assert vocabulary is not None
    assert "69" not in vocabulary


def test_numbers_are_standardised_and_a_missing_one_is_the_mean() -> None:
    column = pa.chunked_array([[1990, 2010, None]])
    feature, vocabulary = describe_column("year", column)
    assert feature == Feature(name="year", kind="number", mean=2000.0, deviation=10.0)
    assert vocabulary is None
    encoded = encode_candidates(
        Features(query=(), candidate=(feature,)), {}, pa.table({"year": column})
    )
    assert encoded["year"].tolist() == [[-1.0], [1.0], [0.0]]
    assert encoded["year"].dtype == np.float32


def test_a_number_far_from_all_others_stays_one_that_a_tower_can_read() -> None:
    features = Features(query=(Feature(name="age", kind="number", mean=30.0),), candidate=())
    encoded = [encode_query(features, {}, np.array([]), {"age": age}) for age in (1e300, -1e38)]
    assert [one["age"].tolist() for one in encoded] == [[[1e5]], [[-1e5]]]


@pytest.mark.parametrize("number", [3, 0.1])
def test_a_constant_number_is_divided_neither_by_zero_nor_by_what_rounding_leaves(
    number: float,
) -> None:
    feature, _ = describe_column("n", pa.chunked_array([[number] * 6]))
    assert feature.deviation == 1.0


def test_whole_numbers_that_a_double_rounds_are_numbers_as_others_are() -> None:
    feature, _ = describe_column("n", pa.chunked_array([[2**60 + 1, 2**60 + 2**20 + 1]]))
    assert (feature.kind, feature.deviation) == ("number", 2**19)


@pytest.mark.parametrize("numbers", [[1e300, 1.0], [1e308, -1e308]])
def test_numbers_that_no_tower_can_hold_are_refused(numbers: list[float]) -> None:
    with pytest.raises(ValueError, match=r"1e\+30\d is too large a number for a tower; scale"):
        describe_column("n", pa.chunked_array([numbers]))


def test_a_column_no_tower_can_read_is_refused() -> None:
    with pytest.raises(ValueError, match="type binary cannot be a feature"):
        describe_column("blob", pa.chunked_array([[b"x"]]))


def test_candidates_are_encoded_by_column_and_an_absent_one_is_unknown() -> None:
    features = Features(
        query=(),
        candidate=(
            Feature(name="genres", kind="list", length=2, n_tokens=2),
            Feature(name="absent", kind="category", n_tokens=1),
        ),
    )
    vocabularies = {"genres": Vocabulary(["Drama", "War"]), "absent": Vocabulary(["x"])}
    table = pa.table({"genres": [["War", "New"], ["Drama", "War", "War"], None]})
    encoded = encode_candidates(features, vocabularies, table)
    assert encoded["genres"].tolist() == [[2, 0], [1, 2], [0, 0]]
    assert encoded["absent"].tolist() == [[0], [0], [0]]
    assert encoded["genres"].dtype == np.int32


def test_ids_in_row_order_need_no_vocabulary() -> None:
    features = Features(
        query=(),
        candidate=(
            Feature(name="candidate_id", kind="id", n_tokens=4),
            Feature(name="genre", kind="category", n_tokens=1),
        ),
    )
    vocabularies = {
        "candidate_id": Vocabulary(["a", "b", "c", "d", "new"]),
        "genre": Vocabulary(["x"]),
    }
    table = pa.table({"candidate_id": ["c", "d", "new"], "genre": ["x", None, "x"]})
    looked_up = encode_candidates(features, vocabularies, table)
    counted = encode_candidates(features, {"genre": vocabularies["genre"]}, table, first_row=2)
    assert looked_up["candidate_id"].tolist() == [[3], [4], [0]]
    for name, expected in looked_up.items():
        np.testing.assert_array_equal(expected, counted[name])
        assert expected.dtype == counted[name].dtype


def test_a_query_is_one_line_of_every_input() -> None:
    features = Features(
        query=(
            Feature(name="history", kind="history", length=3),
            Feature(name="job", kind="category", n_tokens=1),
            Feature(name="age", kind="number", mean=30.0, deviation=10.0),
        ),
        candidate=(),
    )
    vocabularies = {"job": Vocabulary(["baker"])}
    encoded = encode_query(features, vocabularies, np.array([5, 6]), {"job": "baker", "age": 40})
    assert encoded["history"].tolist() == [[6, 7, 0]]
    assert encoded["job"].tolist() == [[1]]
    assert encoded["age"].tolist() == [[1.0]]
    assert features.max_history_length == 3
    unknown = encode_query(features, vocabularies, np.array([], dtype=np.int32), {"job": "pilot"})
    assert unknown["job"].tolist() == [[0]]
    assert unknown["age"].tolist() == [[0.0]]


def test_a_description_is_read_as_the_content_of_a_candidate() -> None:
    features = (
        Feature(name="genres", kind="list", length=2, n_tokens=3),
        Feature(name="title", kind="text", length=3, n_tokens=2),
        Feature(name="maker", kind="category", n_tokens=1),
        Feature(name="year", kind="number", mean=1990.0, deviation=10.0),
        Feature(name="minutes", kind="number", mean=90.0, deviation=30.0),
    )
    vocabularies = {
        "genres": Vocabulary(["Sci-Fi", "drama", "film noir"]),
        "title": Vocabulary(["moon", "walk"]),
        "maker": Vocabulary(["!"]),
    }
    reader = DescriptionReader(features, vocabularies)
    read = reader.read("A FILM-NOIR, sci fi and drama: 7 walks on the Moon, moon walk, 1995, 2001")
    assert read is not None
    assert {
        "genres": [[3, 1]],
        "title": [[1, 2, 0]],
        "maker": [[0]],
        "year": [[0.5]],
        "minutes": [[np.float32((7 - 90) / 30)]],
    } == {name: values.tolist() for name, values in read.items()}
    assert reader.read("1995")["genres"].tolist() == [[0, 0]]
    assert reader.read("nothing of 12345 that is known") is None
    assert reader.read("") is None
