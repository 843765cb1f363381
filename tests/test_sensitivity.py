"""Widths by what a trained network's answers lose, group by group, against whole cut networks. Takes 10 s."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hand_networks import conv, unlike_a_batch
from resizables import FakeClock
from torch import Tensor, nn
from training import stopping, train

from wmlc.compress import session
from wmlc.compress.describe import print_sensitivities
from wmlc.compress.latency import plan_for_latency, priced
from wmlc.compress.widths import sensitivity
from wmlc.compress.widths.choose import Asked, Scored, choose_widths
from wmlc.compress.widths.cut import cut_channels
from wmlc.compress.widths.prices import Counted
from wmlc.compress.widths.proof import read_channels
from wmlc.compress.widths.rank import group_magnitude
from wmlc.compress.widths.resizable import resizable
from wmlc.compress.widths.sensitivity import EVERY, with_sensitivity
from wmlc.errors import InputError, Stopped
from wmlc.models.checkpoint import read_spec
from wmlc.models.resizable import Resizable
from wmlc.run import Run, read_config, read_family
from wmlc.settings import LATENCY

SHAPE, CLASSES, WIDTH = (3, 8, 8), 5, 16


class Block(nn.Module):
    """What a residual block adds, which is nothing where it is `idle`; begins in place, and has dropout."""

    def __init__(self, idle: bool) -> None:
        super().__init__()
        self.begin, self.one, self.norm = nn.ReLU(inplace=True), conv(WIDTH, WIDTH), nn.BatchNorm2d(WIDTH)
        self.two, self.last, self.drop = conv(WIDTH, WIDTH), nn.BatchNorm2d(WIDTH), nn.Dropout(0.5)
        if idle:
            nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.begin(x)
        return x + self.last(self.two(self.drop(F.relu(self.norm(self.one(x))))))


def network(norms: bool = True) -> nn.Sequential:
    """Four stages, whose batch norms keep something else than what a batch has."""
    torch.manual_seed(0)
    made = nn.Sequential()
    made.add_module("stem", nn.Sequential(conv(3, WIDTH), nn.BatchNorm2d(WIDTH)))
    made.add_module("busy", Block(idle=False))
    made.add_module("idle", Block(idle=True))
    made.add_module("head", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, CLASSES)))
    unlike_a_batch(made)
    nn.init.normal_(made.get_parameter("head.2.weight"), 0, 1)
    return made.eval()


BATCHES = [torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(k)) for k in range(2)]
CLOCK = FakeClock(lambda place, into, out: 0.01 + 1e-3 * into * out, lambda counts_G, ms: ms)


def scored(made: nn.Sequential) -> tuple[Scored, Resizable]:
    graph = read_channels(made, SHAPE)
    sizes = resizable(made, graph, SHAPE, CLASSES, 2, "own")
    ranks = [own.argsort(descending=True) for own in group_magnitude(made, graph)]
    plain = Scored(graph, np.ones(len(graph.layers)), ranks, list(dict(made.named_children())))
    return priced(plain, sizes, CLOCK.table(sizes)), sizes


def by_the_batch(made: nn.Module) -> nn.Module:
    for module in made.modules():
        module.train(isinstance(module, nn.BatchNorm2d))
    return made


@torch.no_grad()
def divergence(found: nn.Module, true: nn.Module) -> float:
    """The mean of Σ p log(p / q), as it is written."""
    each = []
    for images in BATCHES:
        p, q = true(images.clone()).softmax(1).double(), found(images.clone()).softmax(1).double()
        each.append((p * (p / q).log()).sum(1))
    return float(torch.cat(each).mean())


def test_losses_are_those_of_whole_cut_networks() -> None:
    made = network()
    before = copy.deepcopy(made.state_dict())
    own, _ = scored(made)
    own = with_sensitivity(own, made, BATCHES)
    unchanged = divergence(by_the_batch(copy.deepcopy(made)), made)
    assert unchanged > 0.01 and own.priced is not None and own.sensitivity is not None
    for place, (group, levels) in enumerate(zip(own.graph.groups, own.priced.levels, strict=True)):
        rising = 0.0
        for units in reversed(levels[:-1:EVERY]):
            counts = [len(rank) for rank in own.channel_rank]
            counts[place] = units
            kept = {
                each.root: rank[:count].sort().values
                for each, rank, count in zip(own.graph.groups, own.channel_rank, counts, strict=True)
            }
            cut = by_the_batch(cut_channels(made, own.graph.groups, kept))
            rising = max(rising, divergence(cut, made) - unchanged)
            assert own.sensitivity[place][levels.index(units)] == pytest.approx(rising, abs=1e-5), (group.root, units)
        losses_K = own.sensitivity[place]
        assert losses_K[-1] == 0 and (np.diff(losses_K) <= 0).all()
        assert losses_K[1] <= (losses_K[0] + losses_K[2]) / 2 + 1e-12  # between them over log(full / k): convex
    assert not any(module.training for module in made.modules())
    assert all(torch.equal(before[name], now) for name, now in made.state_dict().items())


def test_what_a_block_does_not_add_goes_first_and_the_plan_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    made = network()
    even, sizes = scored(made)
    own = with_sensitivity(even, made, BATCHES)
    (full,) = CLOCK.time(sizes, [sizes.full])
    asked = Asked((0.4,), "none", LATENCY, divisor=2, uniform=True)
    alike, by_answers = (plan_for_latency(each, asked, sizes, CLOCK, [0.6 * full.ms]) for each in (even, own))
    assert not alike.sensitivity
    (before,), (now,) = alike.peers, by_answers.peers
    assert before.counts["busy.one"] - before.counts["idle.one"] in (-2, 0, 2)
    assert now.counts["idle.one"] == 2 and now.counts["busy.one"] >= before.counts["busy.one"]
    assert now.counts["stem.0"] > before.counts["stem.0"]
    lost = {each.group: each for each in by_answers.sensitivity}
    assert lost["idle.one"].nats == [0.0] * 8 and lost["idle.one"].units == list(sizes.levels[2])
    assert min(lost["busy.one"].nats[0], lost["stem.0"].nats[0]) > 0.01
    print_sensitivities(own.sensitivities)
    said = " ".join(capsys.readouterr().out.split())
    assert "by about half of a group's channels: most stem.0 " in said and said.endswith("; least idle.one 0")
    print_sensitivities(own.sensitivities, lambda name: f"net.{name}")  # as notes name layers
    assert "most net.stem.0 " in " ".join(capsys.readouterr().out.split())
    print_sensitivities(even.sensitivities)
    assert not capsys.readouterr().out


def test_losses_are_measured_once_and_for_these_weights_images_and_channels_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def counted(*args: Any) -> list[np.ndarray]:
        measured.append(args)
        return true(*args)

    true = sensitivity._measured
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sensitivity, "_measured", counted)

    def lost(made: nn.Sequential, batches: list[Tensor] = BATCHES, worst_first: bool = False) -> list[list[float]]:
        own, _ = scored(made)
        if worst_first:
            own = replace(own, channel_rank=[rank.flip(0) for rank in own.channel_rank])
        found = with_sensitivity(own, made, batches).sensitivity
        assert found is not None
        return [losses_K.tolist() for losses_K in found]

    first = lost(network())
    assert lost(network()) == first and len(measured) == 1
    (file,) = (tmp_path / "wmlc" / "sensitivity").iterdir()
    whole = file.read_text()
    for count, damaged in enumerate((whole[:20], "null", "[[NaN, 0.0]]", whole.replace("0.0", "-1.0")), 2):
        file.write_text(damaged)
        assert lost(network()) == first and len(measured) == count, "damaged, and made anew"
    other = network()
    other.get_parameter("stem.0.weight").data[0, 0, 0, 0] += 1e-3
    hard = network()  # the same weights, another forward pass
    hard.get_submodule("busy").begin = nn.Hardtanh(0, 0.5, inplace=True)  # type: ignore[assignment]
    for again in (lambda: lost(other), lambda: lost(hard), lambda: lost(network(), BATCHES[:1]),
                  lambda: lost(network(), worst_first=True)):  # fmt: skip
        before = len(measured)
        assert again() != first and len(measured) == before + 1


def test_a_network_whose_answers_never_change_is_cut_evenly() -> None:
    made = network()
    nn.init.zeros_(made.get_parameter("head.2.weight"))  # as some make the head for new classes
    even, sizes = scored(made)
    own = with_sensitivity(even, made, BATCHES)
    assert own.sensitivity is not None and not any(losses_K.any() for losses_K in own.sensitivity)
    (full,) = CLOCK.time(sizes, [sizes.full])
    asked = Asked((0.4,), "none", LATENCY, divisor=2, uniform=True)
    plans = [plan_for_latency(each, asked, sizes, CLOCK, [0.6 * full.ms]) for each in (even, own)]
    assert plans[0].peers == plans[1].peers


def test_a_run_goes_on_with_what_was_measured_when_it_began(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine whose cache has nothing of it, and whose last digits may be others."""
    with stopping(session, "train_phase"), pytest.raises(Stopped, match="--resume"):
        train(tmp_path / "run", start=str(run.root), ratios=(0.5,), epochs=1)
    began = Run(tmp_path / "run")
    own = read_config(began).sensitivity
    assert len(own) == 12 and own[0].group == "stem.conv" and own[0].nats[-1] == 0 < own[0].nats[0]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with stopping(sensitivity, "_measured"):
        session.resume_run(began)
        train(tmp_path / "whole", start=str(run.root), ratios=(0.0,), epochs=0)  # of which nothing is cut
    (peer,) = read_family(began).peers
    assert peer.achieved_ratio == pytest.approx(0.5, abs=0.05)
    assert not peer.left_out and min(each.units[0] for each in own) > 0, (
        "of parameters a block saves no more than it has"
    )
    without = train(tmp_path / "without", start=str(run.root), ratios=(0.5,), epochs=0, blocks="drop")
    blocks = [each for each in read_config(without).sensitivity if each.block]
    assert {each.units[0] for each in blocks} == {0} and len(blocks) == 7
    (other,) = read_family(without).peers
    assert other.left_out and other.left_out == read_spec(without.network(1)).left_out


