"""What records are made of: their base, bounded numbers, and the parts that several of them hold.

A field says what it may hold, so that a number which cannot be, such as a top-1 above 100, is refused where it is
written and where it is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from wmlc.settings import STRICT

SCHEMA: Literal[2] = 2  # of all records

Version = Literal[2]
Interpolation = Literal["bilinear", "bicubic", "nearest"]
Percent = Annotated[float, Ge(0), Le(100)]
Points = Annotated[float, Ge(-100), Le(100)]  # between two top-1
Share = Annotated[float, Ge(0), Le(1)]
Ratio = Annotated[float, Ge(-1), Le(1)]  # of what went: below 0 where a network grew
Weight = Annotated[float, Ge(0), Le(1 + 1e-6)]  # of a peer, as float32 rounds
Amount = Annotated[float, Ge(0), Le(1e15)]  # bounded, so that the sum of several is a number
Positive = Annotated[float, Gt(0), Le(1e15)]
Effort = Annotated[float, Ge(0), Le(1e30)]  # MACs of a training, of which a long one of a large network takes over 1e18
Count = Annotated[int, Ge(0), Le(2**63)]
Size = Annotated[int, Ge(1), Le(2**31)]
Extent = Annotated[int, Ge(1), Le(2**63)]  # parameters or MACs of a network, which are divided by


class Record:
    """What all records have in common: no field that is not known, no value of another type, no NaN."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT


@dataclass(frozen=True, kw_only=True)
class Provenance(Record):
    """Where a number comes from."""

    time: str  # ISO 8601, UTC
    commit: str | None
    versions: dict[str, str]


@dataclass(frozen=True)
class Cost(Record):
    """Parameters, and MACs for one image; FLOPs are twice the MACs."""

    params: Count
    macs: Count


@dataclass(frozen=True, kw_only=True)
class Framing(Record):
    """How a picture of any size becomes one of the network's size: resized, then its middle cut out.

    The one description of it: accuracy is measured so (`wmlc.data.decode`), and so it stands beside every network.
    """

    shorter_side: Size | None  # it is resized to this, the longer one in proportion, rounded down; None: both to `size`
    size: tuple[Size, Size]  # height, width; what is cut off is rounded to even at the top and at the left
    interpolation: Interpolation  # as Pillow's: antialiased where a picture gets smaller, all but nearest

    @property
    def words(self) -> str:
        """In words, for people."""
        height, width = self.size
        how = self.interpolation + (", antialiased" if self.interpolation != "nearest" else "")
        if self.shorter_side is None:
            return f"resized to {height} x {width} ({how})"
        return f"resized to {self.shorter_side} on the shorter side ({how}), {height} x {width} cut out of the middle"


@dataclass(frozen=True, kw_only=True)
class Latency(Record):
    """Milliseconds a call, over `n` calls; percentiles are interpolated linearly, `std` is the sample's."""

    mean: Amount
    min: Amount
    p50: Amount
    p90: Amount
    p99: Amount
    std: Amount
    n: Size


@dataclass(frozen=True, kw_only=True)
class Interval(Record):
    """A 95 % interval."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether the value may be it: whether it lies within."""
        return self.low <= value <= self.high


@dataclass(frozen=True, kw_only=True)
class Speedup(Record):
    """Times as fast: the median over `n` rounds in `launches`, with its 95 % interval from `low` to `high`."""

    median: Positive
    low: Positive
    high: Positive
    n: Size
    launches: Size


@dataclass(frozen=True, kw_only=True)
class Machine(Record):
    """What a TensorRT plan belongs to."""

    tensorrt: str
    cuda: str | None
    driver: str | None
    gpu: str
    compute_capability: str
