"""The tower bundle: its schema and its reader.

    query_tower/1/                  SavedModels, in TensorFlow Serving's layout
    candidate_tower/1/
    query_tower.tflite              the same towers in LiteRT form, with numeric inputs
    candidate_tower.tflite
    description_tower/1/            what embeds texts, in both forms, if the towers read content in
    description_tower.tflite        histories
    ranker/1/ ranker.tflite         the ranking model in both forms, if there are ratings
    ranker.json                     what it reads
    features.json                   what the towers read (trainer.features)
    vocabularies.parquet            feature, token; a feature's tokens in order, but those of ids
    candidates.parquet              candidate_id and metadata; the line is the candidate's row
    histories.parquet               user_id, candidate_rows, and what the models read of users;
                                    the line is the user's row
    query_embeddings.npy            (n_users, dim) float32, the known users' embeddings
    tuning_queries.npy              (n_queries, dim) float32, embeddings of held-out users
    popularity.npy                  (n_candidates,) float32, interactions the weights have seen
    evaluation.json model_card.md   how good the towers are, and how that was measured
    user_quality.parquet            user_id, ndcg@10, held_out: how good they are by user, against
                                    which the next bundle is compared
    learning_curve.png              loss, and validation if there was any, by epoch

``trainer.export`` is the only writer. The indexer copies ``QUERY_ASSET_FILES`` into the index
bundle, so the server reads both through ``QueryAssets``. Nothing here imports TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from trainer.features import CANDIDATE_ID, USER_ID, Features
from trainer.publish import BundleError, Manifest, read_manifest, resolve, verify_files
from trainer.vocabulary import Vocabulary

QUERY_TOWER = "query_tower.tflite"
CANDIDATE_TOWER = "candidate_tower.tflite"
DESCRIPTION_TOWER = "description_tower.tflite"
RANKER = "ranker.tflite"
RANKER_DESCRIPTION = "ranker.json"
FEATURES = "features.json"
VOCABULARIES = "vocabularies.parquet"
CANDIDATES = "candidates.parquet"
HISTORIES = "histories.parquet"
QUERY_EMBEDDINGS = "query_embeddings.npy"
TUNING_QUERIES = "tuning_queries.npy"
POPULARITY = "popularity.npy"
EVALUATION = "evaluation.json"
USER_QUALITY = "user_quality.parquet"
LEARNING_CURVE = "learning_curve.png"
MODEL_CARD = "model_card.md"

SERVING_SIGNATURE = "serving_default"
"""Of the models as SavedModels, which are called by it in TensorFlow Serving."""

QUERY_ASSET_FILES = (
    *(QUERY_TOWER, FEATURES, VOCABULARIES, DESCRIPTION_TOWER),
    *(HISTORIES, QUERY_EMBEDDINGS),
    *(RANKER, RANKER_DESCRIPTION),
)
"""What the server needs of the models. The description tower is absent if the towers read no
content in histories, the second two are if histories were left out, and the last two if there were
no ratings to train a ranking model on."""

HISTORY_ROWS = "candidate_rows"
"""The column of histories that holds them; the others are the users'."""

_NPY_MAGIC = np.lib.format.MAGIC_PREFIX
_HISTORY_COLUMNS = ["user_id", HISTORY_ROWS]

S = TypeVar("S", bound=BaseModel)


def saved_model_of(name: str) -> Path:
    """Return within a bundle the SavedModel of what has this name in LiteRT form."""
    return Path(name).with_suffix("") / "1"


class RankerDescription(BaseModel):
    """What the ranking model reads; its inputs are named by side and position."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    features: Features
    query_tokens: dict[str, tuple[str, ...]]
    """The vocabulary of each query feature that has one, ids and history apart."""
    candidate_tokens: dict[str, tuple[str, ...]]
    """The same of the candidate features."""

    @classmethod
    def of(
        cls,
        features: Features,
        query: Mapping[str, Vocabulary],
        candidate: Mapping[str, Vocabulary],
    ) -> RankerDescription:
        """Describe features and their vocabularies by name."""
        return cls(
            features=features,
            query_tokens={name: tuple(one.array.to_pylist()) for name, one in query.items()},
            candidate_tokens={
                name: tuple(one.array.to_pylist()) for name, one in candidate.items()
            },
        )


class TrainedOn(BaseModel):
    """Which rows the weights have seen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    rows: str
    """``all`` of the dataset's interactions, or the train part of a split: ``random train``..."""
    n_interactions: int
    min_rating: float | None = None
    """What the interactions were rated at least, if they were chosen so."""
    newest_timestamp: int | None = None
    """Seconds since the epoch of the newest interaction seen, if the data has times."""


