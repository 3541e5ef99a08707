"""Models in LiteRT form, which run without TensorFlow."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter


class LiteModel:
    """A model in LiteRT form with one output; safe to use from several threads.

    Args:
        path: of the file.
        shapes: of inputs by their names, where they are not those in the file. -1 stands for a
            dimension as in the file.
    """

    def __init__(self, path: Path, shapes: Mapping[str, Sequence[int]] | None = None) -> None:
        self._path = str(path)
        self._shapes = shapes or {}
        # An interpreter that two threads use gives wrong answers without a word.
        self._local = threading.local()

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the output for inputs by name, which must have the model's types and shapes."""
        interpreter, positions, output = self._interpreter()
        for name, position in positions.items():
            interpreter.set_tensor(position, inputs[name])
        interpreter.invoke()
        result: np.ndarray = interpreter.get_tensor(output)
        return result

    def _interpreter(self) -> tuple[Any, dict[str, int], int]:
        """Return this thread's interpreter, its inputs by name and its output."""
        if not hasattr(self._local, "interpreter"):
            interpreter = Interpreter(model_path=self._path, num_threads=1)
            details, output = _signature(interpreter)
            # Done once: it costs as much as many runs.
            for name, wanted in self._shapes.items():
                shape = np.where(np.less(wanted, 0), details[name]["shape"], wanted)
                interpreter.resize_tensor_input(details[name]["index"], shape)
            interpreter.allocate_tensors()
            inputs = {name: one["index"] for name, one in details.items()}
            self._local.interpreter = interpreter, inputs, output
        found: tuple[Any, dict[str, int], int] = self._local.interpreter
        return found


def declared_shape(path: Path, name: str) -> list[int]:
    """Return the shape of an input as the file declares it; -1 where it may be of any length."""
    details, _ = _signature(Interpreter(model_path=str(path), num_threads=1))
    shape: list[int] = details[name]["shape_signature"].tolist()
    return shape


def _signature(interpreter: Any) -> tuple[dict[str, Any], int]:
    """Return a model's inputs by name and the position of its output.

    Apart, since no input can be resized while there is a signature runner.
    """
    runner = interpreter.get_signature_runner()
    (output,) = (one["index"] for one in runner.get_output_details().values())
    return runner.get_input_details(), output
