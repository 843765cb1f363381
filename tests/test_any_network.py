"""Six networks of others, each of another kind, all the way: channels, a family, its records, ONNX, the ensemble."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from made import made_framing
from networks import with_lived_in_statistics
from torch import Tensor, nn
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3
from torchvision.models.shufflenetv2 import ShuffleNetV2

import wmlc
from wmlc.arch import whole_name
from wmlc.compress.learn.family import PeerFamily, build_family
from wmlc.compress.widths.choose import (
    Asked,
    OutOfReachError,
    PeerWidths,
    choose_widths,
    ranked_by,
    score_channels,
)
from wmlc.compress.widths.cut import cut_channels
from wmlc.compress.widths.graph import ChannelGraph
from wmlc.compress.widths.proof import read_channels
from wmlc.compress.widths.rank import group_magnitude
from wmlc.compress.widths.saliency import parameter_saliency
from wmlc.compress.widths.tree import sharing_tree
from wmlc.export.to_onnx import export_onnx
from wmlc.models.checkpoint import load_stages, save_stages
from wmlc.models.cost import total_cost
from wmlc.models.ensemble import Ensemble
from wmlc.models.stages import Staged, split
from wmlc.models.widths import difference
from wmlc.models.zoo import build_network
from wmlc.records import NetworkSpec

pytest.importorskip("timm", reason="timm is not installed: pip install 'wmlc[timm]'")

SHAPE, CLASSES = (3, 32, 32), 4
EXAMPLE = torch.zeros(1, *SHAPE)


def small_mobilenet(num_classes: int) -> nn.Module:
    """MobileNetV3 of three blocks, two of them with squeeze and excite."""
    blocks = [
        InvertedResidualConfig(into, 3, inner, out, excite, act, stride, 1, 1.0)
        for into, inner, out, excite, act, stride in (
            (8, 8, 8, True, "RE", 2), (8, 24, 16, False, "RE", 2), (16, 48, 16, True, "HS", 1)
        )
    ]  # fmt: skip
    return MobileNetV3(blocks, 64, num_classes=num_classes)


def small_shufflenet(num_classes: int) -> nn.Module:
    return ShuffleNetV2([2, 2, 1], [4, 16, 64, 64, 64], num_classes=num_classes)


@dataclass(frozen=True)
class Kind:
    """A network, and how much of its MACs the smaller of two peers loses beside a shared stage."""

    arch: str
    arch_args: str = ""
    factory: Callable[..., nn.Module] | None = None
    ratio: float = 0.5


KINDS = {
    "residual": Kind("timm:resnet10t", "channels=[8,8,16,16],stem_width=8"),
    "squeeze": Kind("mine.py:mobilenet", factory=small_mobilenet),
    "layer norm": Kind("timm:convnextv2_atto", "dims=[8,8,16,16],depths=[1,1,2,1]"),
    "shuffle": Kind("mine.py:shufflenet", factory=small_shufflenet),
    "concat": Kind("timm:densenet121", "growth_rate=8,block_config=[2,2,2,2]", ratio=0.4),
    "attention": Kind(
        "timm:vit_tiny_patch16_224", "img_size=32,patch_size=8,embed_dim=32,depth=2,num_heads=2", ratio=0.4
    ),
}


@dataclass(frozen=True)
class Made:
    """One of the networks, split and proven."""

    kind: Kind
    whole: nn.Module
    staged: Staged
    graph: ChannelGraph

    def images(self, count: int) -> Tensor:
        return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest) -> Made:
    kind = KINDS[request.param]
    torch.manual_seed(0)
    network = build_network(kind.arch, CLASSES, SHAPE, kind.arch_args, kind.factory)
    whole = with_lived_in_statistics(network).eval()
    staged = split(whole, EXAMPLE)
    return Made(kind, whole, staged, read_channels(staged.network, SHAPE))


@pytest.fixture(scope="module")
def widths(made: Made) -> tuple[str, list[PeerWidths]]:
    """Of two peers that share a stage, the smaller one without about half of the MACs: which stage, and what they keep."""
    stages = list(dict(made.staged.network.named_children()))
    scores = parameter_saliency(made.staged.network, made.images(4), torch.tensor([3, 1, 0, 1]), "snip")
    scored = ranked_by(
        score_channels(made.graph, scores, "snip", stages), group_magnitude(made.staged.network, made.graph)
    )
    return stages[0], choose_widths(scored, Asked((made.kind.ratio, 0.0), stages[0], "macs"))


@pytest.fixture(scope="module")
def family(made: Made, widths: tuple[str, list[PeerWidths]]) -> PeerFamily:
    share, own = widths
    stages = list(dict(made.staged.network.named_children()))
    return build_family(made.staged.network, made.graph.groups, own, sharing_tree(2, stages, share)).eval()


@pytest.fixture(scope="module")
def peers(made: Made, family: PeerFamily, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The directories of both."""
    root = tmp_path_factory.mktemp("peers")
    for number in (1, 2):
        (root / str(number)).mkdir()
        save_stages(family.peer(number), spec_of(made, family.peer(number)), root / str(number))
    return [root / "1", root / "2"]


