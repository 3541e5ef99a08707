"""Search params and how they grow with the number of results."""

import numpy as np
import pytest

from indexer.backends.annoy import AnnoyIndex, AnnoySearchParams
from indexer.backends.checks import check_queries
from indexer.backends.params import Measured, Series, geometric
from indexer.backends.scann import ScannSearchParams


def params(leaves: int | None, proposals: int) -> ScannSearchParams:
    return ScannSearchParams(
        leaves_to_search=leaves,
        pre_reorder_num_neighbors=2 * proposals,
        final_num_neighbors=proposals,
    )


@pytest.mark.parametrize(
    ("first", "last", "factor", "expected"),
    [
        (1, 10, 2.0, [1, 2, 4, 8, 10]),
        (1, 4, 1.1, [1, 2, 3, 4]),
        (5, 5, 2.0, [5]),
        (7, 3, 2.0, [3]),
    ],
)
def test_geometric(first: int, last: int, factor: float, expected: list[int]) -> None:
    assert expected == geometric(first, last, factor)


def test_effort_is_scaled_and_never_nothing() -> None:
    assert params(6, 30) == params(2, 10).scaled(3)
    assert params(None, 25) == params(None, 10).scaled(2.5)
    least = {"leaves_to_search": 1, "pre_reorder_num_neighbors": 1, "final_num_neighbors": 1}
    assert least == params(2, 10).scaled(0.01).model_dump(exclude_none=True)


def test_effort_is_interpolated_geometrically() -> None:
    assert params(20, 200) == params(10, 100).towards(params(40, 400), 0.5)
    assert params(80, 800) == params(10, 100).towards(params(40, 400), 1.5)
    assert params(None, 200) == params(None, 100).towards(params(None, 400), 0.5)


def test_effort_never_falls_with_more_results() -> None:
    assert params(10, 200) == params(10, 100).towards(params(5, 400), 0.5)


@pytest.fixture(scope="module")
def index() -> AnnoyIndex:
    index = AnnoyIndex.build(np.eye(4, dtype=np.float32))
    index.calibrate([series((10, 100, 0.9), (100, 1000, 0.9)), series((10, 200, 1), (40, 3200, 1))])
    return index


def series(*measured: tuple[int, int, float]) -> Series[AnnoySearchParams]:
    return tuple(
        Measured(k, AnnoySearchParams(search_k=search_k), recall)
        for k, search_k, recall in measured
    )


@pytest.mark.parametrize(
    ("n", "search_k", "k", "expected"),
    [
        (5, 100, 5, 100),  # fewer than it was measured for
        (10, 100, 10, 100),
        (100, 100, 10, 1000),  # measured
        (40, 200, 10, 3200),  # the series of the higher recall
        (20, 200, 10, 800),  # between
        (160, 200, 10, 51200 * 4**0.3),  # beyond, where nothing was measured: more for each
        (160, 3200, 40, 51200 * 4**0.3),
        (30, 7, 10, 21),  # never measured: as the number of results
    ],
)
def test_params_are_found_along_the_series(
    index: AnnoyIndex, n: int, search_k: int, k: int, expected: float
) -> None:
    found = index.params_at(n, AnnoySearchParams(search_k=search_k), k)
    assert found.search_k == pytest.approx(expected, abs=1)


@pytest.mark.parametrize(
    ("n", "search_k", "k", "expected"),
    [
        (100, 100, 10, 1000),  # 0.98 is as good as 0.985
        (1000, 100, 10, 10_000 * 2**0.5),  # 0.9 is not: 0.98 lies half of the way to 0.996
        (5000, 100, 10, 50_000 * 5**0.3 * 2**0.5),  # beyond what was measured, too
        (1000, 200, 10, 20_000),  # there is nothing better than the best
        (10, 100, 10, 100),
    ],
)
def test_more_results_are_found_at_nearly_the_recall_that_was_measured(
    n: int, search_k: int, k: int, expected: float
) -> None:
    index = AnnoyIndex.build(np.eye(4, dtype=np.float32))
    low = series((10, 100, 0.985), (100, 1000, 0.98), (1000, 10_000, 0.9))
    high = series((10, 200, 0.999), (100, 2000, 0.999), (1000, 20_000, 0.996))
    index.calibrate([low, high])
    found = index.params_at(n, AnnoySearchParams(search_k=search_k), k)
    assert found.search_k == pytest.approx(expected, abs=1)


def test_what_looks_past_others_looks_no_less_hard_for_the_best() -> None:
    """As on a real catalogue, where the best ten were harder to find than the best thousand."""
    index = AnnoyIndex.build(np.eye(4, dtype=np.float32))
    index.calibrate([series((10, 900, 0.9), (100, 300, 0.95), (1000, 500, 0.95))])
    for n in (11, 100, 200, 1000):
        assert index.params_at(n, AnnoySearchParams(search_k=900), 10).search_k == 900
    assert index.params_at(10_000, AnnoySearchParams(search_k=900), 10).search_k > 900


def test_without_a_limit_is_nothing_to_go_towards() -> None:
    index = AnnoyIndex.build(np.eye(4, dtype=np.float32))
    tuned = (Measured(10, params(2, 10), 0.99), Measured(100, params(8, 100), 0.9))
    exhaustive = tuple(Measured(k, params(None, 1000), 1.0) for k in (10, 100))
    index.calibrate([tuned, exhaustive])
    assert params(8, 100) == index.params_at(100, params(2, 10), 10)
    assert params(None, 1000) == index.params_at(100, params(None, 1000), 10)


def test_the_greater_effort_of_two() -> None:
    assert params(8, 100) == params(8, 10).at_least(params(2, 100))
    assert params(None, 100) == params(8, 10).at_least(params(None, 100))
    assert params(None, 100) == params(None, 100).at_least(params(8, 10))


def test_what_was_measured_to_deliver_no_more_is_not_taken() -> None:
    index = AnnoyIndex.build(np.eye(4, dtype=np.float32))
    low, high = series((10, 1, 0.99), (100, 2, 0.9)), series((10, 3, 0.99), (100, 9, 0.9))
    index.calibrate([low, high])
    assert index.params_at(100, AnnoySearchParams(search_k=1), 10).search_k == 2


def test_what_is_too_large_only_together_is_no_fault() -> None:
    check_queries(np.full((2, 1), 1.5e19, dtype=np.float32), 1)
    with pytest.raises(ValueError, match="row 1 of the queries is too large"):
        check_queries(np.array([[1.5e19], [2e19]], dtype=np.float32), 1)
