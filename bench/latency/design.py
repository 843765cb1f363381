"""At which widths a network is measured, so that few whole networks show every layer at all pairs of its widths.

A layer's time hangs on two widths, what it takes and what it gives. With eight levels a group, 64 networks are enough
for all layers at once: their widths are lines of the affine plane over the field of eight elements. A network is a
point (i, j) of that plane, a group's level a linear function of the point, and two groups with functions in different
directions meet at all 64 pairs of levels, at each just once (an orthogonal array of strength 2; Bose and Bush, 1952).

G channel groups, D networks of the design
"""

from __future__ import annotations

import numpy as np

from wmlc.models.resizable import LEVELS, Resizable

DIRECTIONS = ((1, 0), (0, 1), *((1, slope) for slope in range(1, LEVELS)))
IRREDUCIBLE = 0b1011  # x³ + x + 1, over the field of two elements


def design(network: Resizable) -> np.ndarray:
    """The counts [D, G] of all networks to be measured, the first the full one; fewer where levels are few."""
    directions = _directions(network.linked())
    counts: dict[tuple[int, ...], None] = {tuple(network.full.tolist()): None}
    for i in range(LEVELS):
        for j in range(LEVELS):
            places = [_times(a, i) ^ _times(b, j) for a, b in directions]
            own = [levels[place * len(levels) // LEVELS] for levels, place in zip(network.levels, places, strict=True)]
            counts.setdefault(tuple(own))
    return np.array(list(counts), dtype=int).reshape(-1, len(network.levels))


def _directions(linked_GG: np.ndarray) -> list[tuple[int, int]]:
    """A direction for each group, another one than those of all groups that it sizes a layer with, while there are."""
    chosen: list[int] = []
    for group in range(len(linked_GG)):
        taken = {chosen[other] for other in np.flatnonzero(linked_GG[group, :group])}
        free = [direction for direction in range(len(DIRECTIONS)) if direction not in taken]
        chosen.append(free[0] if free else group % len(DIRECTIONS))
    return [DIRECTIONS[index] for index in chosen]


def _times(a: int, b: int) -> int:
    """The product of two elements of the field, polynomials over the field of two elements as bits."""
    product = 0
    for bit in range(3):
        if b >> bit & 1:
            product ^= a << bit
    for bit in (4, 3):
        if product >> bit & 1:
            product ^= IRREDUCIBLE << (bit - 3)
    return product
