"""Newer histories for towers that stay as they are: a new bundle without training.

The query tower reads what users did, so a user who has done more since is embedded anew by the same
tower, and a user who is new is known from then on.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.bundle import (
    HISTORIES,
    HISTORY_ROWS,
    MODEL_CARD,
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
from trainer.features import TIME, USER_ID, encode_queries
from trainer.inputs import collect_histories, last_times
from trainer.keras import tf
from trainer.model_card import write_model_card
from trainer.publish import commit, copy_content, staging
from trainer.trained_towers import in_batches

_FEWEST_KNOWN = 0.5
"""Of the interactions, with candidates that the towers know: fewer look like another catalogue."""


class RefreshError(TrainerError):
    """Why a bundle's histories cannot be made newer, for the user."""


@dataclasses.dataclass(frozen=True)
class Refreshed:
    """What a refresh made.

    Attributes:
        directory: of the new version.
        n_users: users it knows.
        n_left_out: interactions with candidates that the towers do not know.
    """

    directory: Path
    n_users: int
    n_left_out: int


def refresh(bundle: TowerBundle, dataset: Dataset, root: Path, *, force: bool = False) -> Refreshed:
    """Publish a bundle's models anew, with the histories that users have now.

    Users keep their lines, by which a ranking model and towers that read ids know them; one without
    interactions in ``dataset`` keeps an empty history there, and is left out if there is neither.

    Args:
        bundle: whose models stay.
        dataset: all interactions there are now.
        root: the folder that holds the versions.
        force: whether to publish even if most interactions are with candidates that the bundle
            does not know, or if nothing tells how they were rated.

    Raises:
        RefreshError: if the bundle holds no histories, or knows too few of the candidates, or was
            trained on interactions with another minimal rating.
        BundleError: if ``root`` cannot be written to.
    """
    if bundle.query.user_ids is None:
        raise RefreshError(
            f"{bundle.directory} holds no histories to refresh: its users come with their requests"
        )
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
    new_rows = bundle.candidate_ids.rows(dataset.candidate_ids.array.to_pylist())
    known = dataset.with_candidates(bundle.candidates, new_rows)
    if not len(known):
        raise RefreshError(
            f"the towers of {bundle.directory} know none of the candidates in {dataset.name}: "
            "train on it instead"
        )
    if not force and len(known) < _FEWEST_KNOWN * len(dataset):
        raise RefreshError(
            f"the towers of {bundle.directory} know the candidates of {len(known):,} of the "
            f"{len(dataset):,} interactions in {dataset.name} only, so they may be another "
            "catalogue's: train on it instead, or take those few with --force"
        )
    histories = collect_histories(known, np.arange(len(known)), len(known))
    users, histories = _users_now(bundle, known, histories)
    manifest = bundle.manifest.model_copy(
        update={"n_users": len(users), "refreshed_from": bundle.manifest.version}
    )
    with staging(root, TowerManifest) as staged:
        copy_content(bundle.directory, staged, (HISTORIES, QUERY_EMBEDDINGS, MODEL_CARD))
        pq.write_table(history_table(users, histories), staged / HISTORIES)
        np.save(staged / QUERY_EMBEDDINGS, _embed(bundle, users, histories))
        write_model_card(staged, manifest)
        return Refreshed(commit(staged, root, manifest), len(users), len(dataset) - len(known))


def _users_now(
    bundle: TowerBundle, dataset: Dataset, histories: list[np.ndarray]
) -> tuple[pa.Table, list[np.ndarray]]:
    """Return the users with what is read of them, and their histories.

    Users that a model knows by their lines keep them, and so stay without a history, too.
    """
    old = read_table(bundle.directory / HISTORIES).drop_columns([HISTORY_ROWS])
    is_new = pc.invert(pc.is_in(dataset.users[USER_ID], value_set=old[USER_ID]))
    ids = [*old[USER_ID].to_pylist(), *dataset.users[USER_ID].filter(is_new).to_pylist()]
    rows = dataset.user_ids.rows(ids)
    users = _described_now(bundle, old, dataset.users, rows)
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


def _described_now(bundle: TowerBundle, old: pa.Table, new: pa.Table, rows: np.ndarray) -> pa.Table:
    """Return what is known of users: what is new, and in columns that lack there, what was known.

    Args:
        bundle: where ``old`` is from.
        old: users as the bundle knows them.
        new: users as the data know them.
        rows: (n_users,) in ``new`` of the old users and then of those that are new; -1: none.
    """
    try:
        both = pa.concat_tables([old, new], promote_options="permissive").select(old.column_names)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise RefreshError(
            f"the users' columns are not of the types that {bundle.directory} was trained with "
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
    return pa.table(columns)


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
