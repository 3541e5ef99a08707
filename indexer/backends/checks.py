"""What searches and builds are given, and is refused before native code sees it."""

from __future__ import annotations

import math
import operator

import numpy as np
from pydantic import BaseModel

from indexer.exact import are_finite, squared_norms


def check_embeddings(embeddings: np.ndarray) -> None:
    """Refuse what no index can be built from.

    Raises:
        ValueError: if it is not a non-empty (n, dim) float32 array in C order, or if a row is not
            finite or so large that scores could overflow.
    """
    _check_vectors("embeddings", embeddings)
    if 0 in embeddings.shape:
        raise ValueError(f"embeddings must not be empty; their shape is {embeddings.shape}")
    if not embeddings.flags.c_contiguous:
        raise ValueError("embeddings must be in C order; use numpy.ascontiguousarray")


def check_queries(queries: np.ndarray, dim: int) -> None:
    """Refuse queries that do not fit an index of dimension ``dim``.

    Raises:
        ValueError: if they are not a finite (n_queries, dim) float32 array.
    """
    if are_finite(queries, dim):  # nearly always, and in a fifth of the time
        return
    _check_vectors("queries", queries)
    if queries.shape[1] != dim:
        raise ValueError(
            f"queries must have dimension {dim}, as the index has, not {queries.shape[1]}"
        )


def check_eligible(eligible: np.ndarray, n_candidates: int) -> None:
    """Refuse what is no mask of the candidates.

    Raises:
        ValueError: if it is not a (n_candidates,) bool array.
    """
    if not isinstance(eligible, np.ndarray) or eligible.dtype != np.bool_:
        raise ValueError(f"eligible must be a bool array, not {_kind(eligible)}")
    if eligible.shape != (n_candidates,):
        raise ValueError(
            f"eligible must have one entry per candidate, shape ({n_candidates},), "
            f"not {eligible.shape}"
        )


def _check_vectors(name: str, vectors: np.ndarray) -> None:
    if not isinstance(vectors, np.ndarray) or vectors.dtype != np.float32:
        raise ValueError(f"{name} must be a float32 array, not {_kind(vectors)}")
    if vectors.ndim != 2:  # noqa: PLR2004
        raise ValueError(f"{name} must have shape (n, dim), not {vectors.shape}")
    if math.isfinite(np.vdot(vectors, vectors)):
        return
    is_finite = np.isfinite(squared_norms(vectors))
    if is_finite.all():  # it was only their sum that was too large
        return
    row = int(np.argmin(is_finite))
    problem = (
        "is too large: its norm must be below 1.8e19"
        if np.isfinite(vectors[row]).all()
        else "holds a NaN or an infinity"
    )
    raise ValueError(f"row {row} of the {name} {problem}")


def check_k(k: int) -> int:
    """Return a number of results as an int.

    Raises:
        ValueError: if it is not a whole number of at least 1.
    """
    try:
        value = operator.index(k)
    except TypeError:
        raise ValueError(f"k must be a whole number of at least 1, not {k!r}") from None
    if value < 1:
        raise ValueError(f"k must be at least 1, not {value}")
    return value


def check_type(what: str, params: BaseModel, expected: type[BaseModel]) -> None:
    """Refuse the params of another backend.

    Raises:
        TypeError: if they are not of the expected type; ``what`` names them.
    """
    if not isinstance(params, expected):
        raise TypeError(f"{what} must be {expected.__name__}, not {type(params).__name__}")


def _kind(value: object) -> str:
    return f"{value.dtype} array" if isinstance(value, np.ndarray) else type(value).__name__
