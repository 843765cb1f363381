"""How much each parameter matters at initialisation: SNIP, SynFlow, GraSP (paper, section 3.1)."""

from __future__ import annotations

import contextlib
import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from wmlc.compress.widths.double import in_float64


def parameter_saliency(network: nn.Module, images: Tensor, labels: Tensor, kind: str) -> dict[str, Tensor]:
    """Each parameter's score, by parameter name, shaped as the parameter; `network` is left untouched.

        SNIP     |∂L/∂θ ⊙ θ|               (Lee et al., 2019)
        SynFlow  ∂R/∂θ ⊙ θ                 (Tanaka et al., 2020), R the summed logits on an all-ones
                                           image with every parameter replaced by its absolute value
        GraSP    −(H ∂L/∂θ) ⊙ θ            (Wang et al., 2020), H the Hessian of L

    L is the cross-entropy of `images` float32 [B, C, H, W] (normalised) against `labels` int64 [B], with
    batch norm on batch statistics. SynFlow uses no data: only the images' shape.
    """
    network = copy.deepcopy(network).requires_grad_(True)  # what its owner froze counts too
    if kind == "synflow":
        return _synflow(network, images.shape[1:])
    parameters = dict(network.named_parameters())
    # of attention's fused kernels there is no second derivative, which GraSP takes
    with sdpa_kernel(SDPBackend.MATH) if kind == "grasp" else contextlib.nullcontext():
        loss = F.cross_entropy(network.train()(images), labels)
    if kind == "snip":
        gradients = _gradients(loss, parameters)
        return {
            name: (gradient * parameter).abs().detach()
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
        }
    assert kind == "grasp", kind
    gradients = _gradients(loss, parameters, create_graph=True)
    agreement = sum((gradient * gradient.detach()).sum() for gradient in gradients)
    assert isinstance(agreement, Tensor)
    curved = _gradients(agreement, parameters)
    return {
        name: -(hessian_gradient * parameter).detach()
        for (name, parameter), hessian_gradient in zip(parameters.items(), curved, strict=True)
    }


def importance(scores: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Scores oriented so that more means keep.

    GraSP's authors remove the *highest* scores: taking such a weight away raises the gradient flow.
    """
    return {name: -score for name, score in scores.items()} if kind == "grasp" else scores


def _synflow(network: nn.Module, image_shape: torch.Size) -> dict[str, Tensor]:
    # float64: a product of many layers' absolute sums overflows float32 in deep networks.
    # eval mode: fresh running statistics (0 and 1) leave the signal linear in every parameter.
    network = network.double().eval()
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU6):  # its ceiling would stop the gradient; below it nothing is negative
                setattr(module, name, nn.Identity())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()
    device = next(network.parameters()).device
    images = torch.ones(1, *image_shape, device=device)
    with in_float64(network, images):
        total = network(images.to(torch.float64)).sum()
    parameters = dict(network.named_parameters())
    gradients = _gradients(total, parameters)
    return {
        name: (gradient * parameter).detach()
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
    }


def _gradients(of: Tensor, parameters: dict[str, nn.Parameter], create_graph: bool = False) -> tuple[Tensor, ...]:
    """The gradient by each parameter; zeros for those that it does not depend on, such as a head that nothing reads."""
    return torch.autograd.grad(
        of, list(parameters.values()), create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
