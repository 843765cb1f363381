"""What a step descends under each method: its losses summed over peers, at its settings, and the term on features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wmlc.compress.config import settle
from wmlc.compress.learn.extras import add_extras, gate_weights
from wmlc.compress.learn.family import PeerFamily
from wmlc.compress.learn.losses import (
    attention_distance,
    cl_losses,
    cross_entropies,
    dml_losses,
    one_losses,
    pooled_distance,
    self_distillation_losses,
    wml_losses,
)
from wmlc.compress.learn.methods import METHODS, Forward, train_loss
from wmlc.records import Branch

ALPHA, T, WEIGHT = 0.3, 4.0, 7.0
SHAPE, TRUNK, PEERS = (1, 4, 4), "stem_of_1_2_3", (1, 2, 3)


@pytest.fixture(scope="module")
def forward() -> Forward:
    """Of three peers after a shared stem, with a gate, weighed 2 : 3 : 5."""
    torch.manual_seed(0)
    branches = [Branch(TRUNK, "stem", PEERS, None)]
    modules: dict[str, nn.Module] = {TRUNK: nn.Conv2d(1, 2, 3, padding=1)}
    for peer in PEERS:
        stage, head = f"stage1_of_{peer}", f"head_of_{peer}"
        branches += [Branch(stage, "stage1", (peer,), TRUNK), Branch(head, "head", (peer,), stage)]
        modules[stage] = nn.Conv2d(2, 2, 3, padding=1)
        modules[head] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 6))
        nn.init.normal_(modules[head][2].weight, 0, 5)  # type: ignore[index]
    family = PeerFamily(branches, modules)
    add_extras(family, SHAPE, gate=True, features=False, regressors=False)
    logits_PBC, outputs = family.walk(torch.randn(5, *SHAPE))
    return Forward(family, logits_PBC, outputs, torch.tensor([3, 1, 4, 1, 5]), torch.tensor([0.2, 0.3, 0.5]))


def of_exits(forward: Forward) -> Tensor:
    first, second, deepest = (forward.outputs[f"head_of_{peer}"] for peer in PEERS)
    own = self_distillation_losses(forward.logits_PBC, forward.labels_B, ALPHA, T).sum()
    return own + WEIGHT * (pooled_distance(first, deepest) + pooled_distance(second, deepest))


EXPECTED: dict[str, Callable[[Forward], Tensor]] = {
    "wml": lambda own: 3 * (own.weight_P @ wml_losses(own.logits_PBC, own.labels_B, ALPHA, T)),
    "wml-p": lambda own: 3 * (own.weight_P @ wml_losses(own.logits_PBC, own.labels_B, ALPHA, T)),
    "dml": lambda own: dml_losses(own.logits_PBC, own.labels_B, T).sum(),
    "one": lambda own: one_losses(own.logits_PBC, own.labels_B, gate_weights(own.family, own.outputs), T).sum(),
    "cl": lambda own: cl_losses(own.logits_PBC, own.labels_B, ALPHA, T).sum(),
    "self-distillation": of_exits,
    "independent": lambda own: cross_entropies(own.logits_PBC, own.labels_B).sum(),
    "prune-finetune": lambda own: cross_entropies(own.logits_PBC, own.labels_B).sum(),
}


@pytest.mark.parametrize("method", EXPECTED)
def test_a_step_descends_the_methods_own_losses(method: str, forward: Forward) -> None:
    its, settings = METHODS[method], dict[str, Any](method=method)
    settings |= {"alpha": ALPHA} if its.alpha is not None else {}
    settings |= {"temperature": T} if its.temperature is not None else {}
    settings |= {"feature_weight": WEIGHT} if its.features is not None else {}
    torch.testing.assert_close(train_loss(forward, settle(settings)), EXPECTED[method](forward))


def test_a_term_on_features_counts_by_its_weight(forward: Forward) -> None:
    """Of each stage that the largest peer does not go through."""
    config = settle({"alpha": ALPHA, "temperature": T, "feature_loss": "attention", "feature_weight": WEIGHT})
    first, second, largest = (forward.outputs[f"stage1_of_{peer}"] for peer in PEERS)
    term = attention_distance(first, largest) + attention_distance(second, largest)
    expected = EXPECTED["wml"](forward) + WEIGHT * term
    torch.testing.assert_close(train_loss(forward, config), expected)
    assert WEIGHT * term > 0.01
