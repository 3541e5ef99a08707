"""Newer histories for towers that stay as they are: a new bundle without training.

The query tower reads what users did, so a user who has done more since is embedded anew by the same
tower, and a user who is new is known from then on.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.bundle import HISTORIES, MODEL_CARD, QUERY_EMBEDDINGS, QUERY_TOWER, TowerBundle
from trainer.datasets import Dataset
from trainer.errors import TrainerError
from trainer.export import history_table
from trainer.features import HISTORY, encode_histories
from trainer.keras import tf
from trainer.model_card import write_model_card
from trainer.publish import MANIFEST, MANIFEST_HASH, commit, staging
from trainer.towers import in_batches
from trainer.training import collect_histories


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


def refresh(bundle: TowerBundle, dataset: Dataset, root: Path) -> Refreshed:
    """Publish a bundle's models anew, with the histories that users have now.

    Users keep their lines, by which a ranking model knows them; one without interactions in
    ``dataset`` keeps an empty history there, and is left out if there is no ranking model.

    Args:
        bundle: whose models stay.
        dataset: all interactions there are now.
        root: the folder that holds the versions.

    Raises:
        RefreshError: if the bundle holds no histories, or knows none of the candidates.
        BundleError: if ``root`` cannot be written to.
    """
    if bundle.query.user_ids is None:
        raise RefreshError(
            f"{bundle.directory} holds no histories to refresh: its users come with their requests"
        )
    new_rows = bundle.candidate_ids.rows(dataset.candidate_ids.array.to_pylist())
    known = dataset.with_candidates(bundle.candidates, new_rows)
    if not len(known):
        raise RefreshError(
            f"the towers of {bundle.directory} know none of the candidates in {dataset.name}: "
            "train on it instead"
        )
    histories = collect_histories(known, np.arange(len(known)), len(known))
    users, histories = _in_lines_of(bundle, known, histories)
    manifest = bundle.manifest.model_copy(
        update={"n_users": len(users), "refreshed_from": bundle.manifest.version}
    )
    replaced = (HISTORIES, QUERY_EMBEDDINGS, MODEL_CARD, MANIFEST, MANIFEST_HASH)
    with staging(root) as staged:
        shutil.copytree(
            bundle.directory,
            staged,
            ignore=shutil.ignore_patterns(*replaced),
            dirs_exist_ok=True,
        )
        pq.write_table(history_table(users, histories), staged / HISTORIES)
        np.save(staged / QUERY_EMBEDDINGS, _embed(bundle, histories))
        write_model_card(staged, manifest)
        return Refreshed(commit(staged, root, manifest), len(users), len(dataset) - len(known))


def _in_lines_of(
    bundle: TowerBundle, dataset: Dataset, histories: list[np.ndarray]
) -> tuple[pa.Table, list[np.ndarray]]:
    """Return the users and their histories, those that a ranking model knows in its lines."""
    old = pq.read_table(bundle.directory / HISTORIES).drop_columns(["candidate_rows"])
    if not bundle.manifest.has_ranker:
        known = np.flatnonzero([len(history) > 0 for history in histories])
        return dataset.users.select(["user_id"]).take(known), [histories[row] for row in known]
    is_new = pc.invert(pc.is_in(dataset.users["user_id"], value_set=old["user_id"]))
    users = pa.concat_tables([old, dataset.users.filter(is_new)], promote_options="permissive")
    rows = dataset.user_ids.rows(users["user_id"].to_pylist())
    nothing = np.empty(0, dtype=np.int32)
    return users.select(old.column_names), [histories[r] if r >= 0 else nothing for r in rows]


def _embed(bundle: TowerBundle, histories: list[np.ndarray]) -> np.ndarray:
    """Embed users (n, dim) float32 with a bundle's query tower."""
    saved = tf.saved_model.load(str(bundle.directory / Path(QUERY_TOWER).stem / "1"))
    embed = saved.signatures["serving_default"]
    encoded = encode_histories(histories, bundle.manifest.max_history_length)
    return in_batches(lambda batch: embed(**{HISTORY: tf.constant(batch)}), [encoded])
