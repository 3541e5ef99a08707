"""MovieLens in all five versions of TensorFlow Datasets, with every feature each of them has.

Importing this takes the seconds that TensorFlow takes, so it is imported only when asked for.
"""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow_datasets as tfds

from trainer.datasets.dataset import (
    Dataset,
    DatasetError,
    DatasetUnavailableError,
    rows_of,
    sorted_unique,
)
from trainer.keras import tf

# The feature's name in TensorFlow Datasets: ours.
_USER_FEATURES = {
    "user_gender": "gender",
    "raw_user_age": "age",
    "bucketized_user_age": "age_group",
    "user_occupation_label": "occupation",
    "user_occupation_text": "occupation_text",
    "user_zip_code": "zip_code",
}
# "(1995)", and for series "(1972-1973)" or "(2009- )": the last one in a title is the year.
_YEAR = r".*\((?P<year>\d{4})(?:[-–]\d{0,4}\s?)?\)"  # noqa: RUF001 - titles have the en dash
_BATCH_SIZE = 65_536
_REACH_TIMEOUT_SECONDS = 10.0

Columns = dict[str, npt.NDArray[Any]]


def load(version: str) -> Dataset:
    """Load one version of MovieLens, downloading and preparing it on first use.

    Interactions come in the order of ``tfds.load(f"movielens/{version}-ratings", split="train")``.
    The data lie in the directory ``TFDS_DATA_DIR``, or in TensorFlow Datasets' own.

    Args:
        version: one of ``trainer.datasets.MOVIELENS_VERSIONS``.

    Raises:
        DatasetUnavailableError: if it is not prepared and cannot be downloaded.
        DatasetError: if the prepared files cannot be read.
    """
    ratings, movies = _prepared(f"{version}-ratings"), _prepared(f"{version}-movies")
    candidates = _candidates(movies)
    columns = ["user_id", "movie_id", "user_rating", "timestamp"]
    features = [name for name in _USER_FEATURES if name in ratings.info.features]
    rows = _read(ratings, columns + features)
    user_ids = pa.chunked_array([_strings(rows["user_id"])])
    unique_user_ids = sorted_unique(user_ids)
    user_rows = rows_of(user_ids, unique_user_ids)
    return Dataset(
        name=f"movielens/{version}",
        users=_users(unique_user_ids, user_rows, rows, ratings.info.features),
        candidates=candidates,
        user_rows=user_rows,
        candidate_rows=rows_of(
            pa.chunked_array([_strings(rows["movie_id"])]),
            candidates["candidate_id"].combine_chunks(),
        ),
        timestamps=rows["timestamp"],
        ratings=rows["user_rating"],
    )


def _prepared(config: str) -> Any:
    """Return the builder of one configuration, its files on disk."""
    builder = tfds.builder(f"movielens/{config}", data_dir=os.environ.get("TFDS_DATA_DIR"))
    # What builder.is_prepared() looks for, without its warning.
    if not (builder.data_path / "dataset_info.json").exists():
        _download(builder)
    return builder


def _download(builder: Any) -> None:
    """Let TensorFlow Datasets download and prepare, unless its source is plainly out of reach.

    Without a network its own download goes on retrying for minutes.
    """
    url = builder.builder_config.download_url
    try:
        with urllib.request.urlopen(url, timeout=_REACH_TIMEOUT_SECONDS):  # noqa: S310 - https
            pass
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    except Exception as error:  # its errors (checksum, archive, network) have no common base
        raise DatasetUnavailableError(
            f"{builder.info.full_name} is not prepared in {builder.data_dir_root} and could not "
            f"be downloaded from {url} ({error}): prepare it on a machine with a network, "
            "and let TFDS_DATA_DIR name the directory it lies in"
        ) from error


def _read(builder: Any, columns: Sequence[str]) -> Columns:
    """Read the scalar features of all rows, in the order of ``tfds.load``."""
    specs = {
        name: tf.io.FixedLenFeature((), _stored_dtype(builder.info.features[name]))
        for name in columns
    }
    batches = list(_batches(builder, specs))
    return {name: np.concatenate([batch[name].numpy() for batch in batches]) for name in columns}


