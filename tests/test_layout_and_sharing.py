"""Networks whose code joins dimensions with `view`, casts to float32, shares weights or keeps buffers. Takes 2 s."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from test_stages import EXAMPLE, SHAPE, InPlace, made
from torch import Tensor, fx, nn

from wmlc.compress.config import settle
from wmlc.compress.learn.place import Device
from wmlc.compress.phase import in_step
from wmlc.compress.prepare import prepare
from wmlc.compress.widths.cut import cut_channels
from wmlc.compress.widths.proof import read_channels
from wmlc.data import DataConfig, normalise, open_data
from wmlc.errors import InputError
from wmlc.models.checkpoint import load_network, save_network
from wmlc.models.cost import total_cost
from wmlc.models.foreign import build_whole, why_not_captured
from wmlc.models.layout import hold_plain, holds_plain
from wmlc.models.resizable import untrained_spec
from wmlc.models.stages import own_names, split
from wmlc.models.widths import cut_to, difference


class Views(InPlace):
    """As the tutorials have it: a map of more than one pixel becomes a row."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8 * SHAPE[1] * SHAPE[2], 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.convs:
            x = layer(x)
        return self.fc(x.view(x.size(0), -1))


class Casts(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.convs:
            x = layer(x)
        return self.fc(x.to(torch.float32).mean((2, 3)).float())


class Shares(InPlace):
    """Two layers have one weight."""

    def __init__(self) -> None:
        super().__init__()
        first, second = (layer[0] if isinstance(layer, nn.Sequential) else layer for layer in self.convs[1:3])
        second.weight = first.weight


class Holds(InPlace):
    """Two parameters of the network's own, used in different stages."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.late = nn.Parameter(torch.rand(8, 1, 1)), nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.convs[0](x) * self.early
        for layer in self.convs[1:]:
            x = layer(x)
        return self.fc((x * self.late).mean((2, 3)))


class Counts(InPlace):
    """It keeps a mean of what it saw in training."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        if self.training:
            self.seen.mul_(0.5)
        return logits - self.seen


def channels_last(count: int = 3) -> Tensor:
    images = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))
    return images.contiguous(memory_format=torch.channels_last)


def test_code_that_views_a_map_is_given_plain_images_in_every_copy() -> None:
    network, images = made(Views).eval(), channels_last()
    expected = network(images.contiguous())
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        network(images)
    hold_plain(network, SHAPE)
    stages = split(network, EXAMPLE).network.eval()
    for own in (network, copy.deepcopy(network), stages, copy.deepcopy(stages)):
        assert holds_plain(own)
        torch.testing.assert_close(own(images), expected)
    plain = made(InPlace)
    hold_plain(plain, SHAPE)
    assert not holds_plain(plain)


def test_a_graph_of_somebodys_is_given_plain_images_too() -> None:
    graph = fx.symbolic_trace(made(Views).eval())
    hold_plain(graph, SHAPE)
    assert copy.deepcopy(graph)(channels_last()).shape == (3, 5) and holds_plain(copy.deepcopy(graph))


VIEWS = """
from torch import nn


class Views(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 16, 3, padding=1), nn.Linear(16 * 64, num_classes)

    def forward(self, x):
        x = self.conv(x).relu()
        return self.fc(x.view(x.size(0), -1))
"""


def test_a_family_of_such_a_network_is_stepped_in_the_plain_layout(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    (tmp_path / "mine.py").write_text(VIEWS)
    config = settle({"arch": f"{tmp_path}/mine.py:Views", "ratios": (0.4,), "epochs": 1})
    data, device = open_data(DataConfig(), "cpu"), Device("cpu", bf16=False)
    family = prepare(config, data, device).family
    pixels = next(iter(data.test_pixels(4)))[0]
    with in_step(family, config, device):
        logits, _ = family.walk(normalise(pixels, data.record.mean, data.record.std))
        logits.sum().backward()
    assert logits.shape == (1, 4, 10)
    assert all(own.is_contiguous() for own in family.parameters())


def test_channels_are_proven_where_code_casts_to_float32() -> None:
    casts, plain = (read_channels(made(kind), SHAPE) for kind in (Casts, InPlace))
    assert len(casts.groups) == len(plain.groups) and not casts.left_whole


def test_what_two_layers_share_is_cut_in_both() -> None:
    network = made(Shares).eval()
    graph = read_channels(network, SHAPE)
    assert not graph.left_whole
    kept = {group.root: torch.arange(group.units - 2) for group in graph.groups}
    cut = cut_channels(network, graph.groups, kept)
    shared = [own for own in cut.state_dict() if own.startswith(("convs.1", "convs.2")) and own.endswith("weight")]
    convs = [module for module in cut.modules() if isinstance(module, nn.Conv2d)][1:3]
    assert shared and convs[0].weight is convs[1].weight and convs[0].out_channels == convs[1].out_channels == 6
    assert cut(channels_last()).shape == (3, 5)


def test_parameters_of_the_network_itself_are_recorded_stage_by_stage() -> None:
    network = made(Holds).eval()
    staged = split(network, EXAMPLE)
    graph = read_channels(staged.network, SHAPE, network)
    kept = {group.root: torch.arange(group.units - 2) for group in graph.groups}
    cut = cut_channels(staged.network, graph.groups, kept)
    found = difference(staged.network, cut, own_names(staged))
    assert found[""] == {"early": [6, 1, 1], "late": [6, 1, 1]}
    assert cut_to(made(Holds), found).late.shape == (6, 1, 1)


def test_taking_a_network_apart_leaves_its_buffers_alone() -> None:
    network = made(Counts).train()
    split(network, EXAMPLE)
    assert torch.equal(network.seen, torch.ones(5))


def test_a_network_of_torchscript_is_refused_in_a_line() -> None:
    with pytest.warns(FutureWarning):
        scripted = torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)))
    with pytest.raises(InputError, match=r"net.py:make gives a TorchScript module, whose layers cannot be cut"):
        build_whole("net.py:make", 2, (3, 2, 2), factory=lambda: scripted)


