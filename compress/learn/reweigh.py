"""How much each peer's teaching counts: the outer problem, for one backward and one JVP (PAPER 3).

Shape legend: P peers, B batch, C classes, S sources that a peer learns from.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from wmlc.compress.learn.family import PeerFamily
from wmlc.compress.learn.losses import cross_entropies, ensemble_loss, source_losses, wml_losses
from wmlc.compress.learn.norm_tangent import FusedTangents
from wmlc.compress.learn.place import Device

STEP = 1e-5  # of the parameters' length: how far central differences go, where float32 still tells losses apart
TINY = 1e-30
Batch = tuple[Tensor, Tensor]  # images [B, C, H, W], labels int64 [B]


def peer_weight_gradient(
    family: PeerFamily,
    train: Batch,
    held_out: Batch,
    weight_P: Tensor,
    inner_gradients: dict[str, Tensor],
    *,
    alpha: float,
    temperature: float,
    inner_lr: Tensor | float,
    device: Device,
) -> Tensor:
    """The gradient of the outer objective with respect to the peer weights; [P].

        θ' = θ − γ ∇_θ L1(θ, ω)
        g_i = ∂L2(θ', ω)/∂ω_i − γ ⟨∇_θ L2(θ'), ∇_θ ℓ_i(θ)⟩

    L1 is linear in ω, so this is exact, without a Hessian. ℓ_i depends on θ through the logits
    only, so with v = ∇_θ L2 all P inner products are one directional derivative of (ℓ_1 … ℓ_P)
    along v: one forward-mode pass, whatever the number of peers.

    Args: `inner_gradients` is ∇_θ L1 by parameter name, on the batch `train` (a training step has it at
    hand); `inner_lr` is γ. The family is evaluated as it is, batch norm in training mode included, but that a
    single held-out image has no statistics of its own, so that the running ones normalise it. The family's
    parameters, gradients, running statistics, modes and the random state are left as they were. Several ranks of the
    `device` have each a part of both batches, as large as the others'; what they get is of the whole.
    """
    omega_P = weight_P.detach().clone().requires_grad_()
    direct_P, plain_PBC, tangent_PBC = _look_ahead(
        family, train[0], held_out, inner_gradients, inner_lr, device,
        lambda logits_PBC: ensemble_loss(logits_PBC, held_out[1], omega_P), omega_P,
    )  # fmt: skip
    aligned_P = _derivative(lambda z_PBC: wml_losses(z_PBC, train[1], alpha, temperature), plain_PBC, tangent_PBC)
    gradient_P = direct_P - inner_lr * aligned_P
    device.ranks.mean_([gradient_P])
    return gradient_P


def source_gradient(
    family: PeerFamily,
    train: Batch,
    teacher_BC: Tensor | None,
    held_out: Batch,
    weight_P: Tensor,
    inner_gradients: dict[str, Tensor],
    *,
    temperature: float,
    inner_lr: Tensor | float,
    device: Device,
) -> tuple[Tensor, Tensor]:
    """How each source of each student serves the students on held-out images; [S, P], and [P] of the ensemble.

    The outer objective is what the peers are wanted for, each one's own loss, and the inner one is linear in w:

        L1(θ, w) = Σ_j Σ_s w_sj ℓ_sj(θ),  L2(θ') = Σ_j CE(z_j(θ'), Y),  θ' = θ − γ ∇_θ L1
        g_sj = ∂L2/∂w_sj = − γ ⟨∇_θ L2(θ'), ∇_θ ℓ_sj(θ)⟩

    for one backward and one forward-mode pass, as in `peer_weight_gradient`, whose arguments these are (`teacher_BC`
    are a frozen teacher's logits of the batch `train`). The second gradient is that of the weighted ensemble's loss by
    ω, directly, at θ'.
    """
    omega_P = weight_P.detach().clone().requires_grad_()

    def outer(logits_PBC: Tensor) -> Tensor:
        """L2, which has a gradient by θ' alone, and the loss of the ensemble of detached logits, which has one by ω."""
        ensemble = ensemble_loss(logits_PBC.detach(), held_out[1], omega_P)
        return cross_entropies(logits_PBC, held_out[1]).sum() + ensemble

    direct_P, plain_PBC, tangent_PBC = _look_ahead(
        family, train[0], held_out, inner_gradients, inner_lr, device, outer, omega_P
    )
    aligned_SP = _derivative(
        lambda z_PBC: source_losses(z_PBC, teacher_BC, train[1], temperature), plain_PBC, tangent_PBC
    )
    gradient_SP = -inner_lr * aligned_SP
    device.ranks.mean_([gradient_SP, direct_P])
    return gradient_SP, direct_P


def _look_ahead(
    family: PeerFamily, images_BCHW: Tensor, held_out: Batch, inner_gradients: dict[str, Tensor],
    inner_lr: Tensor | float, device: Device, outer: Callable[[Tensor], Tensor], weight_P: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of the outer problem one step ahead, at θ' = θ − γ ∇_θ L1.

    Args: `outer` makes a scalar of the held-out logits, in which ω (`weight_P`) may be.
    Returns: ∂outer/∂ω at θ' [P]; the logits of `images_BCHW` at θ [P, B, C]; their derivative along ∇_θ' outer
    [P, B, C].
    """
    parameters = {  # what serves teaching alone is no part of the logits, and what got no gradient does not move
        name: parameter.detach()
        for name, parameter in family.named_parameters()
        if not name.startswith("extras.") and name in inner_gradients
    }
    devices = [weight_P.device] if weight_P.device.type == "cuda" else []

    def logits(at: dict[str, Tensor], images: Tensor) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in family.named_buffers()}
        with torch.random.fork_rng(devices), device.autocast():
            result = functional_call(family, (at, buffers), (images,))
        return result if result.dtype == torch.float64 else result.float()

    stepped = {
        name: (parameter - inner_lr * inner_gradients[name]).requires_grad_() for name, parameter in parameters.items()
    }
    with _running_statistics(family) if len(held_out[0]) == 1 else contextlib.nullcontext():
        loss = outer(logits(stepped, held_out[0]))
    direct_P, *direction = torch.autograd.grad(
        loss, [weight_P, *stepped.values()], allow_unused=True, materialize_grads=True
    )
    device.ranks.mean_(direction)
    plain_PBC, tangent_PBC = _along(
        lambda at: logits(at, images_BCHW), parameters, dict(zip(parameters, direction, strict=True))
    )
    return direct_P, plain_PBC, tangent_PBC


def _derivative(losses: Callable[[Tensor], Tensor], plain_PBC: Tensor, tangent_PBC: Tensor) -> Tensor:
    """The derivative of `losses` of the logits along their tangent."""
    with forward_ad.dual_level(), torch.no_grad():
        tangent = forward_ad.unpack_dual(losses(forward_ad.make_dual(plain_PBC, tangent_PBC))).tangent
    assert tangent is not None
    return tangent


def _along(
    logits: Callable[[dict[str, Tensor]], Tensor], at: dict[str, Tensor], direction: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """The logits [P, B, C] and their derivative along a direction, by one forward-mode pass.

    Attention runs as its plain products, as its fused kernels have no forward mode. Where an operation of somebody's
    network has none, two passes more give it instead, by central differences.
    """
    try:
        with warnings.catch_warnings(), forward_ad.dual_level(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            warnings.simplefilter("ignore", FutureWarning)  # torch loads its own rules for a JVP by the old torch.jit
            duals = {name: forward_ad.make_dual(tensor, direction[name]) for name, tensor in at.items()}
            with FusedTangents():
                plain_PBC, tangent_PBC = forward_ad.unpack_dual(logits(duals))
        assert tangent_PBC is not None
        return plain_PBC, tangent_PBC
    except NotImplementedError:
        length, size = (
            torch.stack([tensor.square().sum() for tensor in each.values()]).sum().sqrt() for each in (direction, at)
        )
        step = STEP * size / length.clamp(min=TINY)
        with torch.no_grad():
            there = logits({name: tensor + step * direction[name] for name, tensor in at.items()})
            back = logits({name: tensor - step * direction[name] for name, tensor in at.items()})
            return logits(at), (there - back) / (2 * step)


@contextlib.contextmanager
def _running_statistics(family: PeerFamily) -> Iterator[None]:
    """Batch norm takes its running statistics, not the batch's."""
    norms = [module for module in family.modules() if isinstance(module, _BatchNorm) and module.training]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


def mirror_step(weight_P: Tensor, gradient_P: Tensor, step: float) -> Tensor:
    """One step of mirror descent on the simplex; [P] → [P].

    ω_i ← ω_i exp(−η g_i) / Σ_k ω_k exp(−η g_k), η = `step`.
    """
    return torch.softmax(weight_P.log() - step * gradient_P, dim=0)
