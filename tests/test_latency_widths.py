"""Widths that keep the most within milliseconds, against trying all there are. Takes 9 s."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
from resizables import LayerMs, chain, graph_like, linked_by, table_by

from wmlc.compress.widths.budget import P_UP
from wmlc.compress.widths.choose import EVENNESS
from wmlc.compress.widths.knapsack import choose_within, knapsack
from wmlc.compress.widths.prices import Priced, Timed
from wmlc.latency_model import LatencyModel
from wmlc.models.resizable import Resizable

LEVELS = tuple(range(1, 9))
SHARES = (0.02, 0.1, 0.35, 0.5, 0.65, 0.8, 0.95)  # of what lies between the fastest network and the whole one
TIGHT, LITTLE = 0.35, 0.05  # of SHARES: below it up to so much of all worth may be missed


@dataclass(frozen=True)
class Instance:
    """A network of numbers with prices, and all widths there are: their counts [N, G], milliseconds, worth."""

    priced: Priced
    worth: list[np.ndarray]
    all_NG: np.ndarray
    ms_N: np.ndarray
    worth_N: np.ndarray
    fits_N: np.ndarray

    @property
    def full_G(self) -> np.ndarray:
        return self.priced.graph.full

    def chosen(
        self, budget_ms: float, free: tuple[int, ...] | None = None, least_macs: float = 0.0
    ) -> tuple[np.ndarray, float]:
        free_G = np.ones(len(self.full_G), dtype=bool) if free is None else np.isin(np.arange(len(self.full_G)), free)
        return choose_within(self.priced, self.worth, self.full_G, free_G, budget_ms, least_macs)

    def value(self, counts_G: np.ndarray) -> float:
        return sum(float(own[count - 1]) for own, count in zip(self.worth, counts_G, strict=True))

    def budgets(self) -> list[float]:
        least, most = self.ms_N[self.fits_N].min(), self.ms_N[-1]
        return [float(least + share * (most - least)) for share in SHARES]

    def best(self, budget_ms: float) -> float:
        return float(self.worth_N[self.fits_N & (self.ms_N <= budget_ms)].max())


def instance(network: Resizable, layer_ms: LayerMs, worth: list[np.ndarray]) -> Instance:
    table = table_by(network, layer_ms, overhead_ms=0.1, scale=1.1)
    priced = Timed(graph_like(network), network.levels, LatencyModel(table))
    all_NG = np.array(list(itertools.product(*network.levels)))
    worth_N = np.array([sum(own[count - 1] for own, count in zip(worth, each, strict=True)) for each in all_NG])
    return Instance(
        priced, worth, all_NG, np.array([priced.cost(each) for each in all_NG]), worth_N,
        np.array([priced.fits(each) for each in all_NG]),
    )  # fmt: skip


def falling(makers: float) -> np.ndarray:
    """What a group of eight levels is worth, as `choose.py` says: the more so the less is left."""
    return makers * (1 - (LEVELS[-1] / np.array(LEVELS)) ** EVENNESS)


@functools.cache
def drawn(seed: int, coupled: bool) -> Instance:
    """Three or four groups in a chain of layers that work in blocks of channels; `coupled`: of both sides at once."""
    draw, groups = np.random.default_rng(seed), 3 + seed % 2
    each_in, each_out, both = draw.uniform(0, 1, (3, groups + 1))
    blocks = draw.integers(1, 4, (groups + 1, 2))

    def layer_ms(place: int, into: int, out: int) -> float:
        into, out = (int(-(-own // block) * block) for own, block in zip((into, out), blocks[place], strict=True))
        return 0.05 + 0.1 * (each_in[place] * into + each_out[place] * out) + 0.05 * coupled * both[place] * into * out

    return instance(chain([LEVELS] * groups), layer_ms, [falling(own) for own in draw.integers(1, 4, groups)])


@pytest.mark.parametrize("seed", range(8))
def test_the_knapsack_finds_what_trying_all_finds(seed: int) -> None:
    draw = np.random.default_rng(seed)
    choices = []
    for size in draw.integers(1, 6, draw.integers(1, 6)):
        costs = draw.integers(0, 200, size).astype(float)  # whole parts of the room, which rounding leaves as they are
        choices.append((costs - costs.min(), draw.uniform(-1, 1, size)))
    for room in (100.0, 200.0, 500.0, 1000.0):
        chosen = knapsack(choices, room)
        every = itertools.product(*(range(len(costs)) for costs, _ in choices))
        spent, worth = _sums(choices, chosen)
        assert spent <= room
        assert worth == pytest.approx(max(w for s, w in (_sums(choices, each) for each in every) if s <= room))


def _sums(choices: list[tuple[np.ndarray, np.ndarray]], picked: tuple[int, ...] | list[int]) -> tuple[float, float]:
    parts = [(costs[k], worths[k]) for (costs, worths), k in zip(choices, picked, strict=True)]
    return sum(float(cost) for cost, _ in parts), sum(float(worth) for _, worth in parts)


def test_a_knapsack_without_room_takes_what_costs_nothing() -> None:
    choices = [(np.array([0.0, 1.0]), np.array([1.0, 9.0])), (np.array([2.0, 0.0]), np.array([9.0, 1.0]))]
    assert knapsack(choices, 0.0) == [0, 1] and knapsack([], 1.0) == []
    assert knapsack(choices, 3.01) == [1, 0] and knapsack(choices, 2.999) == [0, 0]  # costs are rounded up


@pytest.mark.parametrize("coupled", [False, True], ids=["separable", "coupled"])
@pytest.mark.parametrize("seed", range(8))
def test_no_widths_are_worth_more(seed: int, coupled: bool) -> None:
    """Where the cap binds too, near the fastest network there is, some little may be missed."""
    one = drawn(seed, coupled)
    for share, budget_ms in zip(SHARES, one.budgets(), strict=True):
        counts_G, _ = one.chosen(budget_ms)
        assert one.priced.cost(counts_G) <= budget_ms and one.priced.fits(counts_G)
        missing, most = one.best(budget_ms) - one.value(counts_G), -one.worth_N.min()
        assert missing <= (1e-9 if share >= TIGHT else LITTLE * most), share


@pytest.mark.parametrize("seed", range(8))
def test_no_widths_that_keep_as_many_macs_are_worth_much_more(seed: int) -> None:
    one = drawn(seed, True)
    macs_N = _macs(one, one.all_NG)
    for budget_ms in one.budgets()[2:-1:2]:
        within_N = one.fits_N & (one.ms_N <= budget_ms)
        freely_G, _ = one.chosen(budget_ms)
        fewest, most = float(_macs(one, freely_G)), float(macs_N[within_N].max())
        assert one.chosen(budget_ms, least_macs=fewest)[0].tolist() == freely_G.tolist()
        least = fewest + 0.25 * (most - fewest)
        counts_G, _ = one.chosen(budget_ms, least_macs=least)
        assert one.priced.cost(counts_G) <= budget_ms and one.priced.fits(counts_G) and _macs(one, counts_G) >= least
        best = float(one.worth_N[within_N & (macs_N >= least)].max())
        assert best - one.value(counts_G) <= LITTLE * -one.worth_N.min()
        counts_G, _ = one.chosen(budget_ms, least_macs=1.0)  # which no widths keep
        assert one.priced.cost(counts_G) <= budget_ms and least <= _macs(one, counts_G) <= most


def test_of_widths_that_are_worth_the_same_those_that_keep_macs_are_found() -> None:
    one = drawn(2, True)
    alike = replace(one, worth=[np.zeros_like(own) for own in one.worth])
    budget_ms, least = one.budgets()[2], 0.6
    counts_G, _ = alike.chosen(budget_ms, least_macs=least)
    assert _macs(one, counts_G) >= least > _macs(one, alike.chosen(budget_ms)[0])
    assert alike.chosen(2 * float(one.ms_N[-1]), least_macs=1.5)[0].tolist() == one.full_G.tolist()


def _macs(one: Instance, counts: np.ndarray) -> np.ndarray:
    """Of the whole network's, at counts [G] or [N, G]."""
    return one.priced.graph.size(counts, "macs") / one.priced.graph.macs


