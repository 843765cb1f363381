"""wmlc: one training run, a family of dense networks, each measured against the unpruned one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

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


def family(
    network: nn.Module, example: Tensor, ratios: Sequence[float], *, ratio_of: str = "macs", divisor: int = 8,
    rank: str = "magnitude",
) -> list[nn.Module]:  # fmt: skip
    """Dense, physically smaller copies of a network, one a ratio, to be trained by a loop of your own.

    Each loses so much of its MACs for an image (or of its params, `ratio_of`): every group of channels that hang
    together loses the same share, those of least magnitude over all layers that make or read them (Fang et al.,
    CVPR 2023), down to a multiple of `divisor` channels. `rank="random"` lets random ones go instead, as a control
    (`torch.manual_seed` repeats which). A group is cut only where that is proven exact
    (`wmlc.compress.widths.proof`), and is left whole otherwise. The copies are of the network's own class, on its
    device and in its mode, share no tensor with it, and are saved by `torch.save(peer.state_dict(), …)`; only what
    sizes the layers has changed. Batch norm's statistics are of the full network: train, or run some images in
    training mode, before you evaluate.

    Args: an `example` of its images, [N, C, H, W] or [C, H, W], of which only the shape counts; ratios from 0 up to,
    not including, 1. Raises `wmlc.errors.InputError` where a ratio is out of reach, or where the network's forward
    pass cannot be followed.
    """
    from wmlc.compress.widths.peers import dense_peers

    return dense_peers(network, example, ratios, ratio_of, divisor, rank)
