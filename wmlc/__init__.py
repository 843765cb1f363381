"""wmlc: one training run, a family of dense networks, each measured against the unpruned one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

# At its import ONNX Runtime looks up a host of telemetry and keeps an id of the device in the user's cache; it looks at
# this before. Here, as every process that wmlc starts imports this first or inherits it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"


def load(directory: str | Path, factory: Callable[..., Any] | None = None) -> nn.Module:
    """The network saved in DIRECTORY, a plain dense module in eval mode on the CPU.

    `directory` holds `spec.json` and `weights.safetensors` (a run's `peers/K` or `baseline`, or what
    `wmlc extract --out DIR` wrote). Input float32 [N, C, H, W], normalised as `spec.json` says;
    output logits [N, classes]. A network of torchvision's or timm's is of its own class, and so is one of the caller's
    own code, for which `factory` makes the full one (no file causes an import). Raises `wmlc.errors.InputError` on a
    missing or damaged file.
    """
    from wmlc.models.checkpoint import load_network

    return load_network(Path(directory), factory)
