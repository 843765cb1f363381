"""What a bench leaves: bench.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Le

from wmlc.records.common import (
    SCHEMA,
    Amount,
    Count,
    Interval,
    Latency,
    Machine,
    Percent,
    Points,
    Positive,
    Provenance,
    Ratio,
    Record,
    Size,
    Speedup,
    Version,
)
from wmlc.settings import BenchSettings


@dataclass(frozen=True, kw_only=True)
class WarmUp(Record):
    """What it took until the times settled, if they did, and the median of the last window in milliseconds."""

    calls: Count
    seconds: Amount
    settled: bool
    median_ms: Amount


@dataclass(frozen=True, kw_only=True)
class Trial(Record):
    """One rate of a server's search, and whether its 99th percentile stayed within the bound."""

    rate_per_s: Positive
    p99_ms: Amount | None
    n: Count
    held: bool


@dataclass(frozen=True, kw_only=True)
class Scenario(Record):
    """What a network did in one of MLPerf's scenarios; None: not a number of that scenario, or not measured."""

    valid: bool  # LoadGen vouches for it
    n: Count | None = None  # queries, or samples where it is offline
    p50_ms: Amount | None = None
    p90_ms: Amount | None = None
    p99_ms: Amount | None = None
    mean_ms: Amount | None = None
    samples_per_query: Size | None = None  # multi-stream
    samples_per_s: Amount | None = None  # offline
    latency_bound_ms: Positive | None = None  # server
    rate_per_s: Positive | None = None  # server: the highest that held the bound
    failed_rate_per_s: Positive | None = None  # server: the lowest that did not
    trials: list[Trial] = field(default_factory=list)  # server


@dataclass(frozen=True, kw_only=True)
class Row(Record):
    """One network in one cell; a value that was not measured is None, with the reason in `notes`."""

    peer: Count  # 0: the baseline
    name: str
    ratio: Ratio | None
    achieved_ratio: Ratio | None
    engine: str
    precision: str
    threads: Size
    batch: Size
    device: str
    provider: str | None
    params: Count
    macs: Count | None  # None: they cannot be told, as of a file whose branches are chosen as it runs
    flops: Count | None
    mac_ratio: Positive | None  # the baseline's MACs over this one's
    file_bytes: Count | None  # None, and no hash: the file could not be made
    file_sha256: str | None
    latency_ms: Latency | None
    p50_interval: Interval | None
    latency_budget_ms: Positive | None = None  # what the peer was cut for; None: nothing, or in another cell
    budget_met: bool | None = None  # by p50
    compute_ms: Latency | None  # without transfers
    throughput_per_s: Amount | None
    speedup: Speedup | None
    paid_out: Positive | None  # speed-up over `mac_ratio`
    load_ms: Amount | None
    first_ms: Amount | None  # of the first inference
    peak_memory_bytes: Count | None
    engine_memory_bytes: Annotated[int, Ge(-(2**63)), Le(2**63)] | None  # below 0 where others freed some
    top1: Percent | None
    top1_drop: Points | None
    scenarios: dict[str, Scenario]
    warm_up: WarmUp | None
    logits_apart: Amount | None  # from the reference's: `wmlc.accuracy.relative_error`
    on_front: bool | None
    notes: list[str]
    time: str | None = None  # of a row that is of an earlier bench: when that was


@dataclass(frozen=True, kw_only=True)
class LayerTime(Record):
    """A layer of a profile; operators that compute nothing have no channels and no MACs."""

    layer: str
    op: str
    ms: Amount
    channels: tuple[Count, Count] | None  # in, out
    macs: Count
    bytes: Count | None
    intensity: Amount | None  # FLOPs a byte
    blocked: bool | None = None  # a convolution in ONNX Runtime's blocked layout; None: not of this engine or operator


@dataclass(frozen=True, kw_only=True)
class Profile(Record):
    """One network's time a layer in one cell."""

    engine: str
    threads: Size
    batch: Size
    peer: Count
    precision: str
    name: str
    profiled_ms: Amount  # all layers together
    p50_ms: Amount | None  # of the calls that were timed without the profiler
    layers: list[LayerTime]


@dataclass(frozen=True, kw_only=True)
class FrontPoint(Record):
    """A network on a Pareto front."""

    name: str
    peer: Count
    precision: str
    p50_ms: Amount
    top1: Percent


@dataclass(frozen=True, kw_only=True)
class Front(Record):
    """The networks of one cell that no other one beats in time and accuracy, the fastest first."""

    engine: str
    threads: Size
    batch: Size
    points: list[FrontPoint]


@dataclass(frozen=True, kw_only=True)
class Environment(Provenance):
    """The machine of a bench."""

    cpu: str
    gpu: str | None
    devices: dict[str, str]  # by engine
    plan_machine: Machine | None
    cores: Size | None
    pinning: str
    system: str
    load_average_before: Amount | None
    threads: list[Size]


@dataclass(frozen=True, kw_only=True)
class TestData(Record):
    """The images that accuracies were measured on."""

    name: str
    test_images: Count
    digest: str | None = None  # of their labels and files; None: of a bench from before it was noted


@dataclass(frozen=True, kw_only=True)
class Bench(Record):
    """bench.json: everything that a bench measured."""

    command: str
    environment: Environment
    settings: BenchSettings
    data: TestData | None
    notes: list[str]
    rows: list[Row]
    pareto: list[Front]
    profiles: list[Profile]
    inputs: list[str] = field(default_factory=list)  # of files: what each is shown, and what of it is read
    schema_version: Version = SCHEMA