def spec_of(made: Made, network: nn.Sequential) -> NetworkSpec:
    return NetworkSpec(
        arch=made.kind.arch, arch_args=made.kind.arch_args, class_names=[f"class {k}" for k in range(CLASSES)],
        input_shape=SHAPE, mean=[0.5] * 3, std=[0.5] * 3, widths=difference(made.staged.network, network, whole_name),
        stages=made.staged.cuts, unused=made.staged.unused, framing=made_framing(32),
    )  # fmt: skip


def test_the_stages_are_the_network(made: Made) -> None:
    assert len(made.staged.network) >= 4 and made.staged.note is None
    assert torch.equal(made.staged.network(made.images(3)), made.whole(made.images(3)))
    assert {whole_name(name) for name in made.staged.network.state_dict()} == made.whole.state_dict().keys()


def test_nothing_is_left_whole(made: Made) -> None:
    assert not made.graph.left_whole


def test_costs_are_known_beforehand_at_any_widths(made: Made) -> None:
    assert made.graph.cost == total_cost(made.staged.network, SHAPE) == total_cost(made.whole, SHAPE)
    draw = np.random.default_rng(0)
    for _ in range(3):
        counts_G = np.array([draw.integers(1, group.units + 1) for group in made.graph.groups])
        kept = {
            group.root: torch.from_numpy(draw.permutation(group.units)[:count]).sort().values
            for group, count in zip(made.graph.groups, counts_G, strict=True)
        }
        cut = cut_channels(made.staged.network, made.graph.groups, kept)
        cost = total_cost(cut, SHAPE)
        assert (cost.params, cost.macs) == (made.graph.size(counts_G, "params"), made.graph.size(counts_G, "macs"))
        assert cut.eval()(made.images(2)).shape == (2, CLASSES)


