"""The trained start as a teacher that stays as it is.

Shape legend: P peers, B batch, C classes, T those who teach.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wmlc.compress.learn.family import PeerFamily
from wmlc.compress.learn.losses import cross_entropies
from wmlc.compress.learn.methods import Taught
from wmlc.compress.learn.place import Device


class Teacher:
    """A frozen network in eval mode; a batch goes through it once, in bf16 where the hardware has that.

    With `views` above 0 the images of the first `views` epochs come again and again as they were, and what the
    network made of them is kept, so that the answer to a batch that was seen costs nothing. Later epochs are to take
    the images of the epoch that `replayed` names.
    """

    def __init__(self, network: PeerFamily, device: Device, views: int, features: bool, compiled: bool) -> None:
        self.network, self.device, self.views, self.features = network, device, views, features
        self._walk = torch.compile(network.walk, dynamic=False) if compiled else network.walk
        self._kept: dict[tuple[int, int], Tensor] = {}

    def replayed(self, epoch: int) -> int:
        """The epoch, from 0, whose images epoch `epoch` takes."""
        return epoch % self.views if self.views else epoch

    def knows(self, epoch: int, index: int) -> bool:
        """Whether the answer to batch `index` of an epoch is kept."""
        return (self.replayed(epoch), index) in self._kept

    @torch.no_grad()
    def answer(self, images_BCHW: Tensor, epoch: int, index: int) -> Taught:
        """What it makes of batch `index` of an epoch: logits float32 [B, C], and its stages' outputs if wanted."""
        place = self.replayed(epoch), index
        if place in self._kept:
            return Taught(self._kept[place].to(images_BCHW.device, non_blocking=True), {})
        self.network.eval()  # an evaluation may have asked for another mode, and batch norm must not learn
        with self.device.autocast():
            logits_1BC, outputs = self._walk(images_BCHW)
        logits_BC = logits_1BC[0].float()
        if self.views:
            self._kept[place] = _aside(logits_BC)
        return Taught(logits_BC, outputs if self.features else {})


def _aside(logits_BC: Tensor) -> Tensor:
    """A copy in the CPU's memory, which a GPU writes when it comes to it and reads back after that; none waits."""
    on_gpu = logits_BC.device.type == "cuda"
    return torch.empty_like(logits_BC, device="cpu", pin_memory=on_gpu).copy_(logits_BC, non_blocking=on_gpu)


@torch.no_grad()
def losses_of_those_who_teach(
    family: PeerFamily, teacher: Teacher | None, held_out: tuple[Tensor, Tensor], device: Device
) -> Tensor:
    """Cross-entropies on held-out images in eval mode, the frozen teacher's first if there is one; [T]."""
    images, labels_B = held_out
    modes = family.training
    family.eval()
    with device.autocast():
        logits_PBC = family.walk(images)[0].float()
        if teacher is not None:
            logits_PBC = torch.cat([teacher.network.eval().walk(images)[0].float(), logits_PBC])
    family.train(modes)
    losses_T = cross_entropies(logits_PBC, labels_B)
    device.ranks.mean_([losses_T])
    return losses_T
