"""What rounds of times say, and how sure that is: medians with bootstrap intervals.

A process keeps for its life what it was dealt when it started (where its memory lies, which pages are large), and
that moves its times by a percent or two, more than the rounds of one process tell. So networks are launched
several times anew, and an interval is drawn from launches.

L launches, R rounds of one launch, K blocks, S resamples
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from wmlc.records import Speedup
from wmlc.stats import student_t

RESAMPLES = 4000
FEW_BLOCKS = 6  # of which there are 462 different draws
SHORTEST_MS = 1e-6  # a nanosecond, which is what the clock counts
LARGEST_LOG = 34.0  # e^34 is 6e14


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
        median=float(np.exp(np.median(pooled))), low=_exp(low), high=_exp(high),
        n=len(pooled), launches=len(log_LR),
    )  # fmt: skip


def times_interval(times_LR: Sequence[np.ndarray], seed: int) -> tuple[float, float]:
    """The 95 % interval of the median of times [L][R], by their logarithms: it is above 0 and wider upwards."""
    logs = [np.log(np.maximum(times_R, SHORTEST_MS)) for times_R in times_LR]
    low, high = median_interval(logs, seed)
    return _exp(low), _exp(high)


def _exp(value: float) -> float:
    """The exponential within what a record can hold, whatever a wild launch has made of an interval."""
    return math.exp(min(max(value, -LARGEST_LOG), LARGEST_LOG))


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
    drawn_SK = draw.integers(count, size=(RESAMPLES, count))
    if count <= FEW_BLOCKS:  # the same ones are drawn again and again, in whatever order, which no median tells
        told_S = np.sort(drawn_SK, axis=1) @ (count ** np.arange(count))
        _, first, again_S = np.unique(told_S, return_index=True, return_inverse=True)
    else:
        first = again_S = np.arange(RESAMPLES)
    drawn = padded_KR[drawn_SK[first]].reshape(len(first), -1)
    medians_S = (np.nanmedian if np.isnan(padded_KR).any() else np.median)(drawn, axis=1)[again_S]
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
