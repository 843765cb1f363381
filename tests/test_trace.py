"""What a pass on labels finds out: which channels hang together, by oracles worked by hand, and what layers cost."""

from __future__ import annotations

import copy

import pytest
import torch
import torch_pruning
from hand_networks import NETWORKS, SHAPE, Hand, hand_network
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from wmlc.compress.widths.graph import ChannelGroup
from wmlc.compress.widths.grouping import groups_of
from wmlc.compress.widths.proof import read_channels
from wmlc.compress.widths.trace import trace_channels
from wmlc.models.cost import total_cost, without_fast_attention
from wmlc.models.zoo import build_network

EXAMPLE = torch.zeros(1, *SHAPE)
# Of each group: how many units, and in "tensor/dimension" the positions of unit u, as (step, at): at + step · u.
OF_A = {"a.weight/0": (1, [0]), "a.bias/0": (1, [0])}
OF_C = {"c.weight/0": (1, [0]), "c.bias/0": (1, [0]), "fc.weight/1": (1, [0])}
INNER_B = {"b.weight/0": (1, [0]), "b.bias/0": (1, [0]), "c.weight/1": (1, [0])}
HALVES = {"a.weight/0": (1, [0, 4]), "a.bias/0": (1, [0, 4])}
STREAM = {**OF_A, "down.weight/0": (1, [0]), "down.bias/0": (1, [0]), "up.weight/1": (1, [0]), "fc.weight/1": (1, [0])}
BY_UP = {"up.weight/0": (1, [0]), "up.bias/0": (1, [0]), "down.weight/1": (1, [0])}
NORMED = {f"norm.{name}/0": (1, [0]) for name in ("weight", "bias", "running_mean", "running_var")}
HEADS = [0, 4, 8, 12, 16, 20]  # of query, key and value, each with two heads of four
BY_HAND: dict[str, dict[str, tuple[int, dict[str, tuple[int, list[int]]]]]] = {
    "residual": {
        "a": (8, {**OF_A, **NORMED, "b.weight/0": (1, [0]), "b.bias/0": (1, [0]), "b.weight/1": (1, [0]), "fc.weight/1": (1, [0])})
    },
    "concat": {
        "a": (8, {**OF_A, "b.weight/1": (1, [0]), "c.weight/1": (1, [0])}),
        "b": (4, {"b.weight/0": (1, [0]), "b.bias/0": (1, [0]), "c.weight/1": (1, [8])}),
        "c": (6, OF_C),
    },
    "shuffle": {
        "a": (4, {**HALVES, "b.weight/0": (1, [0]), "b.bias/0": (1, [0]), "b.weight/1": (1, [0]), "c.weight/1": (2, [0, 1])}),
        "c": (6, OF_C),
    },
    "grouped": {
        "a": (4, {**HALVES, "b.weight/1": (1, [0])}),
        "b": (6, {"b.weight/0": (1, [0, 6]), "b.bias/0": (1, [0, 6]), "fc.weight/1": (1, [0, 6])}),
    },
    "depthwise": {
        "a": (8, {**OF_A, "b.weight/0": (2, [0, 1]), "b.bias/0": (2, [0, 1]), "c.weight/1": (2, [0, 1])}),
        "c": (6, OF_C),
    },
    "squeeze": {
        "a": (8, {**OF_A, "down.weight/1": (1, [0]), "up.weight/0": (1, [0]), "up.bias/0": (1, [0]), "fc.weight/1": (1, [0])}),
        "down": (4, {"down.weight/0": (1, [0]), "down.bias/0": (1, [0]), "up.weight/1": (1, [0])}),
    },
    "layerscale": {
        "a": (8, {**OF_A, "scale/0": (1, [0]), "b.weight/1": (1, [0]), "c.weight/0": (1, [0]), "c.bias/0": (1, [0]), "fc.weight/1": (1, [0])}),
        "b": (6, INNER_B),
    },
    "tokens": {
        "a": (8, {**STREAM, **{f"{norm}.{name}/0": (1, [0]) for norm in ("norm", "last") for name in ("weight", "bias")}}),
        "up": (16, BY_UP),
    },
    "response": {"a": (8, {**OF_A, "gain/1": (1, [0]), "fc.weight/1": (1, [0])})},
    "flattened": {"a": (8, {**OF_A, "fc.weight/1": (4, [0, 1, 2, 3])})},
    "padded": {"a": (8, {**OF_A, "b.weight/1": (1, [0]), "b.weight/0": (1, [2]), "b.bias/0": (1, [2]), "fc.weight/1": (1, [2])})},
    "gated": {"a": (4, {**HALVES, "fc.weight/1": (1, [0])})},
    "gatedasone": {"a": (4, {**HALVES, "fc.weight/1": (1, [0])})},
    "parted": {
        "a": (4, {**HALVES, "halves.b.weight/1": (1, [0]), "c.weight/1": (1, [0, 4])}),
        "halves.b": (4, {"halves.b.weight/0": (1, [0]), "halves.b.bias/0": (1, [0]), "c.weight/1": (1, [8])}),
        "c": (6, OF_C),
    },
    "standardised": {"a": (8, {**OF_A, "b.weight/1": (1, [0])}), "b": (8, INNER_B), "c": (6, OF_C)},
    "twice": {"a": (8, {**OF_A, "b.weight/0": (1, [0]), "b.bias/0": (1, [0]), "b.weight/1": (1, [0]), "fc.weight/1": (1, [0])})},
    "attention": {
        "a": (8, {**STREAM, "qkv.weight/1": (1, [0]), "out.weight/0": (1, [0]), "out.bias/0": (1, [0])}),
        "qkv": (4, {"qkv.weight/0": (1, HEADS), "qkv.bias/0": (1, HEADS), "out.weight/1": (1, [0, 4])}),
        "up": (12, BY_UP),
    },
    "classtoken": {
        "a": (8, {**OF_A, "token/2": (1, [0]), "place/2": (1, [0]), "b.weight/1": (1, [0])}),
        "b": (8, {"b.weight/0": (1, [0]), "b.bias/0": (1, [0]), "fc.weight/1": (1, [0])}),
    },
    "stacked": {
        "a": (8, {**OF_A, "b.weight/1": (1, [0]), "c.weight/1": (1, [0])}),
        "b": (6, {**OF_C, "b.weight/0": (1, [0]), "b.bias/0": (1, [0])}),
    },
    "sorted": {"b": (8, {"b.weight/0": (1, [0]), "b.bias/0": (1, [0]), "fc.weight/1": (1, [0])})},
    "sized": {
        "a": (8, {**OF_A, "rows.inner.weight/1": (1, [0])}),
        "rows.inner": (6, {"rows.inner.weight/0": (1, [0]), "rows.inner.bias/0": (1, [0]), "fc.weight/1": (1, [0])}),
    },
    "upwards": {"c": (6, OF_C)},
}  # fmt: skip


