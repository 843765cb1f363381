"""The widths that a latency table is measured at: all pairs of linked groups' levels in 64 networks. Takes 2 s."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from resizables import EIGHT, chain, linked_by, real

from wmlc.bench.latency.design import LEVELS, _times, design

FIELD = range(8)
# x is a root of x³ + x + 1, which makes each other element but 0 a power of it
POWERS = [1, 2, 4, 3, 6, 7, 5]


def pairs(counts_DG: np.ndarray, one: int, other: int) -> Counter[tuple[int, int]]:
    """How often two groups meet at each pair of counts."""
    return Counter((int(own[one]), int(own[other])) for own in counts_DG)


def the_64(counts_DG: np.ndarray) -> np.ndarray:
    """The plane's points: all but the full network, where that is none of them."""
    return counts_DG[-64:]


def test_the_product_is_that_of_the_field_of_eight_elements() -> None:
    log = {element: power for power, element in enumerate(POWERS)}
    for a, b in itertools.product(FIELD, FIELD):
        expected = POWERS[(log[a] + log[b]) % 7] if a and b else 0
        assert _times(a, b) == expected, (a, b)


def test_the_field_is_a_field() -> None:
    for a, b, c in itertools.product(FIELD, FIELD, FIELD):
        assert _times(a, _times(b, c)) == _times(_times(a, b), c)
        assert _times(a, b ^ c) == _times(a, b) ^ _times(a, c)
    for a in FIELD[1:]:
        assert sorted(_times(a, b) for b in FIELD) == list(FIELD), "every other element has an inverse"
        assert _times(a, 1) == a == _times(1, a)


@pytest.mark.parametrize("groups", [1, 2, 3, 9])
def test_all_groups_that_are_linked_meet_at_each_pair_once(groups: int) -> None:
    """A concatenation of all: nine directions are as many as the plane has."""
    everyone = list(itertools.permutations(range(groups), 2)) or [(0, 0)]
    counts_DG = design(linked_by(everyone, [EIGHT] * groups))
    assert len(counts_DG) in (64, 65) if groups > 1 else len(counts_DG) == LEVELS
    for one, other in itertools.combinations(range(groups), 2):
        met = pairs(the_64(counts_DG), one, other)
        assert set(met) == set(itertools.product(EIGHT, EIGHT)) and set(met.values()) == {1}


def test_a_chain_of_any_length_meets_at_each_pair_once() -> None:
    counts_DG = design(chain([EIGHT] * 20))
    for one in range(19):
        assert set(pairs(the_64(counts_DG), one, one + 1).values()) == {1}


@pytest.mark.parametrize("few", [1, 2, 3, 5, 7])
def test_groups_of_fewer_levels_meet_at_each_pair(few: int) -> None:
    levels = [EIGHT, tuple(range(1, few + 1)), (4, 8), tuple(range(2, 2 * few + 1, 2)), EIGHT]
    counts_DG = design(chain(levels))
    for one in range(len(levels) - 1):
        assert set(pairs(counts_DG, one, one + 1)) == set(itertools.product(levels[one], levels[one + 1]))


def test_the_full_network_comes_first_and_none_twice() -> None:
    for levels in ([EIGHT] * 12, [(3,)], [(4, 8), (4, 8)], [EIGHT, (1, 2)]):
        counts_DG = design(chain(levels))
        assert counts_DG[0].tolist() == [own[-1] for own in levels]
        assert len({tuple(own) for own in counts_DG.tolist()}) == len(counts_DG) <= 65
    assert design(chain([(3,)])).tolist() == [[3]]
    assert len(design(chain([(4, 8), (4, 8)]))) == 4


def test_more_groups_in_one_place_than_there_are_directions_still_see_all_their_levels() -> None:
    """As in DenseNet, where a layer takes what ten others give: not all pairs are met, but each level is."""
    everyone = list(itertools.combinations(range(12), 2))
    counts_DG = design(linked_by(everyone, [EIGHT] * 12))
    assert counts_DG[0].tolist() == [64] * 12 and len(counts_DG) <= 65
    assert all(set(own) == set(EIGHT) for own in counts_DG.T.tolist())


@pytest.mark.parametrize("name", ["mixed", "residual", "concat", "grouped"])
def test_layers_of_real_networks_are_met_at_all_pairs_of_their_widths(name: str) -> None:
    network = real(name)
    counts_DG = design(network)
    seen_DL2 = np.array([network.channels(own) for own in counts_DG])
    for layer, (rows_G, columns_G) in enumerate(zip(network.rows, network.columns, strict=True)):
        own = np.flatnonzero((rows_G != 0) | (columns_G != 0))
        if len(own) > 2:
            continue  # of a concatenation the groups in it meet the one after it, which the next test holds
        possible = set()
        for levels in itertools.product(*(network.levels[group] for group in own)):
            counts_G = network.full
            counts_G[own] = levels
            possible.add(tuple(network.channels(counts_G)[layer].tolist()))
        assert {tuple(pair) for pair in seen_DL2[:, layer].tolist()} == possible, network.layers[layer]


def test_groups_that_are_put_together_meet_pair_by_pair() -> None:
    network = real("mixed")
    counts_DG, linked_GG = design(network), network.linked()
    assert linked_GG.any() and not linked_GG.diagonal().any() and (linked_GG == linked_GG.T).all()
    for one, other in zip(*np.nonzero(np.triu(linked_GG)), strict=True):
        assert set(pairs(counts_DG, one, other)) == set(itertools.product(network.levels[one], network.levels[other]))
