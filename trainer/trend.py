"""What is popular now: what a training learns of popularity is an average over all the time it saw.

Where the popularity of candidates changes, what is asked today follows that of today. For a softmax
that was trained under one distribution of answers and is asked under another, the logarithm of
their ratio is what its scores lack (Saerens et al. 2002, "Adjusting the outputs of a classifier to
new a priori probabilities"). It depends on the candidate alone, so the bias takes it up.
"""

from __future__ import annotations

import numpy as np

from trainer.datasets import Dataset

HALF_LIVES_DAYS = (3.0, 7.0, 14.0, 30.0)
"""What is tried for how fast interactions lose weight."""

_SECONDS_A_DAY = 86_400
_PRIOR = 0.2
"""Interactions a candidate, spread as all are: they count for more the fewer are recent."""


def bias_shifts(
    dataset: Dataset, train_rows: np.ndarray, half_life_days: float
) -> np.ndarray | None:
    """Return what the candidates' biases lack at the end of the train rows.

    Args:
        dataset: users, candidates and interactions.
        train_rows: (n,) int64, the interactions that were trained on.
        half_life_days: after how long an interaction counts half; 0: all count alike.

    Returns:
        (n_candidates,) float32; None where all count alike, or it is not known when they were.
    """
    if dataset.timestamps is None or half_life_days == 0 or len(train_rows) == 0:
        return None
    times = dataset.timestamps[train_rows]
    if times.min() == times.max():
        return None
    ages_days = (times.max() - times) / _SECONDS_A_DAY
    rows, n = dataset.candidate_rows[train_rows], dataset.n_candidates
    recent = np.bincount(rows, weights=0.5 ** (ages_days / half_life_days), minlength=n)
    overall = (np.bincount(rows, minlength=n) + 0.5) / (len(rows) + 0.5 * n)
    now = (recent + _PRIOR * n * overall) / (recent.sum() + _PRIOR * n)
    shifts: np.ndarray = np.log(now / overall).astype(np.float32)
    return shifts
