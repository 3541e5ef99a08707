"""How weights follow their gradients."""

from __future__ import annotations

from typing import Any

from trainer.keras import tf


class LazyAdam(tf.keras.optimizers.Adam):  # type: ignore[misc]
    """Adam (Kingma and Ba, 2015), in one pass over a table, or over those lines that were read.

    Keras's own takes a dozen passes, and lets the moments of all lines of a table decay although
    a step gathered few of them, so that a step over a million candidates costs as many. Here what
    was not read is not touched: its moments decay once when it is read again, however many steps it
    rested.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # XLA, which Keras turns to where there is a GPU, lets no variable change its shape.
        super().__init__(*args, **{**kwargs, "jit_compile": False})
        self._excerpts = _Excerpts()

    def update_step(self, gradient: Any, variable: Any) -> None:
        """Change a variable by its gradient: of its shape, or of those lines that a step read."""
        index = self._index_dict[self._var_key(variable)]
        tables = (variable, self._momentums[index], self._velocities[index])
        if not isinstance(gradient, tf.IndexedSlices):
            self._apply(*tables, gradient)
            return
        # Each line is there once. To read it and write over it takes half of a ``scatter_sub``.
        excerpt = self._excerpts.of(variable)
        for part, table in zip(excerpt, tables, strict=True):
            part.assign(tf.gather(table, gradient.indices))
        self._apply(*excerpt, gradient.values)
        for part, table in zip(excerpt, tables, strict=True):
            table.scatter_update(tf.IndexedSlices(part.read_value(), gradient.indices))

    def _apply(self, variable: Any, m: Any, v: Any, gradient: Any) -> None:
        """Change a variable and its moments by a gradient of its shape."""
        rate, beta_1, beta_2, epsilon = (
            tf.cast(value, variable.dtype)
            for value in (self.learning_rate, self.beta_1, self.beta_2, self.epsilon)
        )
        step = tf.cast(self.iterations + 1, variable.dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=m.handle,
            v=v.handle,
            beta1_power=tf.pow(beta_1, step),
            beta2_power=tf.pow(beta_2, step),
            lr=rate,
            beta1=beta_1,
            beta2=beta_2,
            epsilon=epsilon,
            grad=gradient,
            use_locking=True,
        )

    def _deduplicate_sparse_grad(self, grads: list[Any]) -> list[Any]:
        """Have each line once in the gradients, as Keras does, but copy none that are so already.

        A step reads the lines of most candidates once.
        """
        return [_summed(one) if isinstance(one, tf.IndexedSlices) else one for one in grads]


class _Excerpts:
    """Some lines of a variable and of its moments, as small variables that Adam's kernel takes.

    An object that TensorFlow does not track: what is in them means nothing after a step, and is no
    part of a checkpoint.
    """

    def __init__(self) -> None:
        self._by_variable: dict[Any, tuple[Any, Any, Any]] = {}

    def of(self, variable: Any) -> tuple[Any, Any, Any]:
        """Return three variables with as many lines as are assigned to them."""
        key = variable.ref()
        if key not in self._by_variable:
            width = variable.shape[1:]
            with tf.init_scope():
                empty = tf.zeros([0, *width], variable.dtype)
                lines, m, v = (
                    tf.Variable(empty, trainable=False, shape=[None, *width]) for _ in range(3)
                )
            self._by_variable[key] = lines, m, v
        return self._by_variable[key]


def _summed(gradient: Any) -> Any:
    """Return a gradient (n, width) of lines with each of them once."""
    lines, places = tf.unique(gradient.indices)
    n_lines = tf.size(lines)
    values = tf.cond(
        n_lines == tf.size(places),
        lambda: gradient.values,
        lambda: tf.math.unsorted_segment_sum(gradient.values, places, n_lines),
    )
    return tf.IndexedSlices(values, lines, gradient.dense_shape)