def groups(network: nn.Module, shape: tuple[int, int, int] = SHAPE) -> list[ChannelGroup]:
    return groups_of(trace_channels(network, torch.zeros(1, *shape)), network)


def test_there_is_an_oracle_for_each_network() -> None:
    assert BY_HAND.keys() == NETWORKS.keys()


@pytest.mark.parametrize("name", BY_HAND)
def test_channels_hang_together_as_worked_by_hand(name: str) -> None:
    found = {
        group.root: (
            group.units,
            {f"{place.tensor}/{place.dim}": sorted(map(sorted, place.positions.tolist())) for place in group.places},
        )
        for group in groups(hand_network(name))
    }
    assert found == {
        root: (units, {key: [[at + step * u for at in ats] for u in range(units)] for key, (step, ats) in places.items()})
        for root, (units, places) in BY_HAND[name].items()
    }  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_each_unit_is_the_same_channel_in_every_tensor(name: str) -> None:
    """Not only the same sets: row u of one place belongs to row u of another."""
    for group in groups(hand_network(name)):
        steps = BY_HAND[name][group.root][1]
        order = group.places[0].positions[:, 0]
        for place in group.places:
            step, ats = steps[f"{place.tensor}/{place.dim}"]
            assert torch.equal(place.positions.sort().values[:, 0], ats[0] + step * order)


def test_what_reads_channels_is_told_from_what_makes_them() -> None:
    (group,) = groups(hand_network("residual"))
    assert group.makers == ("a", "b", "norm")
    assert [(place.tensor, place.dim) for place in group.places if place.reads] == [("fc.weight", 1), ("b.weight", 1)]
    assert group.channels == 1 and groups(hand_network("grouped"))[0].channels == 2


