"""What a training step makes of the weights, of peers and of sources: where they begin, and one step on, by hand."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from toy_family import (
    ToyData,
    ahead_of,
    gradients,
    inner_product,
    papers_gradient,
    parameters_of,
    toy_family,
)

from wmlc.compress.config import settle
from wmlc.compress.learn.losses import cross_entropies, ensemble_loss, source_losses, wml_losses
from wmlc.compress.learn.methods import Taught
from wmlc.compress.learn.place import Device
from wmlc.compress.learn.reweigh import mirror_step
from wmlc.compress.learn.state import TrainState
from wmlc.compress.learn.teacher import Teacher
from wmlc.compress.learn.teaching import alike, by_loss, from_teacher, source_step
from wmlc.compress.learn.train import _reweigh, _teaching
from wmlc.compress.learn.watch import Watch

CPU = Device("cpu", bf16=False)
LR, ALPHA, T, ETA = 0.3, 0.3, 2.0, 0.7
FROM_START = {"start": "a", "ratios": (0.5, 0.3), "alpha": ALPHA, "temperature": T, "weight_lr": ETA}


def two_batches() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """In float64."""
    data = ToyData()
    (images, labels_B), (others, theirs_B) = data.train[0], data.held_out[0]
    return (images.double(), labels_B), (others.double(), theirs_B)


def test_peer_weights_take_a_mirror_step_down_the_papers_gradient() -> None:
    """A step that descends P · L1 at a rate is one that descends L1 at P times the rate."""
    family, (train, held_out) = toy_family(3).double().train(), two_batches()
    omega_P, at = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), parameters_of(family)
    losses_P = wml_losses(functional_call(family, at, (train[0],)), train[1], ALPHA, T)
    down = gradients(3 * (omega_P @ losses_P), at)
    for name, parameter in family.named_parameters():
        parameter.grad = down[name]
    move = {name: LR * own for name, own in down.items()}
    gradient_P = papers_gradient(family, at, losses_P, move, held_out, omega_P, rate=LR * 3)
    config = settle({"alpha": ALPHA, "temperature": T, "weight_lr": ETA})
    found_P, teaching = _reweigh(
        family, train, None, held_out, (omega_P, None), config, LR, 1.0, CPU, Watch(0, CPU)
    )  # fmt: skip
    torch.testing.assert_close(found_P, mirror_step(omega_P, gradient_P, ETA), rtol=1e-9, atol=0)
    assert teaching is None and gradient_P.std() > 1e-3


def test_weights_of_sources_take_a_step_down_their_own_gradient() -> None:
    """− γ ⟨∇_θ Σ_j CE(z_j(θ'), Y), ∇_θ ℓ_sj(θ)⟩, a backward pass for each source; and ω that of the ensemble at θ'."""
    family, (train, held_out) = toy_family(2).double().train(), two_batches()
    omega_P, at = torch.tensor([0.3, 0.7], dtype=torch.float64), parameters_of(family)
    teacher_BC = 2 * toy_family(1, seed=1).double()(train[0])[0].detach()
    teaching_SP = alike(2, True, ALPHA).double()
    losses_SP = source_losses(functional_call(family, at, (train[0],)), teacher_BC, train[1], T)
    down = gradients((teaching_SP * losses_SP).sum(), at)
    for name, parameter in family.named_parameters():
        parameter.grad = down[name]

    ahead = ahead_of(at, {name: LR * own for name, own in down.items()})
    logits_PBC = functional_call(family, ahead, (held_out[0],))
    slope, expected_SP = gradients(cross_entropies(logits_PBC, held_out[1]).sum(), ahead), torch.zeros_like(teaching_SP)
    for place in itertools.product(*map(range, losses_SP.shape)):
        expected_SP[place] = -LR * inner_product(slope, gradients(losses_SP[place], at))
    learned_P = omega_P.clone().requires_grad_()
    ensemble = ensemble_loss(logits_PBC.detach(), held_out[1], learned_P)
    (expected_P,) = torch.autograd.grad(ensemble, learned_P)

    found_P, found_SP = _reweigh(
        family, train, Taught(teacher_BC, {}), held_out, (omega_P, teaching_SP), settle(FROM_START), LR, 1.0, CPU,
        Watch(0, CPU),
    )  # fmt: skip
    torch.testing.assert_close(found_SP, source_step(teaching_SP, expected_SP, ETA), rtol=1e-9, atol=0)
    torch.testing.assert_close(found_P, mirror_step(omega_P, expected_P, ETA), rtol=1e-9, atol=0)


def test_sources_begin_alike_by_their_losses_or_with_the_teacher_alone() -> None:
    family, teacher, data = toy_family(2), Teacher(toy_family(1, seed=1), CPU, 0, False, False), ToyData()

    def begun(method: str, kept: list[list[float]] | None = None) -> Tensor | None:
        state = TrainState("family", [0.5, 0.5], teaching=kept or [])
        config = settle({**FROM_START, "method": method})
        return _teaching(family, data, config, state, CPU, teacher)

    torch.testing.assert_close(begun("wml-p"), alike(2, True, ALPHA))
    torch.testing.assert_close(begun("kd"), from_teacher(2, ALPHA))
    assert data.asked == []
    images, labels_B = data.held_out[0]
    logits = [*teacher.network(images), *family(images)]
    losses_T = torch.stack([F.cross_entropy(z_BC, labels_B) for z_BC in logits]).detach()
    learned_SP = begun("wml")
    torch.testing.assert_close(learned_SP, by_loss(losses_T, 2, ALPHA))
    assert losses_T.std() > 0.01 and [index for _, index in data.asked] == [0]
    kept = [[0.5, 0.25, 0.0, 0.25], [0.75, 0.25, 0.0, 0.0]]
    for method in ("wml", "wml-p", "kd"):
        went_on = begun(method, kept)
        assert went_on is not None and went_on.T.tolist() == kept
