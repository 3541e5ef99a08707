"""How an index is built and how hard it searches, and how hard at which depth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Self, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict

# Deeper results are harder to find, and interpolation no longer knows how much: of effort for each,
# by the power of the depth beyond the deepest that was measured.
_GROWTH_BEYOND = 0.3


class BuildParams(BaseModel):
    """How an index is built; each backend adds its own, named as its library names them."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SearchParams(BaseModel):
    """How hard an index searches; each backend adds its own, named as its library names them.

    Whole numbers are effort: the larger, the more is looked at.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    def scaled(self, factor: float) -> Self:
        """Return params of ``factor`` times the effort."""
        return self._with_numbers({name: n * factor for name, n in self._numbers().items()})

    def towards(self, other: Self, share: float) -> Self:
        """Return params between these (share 0) and others (1), or beyond them (above 1).

        Effort is interpolated geometrically, as it relates to the number of results, and never
        falls: where an index was measured to need less for more results, a scan completed them.
        """
        others = other._numbers()
        growth = {name: max(1, others.get(name, n) / n) for name, n in self._numbers().items()}
        numbers = {name: n * growth[name] ** share for name, n in self._numbers().items()}
        return self._with_numbers(numbers)

    def _numbers(self) -> dict[str, int]:
        return {name: value for name, value in self if isinstance(value, int)}

    def _with_numbers(self, numbers: dict[str, float]) -> Self:
        return self.model_copy(
            update={name: max(1, math.ceil(value)) for name, value in numbers.items()}
        )


def geometric(first: int, last: int, factor: float) -> list[int]:
    """Return rising whole numbers from first to last, each about ``factor`` times the one before.

    ``last`` is the last one, whatever the factor.
    """
    numbers = [min(first, last)]
    while numbers[-1] < last:
        numbers.append(min(last, max(numbers[-1] + 1, round(numbers[-1] * factor))))
    return numbers


S = TypeVar("S", bound=SearchParams)

Series: TypeAlias = tuple[tuple[int, S], ...]
"""Numbers of results, rising, each with the search params that deliver one recall there."""


def look_up_params(by_params: Mapping[S, Series[S]], n: int, params: S, k: int) -> S:
    """Return the params that find n results at the recall at which ``params`` finds k."""
    series = by_params.get(params, ((k, params),))
    depth = max(k, *(depth for depth, known in series if known == params))
    if n <= depth:
        return params
    if len(series) == 1:
        return params.scaled(n / depth)
    i = min(sum(known < n for known, _ in series), len(series) - 1)
    (low, below), (high, above) = series[i - 1 : i + 1]
    found = below.towards(above, math.log(n / low) / math.log(high / low))
    return found.scaled((n / high) ** _GROWTH_BEYOND) if n > high else found
