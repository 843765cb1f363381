"""Attention whose queries, keys and values are layers of their own, as Hugging Face writes it: what is cut together."""

from __future__ import annotations

import math
from operator import attrgetter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hand_networks import CLASSES, SHAPE, Hand
from torch import Tensor, nn

from wmlc.compress.widths.alike import united
from wmlc.compress.widths.cut import cut_channels
from wmlc.compress.widths.graph import ChannelGraph, ChannelGroup, Number, Place
from wmlc.compress.widths.proof import read_channels
from wmlc.models.cost import total_cost


class Separate(nn.Module):
    """Two heads of four channels, whose number is computed from what they are; under a root that is a number."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.scale = 0.5

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (layer(tokens).unflatten(2, (2, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return tokens + self.out(self.mixed(query, key, value).transpose(1, 2).flatten(2))

    def mixed(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (query @ key.transpose(2, 3) * self.scale).softmax(-1) @ value


class Sized(Separate):
    """One number for the channels of a head, in every view, and nothing else that ties values to queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dim = 4

    def forward(self, tokens: Tensor) -> Tensor:
        shape = (*tokens.shape[:2], -1, self.head_dim)
        query, key, value = (layer(tokens).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return tokens + self.out(self.mixed(query, key, value).transpose(1, 2).flatten(2))


class Rooted(Sized):
    """The same under the root of that number, as the first vision transformers there."""

    def mixed(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (query @ key.transpose(2, 3) / math.sqrt(self.head_dim)).softmax(-1) @ value


class Fused(Sized):
    """The same by torch's own operation."""

    def mixed(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)


class Cosine(Separate):
    """Queries and keys of length one, as Swin's second version has them."""

    def mixed(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(2, 3) * 5).softmax(-1) @ value


class Reduced(Separate):
    """Keys and values of fewer places: a convolution whose result is laid out by the width of what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.fewer, self.norm = nn.Conv2d(8, 8, 2, 2), nn.LayerNorm(8)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, _, channels = tokens.shape
        small = self.fewer(tokens.transpose(1, 2).reshape(batch, channels, 8, 8)).reshape(batch, channels, -1)
        small = self.norm(small.transpose(1, 2))
        given = zip((self.q, self.k, self.v), (tokens, small, small), strict=True)
        query, key, value = (layer(own).unflatten(2, (2, -1)).transpose(1, 2) for layer, own in given)
        return tokens + self.out(self.mixed(query, key, value).transpose(1, 2).flatten(2))


class Headed(Hand):
    """Attention among places; one more goes before them, and the classifier reads it and the others' mean."""

    def __init__(self, kind: type[Separate], first: bool = False) -> None:
        super().__init__(16 if first else 8)
        self.heads = kind()
        if first:
            self.first = nn.Parameter(torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(0)))
            self.places = nn.Parameter(torch.randn(1, 65, 8, generator=torch.Generator().manual_seed(1)))

    def forward(self, images: Tensor) -> Tensor:
        tokens = F.relu(self.a(images)).flatten(2).transpose(1, 2)
        if not hasattr(self, "first"):
            return self.fc(self.heads(tokens).mean(1))
        tokens = torch.cat([self.first.expand(len(images), -1, -1), tokens], 1)
        mixed = self.heads(tokens + torch.cat([self.places[:, :1], self.places[:, 1:] * 2], 1))
        return self.fc(torch.cat([mixed[:, 0], mixed[:, 1:].mean(1)], 1))


KINDS = {
    "computed": (Separate, ["a", "heads.q", "heads.v"], False),
    "sized": (Sized, ["a", "heads.q"], False),
    "rooted": (Rooted, ["a", "heads.q"], True),
    "fused": (Fused, ["a", "heads.q"], True),
    "cosine": (Cosine, ["a", "heads.q", "heads.v"], False),
    "reduced": (Reduced, ["a", "heads.q", "heads.v"], False),
}


@pytest.mark.parametrize("name", KINDS)
def test_separate_queries_keys_and_values_are_cut(name: str) -> None:
    kind, roots, rooted = KINDS[name]
    network = Headed(kind).eval()
    graph = read_channels(network, SHAPE)
    assert [group.root for group in graph.groups] == roots and not graph.left_whole
    assert graph.groups[1].rooted == rooted
    if len(roots) == 2:
        assert graph.groups[1].attributes == (Number("heads", "head_dim", 1),)
        assert {place.module for place in graph.groups[1].places} == {"heads.q", "heads.k", "heads.v", "heads.out"}
    _is_exact(network, graph)


def test_one_place_before_the_others_keeps_its_channels_beside_theirs() -> None:
    network = Headed(Sized, first=True).eval()
    graph = read_channels(network, SHAPE)
    assert [group.root for group in graph.groups] == ["a", "heads.q"] and not graph.left_whole
    widths = {place.tensor: place.positions.shape[1] for place in graph.groups[0].places}
    assert widths["fc.weight"] == 2 and widths["first"] == widths["places"] == 1
    _is_exact(network, graph)


def _is_exact(network: nn.Module, graph: ChannelGraph) -> None:
    """Cut of what carries nothing, the network says the same, and costs what the graph says."""
    kept = {group.root: torch.arange(0, group.units, 2) for group in graph.groups}
    cost = total_cost(cut_channels(network, graph.groups, kept), SHAPE)
    counts = np.array([len(own) for own in kept.values()])
    assert (cost.macs, cost.params) == (graph.size(counts, "macs"), graph.size(counts, "params"))
    images = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    network.double()
    with torch.no_grad():
        for group in graph.groups:
            for place in group.places:
                _silence(attrgetter(place.tensor)(network), place, group.lost(kept[group.root]), group.root == "a")
        cut = cut_channels(network, graph.groups, kept)
        torch.testing.assert_close(cut(images), network(images), rtol=0, atol=1e-12)
    assert cut(images).shape == (2, CLASSES)


def _silence(tensor: Tensor, place: Place, lost: Tensor, averaged: bool) -> None:
    """Zeros in the place of lost units; of what a layer norm averages copies of the others, which nothing reads."""
    if averaged and not place.reads:
        kept = place.positions[~lost].flatten()
        tensor.index_copy_(place.dim, place.positions[lost].flatten(), tensor.index_select(place.dim, kept))
    else:
        tensor.index_fill_(place.dim, place.positions[lost].flatten(), 0)


def test_groups_are_one_at_the_units_of_the_smaller() -> None:
    """Four units of a head of eight channels beside four of a channel: each takes two of the former."""
    narrow = ChannelGroup("q", 4, (Place("q.weight", 0, torch.arange(4).view(4, 1), reads=False),))
    wide = ChannelGroup("v", 8, (Place("v.weight", 0, torch.arange(8).view(8, 1), reads=False),))
    one = united([narrow, wide])
    assert (one.root, one.units, [place.tensor for place in one.places]) == ("q", 4, ["q.weight", "v.weight"])
    assert one.places[1].positions.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