class TowerManifest(Manifest):
    """What a tower bundle says about itself."""

    format_version: int = 1
    kind: str = "towers"
    dim: int
    has_bias_dimension: bool
    """Whether the candidates' last dimension is a bias and the queries' last is 1."""
    max_history_length: int
    n_candidates: int
    n_users: int
    seed: int
    trained_on: TrainedOn
    config: dict[str, Any] = Field(default_factory=dict)
    evaluation: dict[str, Any] = Field(default_factory=dict)
    """The held-out quality, measured before the weights saw the rows; in full in its own file."""
    started_from: str | None = None
    """The version whose weights the training began with: they have seen what it had seen."""
    refreshed_from: str | None = None
    """The version whose models these are, if only histories, and perhaps candidates, are newer."""
    ranker_config: dict[str, Any] | None = None
    """How the ranking model was built and trained; None if there is none."""

    @property
    def has_ranker(self) -> bool:
        """Whether there is a ranking model."""
        return self.ranker_config is not None


class QueryAssets:
    """What turns a query into an embedding, and ranks its candidates, read from one directory.

    Args:
        directory: a tower bundle, or the ``query/`` folder of an index bundle; its files have been
            verified by whoever opened the bundle.

    Raises:
        BundleError: if the features cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tower_path = directory / QUERY_TOWER
        self.features = _read_json(directory / FEATURES, Features)

    def check(self, dim: int, n_candidates: int) -> None:
        """Open everything but the models, so that what does not fit together is found now.

        Args:
            dim: of the embeddings.
            n_candidates: how many there are.

        Raises:
            BundleError: if a part cannot be read, or belongs to other towers.
        """
        try:
            known, users = self.query_embeddings, self.user_ids
            _ = self.vocabularies, self.ranker
            rows = np.empty(0) if users is None else self._history_arrays[1]
        except ValueError as error:  # of a vocabulary
            raise BundleError(f"{self.directory}: {error}") from error
        expected = (0 if users is None else len(users), dim)
        if known is not None and known.shape != expected:
            raise BundleError(
                f"{self.directory / QUERY_EMBEDDINGS} has shape {known.shape}, not {expected}: it "
                "is of other towers"
            )
        if len(rows) and not (rows.min() >= 0 and rows.max() < n_candidates):
            raise BundleError(
                f"{self.directory / HISTORIES} has candidates that are not among the "
                f"{n_candidates} there are: it is of other towers"
            )

    @cached_property
    def vocabularies(self) -> dict[str, Vocabulary]:
        """The tokens of each feature that has any."""
        table = read_table(self.directory / VOCABULARIES, "feature", "token")
        names = table.column("feature").unique().to_pylist()
        vocabularies = {name: Vocabulary(_tokens_of(table, name)) for name in names}
        if self.features.reads_users and self.user_ids is not None:
            vocabularies[USER_ID] = self.user_ids
        return vocabularies

    @cached_property
    def user_ids(self) -> Vocabulary | None:
        """The known users, or None if the bundle holds no histories."""
        if self._histories is None:
            return None
        return Vocabulary(self._histories.column("user_id"))

    def history(self, user_row: int) -> np.ndarray:
        """Return the candidate rows (n,) int32 of a known user's history, oldest first."""
        offsets, rows = self._history_arrays
        return rows[offsets[user_row] : offsets[user_row + 1]]

    def user_values(self, user_row: int) -> dict[str, Any]:
        """Return what is known of a known user beside the history: raw values by name."""
        if self._histories is None:
            raise BundleError(f"{self.directory} holds no histories")
        (values,) = self._histories.slice(user_row, 1).drop_columns(_HISTORY_COLUMNS).to_pylist()
        return values  # type: ignore[no-any-return]

    @property
    def description_tower_path(self) -> Path | None:
        """The description tower in LiteRT form; None if there is none."""
        path = self.directory / DESCRIPTION_TOWER
        return path if path.exists() else None

    @property
    def ranker_path(self) -> Path:
        """The ranking model in LiteRT form, if ``ranker`` is not None."""
        return self.directory / RANKER

    @cached_property
    def ranker(self) -> RankerDescription | None:
        """What the ranking model reads; None if there is no ranking model."""
        path = self.directory / RANKER_DESCRIPTION
        return _read_json(path, RankerDescription) if path.exists() else None

    @cached_property
    def query_embeddings(self) -> np.ndarray | None:
        """(n_users, dim) float32, memory-mapped: the known users' embeddings."""
        path = self.directory / QUERY_EMBEDDINGS
        return load_array(path) if path.exists() else None

    @cached_property
    def _histories(self) -> pa.Table | None:
        path = self.directory / HISTORIES
        return read_table(path, *_HISTORY_COLUMNS) if path.exists() else None

    @cached_property
    def _history_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        if self._histories is None:
            raise BundleError(f"{self.directory} holds no histories")
        lists = self._histories.column(HISTORY_ROWS).combine_chunks()
        return lists.offsets.to_numpy(), lists.values.to_numpy()


