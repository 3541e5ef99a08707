import numpy as np
import pytest

from indexer.exact import Neighbors
from indexer.recall import mean_interval, recall_at_k, standard_error


def neighbors(rows: list[list[int]], scores: list[list[float]]) -> Neighbors:
    return Neighbors(np.array(rows, np.int64), np.array(scores, np.float32))


NONE = -np.inf


def test_recall_is_the_share_of_the_exact_top_k() -> None:
    exact = neighbors([[4, 2, 7, 1], [0, 1, 2, 3]], [[9, 8, 7, 6], [4, 3, 2, 1]])
    found = neighbors([[4, 7, 5, -1], [0, 1, 2, 3]], [[9, 7, 5, NONE], [4, 3, 2, 1]])
    assert recall_at_k(found, exact).tolist() == [0.5, 1.0]


def test_a_tie_with_the_last_counts() -> None:
    exact = neighbors([[4, 2]], [[9, 8]])
    found = neighbors([[4, 5]], [[9, 8]])
    assert recall_at_k(found, exact).tolist() == [1.0]


def test_only_what_could_be_found_counts() -> None:
    exact = neighbors([[4, 2, -1], [-1, -1, -1]], [[9, 8, NONE], [NONE, NONE, NONE]])
    found = neighbors([[4, -1, -1], [-1, -1, -1]], [[9, NONE, NONE], [NONE, NONE, NONE]])
    assert recall_at_k(found, exact).tolist() == [0.5, 1.0]


def test_answers_of_different_depth_are_refused() -> None:
    with pytest.raises(ValueError, match=r"found has \(1, 1\), exact has \(1, 2\)"):
        recall_at_k(neighbors([[4]], [[9]]), neighbors([[4, 2]], [[9, 8]]))


def test_the_interval_of_a_mean() -> None:
    recalls = np.array([0.5, 0.7, 0.9, 0.7])
    mean, low, high = mean_interval(recalls)
    assert standard_error(recalls) == pytest.approx(0.0816, abs=1e-4)
    assert (mean, low, high) == pytest.approx((0.7, 0.54, 0.86), abs=1e-3)


def test_the_interval_stays_between_0_and_1() -> None:
    assert mean_interval(np.array([0.2, 1.0, 1.0])) == pytest.approx((0.733, 0.211, 1.0), abs=1e-3)


def test_one_query_has_no_interval() -> None:
    assert mean_interval(np.array([0.4])) == (0.4, 0.4, 0.4)
