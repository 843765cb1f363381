"""A group of channels counts only where it is cut exactly, and what a cut costs is known beforehand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hand_networks import NETWORKS, SHAPE, Halves, Hand, conv, hand_network
from torch import Tensor, nn

from wmlc.compress.widths.cut import cut_channels
from wmlc.compress.widths.graph import ChannelGraph, ChannelGroup, Number
from wmlc.compress.widths.grouping import groups_of
from wmlc.compress.widths.proof import Prover, read_channels
from wmlc.compress.widths.trace import trace_channels
from wmlc.errors import InputError
from wmlc.models.cost import total_cost

# Of each network the groups that are proven; of the others why not, and the layer.
PROVEN = {
    "residual": ["a"], "concat": ["a", "b", "c"], "shuffle": ["a", "c"], "grouped": ["a", "b"], "depthwise": ["a", "c"],
    "squeeze": ["a", "down"], "layerscale": ["a", "b"], "tokens": ["a", "up"], "response": ["a"], "flattened": ["a"],
    "padded": ["a"], "gated": ["a"], "gatedasone": ["a"], "parted": ["a", "halves.b", "c"],
    "standardised": ["b", "c"], "twice": ["a"], "attention": ["a", "up"],
    "classtoken": ["a", "b"], "stacked": ["a", "b"], "sorted": ["b"], "sized": ["a", "rows.inner"], "upwards": ["c"],
}  # fmt: skip
# There is a mean over channels, or a deviation that zeros don't have: what is cut must be copies.
OF_ALL_CHANNELS = ("tokens", "response", "standardised")


def draws(graph: ChannelGraph, trials: int) -> list[dict[str, Tensor]]:
    """Random units to keep of each group, of any number."""
    draw = torch.Generator().manual_seed(0)
    return [
        {
            group.root: torch.randperm(group.units, generator=draw)[: int(count)].sort().values
            for group in graph.groups
            for count in [torch.randint(1, group.units + 1, (1,), generator=draw)]
        }
        for _ in range(trials)
    ]


def muted(network: nn.Module, groups: Sequence[ChannelGroup], kept: Mapping[str, Tensor], copies: bool) -> nn.Module:
    """The full network, in which what makes the other units gives zeros (or what a kept one gives), and nobody reads them."""
    full = copy.deepcopy(network)
    tensors = {**dict(full.named_parameters()), **dict(full.named_buffers())}
    with torch.no_grad():
        for reads in (False, True):  # what makes and reads the same channels is copied first
            for group in groups:
                own = kept[group.root].tolist()
                for unit in set(range(group.units)) - set(own):
                    twin = own[unit // 2 % len(own)]
                    for place in (place for place in group.places if place.reads == reads):
                        rows = tensors[place.tensor].transpose(0, place.dim)
                        for gone, stays in zip(place.positions[unit], place.positions[twin], strict=True):
                            rows[gone] = rows[stays] if copies and not reads else 0
    return full


def halves(graph: ChannelGraph) -> dict[str, Tensor]:
    """Every second unit of each group, so that each kept one has as many twins as any other."""
    return {group.root: torch.arange(0, group.units, 2) for group in graph.groups}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_can_be_cut_is_proven_and_nothing_else(name: str) -> None:
    graph = read_channels(hand_network(name), SHAPE)
    assert [group.root for group in graph.groups] == PROVEN[name]
    assert {group.root: group.attributes for group in graph.groups if group.attributes} == (
        {
            "sized": {"rows.inner": (Number("rows", "width", 1),)},
            "parted": {"a": (Number("halves", "half", 1),)},
        }.get(name, {})
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_a_cut_network_is_the_full_one_with_those_channels_muted(name: str) -> None:
    graph, network = read_channels(hand_network(name), SHAPE), hand_network(name).double()
    images = torch.randn(4, *SHAPE, dtype=torch.float64)
    copies = name in OF_ALL_CHANNELS
    for kept in [halves(graph)] if copies else draws(graph, 8):
        cut = cut_channels(network, graph.groups, kept)
        expected = muted(network, graph.groups, kept, copies)(images)
        torch.testing.assert_close(cut(images), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_cut_will_cost_is_what_it_costs(name: str) -> None:
    network = hand_network(name)
    graph = read_channels(network, SHAPE)
    assert graph.cost == total_cost(network, SHAPE)
    for kept in draws(graph, 8):
        counts_G = np.array([len(kept[group.root]) for group in graph.groups])
        cost = total_cost(cut_channels(network, graph.groups, kept), SHAPE)
        assert (cost.params, cost.macs) == (graph.size(counts_G, "params"), graph.size(counts_G, "macs"))


def test_layers_that_are_left_whole_are_said_and_why() -> None:
    (left,) = read_channels(hand_network("attention"), SHAPE).left_whole
    assert left.layers == ("qkv",) and left.why.startswith("cut, it stops with: shape '[-1, 64, 3, 2, 4]' is invalid")
    (left,) = read_channels(hand_network("standardised"), SHAPE).left_whole
    assert left.layers == ("a",) and left.why.startswith("cut, its logits are ")
    (left,) = read_channels(hand_network("sorted"), SHAPE).left_whole
    assert left.layers == ("a",) and left.why == "what sort makes of channels is not known"


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_of_weights_that_are_computed_it_is_said_how_they_become_plain(norm: Callable[[nn.Module], nn.Module]) -> None:
    network = hand_network("concat")
    norm(network.get_submodule("b"))
    (left, *_) = [own for own in read_channels(network, SHAPE).left_whole if own.layers == ("b",)]
    assert (
        left.why.startswith("what mv, ")
        and "; spectral_norm and its like compute weights: take that off first (torch." in left.why
    )


def test_the_number_that_forward_reads_shrinks_with_its_channels() -> None:
    network = hand_network("sized")
    graph = read_channels(network, SHAPE)
    cut = cut_channels(network, graph.groups, {"a": torch.arange(8), "rows.inner": torch.tensor([0, 2])})
    assert cut.get_submodule("rows").width == 2 and network.get_submodule("rows").width == 6
    assert cut(torch.zeros(2, *SHAPE)).shape == (2, 5)


def test_numbers_shrink_in_every_block_though_blocks_are_called_by_numbers() -> None:
    network = nn.Sequential(
        nn.Sequential(conv(3, 8), Halves(4)),
        nn.Sequential(conv(12, 16), nn.ReLU(), Halves(8)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5)),
    )
    graph = read_channels(network.eval(), SHAPE)
    assert not graph.left_whole
    found = {group.root: group.attributes for group in graph.groups if group.attributes}
    assert found == {"0.0": (Number("0.1", "half", 1),), "1.0": (Number("1.2", "half", 1),)}


def wrong(groups: list[ChannelGroup], root: str) -> list[ChannelGroup]:
    """The groups, in which the layer that reads the units of `root` is believed to read them in another order."""
    return [
        replace(group, places=tuple(
            replace(place, positions=place.positions.roll(1, 0)) if place.reads else place for place in group.places
        )) if group.root == root else group
        for group in groups
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["concat", "squeeze", "layerscale", "tokens", "attention"])
def test_a_wrong_group_is_found_out_and_only_that(name: str) -> None:
    network = hand_network(name)
    groups = groups_of(trace_channels(network, torch.zeros(1, *SHAPE)), network)
    for root in [group.root for group in groups if group.root in PROVEN[name] and group.units > 4]:
        proven, left = Prover(network, torch.zeros(1, *SHAPE)).prove(wrong(groups, root))
        assert [group.root for group in proven] == [other for other in PROVEN[name] if other != root]
        assert next(each for each in left if root in each.layers).why.startswith("cut, its logits are ")


def test_a_mistake_behind_a_tiny_layer_scale_is_seen() -> None:
    """With the weights as they are it would not show: everything that the branch gives is a millionth of the stream."""
    network = hand_network("layerscale").double()
    groups = wrong(groups_of(trace_channels(network, torch.zeros(1, *SHAPE, dtype=torch.float64)), network), "b")
    own = [group for group in groups if group.root == "b"]
    kept, images = {"b": torch.tensor([0, 1, 3])}, torch.randn(2, *SHAPE, dtype=torch.float64)
    apart = (cut_channels(network, own, kept)(images) - muted(network, own, kept, False)(images)).abs().max()
    assert 0 < apart < 1e-6, "it hides"
    proven, left = Prover(network, torch.zeros(1, *SHAPE)).prove(groups)
    assert [group.root for group in proven] == ["a"] and [each.layers for each in left] == [("b",)]


def test_groups_that_only_fit_together_are_cut_together_or_not_at_all() -> None:
    """What is proven is proven in one network: all of it can be cut at once, each by another share."""
    for name in ("concat", "attention", "layerscale"):
        network = hand_network(name)
        graph = read_channels(network, SHAPE)
        for kept in draws(graph, 4):
            for group in graph.groups:  # and each alone
                alone = {other.root: torch.arange(other.units) for other in graph.groups} | {
                    group.root: kept[group.root]
                }
                assert cut_channels(network, graph.groups, alone)(torch.zeros(1, *SHAPE)).isfinite().all()


def test_a_proof_leaves_the_network_and_chance_as_they_were() -> None:
    network = hand_network("residual").train()
    network.get_parameter("fc.weight").requires_grad_(False)
    before, chance = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    graph, again = (read_channels(network, SHAPE) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), chance)
    assert network.training and not network.get_parameter("fc.weight").requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert [(group.root, group.units) for group in graph.groups] == [
        (group.root, group.units) for group in again.groups
    ]
    cut = cut_channels(network, graph.groups, halves(graph))
    assert cut.training and not cut.get_parameter("fc.weight").requires_grad
    assert cut.get_parameter("a.weight").requires_grad and cut.get_parameter("a.weight").is_leaf


def test_positions_are_the_full_networks_whatever_the_order_of_the_groups() -> None:
    network = hand_network("concat")
    graph = read_channels(network, SHAPE)
    (kept,) = draws(graph, 1)
    one, other = (cut_channels(network, groups, kept) for groups in (graph.groups, graph.groups[::-1]))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    whole = {group.root: torch.arange(group.units) for group in graph.groups}
    same = cut_channels(network, graph.groups, whole)
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in same.state_dict().items())


def test_layers_say_the_widths_of_their_tensors_after_a_cut() -> None:
    class Many(Hand):
        def __init__(self) -> None:
            super().__init__(12)
            self.depthwise, self.batch, self.act = nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.PReLU(8)
            self.point, self.grouped = nn.Conv2d(8, 12, 1), nn.GroupNorm(1, 12)

        def body(self, x: Tensor) -> Tensor:
            return self.grouped(self.point(self.act(self.batch(self.depthwise(x)))))

    torch.manual_seed(0)
    network = Many().eval()
    graph = read_channels(network, SHAPE)
    assert [group.root for group in graph.groups] == ["a", "point"]
    cut = cut_channels(network, graph.groups, {"a": torch.arange(3), "point": torch.arange(5)})
    shown = [str(module).partition(" eps")[0] for module in cut.children()]
    assert shown == [
        "Conv2d(3, 3, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))",
        "Linear(in_features=5, out_features=5, bias=True)",
        "Conv2d(3, 3, kernel_size=(3, 3), stride=(1, 1), groups=3)",
        "BatchNorm2d(3,",
        "PReLU(num_parameters=3)",
        "Conv2d(3, 5, kernel_size=(1, 1), stride=(1, 1))",
        "GroupNorm(1, 5,",
    ]


def test_a_network_that_cannot_be_run_is_a_line() -> None:
    class Fails(Hand):
        def body(self, x: Tensor) -> Tensor:
            raise ValueError("two\nlines of trouble")

    with pytest.raises(InputError) as caught:
        read_channels(Fails(), SHAPE)
    assert str(caught.value) == "the network's channels cannot be traced: two lines of trouble"


def test_a_network_of_which_nothing_can_be_cut_has_no_groups_and_its_cost() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    graph = read_channels(network, SHAPE)
    assert graph.groups == () and (graph.params, graph.macs) == (965, 960)
    assert graph.size(np.zeros(0, dtype=int), "macs") == 960
