"""Values by group."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.datasets.grouping import Grouped


def test_values_of_groups_keep_their_order():
    grouped = Grouped.by(np.array([2, 0, 2, 2]), np.array([10, 20, 30, 5]), n_groups=4)

    assert [grouped.of(group).tolist() for group in range(4)] == [[20], [], [10, 30, 5], []]
    assert grouped.counts.tolist() == [1, 0, 3, 0]


def test_pairs_of_some_groups_in_any_order():
    grouped = Grouped.by(np.array([2, 0, 2, 2]), np.array([10, 20, 30, 5]), n_groups=4)

    positions, values = grouped.pairs(np.array([2, 3, 0]))

    assert positions.tolist() == [0, 0, 0, 2]
    assert values.tolist() == [10, 30, 5, 20]


@given(st.lists(st.integers(0, 4)), st.lists(st.integers(0, 4)))
def test_pairs_are_the_values_of_each_group(groups, wanted):
    grouped = Grouped.by(np.array(groups, np.int64), np.arange(len(groups)), n_groups=5)

    positions, values = grouped.pairs(np.array(wanted, np.int64))

    expected = [(i, v) for i, group in enumerate(wanted) for v in grouped.of(group).tolist()]
    assert expected == list(zip(positions.tolist(), values.tolist(), strict=True))
