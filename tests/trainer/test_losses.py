"""The loss, against arithmetic done by hand."""

import numpy as np
import pytest

from trainer.keras import tf
from trainer.losses import SoftmaxRetrieval

CANDIDATES = np.array([[0.0], [1.0], [2.0]], dtype=np.float32)


def loss(
    queries: list[list[float]],
    targets: list[list[int]],
    *,
    weights: list[list[float]] | None = None,
    seen: list[list[int]] | None = None,
    user_weight: float = 0.5,
) -> float:
    task = SoftmaxRetrieval(user_weight=user_weight)
    rows = tf.ragged.constant(targets, dtype=tf.int32, ragged_rank=1)
    return float(
        task(
            tf.constant(queries),
            tf.constant(CANDIDATES),
            targets=rows,
            target_weights=tf.ones_like(rows, tf.float32)
            if weights is None
            else tf.ragged.constant(weights, dtype=tf.float32),
            seen=tf.ragged.constant(seen or [[]] * len(queries), dtype=tf.int32, ragged_rank=1),
        )
    )


def negative_log_likelihood(score: float, scores: list[float]) -> float:
    return float(np.log(np.sum(np.exp(scores))) - score)


def test_one_target_is_the_softmax_cross_entropy() -> None:
    expected = negative_log_likelihood(2.0, [0.0, 1.0, 2.0])
    assert expected == pytest.approx(loss([[1.0]], [[2]]))


def test_a_user_is_weighted_by_the_power_of_their_target_count() -> None:
    first = np.mean(
        [negative_log_likelihood(score, [0.0, 1.0, 2.0]) for score in (0.0, 1.0, 2.0, 2.0)]
    )
    second = negative_log_likelihood(-2.0, [0.0, -2.0, -4.0])
    expected = (2 * first + 1 * second) / (2 + 1)
    assert expected == pytest.approx(loss([[1.0], [-2.0]], [[0, 1, 2, 2], [1]], user_weight=0.5))


def test_a_user_without_targets_does_not_count() -> None:
    assert loss([[1.0]], [[2]]) == pytest.approx(loss([[1.0], [5.0]], [[2], []]))


def test_targets_count_by_their_weights() -> None:
    expected = np.average(
        [negative_log_likelihood(score, [0.0, 1.0, 2.0]) for score in (0.0, 2.0)], weights=[3, 1]
    )
    assert expected == pytest.approx(loss([[1.0]], [[0, 2]], weights=[[3, 1]]))


def test_what_the_query_has_read_does_not_compete() -> None:
    expected = negative_log_likelihood(2.0, [0.0, 2.0])
    assert expected == pytest.approx(loss([[1.0]], [[2]], seen=[[1]]))


def test_a_target_that_was_seen_before_competes_all_the_same() -> None:
    expected = negative_log_likelihood(1.0, [0.0, 1.0, 2.0])
    assert expected == pytest.approx(loss([[1.0]], [[1]], seen=[[1]]))


def test_no_targets_at_all_is_no_loss() -> None:
    assert loss([[1.0]], [[]]) == 0
