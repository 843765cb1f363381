"""Where a run trains, and in which arithmetic."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from wmlc.compiler import require_compiler
from wmlc.errors import InputError
from wmlc.ranks import SOLO, Ranks, take_gpu
from wmlc.settings import TrainConfig


@dataclass(frozen=True)
class Device:
    """Where and in which arithmetic a run trains."""

    name: str  # "cpu" or "cuda"
    bf16: bool
    ranks: Ranks = SOLO  # this process among those that train together

    def autocast(self) -> torch.autocast:
        """bf16 for convolutions and matrix products, float32 elsewhere; or float32 throughout."""
        return torch.autocast(self.name, torch.bfloat16, enabled=self.bf16)

    def in_float32(self) -> Device:
        """The same in the arithmetic of the networks that are saved, for what is reported of them."""
        return replace(self, bf16=False)


def choose_device(device: str, precision: str, ranks: Ranks = SOLO) -> Device:
    """The device and precision that the options name; `auto` looks for a GPU, and for native bf16.

    Each of several `ranks` takes the GPU of its number.

    Raises `InputError` where `cuda` was asked for and there is none: never another device instead.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda was asked for, but torch sees no CUDA GPU; use --device cpu, or a GPU machine")
    name = "cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu"
    # Hardware without bf16 emulates it: a CPU without AVX-512 some 15 times slower than its float32.
    if name == "cuda":
        take_gpu()
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if precision == "bf16" and not native:
        raise InputError(
            f"--precision bf16 was asked for, but this {name} has no bf16 arithmetic; use --precision fp32"
        )
    return Device(name, bf16=precision == "bf16" or (precision == "auto" and native), ranks=ranks)


def device_of_run(config: TrainConfig, ranks: Ranks) -> Device:
    """Where a run trains, with what --compile takes there; `InputError` on all processes where one of them cannot."""

    def chosen() -> Device:
        device = choose_device(config.device, config.precision, ranks)
        if config.compile:
            require_compiler("--compile", device.name, "leave it out")
        return device

    return ranks.of_each(chosen)


@contextlib.contextmanager
def draws_kept(device: str) -> Iterator[None]:
    """Within, what is drawn is not missed afterwards: the random states are as they were."""
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([torch.cuda.current_device()] if device == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)


def seed_all(number: int) -> None:
    """Let torch, and what a network's own code may draw from beside it, begin anew."""
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)
