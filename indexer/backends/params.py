"""How an index is built and how hard it searches, and how hard at which depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Generic, NamedTuple, Self, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict

# Beyond the deepest k that was measured there is nothing to interpolate. Deeper results are harder
# to find, so the effort for each result grows by (n / k) to this power.
_GROWTH_BEYOND = 0.3

# The recall that may be lost when n results are found in place of k: half of what a search among
# eligible candidates may lose, since interpolation errs as well.
_AS_GOOD = 0.005
_LEAST_MISSING = 0.001  # of recall: one of 1 was measured on so many answers at least


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

    def at_least(self, other: Self) -> Self:
        """Return params of the greater effort of the two, number by number; none is no limit."""
        here, there = self._numbers(), other._numbers()
        greater = {name: max(n, there[name]) for name, n in here.items() if name in there}
        return self.model_copy(update={name: greater.get(name) for name in here})

    def is_comparable_to(self, other: Self) -> bool:
        """Whether both limit the same: what is not limited is no effort to interpolate towards."""
        return self._numbers().keys() == other._numbers().keys()

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


class Measured(NamedTuple, Generic[S]):
    """What search params were measured to deliver."""

    k: int
    """Results of a search."""
    params: S
    recall: float

    def towards(self, other: Measured[S], recall: float) -> Measured[S]:
        """Return what delivers a recall between that of these params and that of others."""
        here, there, wanted = (_missing(one) for one in (self.recall, other.recall, recall))
        if there >= here or not self.params.is_comparable_to(other.params):
            return self
        share = min(1.0, math.log(here / wanted) / math.log(here / there))
        params = self.params.towards(other.params, share)
        return Measured(self.k, params, min(recall, other.recall))


Series: TypeAlias = tuple[Measured[S], ...]
"""The params that were chosen for one recall, for rising numbers of results."""


def params_chosen_alike(several: Sequence[Series[S]], n: int, params: S, k: int) -> S:
    """Return the params that find n results at the recall for which those for k were chosen.

    They are never of less effort than those for k: what was chosen for the best thousand may take
    less than what was chosen for the best ten, and miss some of the ten.

    Args:
        several: a series for each recall, from low to high.
        n: results that are wanted.
        params: which find k results.
        k: how many those are.
    """
    number = _number_of(several, params)
    if number is None:
        return params.scaled(n / k) if n > k else params
    series = several[number]
    if n <= max(k, *(one.k for one in series if one.params == params)):
        return params
    return _measured_at(series, n).params.at_least(params)


def params_as_good(several: Sequence[Series[S]], n: int, params: S, k: int) -> S:
    """Return the params that find n results at nearly the recall that was measured of those for k.

    Where the least effort of a coarse index delivers far more than was asked for, what was chosen
    for more results may not: then they are taken from between that series and the next.

    Args:
        several: a series for each recall, from low to high.
        n: results that are wanted.
        params: which find k results.
        k: how many those are.
    """
    chosen, number = params_chosen_alike(several, n, params, k), _number_of(several, params)
    if number is None or chosen == params:
        return chosen
    least = min(one.recall for one in several[number] if one.params == params) - _AS_GOOD
    found = _measured_at(several[number], n)
    for series in several[number + 1 :]:
        if found.recall >= least:
            break
        found = found.towards(_measured_at(series, n), least)
    return found.params.at_least(chosen)


def _number_of(several: Sequence[Series[S]], params: S) -> int | None:
    """Return which series has these params, the highest if several have; None if none has."""
    numbers = (i for i, series in enumerate(several) if any(one.params == params for one in series))
    return max(numbers, default=None)


def _measured_at(series: Series[S], n: int) -> Measured[S]:
    """Return what was measured, or is to be expected, for n results along a series."""
    if len(series) == 1:
        (only,) = series
        return Measured(n, only.params.scaled(max(1.0, n / only.k)), only.recall)
    i = min(max(1, sum(one.k < n for one in series)), len(series) - 1)
    low, high = series[i - 1 : i + 1]
    share = max(0.0, math.log(n / low.k) / math.log(high.k / low.k))
    params = low.params.towards(high.params, share)
    if n > high.k:
        params = params.scaled((n / high.k) ** _GROWTH_BEYOND)
    return Measured(n, params, low.recall + min(share, 1.0) * (high.recall - low.recall))


def _missing(recall: float) -> float:
    return max(1 - recall, _LEAST_MISSING)
