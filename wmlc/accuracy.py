"""Top-1 on the whole test set, and whether an engine's logits agree with a reference's.

B batch, C channels or classes, H height, W width
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from wmlc.console import progress
from wmlc.errors import EngineFailed, InputError

if TYPE_CHECKING:
    from torch import Tensor

SMALL_SIDE, SMALL_BATCH, LARGE_BATCH = 64, 256, 32  # images a call on the way through the test set

# Most that logits may differ from the reference's, by the file's precision, relative to their own size. In fp32 that is
# the largest difference over the largest logit of its image; in fp16 and int8 the root mean square of the differences
# over that of the logits. These bounds catch a wrong engine or a broken file; what a precision really costs stands in
# the top-1 drop.
MOST_APART = {"fp32": 1e-3, "fp16": 0.02, "int8": 0.25}
TIE = 1e-4  # of an image's largest logit: two that are nearer than this may change places by rounding
TINY = 1e-30  # so that networks that give nothing but zeros agree
REORDERED = 0.01  # most images whose class may change otherwise, in fp32

Key = TypeVar("Key")


class Answers(Protocol):
    """Protocol: class scores for a batch of pixels."""

    def logits(self, pixels_BHWC: np.ndarray) -> np.ndarray:
        """uint8 [B, H, W, C] -> float32 [B, C], or class ids [B] of a network that gives no scores."""


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
                    right[key] += int((picked(engines[key].logits(pixels)) == labels).sum())
                except (EngineFailed, InputError) as error:
                    failures[key] = str(error)
            seen += len(labels)
            advance(len(labels))
    return {key: 100 * count / seen for key, count in right.items() if key not in failures}, failures


def picked(answers: np.ndarray) -> np.ndarray:
    """The class ids [B] that scores [B, C] name, or that were given as they are."""
    return answers.astype(np.int64) if answers.ndim == 1 else answers.argmax(1)


def relative_error(logits_BC: np.ndarray, expected_BC: np.ndarray, precision: str) -> float:
    """How far logits are from `expected_BC`, as `MOST_APART` measures it; NaN if any is.

    Of class ids [B] it is the share of them that differ. Raises `EngineFailed` where the shapes do.
    """
    if logits_BC.shape != expected_BC.shape:
        raise EngineFailed(
            f"its engine returned logits {list(logits_BC.shape)}, expected are {list(expected_BC.shape)}"
        )
    if logits_BC.ndim == 1:
        return float((logits_BC != expected_BC).mean())
    apart_BC = np.abs(logits_BC.astype(np.float64) - expected_BC)
    if not np.isfinite(apart_BC).all():
        return float("nan")
    if precision == "fp32":
        return float((apart_BC.max(1) / _sizes(expected_BC)).max())
    return relative_rms(logits_BC, expected_BC)


def relative_rms(got: np.ndarray, expected: np.ndarray) -> float:
    """sqrt(mean((got − expected)²) / mean(expected²)), in float64; arrays of one shape."""
    due = expected.astype(np.float64)
    return float(np.sqrt(np.square(got - due).mean() / max(np.square(due).mean(), TINY)))


def reordered(logits_BC: np.ndarray, expected_BC: np.ndarray) -> float:
    """The share of images whose highest class is another one than expected, ties by rounding apart."""
    if logits_BC.ndim == 1:
        return float((logits_BC != expected_BC).mean())
    now_B = np.take_along_axis(expected_BC, logits_BC.argmax(1)[:, None], 1)[:, 0]
    return float((expected_BC.max(1) - now_B > TIE * _sizes(expected_BC)).mean())


def _sizes(logits_BC: np.ndarray) -> np.ndarray:
    """The largest logit of each image [B]; of an image that has hardly any, what logits are like otherwise."""
    logits = np.abs(logits_BC.astype(np.float64))
    return np.maximum(logits.max(1), max(float(np.sqrt(np.square(logits).mean())), TINY))


def disagreement(
    difference: float, precision: str, other: str = "torch", changed: float = 0.0, ids: bool = False
) -> str | None:
    """Why an engine's numbers cannot be trusted, or None where it agrees with the `other`.

    Args: the share of images whose class `changed`, see `reordered`; it counts in fp32 alone, and of networks that give
    class `ids` and no scores.
    """
    allowed = MOST_APART.get(precision)
    if allowed is None:
        return f"its engine computes in {precision}, for which no agreement with {other} is defined"
    if ids:
        most = max(allowed, REORDERED)
        return None if changed <= most else _reordered_too_far(changed, other, most)
    if math.isnan(difference):
        return f"its engine's or {other}'s logits are no finite numbers; are the weights?"
    if difference > allowed:
        return (
            f"its engine's logits differ from {other}'s by {difference:.2g} of their own size, allowed is {allowed:g}"
        )
    if precision == "fp32" and changed > REORDERED:
        return _reordered_too_far(changed, other, REORDERED)
    return None


def moved_by_int8(apart: float) -> str:
    """What is said of an int8 file that is far from its float32 network by its own doing, and no engine's."""
    return f"int8 moves its logits by {apart:.2g} of their size; its top-1 has the cost"


def _reordered_too_far(changed: float, other: str, most: float) -> str:
    return f"its engine gives {changed:.1%} of the images another class than {other}, allowed is {most:.0%}"
