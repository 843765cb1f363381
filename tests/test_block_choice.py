"""Which residual blocks go: what that costs, what it loses, and the choice against trying all. Takes 3 s."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from residual_networks import (
    CLASSES,
    EVERY_CHOICE,
    IMAGES,
    SHAPE,
    counts_without,
    cut_to,
    drawn,
    make,
    read,
    whole,
)
from resizables import table_by
from torch import Tensor, nn

from wmlc.compress.widths.choose import Scored, _worth
from wmlc.compress.widths.knapsack import choose_within
from wmlc.compress.widths.prices import Counted, Priced, Timed, blocks_optional
from wmlc.compress.widths.proof import read_channels
from wmlc.compress.widths.resizable import levels_of
from wmlc.compress.widths.sensitivity import with_sensitivity
from wmlc.latency_model import LatencyModel
from wmlc.models.cost import total_cost
from wmlc.models.residual import leave_out
from wmlc.models.resizable import Resizable
from wmlc.models.zoo import build_network


@pytest.mark.parametrize("number", range(16))
def test_costs_are_those_of_the_cut_network(number: int) -> None:
    made, graph, sizes = whole()
    counts_G = drawn(graph, number)
    cut = cut_to(made, graph, counts_G)
    cost = total_cost(cut, SHAPE)
    assert (cost.params, cost.macs) == (graph.size(counts_G, "params"), graph.size(counts_G, "macs"))
    both = np.stack([counts_G, graph.full])
    assert graph.size(both, "params").tolist() == [cost.params, graph.params]

    def layer_ms(place: int, into: int, out: int) -> float:
        return 0.1 + 0.01 * place + 0.002 * into * out

    priced = Timed(graph, sizes.levels, LatencyModel(table_by(sizes, layer_ms, overhead_ms=0.5)))
    place = {name: k for k, name in enumerate(sizes.layers)}
    there = [(place[name], module) for name, module in cut.named_modules() if name in place]
    ms = [layer_ms(k, own.weight.shape[1], own.weight.shape[0]) for k, own in there]  # type: ignore[index]
    assert priced.cost(counts_G) == pytest.approx(0.5 + sum(ms))
    assert priced.change(graph.full, counts_G) == pytest.approx(priced.cost(counts_G) - priced.cost(graph.full))


def test_of_a_block_all_groups_keep_units_or_none() -> None:
    _, graph, _ = whole()
    for blocks in EVERY_CHOICE:
        assert graph.allows(counts_without(graph, blocks)) and graph.left_out(counts_without(graph, blocks)) == [
            *blocks
        ]
    for root in ("stage1.squeezed.up", "stage1.squeezed.fewer", "stem.0"):
        counts_G = graph.full.copy()
        counts_G[[group.root for group in graph.groups].index(root)] = 0
        assert not graph.allows(counts_G)


# Their choice


def priced_with_blocks(made: nn.Sequential, divisor: int) -> tuple[Priced, Resizable]:
    graph, sizes = read(made, divisor)
    table = table_by(sizes, lambda place, into, out: 0.05 + 0.01 * (1 + place % 3) * into * out, overhead_ms=0.1)
    return blocks_optional(Timed(graph, sizes.levels, LatencyModel(table))), sizes


@pytest.mark.parametrize("seed", range(4))
def test_no_choice_of_blocks_and_widths_is_worth_more(seed: int) -> None:
    priced, _ = priced_with_blocks(make(), divisor=2)
    graph = priced.graph
    draw = np.random.default_rng(seed)
    worth = [np.append(np.sort(-draw.uniform(0, 1, len(levels) - 1)), 0.0) for levels in priced.levels]
    assert sum(own[0] == 0 for own in priced.levels) == 4
    every_NG = np.array([own for own in itertools.product(*priced.levels) if priced.fits(np.array(own))])
    assert len({tuple(graph.left_out(own)) for own in every_NG}) == len(EVERY_CHOICE)
    ms_N = np.array([priced.cost(own) for own in every_NG])

    def value(counts_G: np.ndarray) -> float:
        levels = priced.levels
        return sum(float(own[at.index(n)]) for own, at, n in zip(worth, levels, counts_G.tolist(), strict=True))

    worth_N, free_G = np.array([value(own) for own in every_NG]), np.ones(len(graph.groups), dtype=bool)
    for share in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9):
        budget_ms = float(ms_N.min() + share * (ms_N.max() - ms_N.min()))
        counts_G, least = choose_within(priced, worth, graph.full, free_G, budget_ms)
        assert priced.cost(counts_G) <= budget_ms + 1e-9 and priced.fits(counts_G)
        assert least == pytest.approx(ms_N.min())
        assert value(counts_G) == pytest.approx(worth_N[ms_N <= budget_ms + 1e-9].max()), share


def test_blocks_that_add_nothing_go_before_anything_else_is_narrower() -> None:
    """Where the stream that they add to is narrow they save hardly anything, and it costs nothing here: as measured."""
    graph = read_channels(build_network("resnet20", CLASSES, SHAPE, "").eval(), SHAPE, with_blocks=True)
    priced = blocks_optional(Counted(graph, tuple(tuple(levels_of(group, 8)) for group in graph.groups), "params"))
    nats = [
        [7.6], [2.7, 4.3], [7.3, 1.4], [1.7, 3.9], [4.1] * 3, [3.9] * 3, [9.5, 6.5, 3.1, 1.1], [3, 0.5, 0.5, 0.5],
        [8.3, 5.1, 3.2, 2.7, 2.3, 1.8, 1.3], [0] * 7, [0, 5.5, 5.3, 5.1, 3.6, 2.4, 1.6, 0.9], [0] * 8,
    ]  # fmt: skip
    scored = Scored(graph, np.ones(len(graph.layers)), [], [], priced, sensitivity=[np.array([*k, 0.0]) for k in nats])
    gone_G = np.where([group.block in ("stage3.1", "stage3.2") for group in graph.groups], 0, graph.full)
    every_G = np.ones(len(gone_G), dtype=bool)
    counts_G, _ = choose_within(priced, _worth(scored, uniform=False), graph.full, every_G, 0.5 * graph.params)
    assert counts_G.tolist() == gone_G.tolist()


@torch.no_grad()
def test_what_a_block_is_worth_is_what_answers_lose_without_it() -> None:
    made = make()
    priced, _ = priced_with_blocks(made, divisor=1)
    ranks = [torch.arange(group.units) for group in priced.graph.groups]
    plain = Scored(priced.graph, np.ones(len(priced.graph.layers)), ranks, ["stem", "stage1", "stage2", "head"], priced)
    own = with_sensitivity(plain, made, [IMAGES])
    assert own.sensitivity is not None

    def by_the_batch(network: nn.Module) -> Tensor:
        for module in network.modules():
            module.train(isinstance(module, nn.BatchNorm2d))
        return network(IMAGES).log_softmax(1)

    def lost(network: nn.Module) -> float:
        return float(F.kl_div(by_the_batch(copy.deepcopy(network)), true, log_target=True, reduction="batchmean"))

    true = made(IMAGES).log_softmax(1)
    for block in priced.graph.blocks:
        due = lost(leave_out(copy.deepcopy(made), [block.name])) - lost(made)
        assert sum(own.sensitivity[g][0] for g in block.groups) == pytest.approx(max(0.0, due), abs=1e-6)
        assert {own.sensitivities[g].units[0] for g in block.groups} == {0}
    assert any(losses_K[0] > 0.001 for losses_K in own.sensitivity)
    kept = [losses_K[-1] for losses_K in own.sensitivity]
    assert kept == [0.0] * len(kept) and all(np.isfinite(own_K).all() for own_K in _worth(own, uniform=False))
    without = with_sensitivity(
        Scored(priced.graph, plain.layer_importance, ranks, plain.stages, Timed(priced.graph, read(made)[1].levels, priced.model)),
        made, [IMAGES],
    )  # fmt: skip
    assert without.sensitivity is not None
    for group, all_K, kept_K in zip(priced.graph.groups, own.sensitivity, without.sensitivity, strict=True):
        assert all_K[bool(group.block) :].tolist() == kept_K.tolist()
