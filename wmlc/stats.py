"""Numbers about numbers, for every room: spreads over seeds, intervals, Pareto fronts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import TypeVar

COVERED = 0.95  # by an interval
Z = 1.96  # standard errors on each side of what a 95 % interval is about

Point = TypeVar("Point")


@dataclass(frozen=True)
class Spread:
    """A number a run: their mean, their standard deviation (n − 1; None for fewer than two), how many are known."""

    mean: float | None
    sd: float | None
    n: int
    values: list[float | None]


def spread(values: Sequence[float | None]) -> Spread:
    """Mean and standard deviation of what is known among `values`."""
    known = [value for value in values if value is not None]
    return Spread(
        fmean(known) if known else None, stdev(known) if len(known) > 1 else None, len(known), list(values)
    )  # fmt: skip


def top1_interval(percent: float, images: int) -> tuple[float, float]:
    """The 95 % interval of a top-1 in percent that was measured on so many images (Wilson's score interval, 1927)."""
    share, z = percent / 100, Z
    centre, widen = share + z**2 / (2 * images), 1 + z**2 / images
    half = z * math.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    return 100 * (centre - half) / widen, 100 * (centre + half) / widen


def top1_difference(first: float, second: float, images: int) -> tuple[float, float]:
    """The 95 % interval of `first` − `second`, two top-1 in percent on so many images each.

    From Wilson's intervals of both (Newcombe 1998, method 10), as of independent measurements: which images each
    network gets right is not recorded, so that it is no narrower than one of the same images, pair by pair.
    """
    (low1, high1), (low2, high2) = (top1_interval(percent, images) for percent in (first, second))
    middle = first - second
    return middle - math.hypot(first - low1, high2 - second), middle + math.hypot(high1 - first, second - low2)


def positive_interval(middle: float, low: float, high: float) -> tuple[float, float]:
    """The interval of a time that cannot be below zero: as it is, or around `middle` on a log scale if it is not above.

    Half of it relative to `middle` is that of log(`middle`), to first order: middle · exp(± (high − low) / 2 middle).
    """
    if low > 0:
        return low, high
    factor = math.exp(min((high - low) / (2 * middle), 20.0))
    return middle / factor, middle * factor


def student_t(freedom: int) -> float:
    """Student's t that is exceeded with probability 2.5 %: exact for 1 and 2 degrees of freedom.

    From 3 on the expansion of its quantile around the normal one (Abramowitz and Stegun 26.7.5), off by 0.1 % at most.
    """
    z = NormalDist().inv_cdf(0.5 + COVERED / 2)
    if freedom == 1:
        return math.tan(math.pi * COVERED / 2)
    if freedom == 2:
        return math.sqrt(2 * COVERED**2 / (1 - COVERED**2))
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


def pareto_front(
    points: Iterable[Point], cost: Callable[[Point], float], gain: Callable[[Point], float]
) -> list[Point]:
    """The points that no other one beats, the cheapest first: none costs at most as much and gains at least as much.

    Of points alike in both, all are on the front.
    """
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (cost(p), -gain(p))):
        best = front[-1] if front else None
        if best is None or gain(point) > gain(best) or (cost(point), gain(point)) == (cost(best), gain(best)):
            front.append(point)
    return front
