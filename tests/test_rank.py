"""Which channels go (`--rank`) and how much each layer loses (`--budget`)."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from click.testing import CliRunner
from torch import Tensor, nn

import wmlc
from wmlc.cli import main
from wmlc.compress.config import CHOICES, settle
from wmlc.compress.learn.place import Device
from wmlc.compress.prepare import Prepared, cut_anew, prepare
from wmlc.compress.widths.budget import NEAR, choose_counts
from wmlc.compress.widths.choose import Asked, Scored, budgeted_by, choose_widths
from wmlc.compress.widths.proof import read_channels
from wmlc.compress.widths.rank import group_magnitude, group_taylor, random_scores
from wmlc.compress.worth import TAYLOR_BATCHES, budget_of, rank_of
from wmlc.data import open_data
from wmlc.errors import InputError
from wmlc.models.zoo import build_network
from wmlc.run import data_config
from wmlc.settings import SENSITIVITY

CPU = Device("cpu", bf16=False)


def prepared(**settings: Any) -> Prepared:
    """A family of ResNet-20 for digits, as `wmlc train` prepares it."""
    config = settle({"data": "digits", "arch": "resnet20", **settings})
    return prepare(config, open_data(data_config(config)), CPU)


def counts(net: Prepared) -> list[list[int]]:
    """Channels that each peer keeps of each group: of stem, and of what each of the nine blocks makes."""
    return [[len(kept) for kept in own.kept.values()] for own in net.widths]


FULL = [16] * 4 + [32] * 4 + [64] * 4

# What results are told of in the docs: a run without a start has the widths that it always had.
AS_BEFORE: list[tuple[dict[str, Any], list[list[int]]]] = [
    (
        {"ratios": (0.7, 0.5, 0.3, 0.0), "batch_size": 64},
        [
            [16, 16, 16, 16, 24, 16, 8, 8, 32, 32, 40, 32], [16, 16, 16, 16, 24, 16, 8, 8, 32, 48, 56, 48],
            [16, 16, 16, 16, 32, 32, 32, 32, 48, 48, 56, 48], FULL,
        ],
    ),
    (
        {"ratios": (0.5, 0.3, 0.0), "ratio_of": "macs", "trunk_ratio": 0.4},
        [
            [8, 16, 16, 16, 24, 24, 32, 24, 24, 40, 48, 40], [8, 16, 16, 16, 24, 24, 32, 24, 64, 64, 64, 64],
            [8, 16, 16, 16, 32, 32, 32, 32, 64, 64, 64, 64],
        ],
    ),
    (
        {"ratios": (0.7, 0.5, 0.3, 0.0), "method": "prune-finetune"},
        [
            [8, 16, 8, 8, 16, 16, 16, 16, 32, 40, 32, 32], [8, 8, 8, 8, 24, 16, 24, 24, 48, 48, 48, 48],
            [8, 8, 16, 16, 24, 24, 24, 24, 56, 56, 56, 56], FULL,
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize("settings, expected", AS_BEFORE)
def test_widths_are_those_that_published_runs_have(settings: dict[str, Any], expected: list[list[int]]) -> None:
    assert counts(prepared(**settings)) == expected


def test_peers_of_a_network_at_hand_have_the_sizes_that_they_had() -> None:
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=10)
    peers = wmlc.family(network, torch.zeros(1, 3, 64, 64), (0.67, 0.5, 0.3, 0.0))
    assert [sum(p.numel() for p in peer.parameters()) for peer in peers] == [3560834, 5514538, 7648258, 11181642]


# Scores of channels


class Flipped(nn.Module):
    """Two convolutions, between them a norm; the second reads the channels from the last to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        made = self.norm(self.one(images)).relu().flip(1)
        out: Tensor = self.head(self.two(made).relu().mean((2, 3)))
        return out


def some_batches(count: int = 2) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(4, 3, 8, 8, generator=generator), torch.randint(0, 5, (4,), generator=generator))
        for _ in range(count)
    ]


