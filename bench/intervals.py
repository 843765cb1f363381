"""What rounds of times say, and how sure that is: medians with bootstrap intervals.

A process keeps for its life what it was dealt when it started (where its memory lies, which pages are large), and
that moves its times by a percent or two, more than the rounds of one process tell. So networks are launched
several times anew, and an interval is drawn from launches.

L launches, R rounds of one launch, K blocks, S resamples
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

RESAMPLES = 4000
COVERED = 0.95


@dataclass(frozen=True)
class Speedup:
    """Times as fast: the median over `n` rounds in `launches`, with its 95 % interval from `low` to `high`."""

    median: float
    low: float
    high: float
    n: int
    launches: int


def speedup(
    baseline_bursts: Sequence[Sequence[np.ndarray]], own_bursts: Sequence[Sequence[np.ndarray]], seed: int
) -> Speedup:
    """The baseline's time over the other's, round by round: `paired_ratio` of the medians of their bursts [L][R]."""
    return paired_ratio(burst_medians(baseline_bursts), burst_medians(own_bursts), seed)


def burst_medians(bursts: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """The median of each burst: milliseconds [L][R][calls] -> [L][R]."""
    return [np.array([np.median(burst) for burst in launch]) for launch in bursts]


def paired_ratio(above_LR: Sequence[np.ndarray], below_LR: Sequence[np.ndarray], seed: int) -> Speedup:
    """exp(median_r log(above_r / below_r)) with its interval; what slows both halves of a round cancels in its ratio.

    Args: positive times [L][R] of the same rounds.
    """
    log_LR = [np.log(above_R) - np.log(below_R) for above_R, below_R in zip(above_LR, below_LR, strict=True)]
    low, high = median_interval(log_LR, seed)
    pooled = np.concatenate(log_LR)
    return Speedup(
        float(np.exp(np.median(pooled))), float(np.exp(low)), float(np.exp(high)), len(pooled), len(log_LR)
    )  # fmt: skip


def median_interval(values_LR: Sequence[np.ndarray], seed: int) -> tuple[float, float]:
    """The 95 % interval of the median of all values [L][R]: t times its bootstrap standard error on either side.

    Rounds of one launch are not independent of each other, and launches next to each other share the machine's mood; so
    from six launches on blocks of two are drawn (a block bootstrap), of fewer whole launches, of a single one its
    rounds. Student's t has as many degrees of freedom as there are blocks, less one.
    """
    blocks = _blocks(values_LR)
    draw, count, rounds = np.random.default_rng(seed), len(blocks), max(map(len, blocks))
    padded_KR = np.full((count, rounds), np.nan)
    for padded_R, values_R in zip(padded_KR, blocks, strict=True):
        padded_R[: len(values_R)] = values_R
    drawn_S = padded_KR[draw.integers(count, size=(RESAMPLES, count))].reshape(RESAMPLES, -1)
    medians_S = (np.nanmedian if np.isnan(padded_KR).any() else np.median)(drawn_S, axis=1)
    middle = float(np.median(np.concatenate(blocks)))
    if count == 1:
        return middle, middle
    half = student_t(count - 1) * float(medians_S.std()) * math.sqrt(count / (count - 1))
    return middle - half, middle + half


def _blocks(values_LR: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What is drawn as a whole, see `median_interval`."""
    launches = len(values_LR)
    if launches == 1:
        return [np.array([value]) for value in values_LR[0]]
    size = 2 if launches >= 6 else 1
    starts = list(range(0, launches - launches % size, size))
    ends = [*starts[1:], launches]
    return [np.concatenate(values_LR[start:end]) for start, end in zip(starts, ends, strict=True)]


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
