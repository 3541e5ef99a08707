"""What the heads read in training, what they have to find, and what competes."""

from typing import Any

import numpy as np
import pytest

from trainer.batches import ages, ragged, training_batches
from trainer.keras import tf
from trainer.model_config import TowersConfig
from trainer.towers import HEADS

SMALL = TowersConfig(dim=8, max_history_length=4, epochs=2, batch_size=2)


def cells(sparse: tf.SparseTensor) -> list[list[tuple[int, float]]]:
    """Return the columns and values of each line."""
    lines: list[list[tuple[int, float]]] = [[] for _ in range(sparse.shape[0])]
    for (line, column), value in zip(sparse.indices.numpy(), sparse.values.numpy(), strict=True):
        lines[line].append((int(column), float(value)))
    return lines


def read(batches: Any) -> list[dict[str, Any]]:
    """Return the examples of each batch by head and by what is in them."""
    return [
        {head: {name: cells(part) for name, part in batch[head].items()} for head in HEADS}
        for batch in batches
    ]


def test_the_newest_interaction_has_the_age_one() -> None:
    histories = ragged([np.array([3, 0, 2]), np.array([], dtype=np.int64), np.array([1])])
    assert cells(ages(histories, 4)) == [[(3, 3), (0, 2), (2, 1)], [], [(1, 1)]]


def test_the_taste_head_finds_what_is_hidden_and_other_interactions_in_every_epoch() -> None:
    batches = read(training_batches([np.arange(100, dtype=np.int32)], 100, SMALL, seed=3))
    (first,), (second,) = (batch["taste"]["history"] for batch in batches)
    ((targets,), _) = (batch["taste"]["targets"] for batch in batches)
    assert sorted(row for row, _ in first + targets) == list(range(100))
    assert [age for _, age in first] == list(range(len(first), 0, -1))
    assert [count for _, count in targets] == [1] * len(targets)
    assert first != second


def test_the_sequence_head_finds_what_came_later_and_the_next_counts_most() -> None:
    config = SMALL.model_copy(update={"epochs": 10})
    for batch in read(training_batches([np.arange(5, dtype=np.int32)], 5, config, seed=0)):
        (history,), (targets,) = batch["sequence"]["history"], batch["sequence"]["targets"]
        assert [row for row, _ in history + targets] == [0, 1, 2, 3, 4]
        assert history
        assert targets
        expected = [1 / n for n in range(1, len(targets) + 1)]
        assert [count for _, count in targets] == pytest.approx(expected)


def test_every_user_comes_once_in_an_epoch_and_the_order_differs() -> None:
    histories = [np.array([user, 9]) for user in range(5)]
    batches = read(training_batches(histories, 10, SMALL, seed=0))
    assert len(batches) == 6
    orders = [
        [history[0][0] for batch in epoch for history in batch["sequence"]["history"]]
        for epoch in (batches[:3], batches[3:])
    ]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
    assert orders[0] != orders[1]


def test_an_epoch_depends_on_the_seed_and_its_number_alone() -> None:
    histories = [np.arange(user + 2) for user in range(5)]
    config = SMALL.model_copy(update={"epochs": 4})
    whole = read(training_batches(histories, 6, config, seed=5))
    assert whole[6:] == read(training_batches(histories, 6, config, seed=5, first_epoch=2))
    assert whole != read(training_batches(histories, 6, config, seed=6))


def test_a_step_is_narrowed_to_what_its_examples_name_and_what_is_drawn() -> None:
    histories = [np.array([7, 900, 20 + user]) for user in range(4)]
    sampled = SMALL.model_copy(update={"loss": "sampled", "negatives": 50})
    full = training_batches(histories, 1000, SMALL, seed=0)
    for narrow, wide in zip(training_batches(histories, 1000, sampled, seed=0), full, strict=True):
        rows, n_competing = narrow["rows"].numpy(), len(narrow["log_chances"])
        assert len(rows) == len(set(rows))
        assert 25 <= n_competing <= len(rows) <= 25 + 6
        for head in HEADS:
            for name, part in narrow[head].items():
                assert part.shape == (2, len(rows))
                named = [[(rows[c], value) for c, value in line] for line in cells(part)]
                assert named == cells(wide[head][name])


def test_a_chance_is_how_often_a_candidate_competes() -> None:
    histories = [np.array([user % 3, 3 + user]) for user in range(30)]
    config = TowersConfig(epochs=100, batch_size=10, loss="sampled", negatives=20)
    counts, expected = np.zeros(60), np.full(60, np.nan)
    n_batches = 0
    for batch in training_batches(histories, 60, config, seed=0):
        competing = batch["rows"].numpy()[: len(batch["log_chances"])]
        counts[competing] += 1
        expected[competing] = np.exp(batch["log_chances"].numpy())
        n_batches += 1
    np.testing.assert_allclose(expected, counts / n_batches, atol=0.12)
