"""Products in bfloat16, alone and in a training."""

import numpy as np
import pytest

from trainer.config import DataConfig
from trainer.evaluation import rank, summarise
from trainer.keras import tf
from trainer.model_config import TowersConfig
from trainer.precision import product
from trainer.splits import SplitKind, split
from trainer.training import fit
from trainer.trainings import scorer


def test_a_mixed_product_is_rounded_and_float32_as_its_gradients_are() -> None:
    left, right = tf.constant([[1.0, 2.0**-10]]), tf.constant([[1.0], [1.0]])
    with tf.GradientTape() as tape:
        tape.watch([left, right])
        mixed = product(left, right, mixed=True)
    assert [[1.0]] == mixed.numpy().tolist()
    assert {tf.float32} == {
        mixed.dtype,
        *(one.dtype for one in tape.gradient(mixed, [left, right])),
    }
    assert [[1.0 + 2.0**-10]] == product(left, right, mixed=False).numpy().tolist()


@pytest.mark.no_cover  # two trainings of what others train too
@pytest.mark.parametrize("loss", ["full", "sampled"])
def test_towers_trained_in_mixed_precision_are_about_as_good(loss: str) -> None:
    dataset = DataConfig(dataset="sample").load()
    parts = split(dataset, SplitKind.LEAVE_LAST_OUT)
    quality, weights = [], []
    for mixed in (False, True):
        config = TowersConfig(dim=16, epochs=3, loss=loss, mixed_precision=mixed)
        towers = fit(dataset, parts.train, config, seed=0)
        weights.append(towers.model.query_tower.encoder.table("candidate_id"))
        metrics = summarise(dataset, parts, rank(dataset, parts, scorer(towers))).metrics
        quality.append(metrics["ndcg@100"])
    assert weights[1].dtype == tf.float32
    assert not np.array_equal(weights[0].numpy(), weights[1].numpy())
    assert quality[0] > 0.1
    assert quality[1] == pytest.approx(quality[0], rel=0.05)
