"""The loss, against arithmetic done by hand."""

import numpy as np
import pytest

from trainer.keras import tf
from trainer.losses import SoftmaxRetrieval

CANDIDATES = np.array([[0.0], [1.0], [2.0]], dtype=np.float32)


def sparse(columns: list[list[int]], values: list[list[float]] | None = None) -> tf.SparseTensor:
    cells = [(line, column) for line, row in enumerate(columns) for column in row]
    flat = [1.0] * len(cells) if values is None else [one for row in values for one in row]
    return tf.SparseTensor(
        np.array(cells, dtype=np.int64).reshape(-1, 2),
        np.array(flat, dtype=np.float32),
        (len(columns), len(CANDIDATES)),
    )


def loss(
    queries: list[list[float]],
    targets: list[list[int]],
    *,
    weights: list[list[float]] | None = None,
    seen: list[list[int]] | None = None,
    log_chances: list[float] | None = None,
    user_weight: float = 0.5,
    hard_negatives: int = 0,
) -> float:
    task = SoftmaxRetrieval(user_weight, hard_negatives)
    return float(
        task(
            tf.constant(queries),
            tf.constant(CANDIDATES),
            targets=sparse(targets, weights),
            seen=sparse(seen or [[]] * len(queries)),
            log_chances=log_chances,
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


def test_a_sampled_candidate_stands_for_as_many_as_its_chance_says() -> None:
    expected = negative_log_likelihood(2.0, [0.0, *[1.0] * 4, 2.0])
    chances = np.log([1, 1 / 4]).astype(np.float32)
    assert expected == pytest.approx(loss([[1.0]], [[2]], log_chances=chances))


def test_a_target_that_was_sampled_is_no_negative_of_its_own_query() -> None:
    expected = negative_log_likelihood(1.0, [0.0, 1.0])
    chances = np.log([1, 1 / 4]).astype(np.float32)
    assert expected == pytest.approx(loss([[1.0]], [[1]], log_chances=chances))


def test_where_all_compete_for_certain_the_sampled_loss_is_the_exact_one() -> None:
    queries, targets, seen = [[1.0], [-2.0], [3.0]], [[0, 2], [1], []], [[1], [], [0]]
    expected = loss(queries, targets, seen=seen)
    assert expected == pytest.approx(loss(queries, targets, seen=seen, log_chances=[0.0] * 3))


def test_of_what_competes_only_the_hardest_count() -> None:
    expected = negative_log_likelihood(0.0, [0.0, 2.0])
    assert expected == pytest.approx(loss([[1.0]], [[0]], hard_negatives=1))


def test_as_many_hard_negatives_as_there_are_candidates_are_the_full_softmax() -> None:
    queries, targets = [[1.0], [-2.0]], [[0, 2], [1]]
    expected = loss(queries, targets)
    assert expected == pytest.approx(loss(queries, targets, hard_negatives=10))
