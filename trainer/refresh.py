"""Newer histories and candidates for towers that stay as they are: a new bundle without training.

The query tower reads what users did, so a user who has done more since is embedded anew by the same
tower, and a user who is new is known from then on. The candidate tower reads content, so a
candidate that is new is embedded by it. In histories the query tower passes new candidates over,
since it has learned to read only those that were there at the training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.bundle import (
    CANDIDATES,
    HISTORIES,
    HISTORY_ROWS,
    MODEL_CARD,
    POPULARITY,
    QUERY_EMBEDDINGS,
    QUERY_TOWER,
    SERVING_SIGNATURE,
    TowerBundle,
    TowerManifest,
    read_table,
    saved_model_of,
)
from trainer.datasets import Dataset
from trainer.errors import TrainerError
from trainer.export import history_table
from trainer.features import CANDIDATE_ID, TIME, USER_ID, encode_queries
from trainer.inputs import collect_histories, last_times
from trainer.keras import tf
from trainer.model_card import write_model_card
from trainer.publish import commit, copy_content, staging
from trainer.trained_towers import in_batches
from trainer.vocabulary import Vocabulary

_OF_USERS = (HISTORIES, QUERY_EMBEDDINGS, MODEL_CARD)
_OF_CANDIDATES = (CANDIDATES, POPULARITY)
_FEWEST_KNOWN = 0.5
"""Of the interactions, with candidates that the towers know: fewer look like another catalogue."""


class RefreshError(TrainerError):
    """Why a bundle's histories cannot be made newer, for the user."""


@dataclass(frozen=True)
class Refreshed:
    """What a refresh made.

    Attributes:
        directory: of the new version.
        n_users: users it knows.
        n_new_candidates: candidates that have come since the towers were trained.
        n_left_out: interactions with candidates that are not in the bundle.
    """

    directory: Path
    n_users: int
    n_new_candidates: int
    n_left_out: int


def refresh(
    bundle: TowerBundle,
    dataset: Dataset,
    root: Path,
    *,
    with_candidates: bool = False,
    force: bool = False,
) -> Refreshed:
    """Publish a bundle's models anew, with the histories that users have now.

    Users keep their lines, by which a ranking model and towers that read ids know them; one without
    interactions in ``dataset`` keeps an empty history there, and is left out if there is neither.
    Candidates keep their rows, by which the towers know them; those that are new follow.

    Args:
        bundle: whose models stay.
        dataset: all interactions there are now.
        root: the folder that holds the versions.
        with_candidates: whether the candidates of ``dataset`` that the bundle lacks are to come,
            and what is known of the others is to be what it says now.
        force: whether to publish even if most interactions are with candidates that the towers
            do not know, or if nothing tells how they were rated.

    Raises:
        RefreshError: if the bundle holds no histories, or knows too few of the candidates, or was
            trained on interactions with another minimal rating, or its towers cannot embed new
            candidates.
        BundleError: if ``root`` cannot be written to.
    """
    if bundle.query.user_ids is None:
        raise RefreshError(
            f"{bundle.directory} holds no histories to refresh: its users come with their requests"
        )
    _check_ratings(bundle, dataset, force=force)
    candidates = _candidates_now(bundle, dataset) if with_candidates else bundle.candidates
    rows = Vocabulary(candidates[CANDIDATE_ID]).rows(dataset.candidate_ids.array.to_pylist())
    known = dataset.with_candidates(candidates, rows)
    features = bundle.query.features
    _check_known(bundle, dataset, len(features.readable(known.candidate_rows)), force=force)
    histories = collect_histories(known, np.arange(len(known)), len(known))
    users, histories = _users_now(bundle, known, histories)
    n_new = len(candidates) - (features.n_known or len(candidates))
    manifest = bundle.manifest.model_copy(
        update={
            "n_candidates": len(candidates),
            "n_users": len(users),
            "refreshed_from": bundle.manifest.version,
        }
    )
    with staging(root, TowerManifest) as staged:
        replaced = (*_OF_USERS, *(_OF_CANDIDATES if with_candidates or n_new else ()))
        copy_content(bundle.directory, staged, replaced)
        if with_candidates or n_new:
            pq.write_table(candidates, staged / CANDIDATES)
            np.save(staged / POPULARITY, _popularity_now(bundle, known))
        pq.write_table(history_table(users, histories), staged / HISTORIES)
        np.save(staged / QUERY_EMBEDDINGS, _embed(bundle, users, histories))
        write_model_card(staged, manifest)
        return Refreshed(
            directory=commit(staged, root, manifest),
            n_users=len(users),
            n_new_candidates=n_new,
            n_left_out=len(dataset) - len(known),
        )


def _check_ratings(bundle: TowerBundle, dataset: Dataset, *, force: bool) -> None:
    """Refuse interactions that are not chosen by their ratings as the bundle's were."""
    least = bundle.manifest.trained_on.min_rating
    if least is not None and dataset.ratings is None and not force:
        raise RefreshError(
            f"the histories of {bundle.directory} are of those rated {least:g} or more, and "
            f"{dataset.name} has no ratings: add them, or take all of it with --force"
        )
    if dataset.ratings is not None and dataset.min_rating != least:
        chosen = "are of all ratings" if least is None else f"are of those rated {least:g} or more"
        advice = "leave --min-rating out" if least is None else f"give --min-rating {least:g}"
        raise RefreshError(f"the histories of {bundle.directory} {chosen}: {advice}")


