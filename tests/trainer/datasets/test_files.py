"""The user's own files: what is read from them, and how a bad row is refused."""

import datetime as dt
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from trainer.datasets import DatasetError, load_files

INTERACTIONS = """\
user_id,candidate_id,rating,timestamp,device
bo,x,4,1000,phone
al,"y,1",3.5,900,web
bo,z,1,1100.7,web
"""
CANDIDATES = """\
candidate_id,title,tags,year,price,in_print,code,notes
z,1984,,1949,1e999,TRUE,007,
x," A ""quoted"", title",new|  old |,2001,7.5,false,12,text
"y,1",,old,,1e2,,,2
w,Nobody's,|,-3,0,True,5,
"""


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a file of the name and content it is given."""

    def write_file(name, content):
        path = tmp_path / name
        if isinstance(content, dict):
            pa.parquet.write_table(pa.table(content), path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


def test_interactions_of_csv(write):
    dataset = load_files(write("shop.csv", INTERACTIONS), write("items.csv", CANDIDATES))

    assert dataset.name == "shop"
    assert dataset.users.to_pydict() == {"user_id": ["al", "bo"]}
    assert dataset.candidates["candidate_id"].to_pylist() == ["w", "x", "y,1", "z"]
    assert dataset.user_rows.tolist() == [1, 0, 1]
    assert dataset.candidate_rows.tolist() == [1, 2, 3]
    assert dataset.ratings.tolist() == [4, 3.5, 1]
    assert dataset.timestamps.tolist() == [1000, 900, 1100]
    assert (dataset.ratings.dtype, dataset.timestamps.dtype) == (np.float32, np.int64)


def test_metadata_of_csv_is_typed_by_its_values(write):
    dataset = load_files(write("shop.csv", INTERACTIONS), write("items.csv", CANDIDATES))

    columns = dataset.candidates.drop_columns(["candidate_id"]).to_pydict()
    assert columns == {
        "title": ["Nobody's", 'A "quoted", title', None, "1984"],
        "tags": [[], ["new", "old"], ["old"], []],
        "year": [-3, 2001, None, 1949],
        "price": [0.0, 7.5, 100.0, None],
        "in_print": [True, False, None, True],
        "code": ["5", "12", None, "007"],
        "notes": [None, "text", "2", None],
    }


def test_times_may_be_written_by_iso_8601(write):
    times = {
        "1970-01-02": 86_400,
        "1970-01-01 00:01": 60,
        "1970-01-01T00:00:01.9Z": 1,
        "1970-01-01T02:00:00+02:00": 0,
        "1969-12-31T23:59:59.5": -1,
        "1970-01-01T00:00:00-0030": 1800,
        "77": 77,
    }
    lines = "".join(f"a,x,{time}\n" for time in times)
    file = write("interactions.csv", f"user_id,candidate_id,timestamp\n{lines}")
    assert list(times.values()) == load_files(file).timestamps.tolist()
    lines = "a,x,1970-01-01\na,x,1970-02-30\n"
    file = write("interactions.csv", f"user_id,candidate_id,timestamp\n{lines}")
    with pytest.raises(DatasetError, match=r"line 3, .* there is no such time as '1970-02-30'$"):
        load_files(file)


@pytest.mark.parametrize("time", ["2020-01-01T00:00+05:60", "9999-12-31"])
def test_times_that_only_look_like_some_are_a_sentence(write, time):
    file = write("shop.csv", f"user_id,candidate_id,timestamp\na,x,{time}\n")
    with pytest.raises(DatasetError, match=r"line 2, column timestamp: (there is no|expected)"):
        load_files(file)


def test_days_of_parquet_are_timestamps(write):
    days = pa.array([dt.date(1970, 1, 2), dt.date(1970, 1, 1)])
    table = {"user_id": ["a", "b"], "candidate_id": ["x", "y"], "timestamp": days}
    assert load_files(write("days.parquet", table)).timestamps.tolist() == [86_400, 0]


def test_a_column_without_a_name_is_not_read(write):
    file = write("shop.csv", ",user_id,candidate_id\n0,a,x\n1,b,y\n")
    assert load_files(file).users["user_id"].to_pylist() == ["a", "b"]


def test_a_name_that_is_not_text_is_a_sentence(tmp_path):
    file = tmp_path / os.fsdecode(b"donn\xe9es.csv")
    file.write_text("user_id,candidate_id\na,x\n")
    with pytest.raises(DatasetError, match=r"donn.udce9es\.csv': the name of the file is not"):
        load_files(file)


def test_rating_and_timestamp_may_be_missing(write):
    dataset = load_files(write("shop.csv", "user_id,candidate_id\na,x\n"))

    assert (dataset.ratings, dataset.timestamps) == (None, None)


def test_without_a_file_of_candidates_they_are_those_of_the_interactions(write):
    dataset = load_files(write("shop.csv", INTERACTIONS))

    assert dataset.candidates.to_pydict() == {"candidate_id": ["x", "y,1", "z"]}


def test_min_rating_narrows(write):
    assert len(load_files(write("shop.csv", INTERACTIONS), min_rating=3.5)) == 2


def test_blank_lines_and_a_byte_order_mark_do_no_harm(write):
    text = "\ufeffuser_id,candidate_id\r\n\r\na,x\r\n\r\nb,y\r\n"

    assert load_files(write("shop.csv", text)).user_ids.tokens([0, 1]) == ["a", "b"]


def test_parquet_brings_its_own_types(write):
    second = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    interactions = {
        "user_id": pa.array([7, 3]),
        "candidate_id": pa.array(["x", "y"]).dictionary_encode(),
        "rating": pa.array([5, 1], pa.int8()),
        "timestamp": pa.array([second, second + dt.timedelta(seconds=1)]),
    }
    candidates = {
        "candidate_id": ["y", "x"],
        "title": pa.array([300, None]),
        "tags": pa.array([["b", None, "", " a"], None], pa.large_list(pa.large_string())),
        "year": pa.array([1999, None], pa.int16()),
        "price": pa.array([float("nan"), 2.5], pa.float32()),
        "text": ["a|b", "007"],
        "kind": pa.array(["k", "l"]).dictionary_encode(),
        "view": pa.array(["m", "n"], pa.string_view()),
        "is_new": [True, None],
        "note": pa.nulls(2),
    }

    dataset = load_files(write("i.parquet", interactions), write("c.parquet", candidates))

    assert dataset.users.to_pydict() == {"user_id": ["3", "7"]}
    assert dataset.user_rows.tolist() == [1, 0]
    assert dataset.candidate_rows.tolist() == [0, 1]
    assert dataset.ratings.tolist() == [5, 1]
    assert dataset.timestamps.tolist() == [1577836800, 1577836801]
    assert dataset.candidates.to_pydict() == {
        "candidate_id": ["x", "y"],
        "title": [None, "300"],
        "tags": [[], ["b", "a"]],
        "year": [None, 1999],
        "price": [2.5, None],
        "text": ["007", "a|b"],
        "kind": ["l", "k"],
        "view": ["n", "m"],
        "is_new": [None, True],
        "note": [None, None],
    }


GOOD = "candidate_id,title\nx,One\ny,Two\n"


@pytest.mark.parametrize(
    ("interactions", "expected"),
    [
        (
            "user_id,item\na,x\n",
            "line 1: column candidate_id is missing: expected user_id, ",
        ),
        ("", "line 1: column user_id is missing: .* found nothing"),
        ("user_id,user_id,candidate_id\na,a,x\n", "line 1: every column needs a name of its own"),
        ("user_id,candidate_id\n", "there are no interactions in this file"),
        ("user_id,candidate_id\na,x\n ,x\n", "line 3, column user_id: the id is empty"),
        ("user_id,candidate_id\na,\n", "line 2, column candidate_id: the id is empty"),
        ("user_id,candidate_id\na,x\n\na,q\n", "line 4, column candidate_id: candidate q is not"),
        (
            "user_id,candidate_id,rating\na,x,5\na,y,good\n",
            "line 3, column rating: expected a number, found 'good'",
        ),
        ("user_id,candidate_id,rating\na,x,NaN\n", "line 2, column rating: .* found 'NaN'"),
        ("user_id,candidate_id,rating\na,x,1e999\n", "line 2, column rating: .* found '1e999'"),
        ("user_id,candidate_id,rating\na,x,-1e39\n", "line 2, column rating: .* found '-1e39'"),
        ("user_id,candidate_id,rating\na,x,\n", "line 2, column rating: .* found ''"),
        (
            'user_id,candidate_id,timestamp,note\na,x,1,"of two\nlines"\na,x,noon,\n',
            "line 4, column timestamp: expected seconds since 1970 .* found 'noon'",
        ),
        (
            "user_id,candidate_id,timestamp\na,x,1600000000000\n",
            "line 2, column timestamp: expected seconds since 1970 .* found '1600000000000'",
        ),
        ("user_id,candidate_id\na,x\na\n", "line 3: expected 2 values, .* found 1"),
        ("user_id,candidate_id\na,x\na,x,1\n", "line 3: expected 2 values, .* found 3"),
        (b"user_id,candidate_id\na,x\na,\xff\xfe\n", "line 3, column candidate_id: not UTF-8"),
    ],
)
def test_bad_interactions_are_refused_by_file_line_and_column(write, interactions, expected):
    path = write("bad.csv", interactions)

    with pytest.raises(DatasetError, match=f"bad.csv(, |: ){expected}"):
        load_files(path, write("items.csv", GOOD))


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ("id,title\nx,One\n", "line 1: column candidate_id is missing"),
        ("candidate_id,title\n", "there are no candidates in this file"),
        (
            "candidate_id\nx\ny\nx\n",
            "line 4, column candidate_id: candidate x is already in line 2",
        ),
        ("candidate_id,title\nx,One\n,Two\n", "line 3, column candidate_id: the id is empty"),
        (b"candidate_id,title\nx,\xe9\n", "line 2, column title: not UTF-8"),
    ],
)
def test_bad_candidates_are_refused_by_file_line_and_column(write, candidates, expected):
    path = write("bad.csv", candidates)

    with pytest.raises(DatasetError, match=f"bad.csv(, |: ){expected}"):
        load_files(write("shop.csv", "user_id,candidate_id\na,x\n"), path)


def test_users_are_those_of_both_files_and_typed_as_candidates_are(write):
    users = write("users.csv", "plan,user_id,age,likes\ngold,zoe,30,\n,bo,41,tea|art\n")
    dataset = load_files(write("shop.csv", INTERACTIONS), None, users)

    assert dataset.users.to_pydict() == {
        "user_id": ["al", "bo", "zoe"],
        "plan": [None, None, "gold"],
        "age": [None, 41, 30],
        "likes": [None, ["tea", "art"], []],
    }
    assert dataset.user_rows.tolist() == [1, 0, 1]


def test_users_of_other_interactions_are_refused(write):
    users = write("users.csv", "user_id,age\nAl,30\nBo,41\n")

    with pytest.raises(DatasetError, match=r"users\.csv: none of these users is in .*shop\.csv: "):
        load_files(write("shop.csv", INTERACTIONS), None, users)


def test_users_listed_twice_are_refused(write):
    users = write("users.csv", "user_id\nbo\nbo\n")

    with pytest.raises(DatasetError, match="line 3, column user_id: user bo is already in line 2"):
        load_files(write("shop.csv", INTERACTIONS), None, users)


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("user_id", ["a", None], "row 2, column user_id: the id is empty"),
        ("user_id", [1.5, 2.5], "column user_id: expected texts or whole numbers, found double"),
        ("rating", [1.0, float("nan")], "row 2, column rating: expected a number, found nan"),
        ("rating", [None, 1.0], "row 1, column rating: expected a number, found None"),
        ("rating", ["1", "x"], "row 2, column rating: expected a number, found 'x'"),
        ("rating", [[1], [2]], "column rating: expected numbers, found list"),
        ("timestamp", [1, 2**60], "row 2, column timestamp: expected seconds .* found 11529"),
        ("timestamp", [1, 10**15], "row 2, column timestamp: expected seconds .* found 10{15}$"),
        (
            "timestamp",
            pa.array([0, 10**8], pa.date32()),
            "row 2, column timestamp: .* found 10{8}$",
        ),
        ("rating", pa.array([0, 1], pa.date32()), "column rating: expected numbers, found date32"),
    ],
)
def test_bad_parquet_is_refused_by_row(write, column, values, expected):
    table = {"user_id": ["a", "b"], "candidate_id": ["x", "y"]} | {column: values}

    with pytest.raises(DatasetError, match=f"bad.parquet, {expected}"):
        load_files(write("bad.parquet", table))


def test_days_and_times_are_texts(write):
    released = pa.array([dt.datetime(2026, 11, 30, 12, tzinfo=dt.UTC)])
    candidates = {"candidate_id": ["x"], "day": [dt.date(2026, 11, 30)], "released": released}
    file = write("c.parquet", candidates)
    loaded = load_files(write("i.csv", "user_id,candidate_id\na,x\n"), file).candidates
    assert loaded["day"].to_pylist() == ["2026-11-30"]
    assert loaded["released"].to_pylist()[0].startswith("2026-11-30 12:00:00")


@pytest.mark.parametrize(
    ("size", "found"), [({"width": 1}, "struct"), ([0.5, 1.0], "list<.*double")]
)
def test_metadata_of_a_type_that_no_tower_reads_is_refused(write, size, found):
    candidates = {"candidate_id": ["x"], "size": [size]}

    with pytest.raises(DatasetError, match=rf"column size: expected text, .* found {found}.*leave"):
        load_files(write("i.csv", "user_id,candidate_id\na,x\n"), write("c.parquet", candidates))


def test_numbers_that_do_not_fit_are_refused(write):
    candidates = {"candidate_id": ["x"], "size": pa.array([2**64 - 1], pa.uint64())}

    with pytest.raises(DatasetError, match=r"column size: a value of type uint64 does not fit: "):
        load_files(write("i.csv", "user_id,candidate_id\na,x\n"), write("c.parquet", candidates))


@pytest.mark.parametrize("n_lines", [3, 1_000_000])
def test_a_quote_that_is_never_closed_is_refused(write, n_lines):
    found = "unexpected end" if n_lines == 3 else "field larger"
    with pytest.raises(DatasetError, match=rf"shop\.csv, line 3: cannot be read \({found}"):
        load_files(write("shop.csv", 'user_id,candidate_id\na,x\nb,"x\n' + "b,x\n" * n_lines))


def test_quotes_that_swallow_lines_are_refused(write):
    lines = 'user_id,candidate_id\na,x\nb,"x\nc,"y\nd,z\n'
    with pytest.raises(DatasetError, match=r"line 3, column candidate_id: the id has several line"):
        load_files(write("shop.csv", lines))


def test_a_quote_within_a_value_is_none(write):
    candidates = 'candidate_id,title\nx,Disk of 5" or 12\n'
    found = load_files(write("shop.csv", "user_id,candidate_id\na,x\n"), write("c.csv", candidates))
    assert found.candidates["title"].to_pylist() == ['Disk of 5" or 12']


def test_an_index_of_pandas_is_no_column(write):
    table = {"candidate_id": ["x"], "year": [1990], "__index_level_0__": [7]}
    found = load_files(write("i.csv", "user_id,candidate_id\na,x\n"), write("c.parquet", table))
    assert found.candidates.column_names == ["candidate_id", "year"]


def test_a_title_that_is_no_text_is_refused(write):
    candidates = {"candidate_id": ["x"], "title": [["One"]]}

    with pytest.raises(DatasetError, match="column title: expected text, found list"):
        load_files(write("i.csv", "user_id,candidate_id\na,x\n"), write("c.parquet", candidates))


def test_other_files_are_refused(write, tmp_path):
    with pytest.raises(DatasetError, match=r"expected a file named \.csv or \.parquet"):
        load_files(write("shop.json", "{}"))
    with pytest.raises(DatasetError, match=r"shop\.parquet: cannot be read \("):
        load_files(write("shop.parquet", "user_id,candidate_id\n"))
    with pytest.raises(DatasetError, match=r"missing.csv: cannot be read \(No such file"):
        load_files(tmp_path / "missing.csv")
