"""Move into the content's weights what content predicts of the ids, for candidates without one.

In training an id learns faster than content, which others share: much of what candidates of one
label have in common ends up in their ids, where it is of no use to a candidate that has none. So a
ridge regression of the ids on the content says, once they are trained, how much of them it tells.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.encoder import Catalogue, FeatureEncoder, dense
from trainer.features import CANDIDATE_ID, Feature
from trainer.keras import tf

_RIDGE = 0.5
_HALF_TRUSTED = 5
"""Interactions with which an id counts half of what one with very many does."""
_MOST_CANDIDATES = 10_000
"""Of more candidates than this, those with the most interactions tell."""
_MOST_LINES = 2_048
"""Labels, words and knots of numbers of which all together are regressed on."""
_BATCH_SIZE = 4_096


def distil_ids_into_content(
    encoder: FeatureEncoder,
    features: Sequence[Feature],
    catalogue: Catalogue,
    tokens: np.ndarray,
    n_interactions: np.ndarray,
) -> None:
    """Move to the content's tables what content tells of the ids; no candidate's vector changes.

    Without content, or with very many labels and words, nothing is moved.

    Args:
        encoder: of the candidates, trained.
        features: what it reads.
        catalogue: the candidates.
        tokens: (n_candidates,) int32, their ids.
        n_interactions: (n_candidates,) in training; those that have none say nothing.
    """
    content = [feature for feature in features if feature.kind != "id"]
    tables = [encoder.table(feature.name) for feature in content]
    sizes = [table.shape[0] for table in tables]
    if not 0 < sum(sizes) <= _MOST_LINES:
        return
    ids = encoder.table(CANDIDATE_ID).numpy()
    best_known = np.argsort(-n_interactions, kind="stable")[:_MOST_CANDIDATES]
    told = told_by_content(
        _weights(catalogue, content, best_known),
        ids[tokens[best_known]],
        n_interactions[best_known],
    )
    for start in range(0, len(tokens), _BATCH_SIZE):
        rows = np.arange(start, min(start + _BATCH_SIZE, len(tokens)))
        ids[tokens[rows]] -= _weights(catalogue, content, rows) @ told
    encoder.table(CANDIDATE_ID).assign(ids)
    for table, part in zip(tables, np.split(told, np.cumsum(sizes)[:-1]), strict=True):
        table.assign_add(part)


def told_by_content(content: np.ndarray, ids: np.ndarray, n_interactions: np.ndarray) -> np.ndarray:
    """Regress what candidates read of the ids' table on how they read the content's.

    Args:
        content: (n, n_lines) float32, the weights with which they read each line.
        ids: (n, width) float32.
        n_interactions: (n,) in training.

    Returns:
        (n_lines, width) float32.
    """
    trust = n_interactions / (n_interactions + _HALF_TRUSTED)
    weighted = content.T * trust
    told: np.ndarray = np.linalg.solve(
        weighted @ content + _RIDGE * np.eye(content.shape[1]), weighted @ ids
    )
    return told.astype(np.float32)


def _weights(catalogue: Catalogue, content: Sequence[Feature], rows: np.ndarray) -> np.ndarray:
    """Return the weights (n, n_lines) float32 with which candidates read the content's tables."""
    read = catalogue.some(rows.astype(np.int32))
    parts = [read[feature.name] for feature in content]
    return np.concatenate(
        [(dense(one) if isinstance(one, tf.SparseTensor) else one).numpy() for one in parts], axis=1
    )
