"""Scores of parameters → what channels and layers are worth, of two linear layers in whole numbers."""

from __future__ import annotations

import collections

import pytest
import torch
from torch import Tensor, nn

from wmlc.compress.widths.choose import score_channels
from wmlc.compress.widths.graph import ChannelGraph, channel_importance
from wmlc.compress.widths.proof import read_channels

SCORES = {
    "a.weight": torch.tensor([[-1.0, -2.0], [3.0, -4.0], [-5.0, 6.0]]),
    "a.bias": torch.tensor([7.0, -8.0, 9.0]),
    "b.weight": torch.tensor([[10.0, 20.0, -30.0], [1.0, 2.0, 3.0]]),
    "b.bias": torch.tensor([100.0, 100.0]),  # which goes with no channel
}


@pytest.fixture(scope="module")
def graph() -> ChannelGraph:
    layers = {"flat": nn.Flatten(), "a": nn.Linear(2, 3), "relu": nn.ReLU(), "b": nn.Linear(3, 2)}
    return read_channels(nn.Sequential(collections.OrderedDict(layers)), (2, 1, 1))


def test_a_channel_is_worth_all_that_goes_with_it(graph: ChannelGraph) -> None:
    """Its row of the one layer, its bias, and its column of the other."""
    (worth,) = channel_importance(graph, SCORES)
    assert worth.tolist() == [-3 + 7 + 11, -1 - 8 + 22, 1 + 9 - 27]
    (without,) = channel_importance(graph, {name: own for name, own in SCORES.items() if name != "a.bias"})
    assert without.tolist() == [8, 21, -26]


@pytest.mark.parametrize(("kind", "best_first"), [("snip", [0, 1, 2]), ("synflow", [0, 1, 2]), ("grasp", [2, 1, 0])])
def test_the_highest_stay_and_of_grasp_the_lowest(graph: ChannelGraph, kind: str, best_first: list[int]) -> None:
    (rank,) = score_channels(graph, SCORES, kind, ["a", "b"]).channel_rank
    assert rank.tolist() == best_first


@pytest.mark.parametrize("sign", [1, -1])
def test_a_layer_is_worth_the_size_of_its_scores_sum(graph: ChannelGraph, sign: int) -> None:
    """In which scores of either sign cancel: −3 of one layer, 6 of the other."""
    scores: dict[str, Tensor] = {name: sign * own for name, own in SCORES.items()}
    found = score_channels(graph, scores, "grasp", ["a", "b"]).layer_importance
    assert found.tolist() == pytest.approx([1 / 3, 2 / 3])
