"""Whole numbers that modules keep beside their tensors, such as the channels of a head, and that a cut must lower."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from operator import attrgetter

from torch import nn

from wmlc.compress.widths.alike import parents, without_digits
from wmlc.compress.widths.cut import KNOWN
from wmlc.compress.widths.graph import ChannelGroup, Number

Names = set[tuple[str, str]]  # of numbers, as (module without block numbers, attribute)


def sized(group: ChannelGroup, network: nn.Module, names: Names, rooted: bool) -> ChannelGroup:
    """The group with those numbers around it that are called `names`, its queries `rooted` or not."""
    found = (number for number, _ in numbers_around(group, network))
    return replace(group, attributes=tuple(n for n in found if _named_alike(n) in names), rooted=rooted)


def numbers_around(group: ChannelGroup, network: nn.Module) -> list[tuple[Number, bool]]:
    """Whole numbers of the modules around a group's layers that are as large as what these have of it.

    And whether they are about layers that read the group.
    """
    found: dict[tuple[str, str], tuple[Number, bool]] = {}
    a_unit = {group.units: 1}
    for place in group.places:
        each = place.positions.shape[1]
        a_unit |= {group.units * each: each, attrgetter(place.tensor)(network).shape[place.dim]: each}
    for place in group.places:
        for owner in parents(place.module):
            for name, index, value in _whole_numbers(network.get_submodule(owner)):
                if value in a_unit:
                    found.setdefault((owner, name), (Number(owner, name, a_unit[value], index), place.reads))
    return list(found.values())


def ways(found: Sequence[tuple[Number, bool]]) -> Iterator[Names]:
    """Which of the numbers to try: none, all, those about layers that read or make the group, those of a name, one."""
    named = [(_named_alike(number), reads) for number, reads in found]
    sets: list[Names] = [set(), {key for key, _ in named}]
    sets += [{key for key, reads in named if reads is side} for side in (True, False)]
    sets += [{key for key, _ in named if key[1] == name} for name in dict.fromkeys(key[1] for key, _ in named)]
    sets += [{key} for key, _ in named]
    tried: list[Names] = []
    for names in sets:
        if names not in tried:
            tried.append(names)
            yield names


def _named_alike(number: Number) -> tuple[str, str]:
    """The same for numbers of the same modules in other blocks, though a block has but a number for its name."""
    return without_digits(f"{number.module}."), number.name


def _whole_numbers(module: nn.Module) -> Iterator[tuple[str, int | None, int]]:
    """A module's own whole numbers and those in its tuples, by name and place, unless a cut sets them anyway."""
    if isinstance(module, KNOWN):
        return
    for name, value in vars(module).items():
        several = isinstance(value, tuple) and all(type(each) is int for each in value)
        if not name.startswith("_") and (several or type(value) is int):
            yield from ((name, k, each) for k, each in enumerate(value)) if several else [(name, None, value)]
