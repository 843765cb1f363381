"""Top-1 on the whole test set, and whether an engine's logits agree with a reference's.

B batch, C channels or classes, H height, W width
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from wmlc.console import progress
from wmlc.errors import EngineFailed, InputError

if TYPE_CHECKING:
    from torch import Tensor

SMALL_SIDE, SMALL_BATCH, LARGE_BATCH = 64, 256, 32  # images a call on the way through the test set

# Most that logits may differ from the reference's, by the file's precision. In fp32 that is the largest difference;
# in fp16 and int8 the root mean square of the differences over that of the logits. These bounds catch a
# wrong engine or a broken file; what a precision really costs stands in the top-1 drop.
PARITY = {"fp32": 1e-3, "fp16": 0.02, "int8": 0.25}

Key = TypeVar("Key")


class Answers(Protocol):
    """Protocol: class scores for a batch of pixels."""

    def logits(self, pixels_BHWC: np.ndarray) -> np.ndarray:
        """uint8 [B, H, W, C] -> float32 [B, C]."""


def images_a_call(height: int, width: int) -> int:
    """How many images to ask about at once, so that large ones fit into memory."""
    return SMALL_BATCH if max(height, width) <= SMALL_SIDE else LARGE_BATCH


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
                except (EngineFailed, InputError) as error:
                    failures[key] = str(error)
            seen += len(labels)
            advance(len(labels))
    return {key: 100 * count / seen for key, count in right.items() if key not in failures}, failures


def parity(logits_BC: np.ndarray, expected_BC: np.ndarray, precision: str) -> float:
    """How far logits are from `expected_BC`, as `PARITY` measures it; NaN if any is. Raises `EngineFailed` by shape."""
    if logits_BC.shape != expected_BC.shape:
        raise EngineFailed(
            f"its engine returned logits {list(logits_BC.shape)}, expected are {list(expected_BC.shape)}"
        )
    apart_BC = logits_BC - expected_BC
    if precision == "fp32":
        return float(np.abs(apart_BC).max())
    return float(np.sqrt(np.square(apart_BC).mean() / np.square(expected_BC).mean()))


def disagreement(difference: float, precision: str, other: str = "torch") -> str | None:
    """Why an engine's numbers cannot be trusted, or None where it agrees with the `other`."""
    allowed = PARITY.get(precision)
    if allowed is None:
        return f"its engine computes in {precision}, for which no agreement with {other} is defined"
    if difference <= allowed:  # a NaN is no number to agree on
        return None
    how = "" if precision == "fp32" else " of their own size"
    return f"its engine's logits differ from {other}'s by {difference:.2g}{how}, allowed is {allowed:g}"
