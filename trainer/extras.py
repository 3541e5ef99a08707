"""The optional parts of an installation, and what is said where one of them is missing.

Imports nothing but Python's own, since it speaks where little else is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_OURS = frozenset({"benchmarks", "candidate_search", "indexer", "server", "trainer"})


class NotCompiledError(ImportError):
    """A part of this project was not compiled when it was installed."""

    def __init__(self, source: str, cause: ImportError) -> None:
        super().__init__(
            f"{source} is not compiled; install a C++ compiler, then this package again (in a "
            f"checkout: make setup; pip install -v says why it was not compiled): {cause}"
        )


def missing(package: str, extra: str) -> str:
    """Return the sentence that a package is not installed, and how to install it.

    Args:
        package: what is missing, as people know it.
        extra: the extra of this project that it comes with.
    """
    return (
        f"{package} is not installed; it comes with: pip install '.[{extra}]' in this project's "
        "folder"
    )


@contextmanager
def needed(extra: str) -> Iterator[None]:
    """End the process with a sentence if the block imports what is not installed, or compiled.

    Args:
        extra: the extra that the block needs.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or package in _OURS or package in sys.stdlib_module_names:
            raise  # which no extra mends
        sys.exit(f"error: {missing(package, extra)}")
    except NotCompiledError as error:
        sys.exit(f"error: {error}")
