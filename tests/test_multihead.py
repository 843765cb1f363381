"""torch's own attention, whose heads are as wide as what comes in: they get narrower with it, and its numbers follow."""

from __future__ import annotations

import copy
from operator import attrgetter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hand_networks import SHAPE, Hand
from torch import Tensor, nn

from wmlc.compress.widths.cut import cut_channels
from wmlc.compress.widths.proof import read_channels
from wmlc.models.cost import total_cost
from wmlc.models.widths import cut_to, difference


class Attending(Hand):
    """Two heads among places, added to what comes in."""

    def __init__(self, batch_first: bool = True, **how: int) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=batch_first, **how)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        tokens = F.relu(self.a(images)).flatten(2).permute(*((0, 2, 1) if self.attend.batch_first else (2, 0, 1)))
        mixed = tokens + self.attend(tokens, tokens, tokens)[0]
        return self.fc(mixed.mean(1 if self.attend.batch_first else 0))


@pytest.mark.parametrize("batch_first", [True, False])
def test_heads_are_cut_with_what_comes_in(batch_first: bool) -> None:
    network = Attending(batch_first).eval()
    nn.init.normal_(network.attend.in_proj_bias)
    graph = read_channels(network, SHAPE)
    (group,) = graph.groups
    assert not graph.left_whole and group.units == 4 and group.rooted and not group.attributes
    kept = {group.root: torch.tensor([0, 3])}
    network.double()
    with torch.no_grad():
        for place in group.places:  # no unit that goes carries anything, or is read
            lost = place.positions[group.lost(kept[group.root])].flatten()
            attrgetter(place.tensor)(network).index_fill_(place.dim, lost, 0)
    cut = cut_channels(network, graph.groups, kept)
    images = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for training in (False, True):
        with torch.no_grad():  # in eval mode torch has a faster way
            torch.testing.assert_close(cut.train(training)(images), network.train(training)(images), rtol=0, atol=1e-12)
    cost = total_cost(cut.float(), SHAPE)
    assert (cost.macs, cost.params) == tuple(graph.size(np.array([2]), unit) for unit in ("macs", "params"))
    widths = difference(network, cut)
    assert widths["attend"] == {
        "embed_dim": 4, "kdim": 4, "vdim": 4, "head_dim": 2, "in_proj_weight": [12, 4], "in_proj_bias": [12],
    }  # fmt: skip
    again = cut_to(copy.deepcopy(network).float(), widths)
    again.load_state_dict(cut.state_dict())
    assert torch.equal(again.eval()(images.float()), cut.eval()(images.float()))


class Encoder(Hand):
    """A layer of torch's transformer, whose norms look at all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)

    def body(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (8, 8))


def test_a_layer_of_torchs_transformer_is_cut() -> None:
    graph = read_channels(Encoder().eval(), SHAPE)
    assert not graph.left_whole and sorted(group.units for group in graph.groups) == [4, 12]


def test_attention_that_also_looks_at_nothing_stays_whole_in_words() -> None:
    """`add_zero_attn` joins zeros of a size that no label is on."""
    graph = read_channels(Attending(add_zero_attn=True).eval(), SHAPE)
    assert not graph.groups and {name for own in graph.left_whole for name in own.layers} >= {"a", "attend"}
