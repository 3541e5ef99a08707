"""Compression, against the truncated singular value decomposition of the whole score matrix."""

import numpy as np
import pytest

from trainer.compression import compress


@pytest.fixture
def embeddings() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(30, 6)).astype(np.float32), rng.normal(size=(20, 6)).astype(np.float32)


def scores_after(queries: np.ndarray, candidates: np.ndarray, dim: int) -> np.ndarray:
    query_projection, candidate_projection = compress(queries, candidates, dim)
    assert query_projection.shape == candidate_projection.shape == (queries.shape[1], dim)
    return queries @ query_projection @ (candidates @ candidate_projection).T


@pytest.mark.parametrize("dim", [1, 3, 6, 9])
def test_scores_are_the_best_of_that_rank(
    embeddings: tuple[np.ndarray, np.ndarray], dim: int
) -> None:
    queries, candidates = embeddings
    left, singular, right = np.linalg.svd(queries @ candidates.T)
    expected = (left[:, :dim] * singular[:dim]) @ right[:dim]
    np.testing.assert_allclose(expected, scores_after(queries, candidates, dim), atol=1e-4)


def test_fewer_queries_than_dimensions(embeddings: tuple[np.ndarray, np.ndarray]) -> None:
    queries, candidates = embeddings[0][:2], embeddings[1]
    np.testing.assert_allclose(
        queries @ candidates.T, scores_after(queries, candidates, 4), atol=1e-4
    )


def test_one_query_which_is_its_own_mean(embeddings: tuple[np.ndarray, np.ndarray]) -> None:
    scores = scores_after(np.zeros((1, 6), dtype=np.float32), embeddings[1], 3)
    np.testing.assert_array_equal(np.zeros((1, 20)), scores)