def _check_known(bundle: TowerBundle, dataset: Dataset, n_known: int, *, force: bool) -> None:
    """Refuse interactions of which the towers know too few candidates."""
    if not n_known:
        raise RefreshError(
            f"the towers of {bundle.directory} know none of the candidates in {dataset.name}: "
            "train on it instead"
        )
    if not force and n_known < _FEWEST_KNOWN * len(dataset):
        raise RefreshError(
            f"the towers of {bundle.directory} know the candidates of {n_known:,} of the "
            f"{len(dataset):,} interactions in {dataset.name} only, so they may be another "
            "catalogue's: train on it instead, or take those few with --force"
        )


def _candidates_now(bundle: TowerBundle, dataset: Dataset) -> pa.Table:
    """Return the bundle's candidates with what is known of them now, and then the new ones."""
    old, new = bundle.candidates, dataset.candidates
    table, rows = _described_now(bundle, "candidates", old, new, CANDIDATE_ID)
    for name in new.column_names:
        if name not in old.column_names:  # no tower reads it, but filters and answers may
            table = table.append_column(name, new[name].take(pa.array(rows, mask=rows < 0)))
    if len(table) > len(old):
        _check_readable(bundle, new, len(table) - len(old))
    return table


def _check_readable(bundle: TowerBundle, candidates: pa.Table, n_new: int) -> None:
    """Refuse new candidates of which the towers would read nothing."""
    features = bundle.query.features
    content = [feature.name for feature in features.content]
    if not content or not features.n_known:
        why = "read nothing of candidates but their ids" if not content else "are of an old form"
        raise RefreshError(
            f"candidates are new ({n_new:,}), and the towers of {bundle.directory} {why}: train "
            "again"
        )
    given = [name for name in content if name in candidates.column_names]
    told = {name for name in given if candidates[name].null_count < len(candidates)}
    if missing := [name for name in content if name not in told]:
        raise RefreshError(
            f"the candidates have no {', '.join(missing)}, which the towers of {bundle.directory} "
            "read: add the columns, or nothing is known of new candidates"
        )


def _popularity_now(bundle: TowerBundle, dataset: Dataset) -> np.ndarray:
    """Return (n_candidates,) float32 what the weights have seen; of new candidates, what there is.

    Args:
        bundle: whose weights.
        dataset: all interactions there are now, by rows of the candidates there are now.
    """
    counts = np.bincount(dataset.candidate_rows, minlength=dataset.n_candidates)
    popularity: np.ndarray = counts.astype(np.float32)
    n_known = bundle.query.features.n_known or len(bundle.popularity)
    popularity[:n_known] = bundle.popularity[:n_known]
    return popularity


def _users_now(
    bundle: TowerBundle, dataset: Dataset, histories: list[np.ndarray]
) -> tuple[pa.Table, list[np.ndarray]]:
    """Return the users with what is read of them, and their histories.

    Users that a model knows by their lines keep them, and so stay without a history, too.
    """
    old = read_table(bundle.directory / HISTORIES).drop_columns([HISTORY_ROWS])
    users, rows = _described_now(bundle, "users", old, dataset.users, USER_ID)
    if TIME in old.column_names:
        times = last_times(dataset, np.arange(len(dataset))).take(pa.array(rows, mask=rows < 0))
        place = users.column_names.index(TIME)
        users = users.set_column(place, TIME, pc.coalesce(times, users[TIME]))
    nothing = np.empty(0, dtype=np.int32)
    current = [histories[row] if row >= 0 else nothing for row in rows]
    if bundle.manifest.has_ranker or bundle.query.features.reads_users:
        return users, current
    known = np.flatnonzero([len(history) > 0 for history in current])
    return users.take(known), [current[row] for row in known]


def _described_now(
    bundle: TowerBundle, what: str, old: pa.Table, new: pa.Table, id_column: str
) -> tuple[pa.Table, np.ndarray]:
    """Return what is known of users or candidates: those there were, and then the new ones.

    A value is what the data say; where they lack the column or the line, it is what it was.

    Args:
        bundle: where ``old`` is from.
        what: they are, for errors.
        old: as the bundle knows them.
        new: as the data know them; columns that ``old`` lacks are left out.
        id_column: what tells them apart.

    Returns:
        The table (n,), and the row (n,) of each in ``new``; -1: none.
    """
    is_new = pc.invert(pc.is_in(new[id_column], value_set=old[id_column]))
    ids = [*old[id_column].to_pylist(), *new[id_column].filter(is_new).to_pylist()]
    rows = Vocabulary(new[id_column]).rows(ids)
    try:
        both = pa.concat_tables([old, new], promote_options="permissive").select(old.column_names)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise RefreshError(
            f"the {what}' columns are not of the types that {bundle.directory} was trained with "
            f"({error}): mend them, or train again"
        ) from error
    lines = np.arange(len(rows))
    is_old = lines < len(old)
    before = np.where(is_old, lines, len(old) + rows)
    now = np.where(is_old & (rows < 0), lines, len(old) + rows)
    columns = {
        name: both[name].take(now if name in new.column_names else before)
        for name in old.column_names
    }
    return pa.table(columns), rows


def _embed(bundle: TowerBundle, users: pa.Table, histories: list[np.ndarray]) -> np.ndarray:
    """Embed users (n, dim) float32 with a bundle's query tower."""
    saved = tf.saved_model.load(str(bundle.directory / saved_model_of(QUERY_TOWER)))
    signature = saved.signatures[SERVING_SIGNATURE]
    features = bundle.query.features
    names = [feature.name for feature in features.query]

    def embed(*batch: np.ndarray) -> Any:
        return signature(**dict(zip(names, map(tf.constant, batch), strict=True)))

    def encoded(some: slice) -> dict[str, np.ndarray]:
        return encode_queries(features, bundle.vocabularies, histories[some], users[some])

    return in_batches(embed, len(histories), encoded)
