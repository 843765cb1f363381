"""Channels of attention's heads: which of them can go, and what is left of the answers and of the MACs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hand_networks import SHAPE, Hand
from torch import Tensor, nn

from wmlc.compress.counted import counted
from wmlc.compress.widths.choose import PeerWidths
from wmlc.compress.widths.cut import cut_channels
from wmlc.compress.widths.graph import Number
from wmlc.compress.widths.proof import read_channels
from wmlc.models.cost import total_cost


class Heads(nn.Module):
    """Attention with two heads of a size that it holds as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.size, self.qkv, self.out = 4, nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).reshape(len(tokens), -1, 3, 2, self.size).permute(2, 0, 3, 1, 4)
        return tokens + self.out(self.mixed(query, key, value).transpose(1, 2).flatten(2))

    def mixed(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (query @ key.transpose(2, 3)).softmax(-1) @ value


class Fused(Heads):
    """The same by torch's own operation, under a scale that does not hang on the size of heads."""

    def mixed(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, scale=0.5)


class Rooted(Heads):
    """The same, whose scale is the root of what a head has of channels."""

    def mixed(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)


class Biased(Heads):
    """The same with a number that was learned for each head and pair of places."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0)))

    def mixed(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (query @ key.transpose(2, 3) + self.bias).softmax(-1) @ value


class Headed(Hand):
    """Attention among places, each with a vector that was learned, as a vision transformer's."""

    def __init__(self, kind: type[Heads] = Heads, placed: bool = True) -> None:
        super().__init__()
        learned = nn.Parameter(torch.randn(1, 64, 8, generator=torch.Generator().manual_seed(0)))
        self.place: Tensor | float = learned if placed else 0.0
        self.heads, self.up, self.down = kind(), nn.Linear(8, 12), nn.Linear(12, 8)

    def body(self, x: Tensor) -> Tensor:
        tokens = self.heads(x.flatten(2).transpose(1, 2) + self.place)
        return (tokens + self.down(F.relu(self.up(tokens)))).transpose(1, 2).unflatten(2, (8, 8))


HEADED = [(Heads, True), (Fused, True), (Rooted, True), (Biased, True), (Biased, False)]


@pytest.mark.parametrize(("kind", "placed"), HEADED)
def test_a_group_that_only_zeros_can_stand_for_leaves_the_others_proven(kind: type[Heads], placed: bool) -> None:
    """As queries and keys: copies of them add to their product, which zeros do not."""
    graph = read_channels(Headed(kind, placed).eval(), SHAPE)
    assert not graph.left_whole and [group.root for group in graph.groups] == ["a", "heads.qkv", "up"]
    assert graph.groups[1].attributes == (Number("heads", "size", 1),)
    kept = {group.root: torch.arange(0, group.units, 2) for group in graph.groups}
    cost = total_cost(cut_channels(Headed(kind, placed).eval(), graph.groups, kept), SHAPE)
    assert cost.macs == graph.size(np.array([len(own) for own in kept.values()]), "macs")


class Few(Heads):
    """Two heads of queries, and one of keys and values, which both look at."""

    def __init__(self) -> None:
        super().__init__()
        self.kv = nn.Linear(8, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.qkv(tokens)[..., :8].unflatten(-1, (2, 4)).transpose(1, 2)
        key, value = self.kv(tokens).unflatten(-1, (2, 1, 4)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        return tokens + self.out(mixed.transpose(1, 2).flatten(2))


def test_heads_that_share_their_keys_leave_what_is_around_them_to_be_cut() -> None:
    assert [group.root for group in read_channels(Headed(Few).eval(), SHAPE).groups] == ["a", "up"]


class Patched(Hand):
    """Attention among patches of 64 pixels, under a power of its width: on small images there is one place."""

    def __init__(self, power: float) -> None:
        super().__init__()
        self.a, self.qkv, self.power = nn.Conv2d(3, 8, 64, 64), nn.Linear(8, 24), power

    def body(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x.flatten(2).transpose(1, 2)).chunk(3, -1)
        mixed = (query @ key.transpose(1, 2) / query.shape[-1] ** self.power).softmax(-1) @ value
        return mixed.transpose(1, 2).unsqueeze(3)


def test_attention_is_proven_on_images_of_the_networks_own_size() -> None:
    graph = read_channels(Patched(power=1).eval(), (3, 128, 128))
    assert [group.root for group in graph.groups] == ["a"] and graph.left_whole[0].layers == ("qkv",)


def test_a_root_that_is_computed_is_found_by_trying() -> None:
    graph = read_channels(Patched(power=0.5).eval(), (3, 128, 128))
    assert [(group.root, group.rooted) for group in graph.groups] == [("a", False), ("qkv", True)]


class Mixer(Hand):
    """A layer that works along the places, once for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.along = nn.Linear(64, 64)

    def body(self, x: Tensor) -> Tensor:
        return self.along(x.flatten(2)).unflatten(2, (8, 8))


def test_what_layers_do_not_tell_is_counted_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    network = Mixer().eval()
    graph = read_channels(network, SHAPE)
    kept = {"a": torch.arange(4)}
    cut = cut_channels(network, graph.groups, kept)
    planned = PeerWidths(
        kept, params=1, macs=round(float(graph.size(np.array([4]), "macs"))), ratio=0.5, achieved_ratio=0.4
    )
    family: Any = SimpleNamespace(peer=lambda number: cut)
    (own,) = counted([planned], family, graph, "macs", SHAPE)
    cost = total_cost(cut, SHAPE)
    assert (own.params, own.macs) == (cost.params, cost.macs) and own.achieved_ratio == 1 - cost.macs / graph.macs
    assert own.macs < planned.macs and capsys.readouterr().err.startswith(f"peer 1 takes {cost.macs:,} MACs, and its ")
