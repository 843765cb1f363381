"""Groups of channels that are alike, as those of one layer in all blocks are, and groups that lie beside each other."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from wmlc.compress.widths.graph import ChannelGroup, Place

AROUND = 3  # modules around a layer that are looked at


def likeness(group: ChannelGroup) -> tuple[str, ...]:
    """The same for groups of the same layers in other blocks."""
    return (without_digits(group.root), *sorted({without_digits(place.tensor) for place in group.places}))


def by_likeness(groups: Sequence[ChannelGroup]) -> list[list[ChannelGroup]]:
    """The groups of each kind."""
    return [list(alike) for _, alike in itertools.groupby(sorted(groups, key=likeness), key=likeness)]


def without_digits(name: str) -> str:
    """A name without the stage that it is in, and without the numbers of blocks."""
    return re.sub(r"\d+(?=.*\.)|(?<=\.)\d+$", "", name.partition(".")[2] or name)


def parents(name: str) -> list[str]:
    """The module called `name` and the three around it, the nearest first."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), max(0, len(parts) - 1 - AROUND), -1)]


def beside(groups: Sequence[ChannelGroup]) -> Iterator[list[list[ChannelGroup]]]:
    """Groups that may have to be cut as one: of each two kinds those that lie nearest, then all that lie near.

    One number may size several, as the channels of a head do queries, keys and values, though nothing else ties them.
    """
    near = _near(groups)
    for fewer, more in itertools.combinations(sorted(by_likeness(groups), key=len), 2):
        found = {group.root: [group] for group in fewer}
        for group in more:
            nearest = max(fewer, key=lambda other: near[group.root].get(other.root, 0))
            if nearest.root in near[group.root]:
                found[nearest.root].append(group)
        yield [together for together in found.values() if len(together) > 1]
    clusters = {group.root: {group.root} for group in groups}
    for root, others in near.items():
        joined = clusters[root].union(*(clusters[other] for other in others))
        clusters |= dict.fromkeys(joined, joined)
    several = {id(cluster): cluster for cluster in clusters.values() if len(cluster) > 2}
    yield [[group for group in groups if group.root in cluster] for cluster in several.values()]


def half_rooted(groups: Sequence[ChannelGroup]) -> bool:
    """Whether the root of a head's channels is seen in some groups' products, and in others' is not."""
    return len({group.rooted for group in groups if group.queries}) > 1


def united(groups: Sequence[ChannelGroup], as_seen: bool = False) -> ChannelGroup:
    """One group of several, whose units are cut together: as many as the fewest, of the others several a unit.

    Args: whether queries are rooted only where that was seen, the others being keys; else all are, where some are.
    """
    units = min(group.units for group in groups)

    def together(places: Iterable[Place]) -> tuple[Place, ...]:
        found: dict[tuple[str, int, bool], list[Tensor]] = {}
        for place in places:
            found.setdefault((place.tensor, place.dim, place.reads), []).append(place.positions.reshape(units, -1))
        return tuple(Place(name, dim, torch.cat(own, 1), reads) for (name, dim, reads), own in found.items())

    rooted = [group for group in groups if group.rooted or not as_seen]
    plain = [group for group in groups if as_seen and not group.rooted]
    keys = [
        *(place for group in groups for place in group.keys),
        *(place for group in plain for place in group.queries),
    ]
    return ChannelGroup(
        groups[0].root, units, places=together(place for group in groups for place in group.places),
        queries=together(place for group in rooted for place in group.queries), keys=together(keys),
        rooted=any(group.rooted for group in groups),
    )  # fmt: skip


def _near(groups: Sequence[ChannelGroup]) -> dict[str, dict[str, int]]:
    """By root, the groups that lie nearest to each, or to which it lies nearest, and how deep what they share is."""
    depths = {(one.root, other.root): _depth(one, other) for one, other in itertools.permutations(groups, 2)}
    deepest = dict.fromkeys((group.root for group in groups), 0)
    for (one, _), depth in depths.items():
        deepest[one] = max(deepest[one], depth)
    found: dict[str, dict[str, int]] = {group.root: {} for group in groups}
    for (one, other), depth in depths.items():
        if depth and depth in (deepest[one], deepest[other]):
            found[one][other] = depth
    return found


def _depth(one: ChannelGroup, other: ChannelGroup) -> int:
    """Of the innermost module that is around a layer of each; 0 where none is, or their units do not match."""
    around = [{name for maker in group.makers for name in parents(maker)} for group in (one, other)]
    units = sorted((one.units, other.units))
    return 0 if units[1] % units[0] else max((len(name.split(".")) for name in around[0] & around[1]), default=0)