def test_between_two_levels_a_loss_is_interpolated_over_the_logarithm() -> None:
    assert sensitivity._curve({2: 1.0, 8: 0.0}, [2, 4, 8]).tolist() == pytest.approx([1.0, 0.5, 0.0])
    assert sensitivity._curve({2: 0.1, 4: 0.4, 8: 0.0}, [2, 4, 8]).tolist() == pytest.approx([0.4, 0.4, 0.0])
    assert sensitivity._curve({2: -1.0, 8: 0.0}, [2, 4, 8]).tolist() == [0.0, 0.0, 0.0]


def test_a_width_that_is_a_hair_short_of_the_ratio_is_taken_where_the_next_loses_far_more() -> None:
    """Of 32 units in eighths, as a layer that cannot be cut leaves half of the others at 49.9 %."""
    made = nn.Sequential(OrderedDict(
        stem=nn.Conv2d(3, 32, 3, padding=1),
        head=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES), nn.ReLU(), nn.Linear(CLASSES, CLASSES)),
    ))  # fmt: skip
    graph = read_channels(made, SHAPE)
    levels = tuple(tuple(range(8, group.units + 1, 8)) or (group.units,) for group in graph.groups)
    place = next(at for at, group in enumerate(graph.groups) if group.units == 32)
    losses = [np.linspace(1.0, 0.0, len(own)) for own in levels]
    ranks = [torch.arange(group.units) for group in graph.groups]
    own = Scored(graph, np.ones(len(graph.layers)), ranks, ["stem", "head"], priced=Counted(graph, levels, "macs"),
                 sensitivity=losses)  # fmt: skip
    (near,) = choose_widths(own, Asked((0.5,), "none", "macs", 8, uniform=False))
    assert len(near.kept[graph.groups[place].root]) == 16 and 0.49 < near.achieved_ratio < 0.5
    (far,) = choose_widths(own, Asked((0.7,), "none", "macs", 8, uniform=False))
    assert len(far.kept[graph.groups[place].root]) == 8 and far.achieved_ratio > 0.72
    small, large = choose_widths(own, Asked((0.502, 0.495), "none", "macs", 8, uniform=False))
    kept = [len(peer.kept[graph.groups[place].root]) for peer in (small, large)]
    assert kept == [8, 16], "a smaller peer is smaller than the next"


def test_answers_that_are_no_numbers_any_more_lose_nothing_that_could_be_measured() -> None:
    class Once(nn.Module):
        """By the largest of some channels, which without those that carry anything is none."""

        def forward(self, x: Tensor) -> Tensor:
            return x / x.amax((1, 2, 3), keepdim=True)

    made = network()
    made.add_module("stem", nn.Sequential(conv(3, WIDTH), nn.ReLU(), Once()))
    with torch.no_grad():
        made.get_parameter("stem.0.weight").fill_(0.0)[-1] = 1.0
        made.get_parameter("stem.0.bias").fill_(0.0)[-1] = 10.0
    own, _ = scored(made)
    first = [torch.arange(len(rank)) for rank in own.channel_rank]  # so that the last goes first
    with pytest.raises(InputError) as caught:
        with_sensitivity(replace(own, channel_rank=first), made, BATCHES)
    assert str(caught.value) == (
        "with 2 of its channels at stem.0 the network's answers are no finite numbers, so what they lose cannot be "
        "measured; pass --budget taylor or uniform"
    )
