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
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from wmlc.compress.learn.norm_tangent import add_affine_tangents, by_channel
from wmlc.errors import InputError
from wmlc.ranks import Ranks


class _Normed(torch.autograd.Function):
    """Batch norm by the mean and the variance that N numbers a channel have, of which a process holds its own.

        y = γ x̂ + β,  x̂ = (x − μ) r,  ∂y/∂x = γ r (I − 1 1ᵀ / N − x̂ x̂ᵀ / N)

    It is symmetric, as a single process's is (`norm_tangent.py`): what takes a gradient back takes a tangent forward.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain_C: Tensor, bias_C: Tensor, mean_C: Tensor, variance_C: Tensor, count: int, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, gain_C, mean_C, variance_C)
        ctx.save_for_forward(x, gain_C, mean_C, variance_C)
        ctx.count, ctx.eps = count, eps
        y, _, _ = torch.native_batch_norm(x, gain_C, bias_C, mean_C, variance_C, False, 0.0, eps)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *_through(ctx, gradient), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, x: Tensor | None, gain_C: Tensor | None, bias_C: Tensor | None, *_: Any) -> Tensor:
        at, _, mean_C, variance_C = ctx.saved_tensors
        out = torch.zeros_like(at) if x is None else _through(ctx, x)[0]
        return add_affine_tangents(out, at, mean_C, torch.rsqrt(variance_C + ctx.eps), gain_C, bias_C)


def _through(ctx: Any, given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """∂y/∂x times what is given for all processes' x or y; and the own numbers' Σ x̂ · given and Σ given, [C]."""
    x, gain_C, mean_C, variance_C = ctx.saved_tensors
    out, along_C, sum_C = torch.ops.aten.native_batch_norm_backward(
        given, x, gain_C, mean_C, variance_C, None, None, False, ctx.eps, [True, True, True]
    )
    all_along_C, all_sum_C = _summed(torch.stack([along_C, sum_C])) / ctx.count
    rate_C = torch.rsqrt(variance_C + ctx.eps)
    tilt_C = gain_C * rate_C * rate_C * all_along_C
    out.addcmul_(x, by_channel(-tilt_C, x)).add_(by_channel(tilt_C * mean_C - gain_C * rate_C * all_sum_C, x))
    return out, along_C, sum_C


def _summed(total: Tensor) -> Tensor:
    torch.distributed.all_reduce(total)
    return total


def _gathered(own_2C: Tensor, processes: int) -> Tensor:
    """What each process has, [R, 2, C], as a sum with nothing in the others' places."""
    all_R2C = own_2C.new_zeros(processes, *own_2C.shape)
    all_R2C[torch.distributed.get_rank()] = own_2C
    return _summed(all_R2C)


class _Synced(_BatchNorm):
    """Batch norm that in training takes mean and deviation over all processes' images; as many on each.

    One message a layer forward, and one back.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        now = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        processes = torch.distributed.get_world_size()
        count = now.numel() // now.shape[1] * processes
        mean_C, variance_C = _mean_and_variance(now.detach(), processes)
        if self.track_running_stats:
            self._learn(mean_C, variance_C * (count / max(count - 1, 1)))
        gain_C = torch.ones_like(mean_C) if self.weight is None else self.weight
        bias_C = torch.zeros_like(mean_C) if self.bias is None else self.bias
        return _Normed.apply(now, gain_C, bias_C, mean_C, variance_C, count, self.eps).to(input.dtype)

    @torch.no_grad()
    def _learn(self, mean_C: Tensor, variance_C: Tensor) -> None:
        """The running statistics, a step on; `momentum` None is the plain mean over batches."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked.float() if self.momentum is None else self.momentum
        self.running_mean.add_(share * (mean_C - self.running_mean))
        self.running_var.add_(share * (variance_C - self.running_var))


def _mean_and_variance(own: Tensor, processes: int) -> tuple[Tensor, Tensor]:
    """Of all processes' numbers, a channel, [C]: within the processes, and between their means."""
    dims = [dim for dim in range(own.ndim) if dim != 1]
    own_mean_C = own.mean(dims)
    own_variance_C = (own - by_channel(own_mean_C, own)).square_().mean(dims)
    mean_RC, variance_RC = _gathered(torch.stack([own_mean_C, own_variance_C]), processes).unbind(1)
    mean_C = mean_RC.mean(0)
    return mean_C, variance_RC.mean(0) + (mean_RC - mean_C).square().mean(0)


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
