"""MovieLens as TensorFlow Datasets' own builder parses and writes it.

The versions that are not at hand are made up: tiny raw archives in each version's own format, given
to the builder in place of its download.
"""

import os
import urllib.error
import urllib.request
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tensorflow_datasets as tfds

from trainer.datasets import MOVIELENS_VERSIONS, DatasetError, DatasetUnavailableError, movielens

RAW_100K = {
    "u.item": (
        "1|Toy Story (1995)|01-Jan-1995|||0|0|0|1|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
        "10|Léon (1994)|01-Jan-1994|||0|1|0|0|0|0|0|0|0|0|0|0|0|0|0|0|1|0|0\n"
        "2|unknown||||1|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
    ),
    "u.user": "7|24|M|technician|85711\n12|53|F|other|94043\n",
    "u.data": "7\t1\t5\t881250949\n12\t10\t3\t891717742\n7\t2\t1\t878887116\n",
}
RAW_1M = {
    "movies.dat": (
        "1::Toy Story (1995)::Animation|Children's|Comedy\n"
        "10::Léon (1994)::Crime|Drama\n"
        "2::Old One (1931)::Horror\n"
    ),
    "users.dat": "7::M::25::12::85711\n12::F::56::10::94043\n",
    "ratings.dat": "7::1::5::978300760\n12::10::3::978302109\n7::2::1::978301968\n",
}
RAW_CSV = {
    "movies.csv": (
        "movieId,title,genres\n"
        "1,Toy Story (1995),Adventure|Animation\n"
        '10,"Léon, or The Professional (1994) (V)",Crime\n'
        "2,A Series (1972–1973),(no genres listed)\n"  # noqa: RUF001
    ),
    "ratings.csv": (
        "userId,movieId,rating,timestamp\n7,1,4.5,964982703\n12,10,3.0,964981247\n"
        "7,2,0.5,964982224\n"
    ),
}
RAW = {"100k": RAW_100K, "1m": RAW_1M, "20m": RAW_CSV, "25m": RAW_CSV, "latest-small": RAW_CSV}
ENCODING = {"100k": "latin-1", "1m": "latin-1"}


def prepare(version: str, root: Path, raw: dict[str, str], n_shards: int = 1) -> None:
    """Let the builder itself prepare ``version`` under ``root`` from raw files."""
    archive = root / "raw"
    folder = archive / f"ml-{version}"
    folder.mkdir(parents=True)
    for name, text in raw.items():
        (folder / name).write_text(text, encoding=ENCODING.get(version, "utf-8"))
    config = tfds.download.DownloadConfig(try_download_gcs=False, num_shards=n_shards)
    with mock.patch.object(
        tfds.download.DownloadManager, "download_and_extract", return_value=str(archive)
    ):
        for table in ("ratings", "movies"):
            builder = tfds.builder(f"movielens/{version}-{table}", data_dir=root)
            builder.download_and_prepare(download_config=config)


@pytest.fixture(params=MOVIELENS_VERSIONS)
def version(request):
    return request.param


@pytest.fixture
def dataset(version, tmp_path, monkeypatch):
    prepare(version, tmp_path, RAW[version])
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return movielens.load(version)


def test_interactions_and_ids(version, dataset):
    assert dataset.name == f"movielens/{version}"
    assert dataset.users["user_id"].to_pylist() == ["12", "7"]
    assert dataset.candidates["candidate_id"].to_pylist() == ["1", "10", "2"]
    pairs = zip(dataset.user_rows.tolist(), dataset.candidate_rows.tolist(), strict=True)
    assert {(1, 0), (0, 1), (1, 2)} == set(pairs)
    assert np.int32 == dataset.user_rows.dtype == dataset.candidate_rows.dtype
    assert np.int64 == dataset.timestamps.dtype
    assert np.float32 == dataset.ratings.dtype


def test_ratings_and_times_stay_with_their_interaction(version, dataset):
    of_candidate = dict(
        zip(
            dataset.candidate_rows.tolist(),
            zip(dataset.ratings.tolist(), dataset.timestamps.tolist(), strict=True),
            strict=True,
        )
    )
    expected = {
        "100k": {0: (5.0, 881250949), 1: (3.0, 891717742), 2: (1.0, 878887116)},
        "1m": {0: (5.0, 978300760), 1: (3.0, 978302109), 2: (1.0, 978301968)},
    }.get(version, {0: (4.5, 964982703), 1: (3.0, 964981247), 2: (0.5, 964982224)})
    assert expected == of_candidate