def test_a_norm_of_every_channel_by_itself_shrinks_with_them() -> None:
    def network() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(SHAPE[0], 8, 3), nn.GroupNorm(8, 8), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.LazyLinear(5)
        )

    made_once = network()
    made_once(channels_last())
    graph = read_channels(made_once, SHAPE)
    assert "0" in {group.root for group in graph.groups}
    kept = {group.root: torch.arange(group.units - (2 if group.root == "0" else 0)) for group in graph.groups}
    cut = cut_channels(made_once, graph.groups, kept)
    found = difference(made_once, cut)
    assert found["1"] == {"num_groups": 6, "num_channels": 6, "weight": [6], "bias": [6]}
    again = network()
    again(channels_last())
    assert str(cut_to(again, found)[1]).startswith("GroupNorm(6, 6,")


class Pads(InPlace):
    """A shortcut whose new channels are zeros, as many as there are."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.fc = nn.Conv2d(8, 16, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convs[0](x)
        return self.fc((torch.cat([x, torch.zeros_like(x)], 1) + self.wide(x)).mean((2, 3)))


def test_zeros_that_stand_for_channels_shrink_with_them() -> None:
    graph = read_channels(made(Pads), SHAPE)
    assert graph.groups and not [own for own in graph.left_whole if "wide" in own.layers]


def test_what_two_layers_share_is_one_again_when_it_is_loaded(tmp_path: Path) -> None:
    network = made(Shares).eval()
    graph = read_channels(network, SHAPE)
    cut = cut_channels(network, graph.groups, {own.root: torch.arange(own.units - 2) for own in graph.groups})
    spec = untrained_spec("mine:Shares", "", 5, SHAPE, widths=difference(network, cut))
    save_network(cut, spec, tmp_path)
    loaded = load_network(tmp_path, factory=lambda: made(Shares))
    torch.testing.assert_close(loaded(channels_last()), cut(channels_last()))
    count = sum(own.numel() for own in cut.parameters())
    assert sum(own.numel() for own in loaded.parameters()) == count == total_cost(loaded, SHAPE).params


MEAN = torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)


class Outside(InPlace):
    """It takes a tensor that lies outside of it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - MEAN)


def test_a_tensor_from_elsewhere_does_not_keep_a_network_in_one_stage() -> None:
    staged = split(made(Outside), EXAMPLE)
    assert staged.note is None and len(staged.network) > 2


class Typed(InPlace):
    """Types are named in other ways than by casts."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.convs[0](x)
        x = x * x.mean((2, 3), keepdim=True, dtype=torch.float32).softmax(1, dtype=torch.float32)
        kept = torch.zeros(x.shape, dtype=torch.float32)
        kept[:] = x.type(torch.FloatTensor).type("torch.FloatTensor")
        return self.fc(self.convs[1](kept.to(x)).type_as(kept).mean((2, 3)))


def test_channels_are_proven_where_types_are_named_in_other_ways() -> None:
    graph = read_channels(made(Typed), SHAPE)
    assert len(graph.groups) >= 1 and not [own for own in graph.left_whole if "Double" in own.why]


class Remembers(InPlace):
    """It keeps what it has seen, and asks for a value."""

    def forward(self, x: Tensor) -> Tensor:
        self.last = x
        return super().forward(x * 2 if float(x.sum()) > 1e9 else x)


def test_asking_whether_a_network_can_be_captured_leaves_it_as_it_is() -> None:
    network = made(Remembers).train()
    network.convs[0].eval()
    assert why_not_captured(network, SHAPE)
    assert not hasattr(network, "last") and network.training and not network.convs[0].training
    copy.deepcopy(network)