class TowerBundle:
    """A published tower bundle.

    Args:
        directory: the version's directory.
        manifest: its manifest.
    """

    def __init__(self, directory: Path, manifest: TowerManifest) -> None:
        self.directory = directory
        self.manifest = manifest

    @classmethod
    def open(cls, path: Path, *, verify: bool = True) -> TowerBundle:
        """Open the bundle at ``path``, which may be a ``current`` link.

        Args:
            path: a version's directory, or a link to one.
            verify: whether to hash every file first.

        Raises:
            BundleError: if there is no bundle, or it is damaged or of another kind.
        """
        directory = resolve(path)
        manifest = read_manifest(directory, TowerManifest)
        if verify:
            verify_files(directory, manifest)
        return cls(directory, manifest)

    @property
    def candidate_tower_path(self) -> Path:
        """The candidate tower in LiteRT form."""
        return self.directory / CANDIDATE_TOWER

    @cached_property
    def query(self) -> QueryAssets:
        """What turns a query into an embedding."""
        return QueryAssets(self.directory)

    @property
    def candidates_path(self) -> Path:
        """The file of ``candidates``, for those who read a part at a time."""
        return self.directory / CANDIDATES

    @cached_property
    def candidates(self) -> pa.Table:
        """``candidate_id`` and the metadata; the line is the candidate's row."""
        return read_table(self.candidates_path, CANDIDATE_ID)

    @cached_property
    def candidate_ids(self) -> Vocabulary:
        """The candidates' ids in row order."""
        return Vocabulary(self.candidates.column(CANDIDATE_ID))

    @property
    def vocabularies(self) -> dict[str, Vocabulary]:
        """The tokens of each feature that has any, the candidates' ids among them."""
        return {**self.query.vocabularies, CANDIDATE_ID: self.candidate_ids}

    @cached_property
    def popularity(self) -> np.ndarray:
        """(n_candidates,) float32: how many interactions of each the weights have seen."""
        return load_array(self.directory / POPULARITY)

    @cached_property
    def user_quality(self) -> pa.Table | None:
        """The held-out quality by user, if it was measured and users travel with the towers."""
        path = self.directory / USER_QUALITY
        return read_table(path) if path.exists() else None

    @cached_property
    def tuning_queries(self) -> np.ndarray:
        """(n_queries, dim) float32: embeddings of users whose last interaction was held out."""
        return load_array(self.directory / TUNING_QUERIES)


def read_table(path: Path, *required: str) -> pa.Table:
    """Read the table of a ``.parquet`` file, which must have some columns.

    Raises:
        BundleError: if the file holds no table, or not these columns.
    """
    try:
        table = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as error:
        raise BundleError(f"{path} is not a readable Parquet file: {error}") from error
    for name in required:
        if name not in table.column_names:
            raise BundleError(f"{path} has no column {name!r}")
    return table


def load_array(path: Path) -> np.ndarray:
    """Memory-map the array of a ``.npy`` file.

    Raises:
        BundleError: if the file holds none.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(_NPY_MAGIC)) != _NPY_MAGIC:  # NumPy would take it for pickled objects
                raise BundleError(f"{path} is not a readable .npy file: it begins otherwise")
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise BundleError(f"there is no file {path}") from error
    except (BadZipFile, EOFError, OSError, ValueError) as error:
        raise BundleError(f"{path} is not a readable .npy file: {error}") from error
    if not isinstance(array, np.ndarray):
        raise BundleError(f"{path} must be a single .npy array, not an archive of several")
    return array


def _read_json(path: Path, schema: type[S]) -> S:
    try:
        return schema.model_validate_json(path.read_text())
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: {error}") from error


def _tokens_of(table: pa.Table, feature: str) -> pa.ChunkedArray:
    mask = np.asarray(table.column("feature").to_pylist(), dtype=object) == feature
    return table.column("token").filter(pa.array(mask))
