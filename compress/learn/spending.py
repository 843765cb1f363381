"""What training costs, in multiply-accumulates: the currency in which methods are compared (docs/methods.md).

A forward pass of an image costs a network's MACs, a backward pass twice as many. Evaluation is not training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wmlc.effort import BACKWARD, FORWARD

FORWARD_MODE = 3  # value, and tangents by way of the weights and of what enters


@dataclass(frozen=True)
class Spending:
    """MACs of a family's training on batches of one size."""

    batch_size: int
    held_out: int  # images of a batch for the peer weights
    trained: int  # MACs of one image through all peers that are trained, a shared stage once
    teacher: int = 0  # and through a frozen teacher

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

    def steps(self, count: int, taught_anew: Callable[[int], bool], reweighs: Callable[[int], bool]) -> int:
        """The first `count` steps; the functions say of a step, from 1, whether it costs a teacher and an update."""
        return sum(self.step(taught_anew(n)) + reweighs(n) * self.reweighing for n in range(1, count + 1))

    def affordable(self, macs: float, taught_anew: Callable[[int], bool], reweighs: Callable[[int], bool]) -> int:
        """How many steps come nearest to so many MACs, one or more."""
        spent, count = 0.0, 0
        while True:
            next_step = self.step(taught_anew(count + 1)) + reweighs(count + 1) * self.reweighing
            if count and spent + next_step / 2 > macs:
                return count
            spent, count = spent + next_step, count + 1
