"""Coverage left unmeasured where it costs much and tells nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from coverage import Coverage


@contextmanager
def measuring_no_coverage() -> Iterator[None]:
    """Measure no coverage, nor in processes started meanwhile: a training takes a third longer.

    For lines that others run too, and for processes that are killed, which tell of none.
    """
    measured = Coverage.current()
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        if measured is not None:
            measured.stop()
        try:
            yield
        finally:
            if measured is not None:
                measured.start()
