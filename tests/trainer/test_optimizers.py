"""Adam, against Keras's own and against arithmetic."""

from pathlib import Path

import numpy as np
import pytest

from trainer.keras import tf
from trainer.optimizers import LazyAdam

START = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=np.float32)


def after(optimizer: tf.keras.optimizers.Optimizer, gradients: list[object]) -> np.ndarray:
    variable = tf.Variable(START)
    for gradient in gradients:
        optimizer.apply_gradients([(gradient, variable)])
    return variable.numpy()


def lines(rows: list[int], values: list[list[float]]) -> tf.IndexedSlices:
    return tf.IndexedSlices(tf.constant(values), tf.constant(rows), (3, 2))


def test_dense_gradients_are_followed_as_by_keras() -> None:
    rng = np.random.default_rng(0)
    gradients = [tf.constant(rng.normal(size=(3, 2)), tf.float32) for _ in range(5)]
    rate = tf.keras.optimizers.schedules.PolynomialDecay(0.1, 5, end_learning_rate=0.0)
    expected = after(tf.keras.optimizers.Adam(rate), gradients)
    np.testing.assert_allclose(expected, after(LazyAdam(rate), gradients), rtol=1e-5)


def test_lines_that_are_read_in_every_step_are_followed_as_by_keras() -> None:
    gradients = [lines([2, 0], [[1.0, -1.0], [0.5, 2.0]]), lines([0, 2], [[1.0, 1.0], [3.0, 0.0]])]
    expected = after(tf.keras.optimizers.Adam(0.1), gradients)
    np.testing.assert_allclose(expected, after(LazyAdam(0.1), gradients), rtol=1e-5)


def test_a_line_that_is_not_read_rests() -> None:
    once = after(LazyAdam(0.1), [lines([1], [[1.0, 1.0]])])
    later = after(LazyAdam(0.1), [lines([1], [[1.0, 1.0]]), lines([0], [[1.0, 1.0]])])
    np.testing.assert_array_equal(once[1], later[1])
    np.testing.assert_array_equal(START[2], later[2])


def test_a_line_that_is_read_twice_in_a_step_changes_once_by_the_sum() -> None:
    expected = after(LazyAdam(0.1), [lines([1], [[3.0, 5.0]])])
    actual = after(LazyAdam(0.1), [lines([1, 1], [[1.0, 2.0], [2.0, 3.0]])])
    np.testing.assert_allclose(expected, actual, rtol=1e-6)


def test_what_a_step_copies_is_no_part_of_a_checkpoint(tmp_path: Path) -> None:
    optimizer = LazyAdam(0.1)
    optimizer.apply_gradients([(lines([1], [[1.0, 1.0]]), tf.Variable(START))])
    path = tf.train.Checkpoint(optimizer=optimizer).write(str(tmp_path / "checkpoint"))
    shapes = [shape for _, shape in tf.train.list_variables(path) if len(shape) > 1]
    assert shapes == [[3, 2], [3, 2]]  # both moments


def test_where_there_is_a_gpu_lines_are_not_changed_by_xla(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorflow.compat.v2.config.list_physical_devices", lambda _: ["GPU"])
    assert tf.keras.optimizers.Adam().jit_compile
    assert not LazyAdam().jit_compile
