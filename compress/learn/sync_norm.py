"""Batch norm over the images of all processes together (`--sync-bn`).

torch's SyncBatchNorm runs on GPUs alone and has no forward mode, which the peer weights' gradient needs
(`reweigh.py`); this is the same arithmetic on anything that torch.distributed sums.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wmlc.errors import InputError
from wmlc.ranks import Ranks


class _Sum(torch.autograd.Function):
    """The sum over processes, whose gradient and whose tangent are sums over processes too."""

    @staticmethod
    def forward(own: Tensor) -> Tensor:
        return _summed(own)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return _summed(tangent)


def _summed(own: Tensor) -> Tensor:
    import torch.distributed as dist

    total = own.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


class _Synced(_BatchNorm):
    """Batch norm that in training takes mean and deviation over all processes' images; as many on each."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        dims = [dim for dim in range(input.ndim) if dim != 1]
        shape = [1, -1] + [1] * (input.ndim - 2)
        now = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        count = now.numel() // now.shape[1] * torch.distributed.get_world_size()
        mean_C = _Sum.apply(now.sum(dims)) / count
        away = now - mean_C.view(shape)
        variance_C = _Sum.apply(away.square().sum(dims)) / count
        if self.track_running_stats:
            self._learn(mean_C.detach(), variance_C.detach() * (count / max(count - 1, 1)))
        scale_C = torch.rsqrt(variance_C + self.eps)
        if self.weight is not None:
            scale_C = scale_C * self.weight
        out = away * scale_C.view(shape)
        if self.bias is not None:
            out = out + self.bias.view(shape)
        return out.to(input.dtype)

    @torch.no_grad()
    def _learn(self, mean_C: Tensor, variance_C: Tensor) -> None:
        """The running statistics, a step on; `momentum` None is the plain mean over batches."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked.float() if self.momentum is None else self.momentum
        self.running_mean.add_(share * (mean_C - self.running_mean))
        self.running_var.add_(share * (variance_C - self.running_var))


class _Synced1d(_Synced, nn.BatchNorm1d):
    pass


class _Synced2d(_Synced, nn.BatchNorm2d):
    pass


class _Synced3d(_Synced, nn.BatchNorm3d):
    pass


SYNCED: dict[type[_BatchNorm], type[_BatchNorm]] = {
    nn.BatchNorm1d: _Synced1d, nn.BatchNorm2d: _Synced2d, nn.BatchNorm3d: _Synced3d
}  # fmt: skip


@contextlib.contextmanager
def synced(network: nn.Module, ranks: Ranks) -> Iterator[None]:
    """The batch norms of `network` take all processes' images together meanwhile.

    Raises `InputError` for one that is not torch's own.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)] if ranks.count > 1 else []
    if unknown := sorted({type(norm).__name__ for norm in norms if type(norm) not in SYNCED}):
        raise InputError(
            f"--sync-bn knows torch's own batch norms, and this network has {', '.join(unknown)}; leave it out"
        )
    before = [type(norm) for norm in norms]
    for norm in norms:
        norm.__class__ = SYNCED[type(norm)]
    try:
        yield
    finally:
        for norm, kind in zip(norms, before, strict=True):
            norm.__class__ = kind