def flipped() -> Flipped:
    torch.manual_seed(0)
    network = Flipped()
    nn.init.uniform_(network.norm.weight, 0.5, 1.5)
    nn.init.normal_(network.norm.bias)
    return network


@pytest.mark.parametrize("trained", [True, False])
def test_taylor_is_what_autograd_says_of_all_that_goes_with_a_unit(trained: bool) -> None:
    network, batches = flipped(), some_batches()
    graph = read_channels(network, (3, 8, 8))
    assert [group.root for group in graph.groups] == ["one", "two"]
    expected = torch.zeros(6)
    for images, labels in batches:
        network.zero_grad()
        network.train(trained is False)
        F.cross_entropy(network(images), labels).backward()
        worth = {name: (p * p.grad).abs().detach() for name, p in network.named_parameters() if p.grad is not None}
        rows, columns = worth["one.weight"].sum((1, 2, 3)), worth["two.weight"].sum((0, 2, 3))
        expected += (rows + worth["one.bias"] + worth["norm.weight"] + worth["norm.bias"] + columns.flip(0)) / 2
    got, _ = group_taylor(network, graph, batches, trained)
    torch.testing.assert_close(got, expected)


def test_taylor_leaves_the_network_as_it_was() -> None:
    network = flipped().eval()
    network.two.weight.requires_grad_(False)
    former = copy.deepcopy(network.state_dict())
    group_taylor(network, read_channels(network, (3, 8, 8)), some_batches(), trained=False)
    torch.testing.assert_close(dict(network.state_dict()), dict(former), rtol=0, atol=0)
    assert not network.training and not network.two.weight.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_unit_counts_whole_for_each_layer_that_makes_it() -> None:
    """Residual channels have several makers; the layer that makes the logits is worth the channels that it reads."""
    network = build_network("resnet20", 10, (3, 8, 8))
    graph = read_channels(network, (3, 8, 8))
    scores = [torch.full((group.units,), float(k + 1)) for k, group in enumerate(graph.groups)]
    scored = budgeted_by(Scored(graph, np.ones(len(graph.layers)), [], []), scores)
    worth = dict(zip((layer.name for layer in graph.layers), scored.layer_importance, strict=True))
    total = {group.root: (k + 1) * group.units for k, group in enumerate(graph.groups)}
    assert worth["stage1.0.conv1"] / worth["stem.conv"] == pytest.approx(total["stage1.0.conv1"] / total["stem.conv"])
    assert worth["stage1.2.conv2"] == worth["stem.conv"]
    last = next(group for group in graph.groups if "stage3.2.conv2" in group.makers)
    assert worth["head.fc"] == worth["stage3.2.conv2"]
    assert worth["head.fc"] / worth["stem.conv"] == pytest.approx(total[last.root] / total["stem.conv"])