def test_channels_that_say_nothing_can_go(made: Made) -> None:
    """A unit that is the copy of another one, which then is read for both, is one too many; so is one that nobody reads.

    Of attention's queries and keys those that are zero, as copies would count in their product.
    """
    full = copy.deepcopy(made.staged.network).double().eval()
    tensors = {**dict(full.named_parameters()), **dict(full.named_buffers())}
    kept = {}
    with torch.no_grad():
        for group in made.graph.groups:
            half = group.units // 2
            kept[group.root] = torch.arange(half) if group.units % 2 == 0 else torch.arange(group.units)
            for place in group.places if group.units % 2 == 0 else ():
                if not place.reads:
                    rows = tensors[place.tensor].transpose(0, place.dim)
                    rows[place.positions[half:].flatten()] = rows[place.positions[:half].flatten()]
            for place in (*group.queries, *group.keys):
                tensors[place.tensor].index_fill_(place.dim, place.positions[half:].flatten(), 0)
        for group in made.graph.groups:
            for place in group.places if group.units % 2 == 0 else ():
                if place.reads:
                    rows = tensors[place.tensor].transpose(0, place.dim)
                    rows[place.positions[group.units // 2 :].flatten()] = 0
    images = made.images(2).double()
    expected, got = full(images), cut_channels(full, made.graph.groups, kept)(images)
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)


def test_half_of_the_macs_go_or_how_many_is_said(made: Made, widths: tuple[str, list[PeerWidths]]) -> None:
    share, (small, large) = widths
    assert large.macs == made.graph.macs and large.achieved_ratio == 0
    assert small.achieved_ratio == pytest.approx(made.kind.ratio, abs=0.01)
    cost = total_cost(cut_channels(made.staged.network, made.graph.groups, small.kept), SHAPE)
    assert (cost.params, cost.macs) == (small.params, small.macs)
    for group in made.graph.groups:
        if share in group.stages:
            assert len(small.kept[group.root]) == len(large.kept[group.root])


def test_too_much_is_refused_with_how_far_it_goes(made: Made) -> None:
    stages = list(dict(made.staged.network.named_children()))
    scores = {name: parameter.detach().abs() for name, parameter in made.staged.network.named_parameters()}
    scored = score_channels(made.graph, scores, "snip", stages)
    with pytest.raises(OutOfReachError) as caught:
        choose_widths(scored, Asked((0.97, 0.0), stages[0], "macs"), advise=False)
    assert str(caught.value).startswith(f"peer 1 cannot lose 97% of its macs under --share {stages[0]}: it reaches ")


def test_the_family_runs_its_trunk_once_and_each_peer_is_as_if_alone(made: Made, family: PeerFamily) -> None:
    logits = family(made.images(3))
    assert logits.shape == (2, 3, CLASSES)
    for number in (1, 2):
        assert torch.equal(family.peer(number)(made.images(3)), logits[number - 1])
    assert torch.equal(logits[1], made.whole(made.images(3))), "the larger one is the whole network"
    trunk = family.branches[0]
    assert trunk.peers == (1, 2)
    assert family.peer(1).get_submodule(trunk.stage) is family.peer(2).get_submodule(trunk.stage)


def test_peers_come_back_bit_for_bit_as_networks_of_their_own_class(
    made: Made, family: PeerFamily, peers: list[Path]
) -> None:
    logits = family(made.images(3))
    for index, directory in enumerate(peers):
        loaded = wmlc.load(directory, made.kind.factory)
        assert type(loaded) is type(made.whole) and not loaded.training
        assert torch.equal(loaded(made.images(3)), logits[index])
        assert loaded.state_dict().keys() == made.whole.state_dict().keys()
        assert torch.equal(load_stages(directory, made.kind.factory)(made.images(3)), logits[index])


def test_the_ensemble_is_the_weighted_logits(made: Made, family: PeerFamily, peers: list[Path]) -> None:
    together = Ensemble([load_stages(directory, made.kind.factory) for directory in peers], [0.25, 0.75])
    first, second = family(made.images(3))
    torch.testing.assert_close(together(made.images(3)), 0.25 * first + 0.75 * second)
    assert together.paths[0][0] == together.paths[1][0], "what they share runs once"
    shared = sum(parameter.numel() for parameter in family.parameters())
    assert sum(parameter.numel() for parameter in together.parameters()) == shared


def test_a_peer_exports_with_the_same_logits(made: Made, peers: list[Path], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    spec = spec_of(made, load_stages(peers[0], made.kind.factory))
    pixels = torch.randint(0, 256, (7, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    network = wmlc.load(peers[0], made.kind.factory)
    export_onnx(network, spec, tmp_path / "peer.onnx", pixels)
    session = onnxruntime.InferenceSession(tmp_path / "peer.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"input": made.images(3).numpy()})
    with torch.no_grad():
        expected = network(made.images(3))
    torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_both_modes_train_and_count_the_same(made: Made, family: PeerFamily) -> None:
    """One step in training gives every weight of a peer that the forward pass looks at a gradient."""
    trained = copy.deepcopy(family).train()
    trained(made.images(4)).square().sum().backward()
    without = [name for name, parameter in trained.named_parameters() if parameter.grad is None]
    assert without == []
    assert all(parameter.grad.isfinite().all() for parameter in trained.parameters())
