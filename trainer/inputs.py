"""What the towers read of a dataset: histories, what is known of users, candidates' content."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from trainer.bundle import HISTORY_ROWS
from trainer.datasets import Dataset
from trainer.errors import TrainingError
from trainer.features import (
    CANDIDATE_ID,
    DESCRIPTION,
    HISTORY,
    TIME,
    USER_ID,
    Feature,
    Features,
    Kind,
    describe_column,
    kind_of,
)
from trainer.model_config import TowersConfig
from trainer.vocabulary import Vocabulary

Described: TypeAlias = tuple[Feature, Vocabulary | None]
"""A feature, and its vocabulary if it has one."""

_INPUT_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)


def collect_histories(
    dataset: Dataset, train_rows: np.ndarray, max_history_length: int
) -> list[np.ndarray]:
    """Collect what every user has interacted with.

    Args:
        dataset: users, candidates and interactions.
        train_rows: (n,) int64, the interactions that count.
        max_history_length: how many of each user are kept, the newest.

    Returns:
        For every user of the dataset their candidate rows, int32, oldest first; equal times, or
        data without times, in the order of the rows.
    """
    rows = np.sort(train_rows)
    if dataset.timestamps is not None:
        rows = rows[np.argsort(dataset.timestamps[rows], kind="stable")]
    rows = rows[np.argsort(dataset.user_rows[rows], kind="stable")]
    ends = np.cumsum(np.bincount(dataset.user_rows[rows], minlength=dataset.n_users))
    histories = np.split(dataset.candidate_rows[rows].astype(np.int32), ends[:-1])
    return [history[-max_history_length:] for history in histories]


def describe_users(dataset: Dataset, train_rows: np.ndarray, config: TowersConfig) -> pa.Table:
    """Tabulate what is known of users when they ask: ``user_id`` and what the towers read of them.

    Args:
        dataset: users, candidates and interactions.
        train_rows: (n,) int64, the interactions that count.
        config: what the towers read.

    Returns:
        A line for each user of the dataset. ``time`` is that of their last interaction among
        ``train_rows``, in seconds since 1970; missing where there is none.

    Raises:
        TrainingError: if there is nothing in the data of what the towers should read, or a column
            has the name of something else that is read of queries.
    """
    users = dataset.users
    for name in (HISTORY, TIME, DESCRIPTION):  # the ranking model reads all columns
        if name in users.column_names:
            raise TrainingError(
                f"the users' column {name!r} has the name of the query's {name}: rename it"
            )
    if HISTORY_ROWS in users.column_names:
        raise TrainingError(
            f"the users' column {HISTORY_ROWS!r} has the name that their histories are kept under: "
            "rename it"
        )
    if "demographics" not in config.query:
        users = users.select([USER_ID])
    elif len(users.column_names) == 1:
        raise TrainingError(
            f"nothing is known of the users of {dataset.name}: give --users FILE with a column to "
            "read, or take demographics out of towers.query"
        )
    if "time" not in config.query:
        return users
    if dataset.timestamps is None:
        raise TrainingError(
            f"{dataset.name} has no timestamps: add them, or take time out of towers.query"
        )
    return users.append_column(TIME, last_times(dataset, train_rows))


def last_times(dataset: Dataset, rows: np.ndarray) -> pa.Array:
    """Return when each user (n_users,) last interacted, int64 seconds since 1970 or missing."""
    times = np.full(dataset.n_users, np.iinfo(np.int64).min)
    if dataset.timestamps is not None:
        np.maximum.at(times, dataset.user_rows[rows], dataset.timestamps[rows])
    return pa.array(times, mask=times == np.iinfo(np.int64).min)


def describe(
    candidates: pa.Table, users: pa.Table, config: TowersConfig
) -> tuple[Features, dict[str, Vocabulary]]:
    """Describe what the towers read of queries and of candidates.

    Args:
        candidates: ``candidate_id`` and metadata.
        users: as ``describe_users`` tabulates them.
        config: what the towers read.

    Returns:
        The features, and the vocabularies of those that have any.

    Raises:
        TrainingError: if a column is of a type that no tower can read, or has a name that no input
            of a tower can have, or nothing is left to be read.
    """
    query = list(_columns(users, "users"))
    if "user_id" in config.query:
        query.insert(0, _ids(USER_ID, users))
    if "history" in config.query:
        history = Feature(
            name=HISTORY,
            kind="history",
            length=config.max_history_length,
            n_tokens=candidates.num_rows,
        )
        query.insert(0, (history, None))
    content = _columns(candidates, "candidates", config.content) if config.content else ()
    candidate = list(content)
    if config.candidate_ids:
        candidate.insert(0, _ids(CANDIDATE_ID, candidates))
    _refuse_nothing(query, candidate)
    _refuse_one_name_for_two([*candidate, *query])
    features = Features(
        query=tuple(feature for feature, _ in query),
        candidate=tuple(feature for feature, _ in candidate),
    )
    described = (*query, *candidate)
    return features, {one.name: tokens for one, tokens in described if tokens is not None}


def told(candidates: pa.Table, features: Features, config: TowersConfig) -> str:
    """Say what the towers read of candidates, and what they do not and why.

    Args:
        candidates: ``candidate_id`` and metadata.
        features: what the towers read of them.
        config: what they should read.
    """
    read = {feature.name: _in_words(feature) for feature in features.candidate}
    unread = [
        f"{name} ({_why_not(kind_of(candidates[name]), config)})"
        for name in candidates.column_names[1:]
        if name not in read
    ]
    sentence = f"Of candidates the towers read {', '.join(read.values())}"
    return f"{sentence}; not {', '.join(unread)}" if unread else sentence


def _in_words(feature: Feature) -> str:
    match feature.kind:
        case "id":
            return feature.name
        case "number":
            return f"{feature.name} (a number)"
        case "text":
            return f"{feature.name} ({_counted(feature.n_tokens, 'word')})"
    return f"{feature.name} ({_counted(feature.n_tokens, 'label')})"


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def _why_not(kind: Kind | None, config: TowersConfig) -> str:
    if kind is None:
        return "of a type that no tower reads"
    if kind in config.content:
        return f"no {'word' if kind == 'text' else 'label'} of it stands in two candidates"
    return f"a {kind}, which towers.content leaves out"


def _ids(name: str, table: pa.Table) -> Described:
    return Feature(name=name, kind="id", n_tokens=table.num_rows), Vocabulary(table[name])


def _columns(
    table: pa.Table, what: str, kinds: Collection[Kind] | None = None
) -> Iterator[Described]:
    """Describe the columns of a table, but the ids, that say something of more than one line.

    Those of other ``kinds`` are not read, and may be named and be as they like.
    """
    for name in table.column_names[1:]:
        if kinds is not None and kind_of(table[name]) not in (None, *kinds):
            continue
        feature, vocabulary = _describe_column(name, table[name], what)
        if feature.kind == "number" or feature.n_tokens > 0:
            yield feature, vocabulary


def _refuse_nothing(query: Sequence[Described], candidate: Sequence[Described]) -> None:
    for what, described in (("users", query), ("candidates", candidate)):
        if not described:
            raise TrainingError(
                f"nothing is known of the {what} that the towers could read: let them read more "
                "(towers.query, towers.candidate_ids, towers.content), or give columns to read"
            )


def _refuse_one_name_for_two(described: Sequence[Described]) -> None:
    counts = Counter(feature.name for feature, _ in described)
    for name, count in counts.items():
        if count > 1:
            raise TrainingError(
                f"{name!r} is the name of two things that the towers read: rename the column, of "
                "the candidates or of the users"
            )


def _describe_column(name: str, column: pa.ChunkedArray, what: str) -> Described:
    if name in (CANDIDATE_ID, USER_ID):
        raise TrainingError(f"the {what}' column {name!r} has the name of an id: rename it")
    if not _INPUT_NAME.fullmatch(name):
        raise TrainingError(
            f"the {what}' column {name!r} cannot be an input of a tower: rename it so that "
            "it begins with a letter and holds letters, digits and underscores only"
        )
    try:
        return describe_column(name, column)
    except ValueError as error:
        raise TrainingError(f"the {what}' column {name!r}: {error}") from error