# Ranks


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of a ResNet-20 for digits, its norms not all alike."""
    torch.manual_seed(0)
    network = build_network("resnet20", 10, (1, 8, 8))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    path = tmp_path_factory.mktemp("start") / "resnet20.pt"
    torch.save(network.state_dict(), path)
    return str(path)


def best(scores: list[Tensor], kept: dict[str, Tensor]) -> list[list[int]]:
    return [
        sorted(own.argsort(descending=True, stable=True)[: len(of)].tolist())
        for own, of in zip(scores, kept.values(), strict=True)
    ]


def test_the_best_channels_by_each_rank_stay(start: str) -> None:
    chosen, widths = {}, []
    for rank in CHOICES["rank"]:
        net = prepared(start=start, ratios=(0.6, 0.3), share="none", rank=rank, budget="uniform", divisor=1, seed=7)
        data = open_data(data_config(settle({"data": "digits", "seed": 7})))
        batches = [batch for batch, _ in zip(data.train_batches(128, epoch=0), range(TAYLOR_BATCHES), strict=False)]
        scores = {
            "magnitude": lambda net: group_magnitude(net.full, net.scored.graph),
            "taylor": lambda net, b=batches: group_taylor(net.full, net.scored.graph, b, trained=True),
            "random": lambda net: random_scores(net.scored.graph, torch.Generator().manual_seed(7)),
        }[rank](net)  # type: ignore[no-untyped-call]
        for own in net.widths:
            assert [kept.tolist() for kept in own.kept.values()] == best(scores, own.kept)
        chosen[rank] = [own.kept for own in net.widths]
        widths.append(counts(net))
    assert widths[0] == widths[1] == widths[2]  # a rank says which channels go, not how many
    assert len({str(kept) for kept in chosen.values()}) == 3


@pytest.mark.parametrize("rank", ["magnitude", "taylor", "random"])
def test_a_network_that_is_cut_after_training_is_ranked_then(rank: str) -> None:
    settings = {"method": "prune-finetune", "ratios": (0.5, 0.3), "rank": rank}
    before = prepared(**settings)
    config = settle({"data": "digits", "arch": "resnet20", **settings})
    torch.manual_seed(5)
    trained = build_network("resnet20", 10, (1, 8, 8))  # stands for the same one after training
    after = cut_anew(before, trained, config, open_data(data_config(config)), CPU)
    assert counts(after) == counts(before)
    alike = [str(one.kept) == str(other.kept) for one, other in zip(before.widths, after.widths, strict=True)]
    assert alike == [rank == "random"] * 2
    kept = next(iter(after.widths[0].kept.values()))
    assert torch.equal(after.family.peer(1).get_parameter("stem.conv.weight"), trained.stem.conv.weight[kept])


def test_random_channels_follow_the_seed(start: str) -> None:
    one, same, other = (
        prepared(start=start, ratios=(0.6,), share="none", rank="random", budget="uniform", seed=seed).widths[0].kept
        for seed in (1, 1, 2)
    )
    assert str(one) == str(same) != str(other)


def test_random_channels_of_a_network_at_hand_follow_torchs_seed() -> None:
    def stems(seed: int, **options: Any) -> Tensor:
        torch.manual_seed(seed)
        (half,) = wmlc.family(network, torch.zeros(3, 8, 8), (0.4,), divisor=1, **options)
        return half.get_parameter("one.weight")

    network = flipped()
    assert torch.equal(stems(1, rank="random"), stems(1, rank="random"))
    drawn = [stems(seed, rank="random") for seed in range(6)]
    assert len({str(weight) for weight in drawn}) > 1 and all(weight.shape == stems(0).shape for weight in drawn)


def test_what_is_in_force_by_default(start: str) -> None:
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({}, "snip", "snip"), ({"saliency": "grasp"}, "grasp", "grasp"), ({"start": start}, "magnitude", SENSITIVITY),
        ({"start": start, "trunk_ratio": 0.1, "share": "stage2"}, "magnitude", "uniform"),
        ({"start": start, "ratio_of": "latency"}, "magnitude", SENSITIVITY), ({"ratio_of": "latency"}, "snip", "snip"),
        ({"start": start, "max_latency_ms": (1.0,), "budget": "uniform"}, "magnitude", "uniform"),
        ({"method": "prune-finetune"}, "magnitude", "uniform"), ({"budget": "taylor"}, "snip", "taylor"),
        ({"rank": "random", "start": start, "budget": "snip"}, "random", "snip"),
    ]  # fmt: skip
    for given, rank, budget in cases:
        config = settle({"data": "digits", **given})
        assert (rank_of(config), budget_of(config)) == (rank, budget)


# Budgets


@pytest.fixture(scope="module")
def usual(start: str) -> Prepared:
    """By what is in force where no budget is asked for."""
    return prepared(start=start, ratios=(0.6, 0.3), share="none", divisor=1)


@pytest.mark.parametrize("budget", CHOICES["budget"])
def test_every_budget_reaches_the_ratios_and_leaves_the_order_of_channels(
    budget: str, start: str, usual: Prepared
) -> None:
    net = prepared(start=start, ratios=(0.6, 0.3), share="none", divisor=1, budget=budget)
    for own in net.widths:
        assert own.achieved_ratio == pytest.approx(own.ratio, abs=0.01)
    assert (counts(net) == counts(usual)) == (budget == SENSITIVITY)
    torch.testing.assert_close(net.scored.channel_rank, usual.scored.channel_rank, rtol=0, atol=0)


def test_under_uniform_budgets_all_groups_lose_the_same_share(start: str) -> None:
    net = prepared(ratios=(0.6, 0.3), share="none", divisor=1, budget="uniform")
    for own in counts(net):
        share = np.array(own) / FULL
        assert np.all(np.abs(share - share.mean()) <= 1.5 / np.array(FULL))


def test_uniform_budgets_hold_for_a_trunk_and_for_what_is_left_after_it() -> None:
    net = prepared(
        ratios=(0.5, 0.45, 0.0), share="stage2", trunk_ratio=0.4, ratio_of="macs", divisor=1, budget="uniform"
    )
    shared = [k for k, group in enumerate(net.scored.graph.groups) if "stage3" not in group.stages]
    smallest, middle, largest = (np.array(own) / FULL for own in counts(net))
    for own in (smallest, middle):
        np.testing.assert_array_equal(own[shared], largest[shared])
    assert np.ptp(largest[shared]) <= 1 / 16 and np.all(largest[len(shared) :] == 1)
    assert np.ptp(smallest[len(shared) :]) <= 2 / 64 and smallest[-1] < middle[-1]


def test_uniform_budgets_go_on_where_a_layer_is_at_its_cap() -> None:
    """The groups of it stop, and the others lose more."""
    graph = prepared().scored.graph
    counts_G, reach = choose_counts(graph, None, graph.full, np.ones(12, dtype=bool), 0.02 * graph.params, "params", 1)
    assert reach == pytest.approx(0.1 * graph.params, rel=0.02) and np.ptp(counts_G / graph.full) < 0.2


# Whole channels near the budgets


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("ratio_of", ["params", "macs"])
def test_near_roundings_are_nearer_to_the_budgets_and_no_farther_from_the_ratio(uniform: bool, ratio_of: str) -> None:
    scored = prepared().scored
    full = getattr(scored.graph, ratio_of)

    def widths(ratio: float, **options: Any) -> tuple[np.ndarray, float]:
        asked = Asked((ratio,), "none", ratio_of, **{"divisor": 8, "uniform": uniform, **options})
        (own,) = choose_widths(scored, asked)
        return np.array([len(kept) for kept in own.kept.values()]), abs(own.achieved_ratio - ratio) * full

    moved = 0
    for ratio in np.linspace(0.1, 0.8, 15):
        smooth, _ = widths(ratio, divisor=1)  # as near to the budgets as whole channels get
        (former, was), (near, gap) = widths(ratio), widths(ratio, near=True)
        assert gap <= max(was, NEAR * full) + 1e-6
        apart = [np.square(np.log(own / smooth)).sum() for own in (near, former)]
        assert apart[0] <= apart[1] + 0.05  # but for the divisor of 1
        moved += int(apart[0] < apart[1] - 0.05)
    assert moved >= 4


def test_near_roundings_are_those_of_a_start(start: str) -> None:
    settings: dict[str, Any] = {"ratios": (0.5,), "ratio_of": "macs", "share": "none", "budget": "uniform"}
    ours, without = prepared(start=start, **settings), prepared(**settings)
    (near,) = choose_widths(ours.scored, Asked((0.5,), "none", "macs", 8, uniform=True, near=True))
    assert counts(ours) == [[len(kept) for kept in near.kept.values()]] != counts(without)


# Words


def test_an_exit_is_not_cut(start: str) -> None:
    for name, value in (("rank", "random"), ("budget", "uniform")):
        with pytest.raises(InputError, match=f"has an exit at each stage and cuts nothing; leave out {name}"):
            settle({"method": "self-distillation", name: value})


def test_a_dry_run_says_what_is_in_force() -> None:
    options = ["train", "--data", "digits", "--dry-run", "--rank", "taylor", "--budget", "uniform"]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 0, result.output
    assert "rank taylor, budget uniform" in " ".join(result.output.split())
