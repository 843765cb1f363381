"""What training leaves: config.json, family.json, metrics.jsonl, a checkpoint's state.json, a network's spec.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Le, Len

from wmlc.records.common import (
    SCHEMA,
    Amount,
    Cost,
    Count,
    Effort,
    Extent,
    Framing,
    Percent,
    Positive,
    Provenance,
    Ratio,
    Record,
    Share,
    Size,
    Version,
    Weight,
)
from wmlc.records.latency import LatencyPlan, Sensitivity
from wmlc.settings import TrainConfig

Phase = Literal["family", "baseline"]  # of a run
Answer = Annotated[list[float], Len(1)] | None  # a network's first logits for a known image (models/answer.py)


@dataclass(frozen=True, kw_only=True)
class Ensembled(Record):
    """What the peers of a family have in common, as each of them keeps it."""

    ensemble_top1: Percent
    average_ensemble_top1: Percent
    peer_weights: list[Weight]
    best_epoch: Count
    seconds: Amount
    training_macs: Effort | None = None


@dataclass(frozen=True, kw_only=True)
class About(Record):
    """What is known of a network besides its shape; None: unknown, or not of this network."""

    data: str | None = None
    method: str | None = None
    start: str | None = None  # the trained network that it came from, by name
    ratio_of: str | None = None
    seed: Count | None = None
    epochs: Count | None = None
    train_images: Count | None = None
    test_images: Count | None = None
    commit: str | None = None
    peer: Count | None = None
    ratio: Ratio | None = None
    achieved_ratio: Ratio | None = None
    params: Count | None = None
    macs: Count | None = None
    top1: Percent | None = None
    best_epoch: Count | None = None
    seconds: Amount | None = None
    training_macs: Effort | None = None
    stage_channels: dict[str, list[Size]] | None = None
    shared_with: dict[str, list[Size]] | None = None
    family: Ensembled | None = None


@dataclass(frozen=True, kw_only=True)
class StageCuts(Record):
    """Where a network that is not built of stages is cut into them."""

    opened: list[str]  # modules that are traced into, as a cut lies in them
    cuts: dict[str, str]  # stage → the tensor at its end, by the name that the trace gives it


@dataclass(frozen=True, kw_only=True)
class NetworkSpec(Record):
    """spec.json: all it takes to rebuild a network, and what its user must know to feed it."""

    arch: str
    class_names: Annotated[list[str], Len(1)]
    input_shape: tuple[Size, Size, Size]  # channels, height, width
    mean: list[float]  # a channel, of pixels scaled to 0 … 1
    std: list[Positive]
    arch_args: str = ""  # of the network's constructor
    widths: dict[str, dict[str, Size | list[Size]]]  # what is smaller than in the full network, by module
    left_out: list[str] = field(default_factory=list)  # residual blocks that are not there, by module
    stages: StageCuts | None = None  # of a network that is not built of stages
    unused: list[str] = field(default_factory=list)  # tensors that have no part in it, and are not saved
    framing: Framing  # of a picture, before it is normalised
    answer: Answer = None  # of others' code
    about: About = field(default_factory=About)
    schema_version: Version = SCHEMA


@dataclass(frozen=True, kw_only=True)
class DataRecord(Record):
    """What was read from the data, for a run to keep beside its weights."""

    name: str
    class_names: Annotated[list[str], Len(1)]
    input_shape: tuple[Size, Size, Size]  # channels, height, width
    mean: list[float]  # a channel, of pixels scaled to 0 … 1: what images are normalised with
    std: list[Positive]
    framing: Framing  # of a picture of any size, to be tested on
    train: Count  # images trained on, the held-out ones excluded
    held_out: Count
    small: bool


@dataclass(frozen=True, kw_only=True)
class DeviceRecord(Record):
    """Where and in which arithmetic a run trained."""

    name: str
    bf16: bool


@dataclass(frozen=True, kw_only=True)
class RateTrial(Record):
    """A short training at one learning rate, of `--lr auto`."""

    lr: Positive
    steps: Size
    held_out_loss: float | None  # mean over peers; None: it did not stay finite
    training_macs: Effort
    seconds: Amount


@dataclass(frozen=True, kw_only=True)
class RunRecord(Provenance):
    """config.json: what a run was started with, and on what."""

    command: str
    settings: TrainConfig
    rate_trials: list[RateTrial] = field(default_factory=list)  # whose cost is part of the run's
    latency: LatencyPlan | None = None  # what the peers were chosen for, if for a latency
    sensitivity: list[Sensitivity] = field(default_factory=list)  # by which they were, if for parameters or MACs
    device: DeviceRecord
    threads: Size
    processes: Size = 1  # that trained together, when it began
    launch: str | None = None  # the torchrun that started them
    start_weights: str | None = None  # a hash of the network that it began with, if from a start
    start_answer: Answer = None  # that network's, of others' code
    images: str | None = None  # a hash of the training images' names and labels; None: of a run from before
    schema_version: Version = SCHEMA


@dataclass(frozen=True)
class Branch(Record):
    """One copy of a stage: whom it serves and which branch feeds it."""

    name: str
    stage: str
    peers: tuple[Size, ...]  # counted from 1
    parent: str | None  # None: the images


@dataclass(frozen=True, kw_only=True)
class Network(Record):
    """A network of a run as numbers."""

    peer: Count  # 0: the baseline
    ratio: Ratio  # as asked
    achieved_ratio: Ratio  # the share of params or MACs that went
    params: Extent
    macs: Extent
    top1: Percent  # on the test set


@dataclass(frozen=True, kw_only=True)
class Peer(Network):
    """A peer of a finished family."""

    left_out: list[str] = field(default_factory=list)  # residual blocks that it does without
    stage_channels: dict[str, list[Size]]  # each convolution's, by stage
    shared_with: dict[str, list[Size]]  # stage → the peers that share it, this one among them


@dataclass(frozen=True, kw_only=True)
class Baseline(Network):
    """The unpruned network of a finished run, and what it was trained with."""

    data: str
    method: str
    ratio_of: str
    seed: Count
    epochs: Count
    train_images: Count
    test_images: Count
    commit: str | None
    best_epoch: Count
    seconds: Amount
    training_macs: Effort | None = None  # None: not counted, by an older version


@dataclass(frozen=True, kw_only=True)
class Family(Record):
    """family.json: what came out of a run; there once all of it is."""

    arch: str
    method: str
    share: str
    ratio_of: str
    divisor: Size
    trunk_ratio: Share
    epochs: Count
    data: DataRecord
    full: Cost  # the unpruned network's
    tree: list[Branch]
    peers: Annotated[list[Peer], Len(1)]
    ensemble_top1: Percent
    average_ensemble_top1: Percent
    peer_weights: list[Weight]
    best_epoch: Count
    seconds: Amount  # training of all peers, the baseline apart
    training_macs: Effort | None = None  # of what `seconds` are; None: not counted, by an older version
    baseline: Baseline | None
    latency: LatencyPlan | None = None  # what the peers were chosen for, if for a latency
    notes: list[str]
    finished: Literal[True] = True
    schema_version: Version = SCHEMA


@dataclass(frozen=True, kw_only=True)
class Epoch(Record):
    """A line of metrics.jsonl; top-1 on the held-out images.

    `train_loss` is what a step descends, which all methods sum over the peers (`mean_loss` is what people are shown).
    """

    epoch: Size
    seconds: Amount
    training_macs: Effort | None = None  # that its steps took; None: not counted, by an older version
    images_per_s: Amount
    train_loss: float
    top1: Annotated[list[Percent], Len(1)]  # one a peer
    ensemble_top1: Percent
    average_ensemble_top1: Percent
    peer_weights: Annotated[list[Weight], Len(1)]
    # of each peer the weights of what it learns from: the labels, the frozen teacher if there is one, the peers
    teaching: list[list[Weight]] | None = None
    lr: Amount
    schema_version: Version = SCHEMA

    @property
    def mean_loss(self) -> float:
        """The training loss a peer, which runs of different numbers of peers and their baseline can be compared by."""
        return self.train_loss / len(self.top1)


@dataclass(frozen=True, kw_only=True)
class Progress(Record):
    """state.json of a checkpoint: where one phase of a run stands, besides its tensors."""

    phase: Phase
    peer_weights: Annotated[list[Weight], Len(1)]
    epoch: Count  # epochs done
    step: Count
    seconds: Amount
    training_macs: Effort = 0.0
    teaching: list[list[Weight]] = field(default_factory=list)  # a peer: its sources', where these have weights
    best_epoch: Count
    best_top1: Annotated[float, Ge(-1), Le(100)]  # mean over peers, on the held-out images; -1: none yet
    best_peer_weights: list[Weight]  # ω at the end of that epoch
    schema_version: Version = SCHEMA
