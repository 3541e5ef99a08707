# What _exact.cpp offers, and describes.

import numpy as np

def rescore(
    embeddings: np.ndarray,
    queries: np.ndarray,
    rows: np.ndarray,
    best_rows: np.ndarray,
    best_scores: np.ndarray,
    /,
) -> None: ...
