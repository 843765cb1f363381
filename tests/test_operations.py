"""The digest of what a network does: the same for other weights, another for anything else. Half a second."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

from wmlc.models.operations import operations_digest

SHAPE = (3, 8, 8)


class Small(nn.Module):
    def __init__(
        self, kernel: int = 3, stride: int = 1, act: Callable[[Tensor], Tensor] = F.relu, first: bool = True
    ) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, kernel, stride, kernel // 2), nn.Conv2d(4, 4, 1)
        self.norm, self.act, self.first = nn.BatchNorm2d(4), act, first

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.a(images))
        y = self.act(self.b(x))
        return (y + (x if self.first else y)).mean((2, 3))


def test_other_weights_are_no_other_network() -> None:
    network = Small()
    digest = operations_digest(network, SHAPE)
    trained = copy.deepcopy(network).train()
    for parameter in trained.parameters():
        nn.init.normal_(parameter)
    assert operations_digest(trained, SHAPE) == digest and trained.training


@pytest.mark.parametrize("other", [{"kernel": 5}, {"stride": 2}, {"act": F.gelu}, {"first": False}])
def test_what_differs_in_anything_else_is_another(other: dict[str, Any]) -> None:
    """A kernel, a stride, an activation that is no module, or whose output an addition takes."""
    assert operations_digest(Small(**other), SHAPE) != operations_digest(Small(), SHAPE)
