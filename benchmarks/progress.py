"""How a benchmark tells what it is doing."""

from collections.abc import Callable
from typing import TypeAlias

OnStep: TypeAlias = Callable[[str], None]
"""Told, in a few words, what is measured next."""
