"""What `wmlc latency` leaves: how long a network's layers take over their channels, in one engine on one machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Len

from wmlc.records.common import SCHEMA, Amount, Count, Positive, Provenance, Record, Size, Version


@dataclass(frozen=True, kw_only=True)
class EngineAt(Record):
    """What a latency belongs to: the engine, how it is asked, and the machine."""

    engine: str
    version: str  # the engine's
    precision: str
    threads: Size
    batch: Size
    device: str
    cpu: str  # the model and its widest vector instructions
    gpu: str | None

    @property
    def words(self) -> str:
        """ort 1.31.1, fp32, 1 thread, batch 1."""
        threads = f", {self.threads} thread{'s' * (self.threads > 1)}" if self.device == "cpu" else ""
        return f"{self.engine} {self.version}, {self.precision}{threads}, batch {self.batch}"


@dataclass(frozen=True)
class LayerShape(Record):
    """Layers that differ in nothing but their channels take as long at the same ones."""

    op: str
    kernel: tuple[Size, ...]
    strides: tuple[Size, ...]
    groups: Literal["dense", "depthwise", "grouped"]
    inputs: tuple[Size, ...]  # height and width that come in
    outputs: tuple[Size, ...]
    then: tuple[str, ...]  # operators after it that its time is counted with: activation, addition

    def __str__(self) -> str:
        def sides(of: tuple[int, ...]) -> str:
            return " x ".join(map(str, of))

        parts = [f"{self.op} {sides(self.kernel)}".rstrip(), *([self.groups] if self.groups != "dense" else [])]
        parts += [f"/{stride}" for stride in self.strides[:1] if stride > 1]
        parts += [f"at {sides(self.outputs)}"] * bool(self.outputs)
        return " ".join(parts) + "".join(f" + {op}" for op in self.then)


@dataclass(frozen=True)
class Point(Record):
    """The median milliseconds of a layer at these channels, over launches, with its 95 % interval."""

    channels_in: Size
    channels_out: Size
    ms: Amount
    low: Amount
    high: Amount
    n: Size  # launches, over all layers of the shape
    blocked: bool | None = None  # all in ONNX Runtime's blocked layout; None where it has none


@dataclass(frozen=True, kw_only=True)
class ShapeTimes(Record):
    """A shape, the network's layers that have it, and their milliseconds."""

    shape: LayerShape
    layers: list[str]
    points: list[Point]


@dataclass(frozen=True)
class Visit(Record):
    """One launch of the whole network at one of the design's widths."""

    design: Count  # which widths
    ms: Positive  # the median of a call, without the profiler
    layers: list[Amount]  # milliseconds of each layer, in the table's order, by the profiler
    other_ms: Amount  # what the engine did besides
    blocked: list[bool | None] = field(
        default_factory=list
    )  # each layer in ONNX Runtime's blocked layout, if it has one


@dataclass(frozen=True, kw_only=True)
class WholeTime(Record):
    """The whole network at these widths: the median share of the full one's time, by turns with it, times that."""

    counts: list[Count]  # units of each group, in the table's order
    ms: Positive
    low: Positive  # with its 95 % interval
    high: Positive
    full_ms: Positive  # of the full network
    launches: Size


@dataclass(frozen=True, kw_only=True)
class PeerLatency(Record):
    """What a peer may take, what it was chosen to take, and what it took before its first step; milliseconds a call."""

    peer: Size
    budget_ms: Positive
    predicted_ms: Positive  # by the table, corrected by what was measured of the widths tried before
    ms: Positive  # the median, measured of the whole network
    low: Positive  # with its 95 % interval
    high: Positive
    macs_cut_ms: Positive | None = None  # what a uniform cut of the MACs by the same share takes, measured too
    counts: dict[str, Count]  # units that each channel group keeps; none, where its block is left out


@dataclass(frozen=True, kw_only=True)
class Sensitivity(Record):
    """What a trained network's answers lose where one channel group alone keeps so many units."""

    group: str
    block: str = ""  # the residual block that goes with it, if it can be left out
    units: Annotated[list[Count], Len(1)]  # ascending; none, where the block is left out; the last are all
    nats: list[Amount]  # lost an image at each of `units`; at 0, this group's part of what is lost without the block

    @property
    def by_half(self) -> float:
        """Nats that are lost where about half of the units stay."""
        some = [k for k, units in enumerate(self.units) if units] or [0]
        return self.nats[min(some, key=lambda k: abs(2 * self.units[k] - self.units[-1]))]


def lost_without(losses: Iterable[Sensitivity]) -> dict[str, float]:
    """Nats an image that are lost without each residual block that can be left out."""
    blocks: dict[str, float] = {}
    for own in losses:
        if not own.units[0]:
            blocks[own.block] = blocks.get(own.block, 0.0) + own.nats[0]
    return blocks


@dataclass(frozen=True, kw_only=True)
class LatencyPlan(Record):
    """Peers chosen for a latency."""

    at: EngineAt
    full_ms: Positive  # the unpruned network's
    peers: list[PeerLatency]
    sensitivity: list[Sensitivity] = field(default_factory=list)  # if widths were chosen by it

    @property
    def budgets_ms(self) -> dict[int, float]:
        """What each peer may take, by its number; not of one that may take as long as the unpruned network."""
        return {own.peer: own.budget_ms for own in self.peers if own.budget_ms < self.full_ms}


@dataclass(frozen=True, kw_only=True)
class LatencyTable(Provenance):
    """A latency table: NETWORK.json in a directory of one engine and machine.

    A whole network takes `overhead_ms` + `scale` × the sum over its layers, up to `error`.
    """

    command: str
    at: EngineAt
    arch: str
    arch_args: str
    classes: Size
    input_shape: tuple[Size, Size, Size]  # channels, height, width
    divisor: Size
    levels: dict[str, list[Size]]  # by channel group, the units that it may keep; the last is all of them
    layers: list[str]  # in the order of their execution
    operations: str = ""  # a digest of what the network does; of older tables it is not known
    shapes: list[ShapeTimes] = field(default_factory=list)  # none yet where it was stopped before
    overhead_ms: float = 0.0
    scale: Positive = 1.0
    error: Amount = 0.0  # the median, relative, over the design's widths
    seconds: Amount = 0.0
    finished: bool = False
    visits: list[Visit] = field(default_factory=list)
    whole: list[WholeTime] = field(default_factory=list)  # networks that were timed afterwards
    schema_version: Version = SCHEMA
