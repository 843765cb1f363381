"""The methods that the paper compares with: their losses by hand, what may not learn from what, and their families."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wmlc.compress.config import settle
from wmlc.compress.learn.extras import Gate, feature_pairs
from wmlc.compress.learn.family import PeerFamily
from wmlc.compress.learn.losses import (
    attention_distance,
    cl_losses,
    cross_entropies,
    divergence_from,
    dml_losses,
    gated_ensemble,
    hint_distance,
    one_losses,
    pooled_distance,
    self_distillation_losses,
    teaching_divergences,
    wml_losses,
)
from wmlc.compress.learn.methods import METHODS, Forward, train_loss
from wmlc.compress.learn.place import Device
from wmlc.compress.prepare import Prepared, prepare, trained_peers
from wmlc.compress.widths.choose import Asked, choose_widths, ranked_by
from wmlc.compress.widths.rank import group_magnitude
from wmlc.data import open_data
from wmlc.errors import InputError
from wmlc.run import data_config

CPU = Device("cpu", bf16=False)

# Two peers, one image of class 0. At T = 1: p_1 = (1/2, 1/2), p_2 = (3/4, 1/4); twice the logits at T = 2 give the same.
Z_PBC = torch.tensor([[[0.0, 0.0]], [[math.log(3), 0.0]]], dtype=torch.float64)
Y_B = torch.tensor([0])
CE_1, CE_2 = math.log(2), math.log(4 / 3)
KL_12 = math.log(4 / 3) / 2
KL_21 = 0.75 * math.log(3 / 2) + 0.25 * math.log(1 / 2)
CE_2_DOUBLED = math.log(10 / 9)  # of the logits 2 ln 3 and 0


def close(got: Tensor, *expected: float) -> None:
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64).reshape(got.shape))


def some_logits(peers: int = 4) -> tuple[Tensor, Tensor]:
    """Logits of five images and six classes, and their classes."""
    draw = torch.Generator().manual_seed(0)
    return 3 * torch.randn(peers, 5, 6, generator=draw, dtype=torch.float64), torch.tensor([3, 1, 4, 1, 5])


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss, of, retain_graph=True, allow_unused=True)[0]


# --- values worked by hand


def test_dml_by_hand() -> None:
    close(dml_losses(Z_PBC, Y_B, temperature=1.0), CE_1 + KL_21, CE_2 + KL_12)


def test_dml_takes_the_mean_over_its_teachers() -> None:
    logits_PBC, labels_B = some_logits()
    divergence_PP = teaching_divergences(logits_PBC, 1.0)
    expected_P = cross_entropies(logits_PBC, labels_B) + divergence_PP.sum(0) / 3
    torch.testing.assert_close(dml_losses(logits_PBC, labels_B, 1.0), expected_P)


def test_cl_by_hand_at_its_temperature() -> None:
    # of two heads the others' mean is the other head; T² = 4 keeps the gradient's size
    expected = (0.5 * CE_1 + 0.5 * 4 * KL_21, 0.5 * CE_2_DOUBLED + 0.5 * 4 * KL_12)
    close(cl_losses(2 * Z_PBC, Y_B, alpha=0.5, temperature=2.0), *expected)


def test_cl_teaches_with_the_mean_of_the_other_heads() -> None:
    logits_PBC, labels_B = some_logits(3)
    mean_BC = (logits_PBC[0] + logits_PBC[2]) / 2
    taught = divergence_from(mean_BC, logits_PBC[1], 2.0)
    expected = 0.5 * F.cross_entropy(logits_PBC[1], labels_B) + 0.5 * taught
    torch.testing.assert_close(cl_losses(logits_PBC, labels_B, 0.5, 2.0)[1], expected)


def test_one_by_hand() -> None:
    # a gate that listens to peer 2 alone: it is the teacher, and has nothing to learn from itself
    gate_BP = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    close(one_losses(2 * Z_PBC, Y_B, gate_BP, temperature=2.0), CE_1 + 4 * KL_21, CE_2_DOUBLED, CE_2_DOUBLED)


def test_the_gate_mixes_each_image_by_itself() -> None:
    logits_PBC = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
    gate_BP = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    torch.testing.assert_close(gated_ensemble(logits_PBC, gate_BP), torch.tensor([[0.25, 0.75], [1.0, 0.0]]))


def test_self_distillation_by_hand() -> None:
    losses = self_distillation_losses(2 * Z_PBC, Y_B, alpha=0.1, temperature=2.0)
    close(losses, 0.9 * CE_1 + 0.1 * 4 * KL_21, CE_2_DOUBLED)


def test_of_three_exits_the_deepest_teaches_both_others() -> None:
    logits_PBC, labels_B = some_logits(3)
    p_BC, *taught = ((z_BC / 2).softmax(1) for z_BC in (logits_PBC[2], *logits_PBC[:2]))
    own = [-z_BC.log_softmax(1)[torch.arange(5), labels_B].mean() for z_BC in logits_PBC]
    apart = [(p_BC * (p_BC / q_BC).log()).sum(1).mean() for q_BC in taught]
    expected_P = torch.stack([0.9 * own[0] + 0.1 * 4 * apart[0], 0.9 * own[1] + 0.1 * 4 * apart[1], own[2]])
    torch.testing.assert_close(self_distillation_losses(logits_PBC, labels_B, 0.1, 2.0), expected_P)


def test_wml_at_a_temperature_by_hand() -> None:
    losses = wml_losses(2 * Z_PBC, Y_B, alpha=0.1, temperature=2.0)
    close(losses, 0.9 * CE_1 + 0.1 * 4 * KL_12, 0.9 * CE_2_DOUBLED + 0.1 * 4 * KL_21)


def test_feature_terms_by_hand() -> None:
    teacher = torch.tensor([[[[3.0, 4.0]]]])  # one image, one channel, 1 × 2 pixels
    assert hint_distance(torch.tensor([[[[1.0, 0.0]]]]), teacher).item() == pytest.approx((4 + 16) / 2)
    # attention: (9, 16) / √337 against two channels that look at the right pixel alone, (0, 1)
    student = torch.tensor([[[[0.0, 1.0]], [[0.0, -2.0]]]])
    norm = math.sqrt(9**2 + 16**2)
    expected = ((9 / norm) ** 2 + (1 - 16 / norm) ** 2) / 2
    assert attention_distance(student, teacher).item() == pytest.approx(expected)
    assert pooled_distance(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [3.0, 4.0]])).item() == (
        pytest.approx((4 + 25) / 2)
    )


# --- identities

GATE_BP = torch.full((5, 4), 0.25, dtype=torch.float64)
LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float]] = {  # and the weight of the labels
    "dml": (lambda z, y: dml_losses(z, y, 1.0), 1.0),
    "one": (lambda z, y: one_losses(z, y, GATE_BP, 3.0)[:-1], 1.0),
    "cl": (lambda z, y: cl_losses(z, y, 0.5, 2.0), 0.5),
    "self-distillation": (lambda z, y: self_distillation_losses(z, y, 0.1, 3.0)[:-1], 0.9),
    "wml": (lambda z, y: wml_losses(z, y, 0.1, 1.0), 0.9),
}


@pytest.mark.parametrize("method", LOSSES)
def test_equal_peers_leave_only_cross_entropy(method: str) -> None:
    losses, weight = LOSSES[method]
    logits_PBC, labels_B = some_logits(1)
    equal_PBC = logits_PBC.expand(4, 5, 6)
    taught_P = losses(equal_PBC, labels_B)
    torch.testing.assert_close(taught_P, weight * cross_entropies(equal_PBC, labels_B)[: len(taught_P)])


@pytest.mark.parametrize(
    ("losses", "constants"), [(dml_losses, [1.0]), (cl_losses, [0.5, 2.0]), (self_distillation_losses, [0.1, 3.0])]
)
def test_one_peer_alone_learns_from_the_labels(losses: Callable[..., Tensor], constants: list[float]) -> None:
    logits_PBC, labels_B = some_logits(1)
    torch.testing.assert_close(losses(logits_PBC, labels_B, *constants), cross_entropies(logits_PBC, labels_B))


A_START: dict[str, dict[str, Any]] = {
    name: {"start": "a"} if its.teacher_alone else {} for name, its in METHODS.items()
}


@pytest.mark.parametrize("method", METHODS)
def test_with_one_peer_every_method_is_independent(method: str) -> None:
    logits_PBC, labels_B = some_logits(1)
    nobody: Any = None
    alone = Forward(nobody, logits_PBC, {}, labels_B, torch.ones(1))
    loss = train_loss(alone, settle({"method": method, **A_START[method]}))
    torch.testing.assert_close(loss, cross_entropies(logits_PBC, labels_B).sum())


# --- what may not learn from what


@pytest.mark.parametrize("method", ["dml", "cl", "one"])
def test_a_loss_reaches_its_student_alone(method: str) -> None:
    losses, _ = LOSSES[method]
    logits_PBC, labels_B = some_logits()
    logits_PBC.requires_grad_()
    for student, loss in enumerate(losses(logits_PBC, labels_B)):
        reached = gradient(loss, logits_PBC).abs().sum((1, 2)) > 0
        assert reached.tolist() == [peer == student for peer in range(4)]


def test_the_deepest_exit_learns_from_the_labels_alone() -> None:
    logits_PBC, labels_B = some_logits()
    logits_PBC.requires_grad_()
    own = gradient(self_distillation_losses(logits_PBC, labels_B, 0.1, 3.0).sum(), logits_PBC)[-1]
    labels = gradient(F.cross_entropy(logits_PBC[-1], labels_B), logits_PBC)[-1]
    torch.testing.assert_close(own, labels)


def test_the_gate_learns_from_the_labels_alone() -> None:
    logits_PBC, labels_B = some_logits()
    gate_BP = GATE_BP.clone().requires_grad_()
    *taught, teacher = one_losses(logits_PBC, labels_B, gate_BP, 3.0)
    assert not any(gradient(loss, gate_BP).any() for loss in taught)
    assert gradient(teacher, gate_BP).abs().sum() > 0


@pytest.mark.parametrize("term", [hint_distance, attention_distance])
def test_a_feature_term_leaves_its_teacher_alone(term: Callable[[Tensor, Tensor], Tensor]) -> None:
    student, teacher = torch.rand(2, 3, 4, 4, requires_grad=True), torch.rand(2, 3, 4, 4, requires_grad=True)
    loss = term(student, teacher)
    assert gradient(loss, student).abs().sum() > 0
    assert gradient(loss, teacher) is None


# --- families


def prepared(method: str, **settings: Any) -> Prepared:
    config = settle({"method": method, "train_images": 260, "batch_size": 32, **settings})
    return prepare(config, open_data(data_config(config)), CPU)


def prepared_family(method: str, **settings: Any) -> PeerFamily:
    return prepared(method, **settings).family


def shared_stages(family: PeerFamily) -> dict[str, list[tuple[int, ...]]]:
    stages: dict[str, list[tuple[int, ...]]] = {}
    for branch in family.branches:
        stages.setdefault(branch.stage, []).append(branch.peers)
    return stages


def test_each_method_has_the_shape_of_its_paper() -> None:
    everybody, private = [(1, 2, 3, 4)], [(1,), (2,), (3,), (4,)]
    halves = [(1, 2), (3, 4)]
    assert shared_stages(prepared_family("one")) == {
        "stem": everybody, "stage1": everybody, "stage2": everybody, "stage3": private, "head": private,
    }  # fmt: skip
    assert shared_stages(prepared_family("cl")) == {
        "stem": everybody, "stage1": everybody, "stage2": halves, "stage3": private, "head": private,
    }  # fmt: skip
    assert shared_stages(prepared_family("dml")) == dict.fromkeys(
        ["stem", "stage1", "stage2", "stage3", "head"], private
    )
    assert shared_stages(prepared_family("self-distillation")) == {
        "stem": [(1, 2, 3)], "stage1": [(1, 2, 3)], "stage2": [(2, 3)], "stage3": [(3,)], "head": [(1,), (2,), (3,)],
    }  # fmt: skip


def test_equal_peers_start_from_weights_of_their_own() -> None:
    family = prepared_family("cl")
    private = [family.parts[f"stage3_of_{peer}"].state_dict() for peer in (1, 2, 3, 4)]
    name = "0.conv1.weight"
    assert all(not torch.equal(private[a][name], private[b][name]) for a in range(4) for b in range(a))
    full = prepared_family("independent", ratios=(0.0,))  # the largest peer starts as the baseline does
    assert torch.equal(private[3][name], full.parts["stage3_of_1"].state_dict()[name])


def test_a_shared_stage_gets_the_mean_of_its_peers_gradients() -> None:
    family = prepared_family("cl", ratios=(0.7, 0.5, 0.0)).eval()
    images, labels = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])

    def gradients() -> dict[str, Tensor]:
        family.zero_grad()
        cross_entropies(family(images), labels).sum().backward()
        return {name: p.grad.clone() for name, p in family.parts.named_parameters() if p.grad is not None}

    means = gradients()
    family.shares = dict.fromkeys(family.shares, 1.0)
    sums, serves = gradients(), {branch.name: len(branch.peers) for branch in family.branches}
    assert sorted(serves.values()) == [1, 1, 1, 1, 1, 1, 1, 2, 3, 3]
    for name, total in sums.items():
        torch.testing.assert_close(means[name], total / serves[name.split(".")[0]])


def test_the_gate_gives_weights_on_the_simplex() -> None:
    weight_BP = Gate(channels=6, peers=3)(torch.randn(5, 6, 2, 2))
    torch.testing.assert_close(weight_BP.sum(1), torch.ones(5))
    assert weight_BP.shape == (5, 3) and bool((weight_BP > 0).all())


def test_one_without_a_shared_stage_is_refused() -> None:
    with pytest.raises(
        InputError, match="the gate of one looks at a stage that all peers share, and nothing is shared"
    ):
        prepared_family("one", share="none")


@pytest.mark.parametrize("kind", ["hints", "attention"])
def test_a_feature_term_without_a_stage_to_teach_is_refused(kind: str) -> None:
    with pytest.raises(InputError, match="feature_loss teaches stages that a peer has for itself, and all are shared"):
        prepared_family("wml", ratios=(0.0, 0.0), share="stage3", feature_loss=kind)


@pytest.mark.parametrize("kind", ["hints", "attention"])
def test_feature_terms_train_students_and_regressors(kind: str) -> None:
    family = prepared_family("wml", ratios=(0.5, 0.0), feature_loss=kind)
    assert [student.stage for student, _ in feature_pairs(family, taught=False)] == ["stage2", "stage3"]
    images, labels = torch.randn(8, 1, 8, 8), torch.arange(8)
    logits_PBC, outputs = family.walk(images)
    forward = Forward(family, logits_PBC, outputs, labels, torch.full((2,), 0.5))
    with_term, without = (train_loss(forward, settle({"feature_loss": own})) for own in (kind, "none"))
    assert with_term > without
    reached = torch.autograd.grad(with_term - without, list(family.parameters()), allow_unused=True)
    moved = [
        g is not None and bool((g.abs() > 1e-5).any()) for g in reached
    ]  # the labels' part cancels but for rounding
    names = [name for (name, _), learns in zip(family.named_parameters(), moved, strict=True) if learns]
    assert not [name for name in names if "_of_2." in name and "hint" not in name]  # the teacher
    assert any(name.startswith("parts.stage3_of_1") for name in names)
    assert any("extras.hint_stage3" in name for name in names) == (kind == "hints")


def test_magnitude_keeps_the_channels_of_greatest_magnitude(scored_network: Any) -> None:
    net = scored_network("resnet20")
    network = copy.deepcopy(net.full)
    group = next(g for g in net.scored.graph.groups if g.root == "stage1.0.conv1")
    loud = [1, 4, 6, 7, 8, 11, 13, 15]
    with torch.no_grad():
        for place in (place for place in group.places if place.tensor.endswith("weight")):
            network.get_parameter(place.tensor).movedim(place.dim, 0)[loud] *= 10
    scored = ranked_by(net.scored, group_magnitude(network, net.scored.graph))
    (cut,) = choose_widths(scored, Asked((0.7,), "none", "params", uniform=True))
    assert set(loud) <= set(cut.kept[group.root].tolist()) < set(range(16))
    assert cut.achieved_ratio == pytest.approx(0.7, abs=0.02)


def test_only_cut_peers_are_fine_tuned() -> None:
    config = settle({"method": "prune-finetune", "train_images": 260, "batch_size": 32})
    before = prepare(config, open_data(data_config(config)), CPU)
    assert before.family.peers == 4 and trained_peers(before.family, config).peers == 3
