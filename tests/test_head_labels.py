"""Attention with numbers for each head, softmax along channels, and biases that lie in no layer: how it is cut."""

from __future__ import annotations

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


class Heads(nn.Module):
    """Two heads, whose channels are computed from what comes in: they get narrower with it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def projected(self, tokens: Tensor) -> Tensor:
        return self.qkv(tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, places, channels = tokens.shape
        qkv = self.projected(tokens).reshape(batch, places, 3, 2, channels // 2).permute(2, 0, 3, 1, 4)
        return self.out(self.mixed(*qkv.unbind(0)).transpose(1, 2).reshape(batch, places, channels))

    def mixed(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)


class Covariance(Heads):
    """Channels look at channels, each head under a temperature of its own, as in XCiT."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(2, 1, 1))

    def mixed(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key = (F.normalize(own.transpose(2, 3), dim=-1) for own in (query, key))
        shares = (query @ key.transpose(2, 3) * self.temperature).softmax(-1)
        return (shares @ value.transpose(2, 3)).transpose(2, 3)


class Talking(Heads):
    """A layer mixes the heads, as in CaiT; the products' scale does not hang on a head's channels."""

    def __init__(self) -> None:
        super().__init__()
        self.talk = nn.Linear(2, 2)

    def mixed(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        shares = (query @ key.transpose(2, 3) * 0.5).softmax(-1)
        return self.talk(shares.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) @ value


class Biased(Heads):
    """Queries and values have a bias beside the layer, and keys zeros that no file holds, as in BEiT."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(8))
        self.register_buffer("k_bias", torch.zeros(8), persistent=False)

    def projected(self, tokens: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, self.get_buffer("k_bias"), self.v_bias])
        return F.linear(tokens, self.qkv.weight, bias)


class Attending(Hand):
    """Attention among places, of one kind after another."""

    def __init__(self, *kinds: type[Heads]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(kind() for kind in kinds)

    def body(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = tokens + block(tokens)
        return tokens.transpose(1, 2).unflatten(2, (8, 8))


@pytest.mark.parametrize("kinds", [(Covariance,), (Talking, Heads), (Biased,)])
def test_heads_get_narrower_with_what_comes_in(kinds: tuple[type[Heads], ...]) -> None:
    network = Attending(*kinds).eval()
    graph = read_channels(network, SHAPE)
    assert [group.units for group in graph.groups] == [4]
    assert {layer for own in graph.left_whole for layer in own.layers} == {"blocks.0.talk"} & {
        *dict(network.named_modules())
    }
    cut = cut_channels(network, graph.groups, {graph.groups[0].root: torch.tensor([1, 2])})
    assert total_cost(cut, SHAPE).macs == graph.size(np.array([2]), "macs")
    again = cut_to(Attending(*kinds), difference(network, cut)).eval()
    again.load_state_dict(cut.state_dict())
    images = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(images), cut(images))


def test_zeros_that_no_file_holds_are_recorded_by_their_number() -> None:
    network = Attending(Biased)
    again = cut_to(network, {"blocks.0": {"k_bias": [4]}})
    assert (
        torch.equal(again.get_buffer("blocks.0.k_bias"), torch.zeros(4)) and "blocks.0.k_bias" not in again.state_dict()
    )