def _batches(builder: Any, specs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield batches of parsed examples, as tensors by feature.

    ``tfds.load`` decodes one example at a time, which takes minutes for the large versions; here
    a batch is parsed at once. Shards are interleaved as ``tfds.load`` does, so rows come in the
    same order.
    """
    files = [str(path) for path in builder.info.splits["train"].filepaths]
    records = tf.data.Dataset.from_tensor_slices(files).interleave(
        tf.data.TFRecordDataset,
        cycle_length=16,
        block_length=16,
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    parsed = records.batch(_BATCH_SIZE).map(
        lambda serialized: tf.io.parse_example(serialized, specs)
    )
    try:
        yield from parsed
    except (tf.errors.OpError, ValueError) as error:
        raise DatasetError(
            f"the prepared files of {builder.info.full_name} in {builder.data_path} cannot be "
            f"read ({error}): remove that directory and prepare it again"
        ) from error


def _stored_dtype(feature: Any) -> Any:
    """Return the TensorFlow type a feature has in the files: booleans and labels are int64."""
    if np.issubdtype(feature.np_dtype, np.floating):
        return tf.float32
    if np.issubdtype(feature.np_dtype, np.integer) or feature.np_dtype == np.bool_:
        return tf.int64
    return tf.string


def _candidates(builder: Any) -> pa.Table:
    """Return the movies, sorted by id: candidate_id, title, genres and year."""
    scalar = tf.io.FixedLenFeature((), tf.string)
    specs = {
        "movie_id": scalar,
        "movie_title": scalar,
        "movie_genres": tf.io.RaggedFeature(tf.int64),
    }
    names = pa.array(builder.info.features["movie_genres"].feature.names, type=pa.string())
    tables = []
    for batch in _batches(builder, specs):
        genres = batch["movie_genres"]
        titles = _strings(batch["movie_title"].numpy())
        tables.append(
            pa.table(
                {
                    "candidate_id": _strings(batch["movie_id"].numpy()),
                    "title": titles,
                    "genres": pa.ListArray.from_arrays(
                        tf.cast(genres.row_splits, tf.int32).numpy(),
                        names.take(pa.array(genres.values.numpy())),
                    ),
                    "year": _years(titles),
                }
            )
        )
    return pa.concat_tables(tables).sort_by("candidate_id").combine_chunks()


def _years(titles: pa.Array) -> pa.Array:
    """Return the year at the end of each title as int64, null where there is none."""
    return pc.struct_field(pc.extract_regex(titles, pattern=_YEAR), "year").cast(pa.int64())


def _users(
    user_ids: pa.Array, user_rows: npt.NDArray[np.int32], rows: Columns, features: Any
) -> pa.Table:
    """Return the users with what the ratings say of them: the same in each row of a user."""
    first_rows = np.unique(user_rows, return_index=True)[1]
    columns: dict[str, pa.Array] = {"user_id": user_ids}
    for name, ours in _USER_FEATURES.items():
        if name in rows:
            columns[ours] = _user_column(name, rows[name][first_rows], features[name])
    return pa.table(columns)


def _user_column(name: str, values: npt.NDArray[Any], feature: Any) -> pa.Array:
    """Return a user feature as people read it: words for labels, whole years for ages."""
    if name == "user_gender":
        return pa.array(np.where(values, "male", "female"), type=pa.string())
    if name == "user_occupation_label":
        return pa.array(feature.names, type=pa.string()).take(pa.array(values))
    if np.issubdtype(values.dtype, np.floating):
        return pa.array(values.astype(np.int64))
    return _strings(values)


def _strings(values: npt.NDArray[np.object_]) -> pa.StringArray:
    """Return the bytes that TensorFlow gives as Arrow strings."""
    return pa.array(values, type=pa.string())
