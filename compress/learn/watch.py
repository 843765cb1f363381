"""What training steps leave on the device, looked at together now and then: to read each step's would stop a GPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wmlc.compress.learn.place import Device
from wmlc.errors import InputError

READ_EVERY = {"cpu": 1, "cuda": 50}  # steps; on a CPU the numbers are there anyway


class NotFinite(InputError):
    """A training that does not stay finite, on all processes alike."""


class Watch:
    """The losses of an epoch; and whether they, and the gradients that move peer weights, are finite.

    Of all processes' batches together, so that all of them end alike. Args: the epoch, from 0, and where it trains.
    """

    def __init__(self, epoch: int, device: Device) -> None:
        self._epoch, self._ranks = epoch, device.ranks
        self._every = READ_EVERY[device.name] if device.ranks.count == 1 else READ_EVERY["cuda"]
        self._sum, self._steps = 0.0, 0
        self._losses: list[Tensor] = []  # scalars that were not read yet, a step each
        self._rates: list[float] = []
        self._gradients: list[tuple[int, Tensor]] = []  # the step, from 0, and whether all is finite

    def reweighed(self, gradient_P: Tensor) -> None:
        """Take in the gradient by the peer weights that the coming step has."""
        self._gradients.append((self._steps, gradient_P.isfinite().all()))

    def stepped(self, loss: Tensor, lr: float) -> None:
        """Take in a step's loss, a scalar. Raises `InputError` as `mean` does, up to 49 steps later on a GPU."""
        self._losses.append(loss.detach())
        self._rates.append(lr)
        self._steps += 1
        if self._steps % self._every == 0:
            self._read()

    def mean(self) -> float:
        """The mean loss of the steps so far. Raises `InputError` for the first step where a number was not finite."""
        self._read()
        return self._sum / self._steps

    def _read(self) -> None:
        if not self._losses:
            return
        flags = [flag.to(self._losses[0].dtype) for _, flag in self._gradients]
        seen = torch.stack([*self._losses, *flags])
        self._ranks.mean_([seen])
        values = seen.tolist()  # the one read
        losses, finite = values[: len(self._losses)], values[len(self._losses) :]
        first = self._steps - len(losses)
        broken = {step for (step, _), good in zip(self._gradients, finite, strict=True) if good < 1}
        for step, (loss, lr) in enumerate(zip(losses, self._rates, strict=True), first):
            if not math.isfinite(loss):
                raise NotFinite(
                    f"the loss became {loss} in epoch {self._epoch + 1}, step {step + 1}, at lr {lr:.3g}; "
                    f"lower --lr, raise --warmup-epochs or pass --clip 1, with --force to train anew"
                )
            if step in broken:
                raise NotFinite(
                    f"the gradient of the peer weights is not finite in epoch {self._epoch + 1}, step {step + 1}, at "
                    f"lr {lr:.3g}; lower --lr or raise --warmup-epochs, with --force to train anew"
                )
        self._sum += math.fsum(losses)
        self._losses, self._rates, self._gradients = [], [], []
