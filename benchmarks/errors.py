"""What every error of the benchmarks has in common that their user can mend."""

from __future__ import annotations


class BenchmarkError(Exception):
    """Why something cannot be measured, in words for whoever gave the command."""
