"""A family of small heads that share nothing, made-up data for it, and the paper's gradient as it is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from wmlc.compress.learn.family import PeerFamily
from wmlc.compress.learn.losses import ensemble_loss
from wmlc.records import Branch

BATCH, STEPS, CLASSES = 4, 2, 3  # steps of an epoch
SHAPE = (4, 1, 1)

Batch = tuple[Tensor, Tensor]
Parameters = dict[str, Tensor]


def toy_family(peers: int = 2, seed: int = 0) -> PeerFamily:
    """Peers of two linear layers each."""
    torch.manual_seed(seed)
    heads: dict[str, nn.Module] = {
        f"head_of_{peer}": nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES))
        for peer in range(1, peers + 1)
    }
    return PeerFamily([Branch(name, "head", (peer,), None) for peer, name in enumerate(heads, 1)], heads)


class ToyData:
    """Two batches an epoch, three that are held out, and which of these were asked for; there is no test set."""

    record = SimpleNamespace(small=True, held_out=3 * BATCH, input_shape=SHAPE)

    def __init__(self, epochs: int = 2) -> None:
        draw = torch.Generator().manual_seed(0)
        made = [
            (torch.randn(BATCH, *SHAPE, generator=draw), torch.randint(CLASSES, (BATCH,), generator=draw))
            for _ in range(STEPS * epochs + 3)
        ]
        self.train: list[Batch] = made[3:]
        self.held_out: list[Batch] = made[:3]
        self.asked: list[tuple[int, int]] = []

    def train_steps(self, batch_size: int) -> int:
        return STEPS

    def train_batches(self, batch_size: int, epoch: int) -> Iterator[Batch]:
        return iter(self.train[STEPS * epoch : STEPS * (epoch + 1)])

    def held_out_batch(self, batch_size: int, index: int) -> Batch:
        self.asked.append((batch_size, index))
        return self.held_out[index % 3]

    def held_out_batches(self, batch_size: int) -> Iterator[Batch]:
        return iter(self.held_out)


def parameters_of(family: PeerFamily) -> Parameters:
    """Copies, which can be differentiated by."""
    return {name: own.detach().clone().requires_grad_() for name, own in family.named_parameters()}


def gradients(loss: Tensor, at: Parameters) -> Parameters:
    """The gradient of a loss by each parameter; its graph stays."""
    found = torch.autograd.grad(loss, list(at.values()), retain_graph=True, allow_unused=True, materialize_grads=True)
    return dict(zip(at, found, strict=True))


def inner_product(one: Parameters, other: Parameters) -> Tensor:
    return torch.stack([(one[name] * other[name]).sum() for name in one]).sum()


def ahead_of(at: Parameters, step: Parameters) -> Parameters:
    """The parameters θ' one step ahead of those `at` θ."""
    return {name: (own - step[name]).detach().requires_grad_() for name, own in at.items()}


def papers_gradient(
    family: PeerFamily, at: Parameters, losses_P: Sequence[Tensor] | Tensor, step: Parameters, held_out: Batch,
    weight_P: Tensor, rate: float,
) -> Tensor:  # fmt: skip
    """∂L2(θ', ω)/∂ω_i − γ ⟨∇_θ L2(θ'), ∇_θ ℓ_i(θ)⟩, a backward pass for each peer; [P].

    Args: the parameters θ, the losses ℓ_i of them, the `step` to θ', and γ.
    """
    ahead, omega_P = ahead_of(at, step), weight_P.clone().requires_grad_()
    outer = ensemble_loss(functional_call(family, ahead, (held_out[0],)), held_out[1], omega_P)
    (direct_P,) = torch.autograd.grad(outer, omega_P, retain_graph=True)
    slope = gradients(outer, ahead)
    return direct_P - rate * torch.stack([inner_product(slope, gradients(loss, at)) for loss in losses_P])
