"""What training costs, in multiply-accumulates: the currency in which methods are compared (docs/methods.md).

A forward pass of an image costs a network's MACs, a backward pass twice as many. Evaluation is not training.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from wmlc.effort import BACKWARD, FORWARD

MOST = 2**40  # steps
FORWARD_MODE = 3  # value, and tangents by way of the weights and of what enters


@dataclass(frozen=True)
class Spending:
    """MACs of a family's training on batches of one size."""

    batch_size: int
    held_out: int  # images of a batch for the peer weights
    trained: int  # MACs of one image through all peers that are trained, a shared stage once
    teacher: int = 0  # and through a frozen teacher
    taught: int | None = None  # steps, the first ones, that ask the teacher; the others have its answers; None: all
    cadence: int | None = None  # steps from one update of the weights to the next; None: there are none

    def step(self, taught_anew: bool = True) -> int:
        """A training step; not `taught_anew` where the frozen teacher's answers are kept from an earlier epoch."""
        return self.batch_size * ((FORWARD + BACKWARD) * self.trained + FORWARD * self.teacher * taught_anew)

    @property
    def reweighing(self) -> int:
        """An update of the peer weights: forward and backward on held-out images, forward mode on the step's own."""
        return self.trained * ((FORWARD + BACKWARD) * self.held_out + FORWARD_MODE * self.batch_size)

    def forward(self, batches: int) -> int:
        """Forward passes of so many batches through the peers."""
        return batches * self.batch_size * FORWARD * self.trained

    def until(self, steps: int) -> int:
        """The first `steps` steps together."""
        taught = steps if self.taught is None else min(steps, self.taught)
        updates = 0 if self.cadence is None else steps // self.cadence
        return taught * self.step() + (steps - taught) * self.step(taught_anew=False) + updates * self.reweighing

    def affordable(self, macs: float) -> int:
        """How many steps come nearest to so many MACs, one or more."""
        count = bisect.bisect_left(range(MOST), macs, key=self.until)
        nearer = count and macs - self.until(count - 1) <= self.until(count) - macs
        return max(1, count - nearer)