def test_an_unknown_operation_is_named_and_its_channels_are_no_group() -> None:
    traced = trace_channels(hand_network("sorted"), EXAMPLE)
    assert traced.unknown == ["aten.sort"]
    assert not any(tensor == "a.weight" and dim == 0 for unit in traced.units for tensor, dim in unit)
    assert trace_channels(hand_network("residual"), EXAMPLE).unknown == []


class Masked(nn.Module):
    """Adds a tensor that is made on the way, as of a mask."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps + maps.new_zeros(maps.shape[2:])


LAYERS_OF_CHANNELS = [
    Masked(),
    nn.ReLU6(), nn.PReLU(), nn.PReLU(8), nn.LeakyReLU(), nn.ELU(), nn.SELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(),
    nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(), nn.Softplus(), nn.Softsign(), nn.Hardshrink(), nn.Tanhshrink(),
    nn.Threshold(0.1, 0), nn.Sigmoid(), nn.Tanh(), nn.LPPool2d(2, 2), nn.MaxPool2d(2), nn.AvgPool2d(2),
    nn.AdaptiveAvgPool2d(2), nn.AdaptiveMaxPool2d(2), nn.Upsample(scale_factor=2),
    nn.Upsample(scale_factor=2, mode="bilinear"), nn.Dropout(), nn.Dropout2d(), nn.ZeroPad2d(1), nn.ReflectionPad2d(1),
    nn.ReplicationPad2d(1), nn.Identity(), nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False), nn.GroupNorm(1, 8), nn.GroupNorm(8, 8),
    nn.InstanceNorm2d(8, affine=True), nn.LayerNorm(8, elementwise_affine=False), nn.Conv2d(8, 8, 3, groups=8),
]  # fmt: skip


class Between(Hand):
    """Some layer between the first and the last."""

    def __init__(self, layer: nn.Module, into: int = 8) -> None:
        super().__init__(into)
        self.layer = layer

    def body(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


@pytest.mark.parametrize("layer", LAYERS_OF_CHANNELS, ids=lambda layer: type(layer).__name__)
def test_what_works_on_each_channel_ties_none_to_another(layer: nn.Module) -> None:
    (group,) = groups(Between(layer))
    assert (group.root, group.units, group.channels) == ("a", 8, 1)
    ours = {f"layer.{name}" for name, parameter in layer.named_parameters() if len(parameter) > 1}
    assert ours <= {place.tensor for place in group.places}


def test_norms_of_groups_take_one_channel_of_each() -> None:
    (group,) = groups(Between(nn.GroupNorm(2, 8)))
    assert group.units == 4 and group.places[0].positions.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    (group,) = groups(Between(nn.GroupNorm(8, 8)))
    assert group.units == 8, "every channel by itself"


@pytest.mark.parametrize("layer", [nn.LocalResponseNorm(3), nn.LayerNorm([8, 8, 8]), nn.PixelShuffle(2)])
def test_what_mixes_channels_in_a_way_of_its_own_leaves_them_whole(layer: nn.Module) -> None:
    into = 2 if isinstance(layer, nn.PixelShuffle) else 8
    assert groups(Between(layer, into)) == []


def test_macs_go_to_the_weight_that_they_are_of() -> None:
    assert trace_channels(hand_network("residual"), EXAMPLE).macs == {
        "a.weight": 8 * 27 * 64, "b.weight": 8 * 72 * 64, "fc.weight": 8 * 5,
    }  # fmt: skip
    assert trace_channels(hand_network("twice"), EXAMPLE).macs["b.weight"] == 2 * 8 * 72 * 64
    assert trace_channels(hand_network("grouped"), EXAMPLE).macs["b.weight"] == 12 * 36 * 64
    assert trace_channels(hand_network("standardised"), EXAMPLE).macs["b.weight"] == 8 * 72 * 64
    attention = trace_channels(hand_network("attention"), EXAMPLE)
    assert attention.macs["qkv.weight"] == 64 * 8 * 24
    assert sum(own.macs for own in attention.products) == 2 * (
        2 * 64 * 64 * 4
    )  # two heads: each pixel with each, and back


@pytest.mark.parametrize("name", NETWORKS)
def test_cost_is_half_of_what_torchs_own_counter_counts(name: str) -> None:
    network = hand_network(name)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(EXAMPLE)
    cost, traced = total_cost(network, SHAPE), trace_channels(network, EXAMPLE)
    assert (
        cost.macs
        == counter.get_total_flops() / 2
        == sum(traced.macs.values()) + sum(own.macs for own in traced.products)
    )
    assert cost.params == sum(parameter.numel() for parameter in network.parameters())


def test_torchs_own_attention_costs_what_its_steps_cost() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.fc = layer, nn.Linear(8, 5)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.fc(self.layer(images.flatten(2).transpose(1, 2)).mean(1))

    network = Encoder().eval()
    tokens, width, hidden, heads = 9, 8, 16, 2
    products = 2 * heads * tokens * tokens * (width // heads)
    macs = tokens * width * (3 * width + width + 2 * hidden) + products + width * 5
    assert total_cost(network, (8, 3, 3)).macs == macs
    fast = torch.backends.mha.get_fastpath_enabled()
    with without_fast_attention():
        assert not torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mha.get_fastpath_enabled() is fast


@pytest.mark.parametrize("arch", ["resnet20", "mobilenet_v2"])
def test_torch_pruning_finds_the_same_channels(arch: str) -> None:
    network, shape = build_network(arch, 5, (3, 32, 32)).eval(), (3, 32, 32)
    theirs = torch_pruning.DependencyGraph().build_dependency(network, torch.zeros(1, *shape))
    names = {module: name for name, module in network.named_modules()}
    ways = {"prune_out_channels": 0, "prune_in_channels": 1}
    for group in groups(network, shape):
        root = network.get_submodule(group.root)
        made = theirs.get_pruning_group(root, torch_pruning.prune_conv_out_channels, [1])
        members = {
            (names[dependency.layer], ways[dependency.pruning_fn.__name__], tuple(sorted(positions)))
            for dependency, positions in ((item.dep, item.idxs) for item in made)
            if isinstance(dependency.layer, nn.Conv2d | nn.Linear)
        }
        unit = next(u for u in range(group.units) if group.places[0].positions[u, 0] == 1)
        mine = {
            (place.module, place.dim, tuple(sorted(place.positions[unit].tolist())))
            for place in group.places
            if place.tensor.endswith("weight")
            and isinstance(network.get_submodule(place.module), nn.Conv2d | nn.Linear)
        }
        assert _without_depthwise_reads(network, members) == mine, group.root


def _without_depthwise_reads(network: nn.Module, members: set[tuple[str, int, tuple[int, ...]]]) -> set[tuple[str, int, tuple[int, ...]]]:  # fmt: skip
    """torch-pruning says of a depthwise filter that its channel comes in too; it is the same row of the weight."""
    return {
        (name, 0 if getattr(network.get_submodule(name), "groups", 1) > 1 else dim, at) for name, dim, at in members
    }


def test_a_trace_leaves_the_network_as_it_was() -> None:
    network = hand_network("residual").train()
    network.get_submodule("norm").eval()
    before = copy.deepcopy(network.state_dict())
    trace_channels(network, torch.randn(1, *SHAPE))
    assert network.training and not network.get_submodule("norm").training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    with pytest.raises(RuntimeError):
        trace_channels(network, torch.zeros(1, 4, 8, 8))
    assert network.training and not network.get_submodule("norm").training


class _Indexed(nn.Module):
    """Adds what a table has at places that a buffer says, as attention's relative positions are."""

    where: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.fc = nn.Conv2d(3, 8, 1), nn.RMSNorm(8), nn.Linear(8, 5)
        self.table = nn.Parameter(torch.randn(4, 8))
        self.register_buffer("where", torch.arange(SHAPE[1]) % 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(self.a(images).mean(3).transpose(1, 2) + self.table[self.where]).mean(1))


def test_labels_move_where_a_buffer_says() -> None:
    (group,) = read_channels(_Indexed(), SHAPE).groups
    assert group.units == 8 and "table" in {place.tensor for place in group.places}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and torch sees none")
@pytest.mark.parametrize("name", [*NETWORKS, "indexed"])
def test_a_gpu_has_the_groups_that_a_cpu_has(name: str) -> None:
    network = _Indexed() if name == "indexed" else hand_network(name)
    here = read_channels(network, SHAPE)
    there = read_channels(network.cuda(), SHAPE)
    assert [(own.root, own.units) for own in there.groups] == [(own.root, own.units) for own in here.groups]
    assert next(network.parameters()).is_cuda
