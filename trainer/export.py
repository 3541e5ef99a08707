"""Trained towers -> tower bundle: the only writer of what ``trainer.bundle`` reads."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.bundle import (
    CANDIDATE_TOWER,
    CANDIDATES,
    DESCRIPTION_TOWER,
    EVALUATION,
    FEATURES,
    HISTORIES,
    HISTORY_ROWS,
    LEARNING_CURVE,
    POPULARITY,
    QUERY_EMBEDDINGS,
    QUERY_TOWER,
    RANKER,
    RANKER_DESCRIPTION,
    SERVING_SIGNATURE,
    TUNING_QUERIES,
    USER_QUALITY,
    VOCABULARIES,
    TowerManifest,
    TrainedOn,
    saved_model_of,
)
from trainer.checkpoints import Curve
from trainer.datasets import Dataset
from trainer.errors import TrainerError
from trainer.features import CANDIDATE_ID, TIME, USER_ID
from trainer.inputs import collect_histories, last_times
from trainer.keras import tf
from trainer.model_card import write_model_card
from trainer.plots import draw_learning_curve
from trainer.publish import commit, staging
from trainer.ranking import Ranker
from trainer.trained_towers import Towers
from trainer.vocabulary import Vocabulary

MAX_TUNING_QUERIES = 10_000

_PARITY = 1e-5
_N_EXAMPLES = 64
_PRODUCERS = ("tensorflow", "tensorflow-recommenders", "ai-edge-litert", "numpy")


class ExportError(TrainerError):
    """Towers that cannot be exported faithfully."""


def export(
    towers: Towers,
    dataset: Dataset,
    rows: np.ndarray,
    root: Path,
    *,
    seed: int,
    rows_name: str = "all",
    evaluation: Mapping[str, Any] | None = None,
    with_histories: bool = True,
    ranker: Ranker | None = None,
    curve: Curve | None = None,
    started_from: str | None = None,
    seen_before: TrainedOn | None = None,
    user_quality: pa.Table | None = None,
) -> Path:
    """Publish trained towers as a new version under ``root``.

    Args:
        towers: what to export.
        dataset: the data that they were trained on.
        rows: (n,) int64, the interactions that the weights have seen.
        root: the folder that holds the versions.
        seed: the seed of the training, for the manifest.
        rows_name: what the rows are, in words: ``all``, or ``random train``.
        evaluation: the held-out quality of towers trained in the same way.
        with_histories: whether known users travel with the towers. Without them the bundle holds
            nothing about a single user, and the server knows a user by the request only.
        ranker: the ranking model trained on the same rows, if there is one.
        curve: the metrics of every epoch, to be drawn.
        started_from: the version whose weights the training began with, if it did.
        seen_before: what those weights had seen.
        user_quality: the evaluation by user, from ``trainer.acceptance``; left out with the users.

    Returns:
        The directory of the new version.

    Raises:
        ExportError: if the LiteRT form of a model answers differently from its SavedModel.
        BundleError: if ``root`` cannot be written to.
    """
    histories = collect_histories(dataset, rows, len(rows))
    everybody = np.arange(dataset.n_users)
    with staging(root, TowerManifest) as staged:
        with _native_messages_held_back():
            _write_towers(staged, towers)
            if ranker is not None:
                _write_ranker(staged, ranker if with_histories else ranker.without_users())
        (staged / FEATURES).write_text(towers.features.model_dump_json(indent=2) + "\n")
        pq.write_table(_vocabulary_table(towers.vocabularies), staged / VOCABULARIES)
        pq.write_table(dataset.candidates, staged / CANDIDATES)
        if with_histories:
            users = _read_of_users(dataset, rows, towers, ranker)
            pq.write_table(history_table(users, histories), staged / HISTORIES)
            np.save(staged / QUERY_EMBEDDINGS, towers.embed_users(everybody, histories))
            if user_quality is not None:
                pq.write_table(user_quality, staged / USER_QUALITY)
        np.save(staged / TUNING_QUERIES, _tuning_queries(towers, histories, seed))
        popularity = np.bincount(dataset.candidate_rows[rows], minlength=dataset.n_candidates)
        np.save(staged / POPULARITY, popularity.astype(np.float32))
        manifest = TowerManifest(
            producers={name: importlib.metadata.version(name) for name in _PRODUCERS},
            dim=towers.config.dim,
            has_bias_dimension=True,
            max_history_length=towers.features.max_history_length,
            n_candidates=dataset.n_candidates,
            n_users=dataset.n_users if with_histories else 0,
            seed=seed,
            trained_on=TrainedOn(
                dataset=dataset.name,
                rows=rows_name,
                n_interactions=len(rows),
                min_rating=dataset.min_rating,
                newest_timestamp=_newest(dataset, rows, seen_before),
            ),
            config=towers.config.model_dump(),
            started_from=started_from,
            evaluation=dict(evaluation or {}),
            ranker_config=None if ranker is None else ranker.config.model_dump(),
        )
        (staged / EVALUATION).write_text(json.dumps(manifest.evaluation, indent=2) + "\n")
        if curve:
            draw_learning_curve(curve, staged / LEARNING_CURVE)
        write_model_card(staged, manifest)
        return commit(staged, root, manifest)


def _write_towers(staged: Path, towers: Towers) -> None:
    """Write both towers; what must agree are the scores that they give together.

    Single dimensions need not: where data are few, some hold next to nothing but rounding errors.
    """
    query, candidate = towers.query_module, towers.candidate_module
    some_users = np.arange(len(towers.histories))[:_N_EXAMPLES]
    queries = towers.embed_users(some_users)
    candidates = towers.embed_candidates()[:_N_EXAMPLES]
    encoded = towers.encode_users(some_users)
    names = (feature.name for feature in towers.features.candidate)
    corpus = {name: towers.corpus[name][:_N_EXAMPLES] for name in names}
    _write_model(staged, QUERY_TOWER, query, query.embed, encoded, against=candidates)
    _write_model(staged, CANDIDATE_TOWER, candidate, candidate.embed, corpus, against=queries)
    if description := towers.description_module:
        content = {feature.name: corpus[feature.name] for feature in towers.features.content}
        _write_model(
            *(staged, DESCRIPTION_TOWER, description, description.embed, content),
            against=candidates,
        )


def _write_ranker(staged: Path, ranker: Ranker) -> None:
    example = ranker.example(_N_EXAMPLES)
    _write_model(staged, RANKER, ranker.module, ranker.module.rank, example)
    description = ranker.description.model_dump_json(indent=2)
    (staged / RANKER_DESCRIPTION).write_text(description + "\n")


def _write_model(
    staged: Path,
    name: str,
    module: tf.Module,
    function: Any,
    example: Mapping[str, np.ndarray],
    against: np.ndarray | None = None,
) -> None:
    """Write a function of a module as SavedModel and in LiteRT form, and check that both agree.

    Args:
        staged: the bundle that is being written.
        name: of the LiteRT form; the SavedModel's folder is named alike.
        module: what owns the weights.
        function: of arrays, in the order of ``example``; returns a dictionary of one array.
        example: what to check on, by the names of the function's inputs.
        against: (n, dim) float32, embeddings that the function's are scored against before they
            are compared; None compares what it returns.
    """
    saved_model = staged / saved_model_of(name)
    tf.saved_model.save(module, str(saved_model), signatures={SERVING_SIGNATURE: function})
    converter = tf.lite.TFLiteConverter.from_saved_model(
        str(saved_model), signature_keys=[SERVING_SIGNATURE]
    )
    (staged / name).write_bytes(converter.convert())
    (returned,) = function(*map(tf.constant, example.values())).values()
    expected, actual = returned.numpy(), _run_lite(staged / name, example)
    if against is not None:
        expected, actual = expected @ against.T, actual @ against.T
    difference = float(np.abs(expected - actual).max())
    allowed = _PARITY * max(1.0, float(np.abs(expected).max()))
    if not difference <= allowed:
        raise ExportError(
            f"{name} differs from its SavedModel by {difference:.2g}, more than {allowed:.2g}: "
            "an operation of the model does not convert faithfully to LiteRT"
        )


def _run_lite(path: Path, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415 - after TensorFlow's own

    runner = Interpreter(model_path=str(path), num_threads=1).get_signature_runner()
    (output,) = runner(**inputs).values()
    array: np.ndarray = output
    return array


@contextmanager
def _native_messages_held_back() -> Iterator[None]:
    """Show what native code writes to stderr only if the block fails.

    The converter greets with a dozen lines of warnings that mean nothing to anybody; there is no
    setting that silences them.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held, ExitStack() as restore:
        kept = os.dup(2)
        restore.callback(os.close, kept)
        restore.callback(os.dup2, kept, 2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException as error:
            held.seek(0)
            os.write(kept, held.read())
            if isinstance(error, tf.errors.OpError) and "No space left" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise


def _vocabulary_table(vocabularies: Mapping[str, Vocabulary]) -> pa.Table:
    """Tabulate all vocabularies but those of ids, which have files of their own."""
    named = [(name, v) for name, v in vocabularies.items() if name not in (CANDIDATE_ID, USER_ID)]
    features = [name for name, vocabulary in named for _ in range(len(vocabulary))]
    tokens = [token for _, vocabulary in named for token in vocabulary.array.to_pylist()]
    return pa.table(
        {"feature": pa.array(features, pa.string()), "token": pa.array(tokens, pa.string())}
    )


def _read_of_users(
    dataset: Dataset, rows: np.ndarray, towers: Towers, ranker: Ranker | None
) -> pa.Table:
    """Tabulate users with what towers and ranking model read of them beside their histories."""
    users = dataset.users
    if any(feature.name == TIME for feature in towers.features.query):
        users = users.append_column(TIME, last_times(dataset, rows))
    read = () if ranker is None else ranker.description.features.query
    columns = dict.fromkeys(
        one.name for one in (*towers.features.query, *read) if one.kind not in ("id", "history")
    )
    return users.select([USER_ID, *columns])


def history_table(users: pa.Table, histories: Sequence[np.ndarray]) -> pa.Table:
    """Tabulate users with their histories.

    Args:
        users: ``user_id``, and what the models read of users.
        histories: candidate rows of each, oldest first.
    """
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in histories])])
    rows = pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.array(np.concatenate(histories), pa.int32())
    )
    return users.add_column(1, HISTORY_ROWS, rows)


def _tuning_queries(towers: Towers, histories: list[np.ndarray], seed: int) -> np.ndarray:
    """Embed users as they were before their last interaction, in random order.

    Where nobody has more than one, they stand for queries as they are.
    """
    lengths = np.array([len(history) for history in histories])
    earlier = [history[:-1] if len(history) > 1 else history for history in histories]
    known = np.flatnonzero(lengths > 1) if (lengths > 1).any() else np.flatnonzero(lengths)
    chosen = np.random.default_rng(seed).permutation(known)[:MAX_TUNING_QUERIES]
    return towers.embed_users(chosen, earlier)


def _newest(dataset: Dataset, rows: np.ndarray, seen_before: TrainedOn | None) -> int | None:
    """Return when the newest interaction was that the weights have seen; None if nobody knows."""
    if dataset.timestamps is None:
        return None
    newest = int(dataset.timestamps[rows].max())
    if seen_before is None:
        return newest
    before = seen_before.newest_timestamp
    return None if before is None else max(newest, before)
