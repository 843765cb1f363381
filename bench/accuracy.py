"""What an engine answers: top-1 on the whole test set, and whether it agrees with torch.

B batch, C classes, H height, W width
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from wmlc.bench.engines import EngineFailed
from wmlc.console import progress

if TYPE_CHECKING:
    from torch import Tensor

PARITY = {"fp32": 1e-3}  # most that a logit may differ from torch's, by the file's precision

Key = TypeVar("Key")


class Answers(Protocol):
    """What gives logits for pixels."""

    def logits(self, pixels_BHWC: np.ndarray) -> np.ndarray:
        """uint8 [B, H, W, C] -> float32 [B, C]."""


def parity(engine: Answers, directory: Path, pixels_BHWC: np.ndarray) -> float:
    """max |engine's logit - torch's|, of the network in `directory` on the CPU; NaN if any logit is."""
    import torch

    from wmlc.data import normalise
    from wmlc.models.checkpoint import load_network, read_spec

    spec = read_spec(directory)
    with torch.inference_mode():
        expected_BC = load_network(directory)(normalise(torch.from_numpy(pixels_BHWC), spec.mean, spec.std)).numpy()
    logits_BC = engine.logits(pixels_BHWC)
    if logits_BC.shape != expected_BC.shape:
        raise EngineFailed(f"its engine returned logits {list(logits_BC.shape)}, torch {list(expected_BC.shape)}")
    return float(np.abs(logits_BC - expected_BC).max())


def disagreement(difference: float, precision: str) -> str | None:
    """Why an engine's numbers cannot be trusted, or None; not known for precisions other than fp32."""
    allowed = PARITY.get(precision)
    if allowed is None or difference <= allowed:  # a NaN is no number to agree on
        return None
    return f"its engine's logits differ from torch's by {difference:.2g}, allowed is {allowed:g}"


def top1_percent(
    engines: Mapping[Key, Answers], batches: Iterable[tuple[Tensor, Tensor]], images: int
) -> tuple[dict[Key, float], dict[Key, str]]:
    """Each engine's top-1 in percent over (uint8 [B, H, W, C], class ids [B]), read once for all of them.

    Args: the number of `images`, for the progress bar. Returns also the reasons of engines that failed.
    """
    right, failures, seen = dict.fromkeys(engines, 0), dict[Key, str](), 0
    with progress("test set", images) as advance:
        for pixels_BHWC, labels_B in batches:
            pixels, labels = pixels_BHWC.numpy(), labels_B.numpy()
            for key in [key for key in engines if key not in failures]:
                try:
                    right[key] += int((engines[key].logits(pixels).argmax(1) == labels).sum())
                except EngineFailed as error:
                    failures[key] = str(error)
            seen += len(labels)
            advance(len(labels))
    return {key: 100 * count / seen for key, count in right.items() if key not in failures}, failures
