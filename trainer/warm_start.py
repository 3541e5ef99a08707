"""Warm start: a training that begins with the weights of a published bundle.

Candidates and labels are found again by their names, so the catalogue may have changed; what the
bundle does not know begins as it would without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from pydantic import ValidationError

from trainer.bundle import CANDIDATE_TOWER, QUERY_TOWER, TowerBundle, saved_model_of
from trainer.datasets import Dataset
from trainer.encoder import FeatureEncoder
from trainer.features import Feature, Features, Vocabularies
from trainer.keras import tf
from trainer.model_config import TowersConfig
from trainer.publish import BundleError
from trainer.towers import CandidateTower, QueryTower, TwoTowers
from trainer.vocabulary import Vocabulary


def warm_start(
    model: TwoTowers, features: Features, vocabularies: Vocabularies, bundle: TowerBundle
) -> None:
    """Give a model the weights of a bundle's towers, as far as both read the same.

    Args:
        model: to begin training with.
        features: what it reads.
        vocabularies: the tokens of each feature that has any.
        bundle: whose towers to begin with.

    Raises:
        BundleError: if they are of another width or of another version of this program.
    """
    query, candidate = _saved(bundle)
    known = bundle.query.features
    take = partial(_take_over, vocabularies=vocabularies, bundle=bundle)
    take(model.query_tower.encoder, query.encoder, features.candidate, known.candidate)
    take(model.candidate_tower.encoder, candidate.encoder, features.candidate, known.candidate)
    take(model.query_tower.context, query.context, features.context, known.context)


def check_start(bundle: TowerBundle, config: TowersConfig) -> None:
    """Refuse a bundle whose weights towers of a configuration cannot begin with.

    Raises:
        BundleError: if it was made by another version of this program, or is of another width.
    """
    _saved(bundle)
    if bundle.manifest.config["width"] != config.width:
        raise _of_another_width(bundle)


def _of_another_width(bundle: TowerBundle) -> BundleError:
    return BundleError(
        f"{bundle.directory} was trained with another towers.width: set it to "
        f"{bundle.manifest.config['width']} to begin with its weights"
    )


def _take_over(
    ours: FeatureEncoder | None,
    theirs: FeatureEncoder | None,
    features: Sequence[Feature],
    known: Sequence[Feature],
    *,
    vocabularies: Vocabularies,
    bundle: TowerBundle,
) -> None:
    """Give an encoder the weights of a bundle's, for those of its features that the bundle knows.

    Args:
        ours: to begin training with.
        theirs: the bundle's.
        features: what ours reads.
        known: what theirs reads.
        vocabularies: the tokens of each of our features that has any.
        bundle: where theirs is from.
    """
    kinds = {feature.name: feature.kind for feature in known}
    for feature in features:
        if ours is None or theirs is None or kinds.get(feature.name) != feature.kind:
            continue
        table, saved = ours.table(feature.name), theirs.table(feature.name)
        if table.shape[1] != saved.shape[1]:
            raise _of_another_width(bundle)
        lines = _lines(feature.name, vocabularies, bundle.vocabularies, saved.shape[0])
        table.assign(np.where(lines[:, None] >= 0, saved.numpy()[lines], table.numpy()))


def has_seen(bundle: TowerBundle, dataset: Dataset, rows: np.ndarray) -> bool:
    """Whether a bundle's towers may have seen some of these interactions (n,) in training."""
    newest = bundle.manifest.trained_on.newest_timestamp
    if newest is None or dataset.timestamps is None or not len(rows):
        return bool(len(rows))
    return bool(dataset.timestamps[rows].min() <= newest)


def _saved(bundle: TowerBundle) -> tuple[QueryTower, CandidateTower]:
    """Return the towers of a bundle with their weights."""
    features = bundle.query.features
    try:
        config = TowersConfig.model_validate(bundle.manifest.config)
        n_candidates = features.n_known or bundle.manifest.n_candidates
        query = QueryTower(features, n_candidates, config, seed=0)
        candidate = CandidateTower(features, config, seed=0)
        for tower, name in ((query, QUERY_TOWER), (candidate, CANDIDATE_TOWER)):
            variables = bundle.directory / saved_model_of(name) / "variables" / "variables"
            restored = tf.train.Checkpoint(tower=tower).read(str(variables))
            restored.assert_existing_objects_matched()
    except (AssertionError, ValidationError, ValueError, tf.errors.OpError) as error:
        raise BundleError(
            f"{bundle.directory} was made by another version of this program: train once without "
            "--warm-start"
        ) from error
    return query, candidate


def _lines(name: str, ours: Vocabularies, theirs: Vocabularies, n_lines: int) -> np.ndarray:
    """Return which line of their table stands for each line of ours, (n,); -1 where none does."""
    if name not in ours:
        return np.arange(n_lines)
    rows = theirs.get(name, Vocabulary([])).rows(ours[name].array.to_pylist())
    # Users who came with a refresh are known, and have no line.
    has_line = (rows >= 0) & (rows + 1 < n_lines)
    return np.concatenate([[0], np.where(has_line, rows + 1, -1)])
