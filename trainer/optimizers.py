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

    def update_step(self, gradient: Any, variable: Any) -> None:
        """Change a variable by its gradient: of its shape, or of those lines that a step read."""
        index = self._index_dict[self._var_key(variable)]
        m, v = self._momentums[index], self._velocities[index]
        step = tf.cast(self.iterations + 1, variable.dtype)
        powers = [
            tf.pow(tf.cast(beta, variable.dtype), step) for beta in (self.beta_1, self.beta_2)
        ]
        rate = tf.cast(self.learning_rate, variable.dtype)
        if isinstance(gradient, tf.IndexedSlices):
            self._update_lines(gradient, variable, m, v, rate, powers)
            return
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=m.handle,
            v=v.handle,
            beta1_power=powers[0],
            beta2_power=powers[1],
            lr=rate,
            beta1=tf.cast(self.beta_1, variable.dtype),
            beta2=tf.cast(self.beta_2, variable.dtype),
            epsilon=tf.cast(self.epsilon, variable.dtype),
            grad=gradient,
            use_locking=True,
        )

    def _update_lines(
        self, gradient: Any, variable: Any, m: Any, v: Any, rate: Any, powers: list[Any]
    ) -> None:
        """Change the lines of a table that a step read.

        Keras has summed what was read twice, so each of the (n,) lines of the gradient, whose
        values are (n, width), is there once. ``powers`` are both betas to the power of the step.
        """
        lines, change = gradient.indices, gradient.values
        new_m = self.beta_1 * tf.gather(m, lines) + (1 - self.beta_1) * change
        new_v = self.beta_2 * tf.gather(v, lines) + (1 - self.beta_2) * tf.square(change)
        m.scatter_update(tf.IndexedSlices(new_m, lines))
        v.scatter_update(tf.IndexedSlices(new_v, lines))
        scaled = rate * tf.sqrt(1 - powers[1]) / (1 - powers[0])
        variable.scatter_sub(
            tf.IndexedSlices(scaled * new_m / (tf.sqrt(new_v) + self.epsilon), lines)
        )
