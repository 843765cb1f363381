"""What a run and a bench were asked for, as their records hold it. Free of torch, so that `--help` is quick.

The defaults live here and nowhere else; `compress/config.py` and `bench/config.py` check what a caller gives.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

# What a setting is part of. Runs that agree in the first four have the same baseline.
Role = Literal[
    "data",  # which images
    "network",
    "training",  # of any network
    "seed",
    "family",  # what is cut and shared, and how the peers teach each other
    "method",  # a constant of one method's loss, which another method has of its own
    "place",  # where it was computed: nothing that a result should depend on
    "incidental",  # how it was fetched or begun: the very same run
]
OF_A_BASELINE: tuple[Role, ...] = ("data", "network", "training", "seed")


def setting(default: Any, role: Role) -> Any:
    """A field of `TrainConfig`."""
    return field(default=default, metadata={"role": role})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of one run, as `config.json` records them; a recipe names any of them."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}

    data: str = setting("digits", "data")
    data_root: str | None = setting(None, "place")
    download: bool = setting(False, "incidental")
    image_size: int | None = setting(None, "data")
    train_images: int | None = setting(None, "data")
    held_out: float = setting(0.1, "data")
    workers: int = setting(2, "incidental")

    arch: str = setting("resnet20", "network")
    ratios: tuple[float, ...] = setting((), "family")  # empty, or None below: the method's own
    ratio_of: str = setting("params", "family")
    saliency: str = setting("snip", "family")
    share: str | None = setting(None, "family")
    join: str | None = setting(None, "method")  # of its peers' gradients, what a shared stage gets
    trunk_ratio: float = setting(0.0, "family")
    divisor: int = setting(8, "family")

    method: str = setting("wml", "family")
    alpha: float | None = setting(None, "method")
    temperature: float | None = setting(None, "method")
    feature_loss: str = setting("none", "method")
    feature_weight: float | None = setting(None, "method")
    weight_lr: float = setting(0.1, "family")  # η, the step of mirror descent on the peer weights
    reweigh_every: int = setting(50, "family")  # training steps between two updates of the peer weights

    # None: as many as make all training take as long as a `wml` family's
    finetune_epochs: int | None = setting(None, "method")
    finetune_lr: float | None = setting(None, "method")

    epochs: int = setting(200, "training")
    batch_size: int = setting(128, "training")
    lr: float = setting(0.1, "training")
    momentum: float = setting(0.9, "training")
    nesterov: bool = setting(False, "training")
    weight_decay: float = setting(5e-4, "training")
    schedule: str = setting("cosine", "training")
    warmup_epochs: float = setting(1.0, "training")
    clip: float | None = setting(None, "training")

    baseline: bool = setting(True, "place")
    baseline_from: str | None = setting(None, "incidental")
    seed: int = setting(0, "seed")
    device: str = setting("auto", "place")
    precision: str = setting("auto", "family")
    compile: bool = setting(False, "place")


def names_of(*roles: Role) -> tuple[str, ...]:
    """The settings of `TrainConfig` that have one of these roles."""
    return tuple(f.name for f in dataclasses.fields(TrainConfig) if f.metadata["role"] in roles)


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """The settings of one bench, as `bench.json` records them."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}

    engines: tuple[str, ...] = ("ort",)
    precisions: tuple[str, ...] = ("fp32",)  # all are compared with the baseline in the first of them
    target: str | None = None  # of int8; None: gpu where the bench runs on one through TensorRT, else cpu
    batches: tuple[int, ...] = (1,)  # images a call
    threads: tuple[int, ...] = (1,)  # CPU threads of each engine
    device: str = "auto"
    seconds: float = 3.0  # timed per network and cell, and longer where that gives fewer than 100 calls
    launches: int = 8  # processes a network, one after another, over which the seconds are spread
    seed: int = 0  # of the order of the bursts, of the bootstrap and of LoadGen
    scenarios: tuple[str, ...] = ()  # of MLPerf Inference, through LoadGen
    latency_bound_ms: float | None = None  # of the 99th percentile in the scenario server
    profile: bool = False  # time a layer for all networks; otherwise only of those whose saving isn't paid out
    max_drop: float | None = None  # gate: top-1 points below the baseline
    min_speedup: float | None = None  # gate: times as fast as the baseline
    accuracy: bool = True  # top-1 on the whole test set through the engine
    cuda_graph: bool = True  # TensorRT replays one recorded graph a batch size
