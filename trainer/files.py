"""Files that are there as a whole, or as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainer.errors import TrainerError


class UnwritableError(TrainerError):
    """Why a file cannot be written, for the user."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield where to write what takes the place of a file in one step; nothing stays if that fails.

    Raises:
        UnwritableError: if it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise UnwritableError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # there is none, or not even a folder
            partial.unlink()