def test_titles_years_and_genres(version, dataset):
    expected = {
        "100k": [
            ("Toy Story (1995)", 1995, ["Animation", "Children", "Comedy"]),
            ("Léon (1994)", 1994, ["Action", "Thriller"]),
            ("unknown", None, ["Unknown"]),
        ],
        "1m": [
            ("Toy Story (1995)", 1995, ["Animation", "Children", "Comedy"]),
            ("Léon (1994)", 1994, ["Crime", "Drama"]),
            ("Old One (1931)", 1931, ["Horror"]),
        ],
    }.get(
        version,
        [
            ("Toy Story (1995)", 1995, ["Adventure", "Animation"]),
            ("Léon, or The Professional (1994) (V)", 1994, ["Crime"]),
            ("A Series (1972–1973)", 1972, ["(no genres listed)"]),  # noqa: RUF001
        ],
    )
    candidates = dataset.candidates.to_pydict()
    columns = (candidates["title"], candidates["year"], candidates["genres"])
    assert expected == list(zip(*columns, strict=True))


def test_demographics(version, dataset):
    if version == "100k":
        expected = {
            "user_id": ["12", "7"],
            "gender": ["female", "male"],
            "age": [53, 24],
            "age_group": [50, 18],
            "occupation": ["other/not specified", "technician/engineer"],
            "occupation_text": ["other", "technician"],
            "zip_code": ["94043", "85711"],
        }
    elif version == "1m":
        expected = {
            "user_id": ["12", "7"],
            "gender": ["female", "male"],
            "age_group": [56, 25],
            "occupation": ["student", "programmer"],
            "occupation_text": ["K-12 student", "programmer"],
            "zip_code": ["94043", "85711"],
        }
    else:
        expected = {"user_id": ["12", "7"]}
    assert expected == dataset.users.to_pydict()


def test_rows_come_in_the_order_of_tfds_whatever_the_shards(tmp_path, monkeypatch):
    ratings = "".join(f"7,1,4.5,{timestamp}\n" for timestamp in range(200))
    raw = RAW_CSV | {"ratings.csv": "userId,movieId,rating,timestamp\n" + ratings}
    prepare("25m", tmp_path, raw, n_shards=3)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))

    expected = tfds.load("movielens/25m-ratings", split="train", data_dir=tmp_path)
    actual = movielens.load("25m").timestamps

    assert [int(row["timestamp"]) for row in tfds.as_numpy(expected)] == actual.tolist()


def test_damaged_files_are_refused(tmp_path, monkeypatch):
    prepare("1m", tmp_path, RAW_1M)
    (record_file,) = tmp_path.glob("movielens/1m-ratings/*/*.tfrecord*")
    damaged = bytearray(record_file.read_bytes())
    damaged[40] ^= 0xFF
    record_file.write_bytes(damaged)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))

    with pytest.raises(DatasetError, match=r"cannot be read .* prepare it again"):
        movielens.load("1m")


def test_without_a_network_the_refusal_is_prompt_and_says_what_to_do(tmp_path, monkeypatch):
    def unreachable(url, timeout):
        assert url.endswith("ml-20m.zip")
        assert timeout <= 10
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))

    with pytest.raises(DatasetUnavailableError, match=r"20m.*ml-20m\.zip.*TFDS_DATA_DIR"):
        movielens.load("20m")


@pytest.mark.skipif("TFDS_DATA_DIR" not in os.environ, reason="TFDS_DATA_DIR is not set")
def test_the_real_100k():
    dataset = movielens.load("100k")

    assert (dataset.n_users, dataset.n_candidates, len(dataset)) == (943, 1682, 100_000)
    assert len(set(dataset.candidates["title"].to_pylist())) == 1664
    assert dataset.candidates["year"].null_count == 1
    ages = dataset.users["age"].to_numpy()
    assert (ages.min(), ages.max()) == (7, 73)
    assert dataset.users["gender"].to_pylist().count("female") == 273
