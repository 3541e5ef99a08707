"""What is watched while towers are trained: the loss, the quality on validation, when to stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from trainer.checkpoints import Checkpoints, Curve
from trainer.distribution import averaged
from trainer.keras import tf
from trainer.validation import Validation, best_epoch

OnEpoch: TypeAlias = Callable[[int, dict[str, float]], None]


class Monitor(tf.keras.callbacks.Callback):  # type: ignore[misc]
    """Measures every epoch, saves it, reports it, and stops the training when it should.

    Args:
        on_epoch: called after every epoch with its number, from 1, and its metrics by name.
        validation: what measures the model after every epoch, if anything does.
        patience: epochs without a better validation after which the training stops; 0: never.
        checkpoints: where the epochs are saved, if they are.
    """

    def __init__(
        self,
        on_epoch: OnEpoch | None,
        validation: Validation | None,
        patience: int,
        checkpoints: Checkpoints | None,
    ) -> None:
        super().__init__()
        self._on_epoch = on_epoch
        self._validation = validation
        self._patience = patience
        self._checkpoints = checkpoints
        self._losses: list[float] = []
        self._curve: Curve = []

    def restore(self) -> int:
        """Go back to the last checkpoint, if there is one; returns the epochs done by then."""
        if self._checkpoints is not None:
            self._curve = self._checkpoints.restore()
        for epoch, metrics in enumerate(self._curve, start=1):
            self._report(epoch, metrics)
        return len(self._curve)

    @property
    def is_out_of_patience(self) -> bool:
        """Whether validation has not become better for so long that the training should stop."""
        if not self._patience or self._validation is None or not self._curve:
            return False
        return len(self._curve) - best_epoch(self._curve) >= self._patience

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Forget the losses of the epoch before."""
        del epoch, logs
        self._losses = []

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        """Note the loss of a step.

        Raises:
            FloatingPointError: if it is not a finite number.
        """
        loss = float(logs["loss"])
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"the loss became {loss} in epoch {len(self._curve) + 1}, step {batch + 1}"
            )
        self._losses.append(loss)

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        """Measure, save and report; what comes after this among the callbacks sees the metrics.

        Raises:
            FloatingPointError: if the weights have no length that is a finite number.
        """
        self._require_finite_weights()
        metrics = {"loss": float(np.mean(self._losses))}
        if self._validation is not None:
            # One figure for all workers, which have to stop after the same epoch.
            metrics |= averaged(self._validation.measure(self.model))
        logs.update(metrics)
        self._curve.append(metrics)
        if self._checkpoints is not None:
            self._checkpoints.save(self._curve)
        self._report(epoch + 1, metrics)
        if self.is_out_of_patience:
            self.model.stop_training = True

    def _require_finite_weights(self) -> None:
        """Refuse what the last step of an epoch did: its loss is that of the weights before it."""
        for weights in self.model.trainable_weights:
            if not tf.math.is_finite(tf.nn.l2_loss(weights)):
                raise FloatingPointError(
                    f"the weights grew beyond all numbers in epoch {len(self._curve) + 1}"
                )

    def _report(self, epoch: int, metrics: dict[str, float]) -> None:
        if self._on_epoch is not None:
            self._on_epoch(epoch, metrics)
