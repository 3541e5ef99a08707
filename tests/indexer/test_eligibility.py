"""How a mask is searched, on candidates 0 to 9,999 of which a lower one is always better."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from indexer.eligibility import EligibleSearch
from indexer.exact import ExactScorer, Neighbors, SearchMethod
from indexer.mask import Mask, sampled_rows
from indexer.ways import CellScan, OverFetch
from tests.indexer.test_cells import in_cells

N = 10_000
QUERIES = np.ones((2, 1), dtype=np.float32)


@pytest.fixture(scope="module")
def exact() -> ExactScorer:
    return ExactScorer(np.arange(N, 0, -1, dtype=np.float32)[:, None])


def search(
    exact: ExactScorer,
    eligible: np.ndarray,
    *,
    k: int = 10,
    propose: Callable[[int], np.ndarray] = np.arange,
) -> tuple[Neighbors, list[int]]:
    """Search with an index that costs one row per proposal; also return how many it was asked."""
    asked: list[int] = []

    def recording(queries: np.ndarray, n: int) -> np.ndarray:
        asked.append(n)
        return np.tile(propose(n), (len(queries), 1))

    ways = [OverFetch(exact, recording, cost=float)]
    return EligibleSearch(exact, k, Mask(eligible, N), ways).search(QUERIES), asked


def test_by_chance_more_are_fetched(exact: ExactScorer) -> None:
    eligible = np.arange(N) % 4 == 0
    found, asked = search(exact, eligible)
    assert found.method == SearchMethod.OVER_FETCH
    assert [list(range(0, 40, 4))] * 2 == found.rows.tolist()
    share = Mask(eligible, N).share
    assert share == pytest.approx(0.25, abs=0.03)
    (n_asked,) = asked  # (10 + 2 * sqrt(10 * 3 / 4)) * 4, rounded up by a sixteenth at most
    assert 0 <= n_asked - (10 + 2 * math.sqrt(10 * (1 - share))) / share < 4


def test_a_few_hidden_ones_are_fetched_too(exact: ExactScorer) -> None:
    eligible = np.arange(N) >= 100
    found, asked = search(exact, eligible)
    assert found.method == SearchMethod.OVER_FETCH
    assert [list(range(100, 110))] * 2 == found.rows.tolist()
    assert asked == [11, 216]  # by chance; past twice as many as there can be before the tenth


def test_many_hidden_ones_are_scanned_for(exact: ExactScorer) -> None:
    eligible = np.arange(N) >= 5000
    found, asked = search(exact, eligible)
    assert found.method == SearchMethod.MASKED_SCAN
    assert [list(range(5000, 5010))] * 2 == found.rows.tolist()
    assert asked == [27]  # the sample says that 0.535 of them are eligible


def test_what_comes_from_the_end_of_the_proposals_is_not_trusted(exact: ExactScorer) -> None:
    """An index that misses most at the end proposes enough, but the wrong ones."""
    eligible = np.arange(N) >= 1500
    lossy = np.concatenate([np.arange(1500), np.arange(1500, N, 7)])
    found, _ = search(exact, eligible, propose=lambda n: np.resize(lossy[: 1510 + n], 1510 + n))
    assert found.method == SearchMethod.MASKED_SCAN
    assert [list(range(1500, 1510))] * 2 == found.rows.tolist()


def test_few_eligible_ones_are_scanned_at_once(exact: ExactScorer) -> None:
    eligible = np.zeros(N, dtype=bool)
    eligible[[9, 8000, 4000]] = True
    found, asked = search(exact, eligible, k=4)
    assert found.rows.tolist() == [[9, 4000, 8000, -1]] * 2
    assert asked == []


def test_none_eligible(exact: ExactScorer) -> None:
    found, asked = search(exact, np.zeros(N, dtype=bool), k=2)
    assert found.rows.tolist() == [[-1, -1]] * 2
    assert asked == []


def test_all_eligible(exact: ExactScorer) -> None:
    found, asked = search(exact, np.ones(N, dtype=bool), k=3)
    assert found.rows.tolist() == [[0, 1, 2]] * 2
    assert asked == [3]


@pytest.mark.parametrize("seen_are_eligible", [True, False])
def test_a_mask_of_which_the_sample_gives_a_wrong_idea(
    exact: ExactScorer, seen_are_eligible: bool
) -> None:
    eligible = np.full(N, not seen_are_eligible)
    eligible[sampled_rows(N)] = seen_are_eligible
    found, _ = search(exact, eligible, k=5)
    assert [np.flatnonzero(eligible)[:5].tolist()] * 2 == found.rows.tolist()
    assert not Mask(eligible, N).includes_all


def test_an_index_that_finds_nothing_is_replaced(exact: ExactScorer) -> None:
    found, _ = search(exact, np.ones(N, dtype=bool), k=3, propose=lambda n: np.full(n, -1))
    assert found.rows.tolist() == [[0, 1, 2]] * 2
    assert found.method == SearchMethod.MASKED_SCAN


def test_only_the_queries_that_need_it_are_scanned(exact: ExactScorer) -> None:
    """The second query's proposals are none of the eligible ones, the first one's all."""
    eligible = np.ones(N, dtype=bool)
    eligible[:3000] = False

    def propose(queries: np.ndarray, n: int) -> np.ndarray:
        starts = np.where(queries[:, 0] > 1, 3000, 0)
        return starts[:, None] + np.arange(n)

    queries = np.array([[2.0], [1.0]], dtype=np.float32)
    scanned: list[int] = []
    original = exact.search

    class Spy(ExactScorer):
        def search(self, some: np.ndarray, k: int, rows: np.ndarray | None = None) -> Neighbors:
            scanned.append(len(some))
            return original(some, k, rows)

    ways = [OverFetch(exact, propose, float)]
    found = EligibleSearch(Spy(exact.embeddings), 5, Mask(eligible, N), ways).search(queries)
    assert [list(range(3000, 3005))] * 2 == found.rows.tolist()
    assert scanned == [1]


class TestCellScan:
    """Cells of a hundred candidates each, the best first."""

    @staticmethod
    def search(
        exact: ExactScorer, eligible: np.ndarray, k: int = 10
    ) -> tuple[Neighbors, list[int]]:
        """Search with cells alone; also return how many of them were looked into each time."""
        asked: list[int] = []
        cells = in_cells(exact.embeddings, np.arange(N) // 100, n_cells=N // 100)

        class Recording(CellScan):
            def look(self, *arguments: Any) -> Any:
                asked.append(self._n_searched(arguments[2]))
                return super().look(*arguments)

        way = Recording(exact, cells, lambda depth: -(-depth // 100), lambda k: 3 * k)
        return EligibleSearch(exact, k, Mask(eligible, N), [way]).search(QUERIES), asked

    def test_by_chance(self, exact: ExactScorer) -> None:
        eligible = np.arange(N) % 20 == 0
        found, asked = self.search(exact, eligible)
        assert found.method == SearchMethod.INDEX
        assert [list(range(0, 200, 20))] * 2 == found.rows.tolist()
        assert asked == [4]  # (10 + 2 * sqrt(10 * 19 / 20)) * 20 candidates

    def test_what_hides_the_best_shows_in_the_first_cells(self, exact: ExactScorer) -> None:
        """Then cells are not to be trusted any more, and there is no other way here."""
        eligible = (np.arange(N) % 3 == 0) & (np.arange(N) >= 100)
        found, asked = self.search(exact, eligible, k=60)
        assert [list(range(102, 282, 3))] * 2 == found.rows.tolist()
        assert found.method == SearchMethod.MASKED_SCAN
        assert len(asked) == 1

    def test_most_are_hidden(self, exact: ExactScorer) -> None:
        found, asked = self.search(exact, np.arange(N) >= 5000)
        assert found.method == SearchMethod.MASKED_SCAN
        assert [list(range(5000, 5010))] * 2 == found.rows.tolist()
        assert len(asked) == 1

    def test_too_few_in_the_cells(self, exact: ExactScorer) -> None:
        """A sample of the mask that gives a wrong idea of it."""
        eligible = np.zeros(N, dtype=bool)
        eligible[sampled_rows(N)] = True
        eligible[:2000] = False
        eligible[[3, 1999]] = True
        found, _ = self.search(exact, eligible, k=5)
        assert [np.flatnonzero(eligible)[:5].tolist()] * 2 == found.rows.tolist()
