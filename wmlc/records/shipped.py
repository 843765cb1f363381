"""What leaves a run: an ONNX file's metadata, a plan's record, a shipped model's manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Len

from wmlc.records.common import (
    SCHEMA,
    Amount,
    Count,
    Framing,
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


@dataclass(frozen=True, kw_only=True)
class FileAbout(Record):
    """What an ONNX file of ours says of itself; in its metadata each value is JSON."""

    architecture: str
    data: str | None
    method: str | None
    peer: Count | None
    ratio: Ratio | None
    achieved_ratio: Ratio | None
    ratio_of: str | None
    top1: Percent | None
    commit: str | None
    class_names: list[str]
    input_shape: tuple[Size, Size, Size]
    mean: list[float]
    std: list[Positive]
    framing: Framing  # of a picture, before it is normalised
    with_preprocess: bool
    precision: str
    params: Count
    macs: Count
    opset: Size
    target: str | None = None  # of int8, as are the next two
    calibrator: str | None = None
    calibration_images: Size | None = None
    weights_sha256: str | None = None  # of the weights.safetensors that it was exported from; an ensemble has none
    start: str | None = None  # of a network that came from a trained one: which


@dataclass(frozen=True, kw_only=True)
class PlanRecord(Provenance, Machine):
    """X.plan.json beside a TensorRT plan: the machine that it belongs to, and what it was built from."""

    batch_range: tuple[Size, Size, Size]  # smallest, most usual, largest
    version_compatible: bool
    hardware_compatible: bool
    precision: str
    target: str | None
    onnx_sha256: str
    plan_sha256: str
    plan_bytes: Count
    build_seconds: Amount
    network: FileAbout
    schema_version: Version = SCHEMA


@dataclass(frozen=True, kw_only=True)
class Tensor(Record):
    """An input or an output of a shipped model; -1 is the batch."""

    name: str
    dtype: Literal["float32", "uint8"]
    shape: list[Annotated[int, Ge(-1)]]
    layout: str | None = None  # of an input
    meaning: str | None = None  # of an output


@dataclass(frozen=True, kw_only=True)
class Preprocess(Record):
    """What happens to a picture before the network: `framing`, then (pixels / scale - mean) / std, a channel each."""

    inside: bool  # the file does all but the framing
    formula: str
    scale: Size
    mean: list[float]
    std: list[Positive]
    size: tuple[Size, Size]  # height, width
    channels: Literal["RGB", "gray"]
    framing: Framing  # of a picture, before all that


@dataclass(frozen=True, kw_only=True)
class ShippedNetwork(Record):
    """Which network a shipped model is; peer None: the ensemble of all."""

    peer: Count | None
    ratio: Ratio | None
    achieved_ratio: Ratio | None
    ratio_of: str | None
    method: str | None
    data: str | None
    seed: Count | None
    params: Count
    macs: Count
    start: str | None = None  # the trained network that it came from
    trained: bool = True  # by the run; False: a start as it stands


@dataclass(frozen=True, kw_only=True)
class ShippedAccuracy(Record):
    """Top-1 in percent through `engine`; None: not measured."""

    top1: Percent | None
    top1_drop: Points | None
    test_images: Count
    engine: str
    baseline_precision: str = "fp32"  # of what the drop and the speed-up are over


@dataclass(frozen=True, kw_only=True)
class ShippedLatency(Record):
    """What the bench measured of the file `of_sha256`."""

    ms: Latency
    p50_interval: Interval | None = None
    latency_budget_ms: Positive | None = None  # what the peer was cut for
    budget_met: bool | None = None  # by p50
    batch: Size
    engine: str
    provider: str | None
    machine: str | None
    threads: Size
    speedup: Speedup | None
    throughput_per_s: Amount | None
    time: str
    of_sha256: str


@dataclass(frozen=True, kw_only=True)
class ShippedPlan(Machine):
    """What a shipped TensorRT plan belongs to."""

    version_compatible: bool
    hardware_compatible: bool


@dataclass(frozen=True, kw_only=True)
class Manifest(Record):
    """manifest.json of one version of a shipped model."""

    model: str
    version: Size
    file: str
    sha256: str
    file_bytes: Count
    license: str | None
    server: str
    input: Tensor
    output: Tensor
    preprocess: Preprocess
    labels: Annotated[list[str], Len(1)]
    max_batch: Size
    architecture: str
    arch_args: str | None = None  # of the network's constructor; None: shipped before that was noted
    plan: ShippedPlan | None = None  # None: an ONNX file, which no machine is meant by
    network: ShippedNetwork
    precision: str
    target: str | None
    accuracy: ShippedAccuracy
    latency: ShippedLatency | None
    run: str
    trained_at_commit: str | None
    shipped: Provenance
    schema_version: Version = SCHEMA
