# What _exact.cpp offers, and describes.

import numpy as np

def rescore(
    embeddings: np.ndarray,
    queries: np.ndarray,
    best_rows: np.ndarray,
    best_scores: np.ndarray,
    rows: np.ndarray,
    excluded: np.ndarray,
    /,
) -> None: ...
def scan(
    embeddings: np.ndarray,
    queries: np.ndarray,
    best_rows: np.ndarray,
    best_scores: np.ndarray,
    eligible: np.ndarray,
    /,
) -> None: ...
def scan_cells(
    embeddings: np.ndarray,
    queries: np.ndarray,
    best_rows: np.ndarray,
    best_scores: np.ndarray,
    eligible: np.ndarray,
    centers: np.ndarray,
    members: np.ndarray,
    starts: np.ndarray,
    coarse: np.ndarray,
    scales: np.ndarray,
    steps: np.ndarray,
    n_seen: np.ndarray,
    n_kept: np.ndarray,
    proposed: np.ndarray,
    /,
) -> None: ...
def are_finite(vectors: object, dim: int, /) -> bool: ...
