"""The unit of what a training cost, which no machine's load changes: an epoch of the unpruned network."""

from __future__ import annotations

FORWARD, BACKWARD = 1, 2  # of an image through a network, in its MACs


def epochs_of_unpruned(macs: float, full: int, images: int) -> float:
    """MACs of training in epochs of the unpruned network: forward and backward of all training images.

    Args: the unpruned network's MACs for an image, and how many images are trained on.
    """
    return macs / ((FORWARD + BACKWARD) * full * images)
