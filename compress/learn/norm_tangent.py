"""Batch norm's tangent by the kernel of its gradient.

torch puts it together from a dozen passes over the activations. But in training mode, for a channel's n numbers,

    y = γ x̂ + β,  x̂ = (x − μ) r,  ∂y/∂x = γ r (I − 1 1ᵀ / n − x̂ x̂ᵀ / n),

which is symmetric: what takes a gradient back takes a tangent forward, and torch has that as one fused kernel.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_SIGNATURE = inspect.signature(F.batch_norm)
_TAKEN = ("input", "weight", "bias", "running_mean", "running_var", "momentum", "eps")


class _BatchNorm(torch.autograd.Function):
    """`torch.native_batch_norm` in training mode, with a forward mode alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain_C: Tensor, bias_C: Tensor, mean_C: Tensor | None, variance_C: Tensor | None,
        momentum: float, eps: float,
    ) -> Tensor:  # fmt: skip
        y, own_mean_C, rate_C = torch.native_batch_norm(x, gain_C, bias_C, mean_C, variance_C, True, momentum, eps)
        ctx.of = (x, gain_C, own_mean_C, rate_C, eps)
        return y

    @staticmethod
    def jvp(ctx: Any, x: Tensor | None, gain_C: Tensor | None, bias_C: Tensor | None, *_: Any) -> Tensor:
        at, own_gain_C, mean_C, rate_C, eps = ctx.of
        if x is None:
            out = torch.zeros_like(at)
        else:
            out, _, _ = torch.ops.aten.native_batch_norm_backward(
                x, at, own_gain_C, None, None, mean_C, rate_C, True, eps, [True, False, False]
            )
        return add_affine_tangents(out, at, mean_C, rate_C, gain_C, bias_C)


def add_affine_tangents(
    out: Tensor, x: Tensor, mean_C: Tensor, rate_C: Tensor, gain_C: Tensor | None, bias_C: Tensor | None
) -> Tensor:
    """`out`, y's tangent by x's, with what the tangents of γ and β make of it; changed in place."""
    shift_C = torch.zeros_like(mean_C) if bias_C is None else bias_C
    if gain_C is not None:
        slope_C = gain_C * rate_C
        shift_C = shift_C - slope_C * mean_C
        out.addcmul_(x, by_channel(slope_C, x).to(x.dtype))
    return out.add_(by_channel(shift_C, x).to(x.dtype))


def by_channel(each_C: Tensor, x: Tensor) -> Tensor:
    """[C] as what goes with x [N, C, …]."""
    return each_C.view([1, -1] + [1] * (x.ndim - 2))


class FusedTangents(TorchFunctionMode):
    """Batch norm's tangents by `_BatchNorm` meanwhile, where it is in training mode and has a gain and a bias."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        if func is F.batch_norm:
            own = _SIGNATURE.bind(*args, **(kwargs or {}))
            own.apply_defaults()
            given = own.arguments
            if given["training"] and given["weight"] is not None and given["bias"] is not None:
                return _BatchNorm.apply(*(given[name] for name in _TAKEN))
        return func(*args, **(kwargs or {}))