@pytest.mark.parametrize("coupled", [False, True], ids=["separable", "coupled"])
def test_more_milliseconds_are_never_worth_less(coupled: bool) -> None:
    one = drawn(3, coupled)
    budgets = np.linspace(one.ms_N[one.fits_N].min(), one.ms_N[-1], 25)
    worths = [one.value(one.chosen(budget_ms)[0]) for budget_ms in budgets]
    assert worths == sorted(worths) and worths[-1] == 0.0, "the whole network is what nothing is missing of"


def test_a_budget_of_the_whole_network_cuts_nothing() -> None:
    one = drawn(1, True)
    assert one.chosen(float(one.ms_N[-1]))[0].tolist() == one.full_G.tolist()


@pytest.mark.parametrize("coupled", [False, True], ids=["separable", "coupled"])
@pytest.mark.parametrize("seed", range(8))
def test_the_least_is_the_least_there_is(seed: int, coupled: bool) -> None:
    """Also where a dear group could only be narrower if a cheap one beside it were wider, for the cap's sake."""
    one = drawn(seed, coupled)
    counts_G, least_ms = one.chosen(0.0)
    assert one.priced.cost(counts_G) == pytest.approx(least_ms) and one.priced.fits(counts_G)
    assert least_ms == pytest.approx(one.ms_N[one.fits_N].min())
    counts_G, least_ms = one.chosen(least_ms * (1 + 1e-12))
    assert one.priced.cost(counts_G) == pytest.approx(least_ms), "a budget of just that is met"


