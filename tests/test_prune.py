"""Budgets, widths and cuts: what is promised to every architecture, ratio, divisor and sharing tree."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from wmlc.compress.config import CHOICES
from wmlc.compress.widths.budget import P_UP, layer_budgets
from wmlc.compress.widths.choose import OutOfReachError, PeerWidths
from wmlc.compress.widths.cut import cut_channels
from wmlc.compress.widths.tree import sharing_tree
from wmlc.models.cost import total_cost
from wmlc.models.zoo import ARCHITECTURES

RATIOS = (0.7, 0.5, 0.3, 0.0)
WITHIN = 0.01  # a percentage point


def counts_of(net: Any, own: PeerWidths) -> np.ndarray:
    """Channels that a peer keeps of each group."""
    return np.array([len(own.kept[group.root]) for group in net.scored.graph.groups])


def assert_sound(net: Any, own: PeerWidths, of: str = "params") -> None:
    """No group without channels, no layer below a tenth of its parameters, figures that add up."""
    graph = net.scored.graph
    counts_G = counts_of(net, own)
    assert counts_G.min() >= 1 and np.all(counts_G <= graph.full)
    kept_L = graph.layer_sizes(counts_G, "params") / graph.layer_sizes(graph.full, "params")
    assert kept_L.min() >= 1 - P_UP - 1e-9, graph.layers[kept_L.argmin()].name
    assert (own.params, own.macs) == (graph.size(counts_G, "params"), graph.size(counts_G, "macs"))
    assert own.achieved_ratio == pytest.approx(1 - getattr(own, of) / getattr(graph, of), abs=1e-12)
    for group in graph.groups:
        kept = own.kept[group.root]
        assert torch.equal(kept, kept.unique()) and kept[0] >= 0 and kept[-1] < group.units


# Budgets of layers


def test_budgets_worked_by_hand() -> None:
    budgets = layer_budgets(np.array([1.0, 2.0, 4.0]), np.array([100.0, 100.0, 100.0]), 70.0)
    np.testing.assert_allclose(budgets, [40, 20, 10])


def test_what_the_cap_refuses_is_poured_over_the_other_layers() -> None:
    importance, size = np.array([1.0, 2.0, 4.0]), np.array([100.0, 100.0, 100.0])
    # 175 asks 100 of the first; its cap is 90, and 85 are left for shares of 1/2 and 1/4.
    np.testing.assert_allclose(layer_budgets(importance, size, 175.0), [90, 170 / 3, 85 / 3])
    # 250 asks 160 of the last two after that, 106.7 of the second: it is capped too.
    np.testing.assert_allclose(layer_budgets(importance, size, 250.0), [90, 90, 70])


@pytest.mark.parametrize("amount", [270.0, 271.0, 1e6])
def test_more_than_the_caps_allow_leaves_every_layer_at_its_cap(amount: float) -> None:
    budgets = layer_budgets(np.array([1.0, 2.0, 4.0]), np.array([100.0, 100.0, 100.0]), amount)
    np.testing.assert_allclose(budgets, [90, 90, 90])


def test_nothing_to_remove_removes_nothing() -> None:
    assert layer_budgets(np.array([1.0, 2.0]), np.array([10.0, 20.0]), 0.0).tolist() == [0, 0]


@pytest.mark.parametrize("seed", range(20))
def test_budgets_sum_to_the_amount_under_the_cap_and_fall_with_importance(seed: int) -> None:
    draw = np.random.default_rng(seed)
    layers = int(draw.integers(1, 40))
    importance_L, size_L = draw.uniform(1e-6, 1, layers), draw.uniform(10, 1e6, layers)
    amount = draw.uniform(0, P_UP) * size_L.sum()
    budget_L = layer_budgets(importance_L, size_L, amount)
    np.testing.assert_allclose(budget_L.sum(), amount, rtol=1e-9)
    assert np.all(budget_L <= P_UP * size_L * (1 + 1e-12))
    capped_L = np.isclose(budget_L, P_UP * size_L, rtol=1e-12)
    level_L = budget_L * importance_L  # λ where no cap holds
    if not capped_L.all():
        level = level_L[~capped_L].mean()
        np.testing.assert_allclose(level_L[~capped_L], level, rtol=1e-9)
        assert np.all(level_L[capped_L] <= level * (1 + 1e-9)), "a capped layer wanted more, not less"


# Widths, for the whole zoo


@pytest.fixture(scope="module", params=["resnet20", "mobilenet_v2", "resnet50"])
def net(request: pytest.FixtureRequest, fresh_scored_network: Callable[..., Any]) -> Any:
    """An architecture of each kind of block, for 32-pixel images."""
    return fresh_scored_network(request.param, 32)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_reaches_the_papers_ratios_of_parameters(
    arch: str, fresh_scored_network: Callable[..., Any]
) -> None:
    net = fresh_scored_network(arch, 16)
    widths = net.widths(RATIOS, "tree")
    for own, ratio in zip(widths, RATIOS, strict=True):
        assert_sound(net, own)
        assert own.ratio == ratio and own.achieved_ratio == pytest.approx(ratio, abs=WITHIN)
    assert widths[-1].params == net.scored.graph.params and widths[-1].macs == net.scored.graph.macs


@pytest.mark.parametrize("of", ["params", "macs"])
def test_the_papers_ratios_are_reached_without_sharing(net: Any, of: str) -> None:
    for own, ratio in zip(net.widths(RATIOS, "none", of), RATIOS, strict=True):
        assert_sound(net, own, of)
        assert own.achieved_ratio == pytest.approx(ratio, abs=WITHIN)


@pytest.mark.parametrize("divisor", [8, 16])
def test_every_cut_width_is_a_multiple_of_the_divisor(net: Any, divisor: int) -> None:
    for own in net.widths(RATIOS, "none", divisor=divisor):
        assert_sound(net, own)
        counts_G, full_G = counts_of(net, own), net.scored.graph.full
        assert np.all((counts_G % divisor == 0) | (counts_G == full_G))


def test_peers_keep_the_same_channels_of_the_stages_they_share(net: Any) -> None:
    widths = net.widths(RATIOS, "tree")
    for stage, level in zip(net.stages, sharing_tree(len(RATIOS), net.stages, "tree"), strict=True):
        groups = [group.root for group in net.scored.graph.groups if stage in group.stages]
        for peers in level:
            for root in groups:
                first = widths[peers[0] - 1].kept[root]
                assert all(torch.equal(widths[peer - 1].kept[root], first) for peer in peers)


@pytest.mark.parametrize("of", ["params", "macs"])
@pytest.mark.parametrize("share", ["tree", "none"])
def test_nine_tenths_is_reached_or_refused_with_how_far_it_reaches(net: Any, share: str, of: str) -> None:
    ratios = (0.9, 0.0)
    try:
        widths = net.widths(ratios, share, of, advise=False)
    except OutOfReachError as error:
        said = str(error)
        assert said.startswith(f"peer 1 cannot lose 90% of its {of} under --share {share}: it reaches ")
        assert "(no layer may lose more than 90%)" in said and "\n" not in said
        reach = float(re.search(r"reaches (\d+\.\d)%", said)[1]) / 100
        assert 0 <= reach < 0.9
        widths = net.widths((reach, 0.0), share, of)  # what it says it reaches, it does
        ratios = (reach, 0.0)
    assert_sound(net, widths[0], of)
    assert widths[0].achieved_ratio == pytest.approx(ratios[0], abs=0.02)


def test_more_than_the_cap_is_refused(net: Any) -> None:
    with pytest.raises(OutOfReachError, match=r"^peer 1 cannot lose 95% of its params under --share none"):
        net.widths((0.95, 0.0), "none")


# Options that the refusal names


@pytest.mark.parametrize("arch, pixels", [("resnet20", 8), ("resnet20", 32), ("resnet18", 32)])
def test_macs_out_of_reach_under_the_tree_name_options_that_work(
    scored_network: Callable[..., Any], arch: str, pixels: int
) -> None:
    net = scored_network(arch, pixels)
    with pytest.raises(OutOfReachError) as caught:
        net.widths(RATIOS, "tree", "macs")
    said = str(caught.value)
    assert re.match(r"peer [123] cannot lose \d+% of its macs under --share tree: it reaches \d+\.\d%", said)
    trunks, shares = re.findall(r"--trunk-ratio ([\d.]+)", said), re.findall(r"or --share (\w+)", said)
    assert len(trunks) == 1 and "none" in shares and "\n" not in said
    ways = [("tree", float(trunks[0])), *((share, 0.0) for share in shares)]
    for share, trunk_ratio in ways:
        widths = net.widths(RATIOS, share, "macs", trunk_ratio=trunk_ratio)
        for own, ratio in zip(widths, RATIOS, strict=True):
            assert_sound(net, own, "macs")
            assert own.achieved_ratio >= ratio - WITHIN
            assert trunk_ratio or own.achieved_ratio <= ratio + WITHIN


def test_no_option_is_named_where_none_would_do(scored_network: Callable[..., Any]) -> None:
    with pytest.raises(OutOfReachError) as caught:
        scored_network("resnet20").widths((0.97, 0.0), "none")
    assert str(caught.value).endswith("; ask for less")


@pytest.mark.parametrize("of", ["params", "macs"])
@pytest.mark.parametrize("trunk_ratio", [0.25, 0.5])
def test_a_trunk_ratio_cuts_the_shared_stages_of_every_peer(
    scored_network: Callable[..., Any], trunk_ratio: float, of: str
) -> None:
    net = scored_network("resnet18")
    graph = net.scored.graph
    shared_L = np.array([layer.stage in {"stem", "stage1", "stage2"} for layer in graph.layers])
    whole = graph.layer_sizes(graph.full, of)[shared_L].sum()
    widths = net.widths((0.6, 0.4, 0.2, 0.0), "tree", of, trunk_ratio=trunk_ratio)
    for own in widths:
        assert_sound(net, own, of)
        left = graph.layer_sizes(counts_of(net, own), of)[shared_L].sum() / whole
        assert left <= 1 - trunk_ratio + WITHIN
    left = graph.layer_sizes(counts_of(net, widths[-1]), of)[shared_L].sum() / whole
    assert left == pytest.approx(1 - trunk_ratio, abs=WITHIN)  # the unpruned peer gives just that
    groups = [k for k, group in enumerate(graph.groups) if group.stages.isdisjoint({"stem", "stage1", "stage2"})]
    assert np.all(counts_of(net, widths[-1])[groups] == graph.full[groups])


@pytest.mark.parametrize("kind", CHOICES["saliency"])
@pytest.mark.parametrize("arch", ["resnet20", "mobilenet_v2"])
def test_every_saliency_gives_widths(scored_network: Callable[..., Any], arch: str, kind: str) -> None:
    net = scored_network(arch, saliency=kind)
    assert np.all(net.scored.layer_importance > 0) and np.all(np.isfinite(net.scored.layer_importance))
    for own, ratio in zip(net.widths(), RATIOS, strict=True):
        assert_sound(net, own)
        assert own.achieved_ratio == pytest.approx(ratio, abs=WITHIN)


def test_saliencies_disagree_about_channels(scored_network: Callable[..., Any]) -> None:
    kept = [
        scored_network("resnet20", saliency=kind).widths()[0].kept["stage3.0.conv1"] for kind in CHOICES["saliency"]
    ]
    assert len({tuple(indices.tolist()) for indices in kept}) == 3


def test_the_most_salient_channels_stay(scored_network: Callable[..., Any]) -> None:
    net = scored_network("resnet20")
    smallest = net.widths()[0]
    for group, rank_C in zip(net.scored.graph.groups, net.scored.channel_rank, strict=True):
        kept = smallest.kept[group.root]
        assert set(kept.tolist()) == set(rank_C[: len(kept)].tolist())


def test_choosing_again_gives_the_same_widths(scored_network: Callable[..., Any]) -> None:
    once, again = (scored_network("resnet20").widths() for _ in range(2))
    for first, second in zip(once, again, strict=True):
        torch.testing.assert_close(first.kept, second.kept, rtol=0, atol=0)


# Cuts


@pytest.mark.parametrize(
    "arch, pixels, divisor, share",
    [
        ("resnet20", 8, 1, "tree"),
        ("resnet20", 8, 8, "none"),
        ("resnet18", 72, 8, "tree"),
        ("resnet50", 8, 1, "tree"),
        ("mobilenet_v2", 8, 1, "none"),
    ],
)
def test_widths_predict_what_the_cut_network_costs(
    scored_network: Callable[..., Any], arch: str, pixels: int, divisor: int, share: str
) -> None:
    net = scored_network(arch, pixels)
    for own in net.widths(RATIOS if arch == "resnet20" else (0.6, 0.3), share, divisor=divisor):
        network = cut_channels(net.full, net.scored.graph.groups, own.kept)
        cost = total_cost(network, net.input_shape)
        assert (cost.params, cost.macs) == (own.params, own.macs)
        assert cost.params == sum(parameter.numel() for parameter in network.parameters())
        with torch.no_grad():
            assert network.eval()(net.images(2)).shape == (2, 10)


def test_a_cut_keeps_the_weights_of_the_channels_it_keeps(scored_network: Callable[..., Any]) -> None:
    net = scored_network("resnet20")
    kept = net.widths(share="none")[0].kept
    network = cut_channels(net.full, net.scored.graph.groups, kept)
    conv1, conv2 = "stage2.1.conv1", "stage2.1.conv2"
    full = {name: net.full.get_submodule(name).weight for name in (conv1, conv2)}
    inner = kept[conv1]
    (outer,) = [kept[g.root] for g in net.scored.graph.groups if conv2 in g.makers]
    assert torch.equal(network.get_submodule(conv1).weight, full[conv1][inner][:, outer])
    assert torch.equal(network.get_submodule(conv2).weight, full[conv2][outer][:, inner])


@pytest.mark.parametrize("arch", ["resnet20", "mobilenet_v2", "resnet50"])
def test_cutting_channels_that_carry_nothing_changes_no_output(scored_network: Callable[..., Any], arch: str) -> None:
    net = scored_network(arch)
    kept = net.widths(share="none")[0].kept
    full = copy.deepcopy(net.full).train()
    for group in net.scored.graph.groups:
        gone = sorted(set(range(group.units)) - set(kept[group.root].tolist()))
        for name in group.makers:
            if isinstance(norm := full.get_submodule(name), nn.BatchNorm2d):
                norm.weight.data[gone] = 0
                norm.bias.data[gone] = 0
                norm.momentum = 1.0  # one batch sets the statistics
    full(net.images(4))
    network = cut_channels(full.eval(), net.scored.graph.groups, kept)
    images = net.images(4, torch.float64)
    expected = full.double()(images)
    assert expected.std() > 1e-3
    torch.testing.assert_close(network.double()(images), expected)


def test_cutting_leaves_the_full_network_as_it_was(scored_network: Callable[..., Any]) -> None:
    net = scored_network("resnet20")
    former = copy.deepcopy(net.full.state_dict())
    modes = [module.training for module in net.full.modules()]
    network = cut_channels(net.full, net.scored.graph.groups, net.widths()[0].kept)
    torch.testing.assert_close(dict(net.full.state_dict()), dict(former), rtol=0, atol=0)
    assert [module.training for module in net.full.modules()] == modes
    assert [module.training for module in network.modules()] == modes