def test_no_layer_loses_more_than_the_cap() -> None:
    one = drawn(2, True)
    counts_G, _ = one.chosen(0.0)
    left_L = one.priced.graph.layer_sizes(counts_G, "params") / one.priced.graph.layer_sizes(one.full_G, "params")
    assert left_L.min() >= 1 - P_UP - 1e-9 and not one.fits_N.all()


@pytest.mark.parametrize("free", [(0,), (1, 2), (3,), ()])
def test_groups_that_are_not_free_stay_as_they_are(free: tuple[int, ...]) -> None:
    one = drawn(5, True)
    assert len(one.full_G) == 4
    start_G = np.array([6, 7, 8, 5])
    free_G = np.isin(np.arange(4), free)
    of_these_N = (one.all_NG[:, ~free_G] == start_G[~free_G]).all(1) & one.fits_N
    for budget_ms in np.quantile(one.ms_N[of_these_N], [0.0, 0.3, 0.6, 1.0]):
        counts_G, _ = choose_within(one.priced, one.worth, start_G, free_G, float(budget_ms))
        assert counts_G[~free_G].tolist() == start_G[~free_G].tolist()
        best = one.worth_N[of_these_N & (one.ms_N <= budget_ms)].max()
        assert one.value(counts_G) == pytest.approx(best) and one.priced.cost(counts_G) <= budget_ms + 1e-12
    _, least_ms = choose_within(one.priced, one.worth, start_G, free_G, 0.0)
    assert least_ms == pytest.approx(one.ms_N[of_these_N].min())


def test_a_width_that_the_kernels_dislike_is_left_out() -> None:
    """Where five channels take longer than six, as where an engine leaves its layout, nobody gets five."""

    def layer_ms(place: int, into: int, out: int) -> float:
        return 0.1 + 0.01 * into * out + 0.5 * (out % 2 == 1)

    one = instance(chain([LEVELS] * 3), layer_ms, [falling(1)] * 3)
    for budget_ms in one.budgets():
        counts_G, _ = one.chosen(budget_ms)
        assert not (counts_G % 2).any() and one.value(counts_G) == pytest.approx(one.best(budget_ms))


def test_a_concatenation_is_chosen_as_well() -> None:
    """A layer that takes two groups' channels, and gives a third's; those are linked three ways."""
    network = linked_by([(None, 0), (0, 1), (0, 2), (2, None)], [LEVELS] * 3)
    network.columns[2, 1] = 1  # the third layer takes the first two groups side by side

    def layer_ms(place: int, into: int, out: int) -> float:
        return 0.05 + (0.02 + 0.01 * place) * into * out

    one = instance(network, layer_ms, [falling(1), falling(2), falling(1)])
    for budget_ms in one.budgets():
        counts_G, _ = one.chosen(budget_ms)
        assert one.priced.cost(counts_G) <= budget_ms and one.priced.fits(counts_G)
        assert one.value(counts_G) == pytest.approx(one.best(budget_ms))


def test_what_a_group_changes_is_the_difference_of_two_networks() -> None:
    one = drawn(7, True)
    counts_G = np.array([5, 3, 8, 2])
    for group, units in itertools.product(range(4), (1, 4, 8)):
        moved_G = counts_G.copy()
        moved_G[group] = units
        expected = one.priced.cost(moved_G) - one.priced.cost(counts_G)
        assert one.priced.change(counts_G, moved_G) == pytest.approx(expected)
