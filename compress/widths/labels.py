"""Labels on the channels of a network's tensors, and which of them are tied.

A plane is a tensor of labels shaped as the tensor that it is about, with size 1 along a dimension on which the labels
do not depend; a tensor has one for each way its channels run.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from wmlc.models.widths import is_even

FIXED = 0  # the label of what cannot be cut
PAIR = 2**31  # a pair of labels as one number: PAIR · one + other


class Labels:
    """Labels of a network's parameters and buffers, a fresh one for each position along each of their dimensions."""

    def __init__(self, network: nn.Module) -> None:
        saved = network.state_dict().keys()  # of a buffer that isn't, no file would hold what a cut leaves
        buffers = ((name, own) for name, own in network.named_buffers() if name in saved or is_even(own))
        self.names = {id(tensor): name for name, tensor in itertools.chain(network.named_parameters(), buffers)}
        self.network = network  # kept, so that no id is given away
        self.count = 1  # of labels; 0 is FIXED
        self.places: list[tuple[int, str, int]] = []  # the first label of a tensor's dimension
        self.ties: list[Tensor] = []  # pairs of labels
        self._frozen = {FIXED}
        self.queries: list[Tensor] = []  # labels of left factors, over which products of activations sum
        self.keys: list[Tensor] = []  # of right ones
        self.rooted: list[Tensor] = []  # of queries whose products are divided by the root of a head's channels
        self.biases: list[Tensor] = []  # pairs of labels: of what is added to rows of weights, and of these
        self.shares: list[Tensor] = []  # labels of channels that a softmax went along
        self._planes: dict[int, tuple[Tensor, list[Tensor]]] = {}

    def planes(self, tensor: Tensor) -> list[Tensor]:
        """The planes of a tensor; a parameter or buffer gets its labels when it is first met."""
        known = self._planes.get(id(tensor))
        if known is not None:
            return known[1]
        name = self.names.get(id(tensor))
        planes = []
        if name is not None:
            for dim, size in enumerate(tensor.shape):
                if size > 1:
                    self.places.append((self.count, name, dim))
                    shape = [size if d == dim else 1 for d in range(tensor.ndim)]
                    planes.append(torch.arange(self.count, self.count + size).view(shape))
                    self.count += size
        self._planes[id(tensor)] = (tensor, planes)
        return planes

    def give(self, tensor: Tensor, planes: Sequence[Tensor]) -> None:
        """Note the planes of a tensor, those that say nothing left out."""
        self._planes[id(tensor)] = (tensor, [p for p in map(compressed, planes) if p.numel() > 1 or int(p) != FIXED])

    def tie(self, one: Tensor, other: Tensor) -> None:
        """What two planes, broadcast against each other, have at the same place is cut together."""
        self.ties.append(_pairs(one, other))

    def note_bias(self, bias: Tensor, rows: Tensor) -> None:
        """Note a plane of what is added to rows of a weight: it goes with them wherever they are queries or keys."""
        self.biases.append(_pairs(bias, rows))

    def freeze(self, planes: Sequence[Tensor]) -> None:
        """What these planes hold cannot be cut."""
        for plane in planes:
            self.tie(plane, torch.tensor(FIXED))
            self._frozen.update(plane.flatten().tolist())

    def drop_frozen_beside(self, tensor: Tensor) -> None:
        """Forget of the planes that a view has laid along one dimension those that were frozen before.

        As of heads, whose number stays, beside the channels that each has: these can be cut all the same.
        """
        planes = self.planes(tensor)
        living = [plane for plane in planes if not self._frozen.issuperset(plane.flatten().tolist())]
        beside = set[int]().union(*map(along, living))
        self.give(tensor, [own for own in planes if any(own is one for one in living) or not along(own) & beside])

    def vectors(self, tensor: Tensor, dim: int) -> list[Tensor]:
        """The labels of a tensor's channels along `dim`, those that depend on other dimensions too being frozen."""
        found = []
        for plane in self.planes(tensor):
            if along(plane) == {dim}:
                found.append(plane.flatten())
            elif dim in along(plane):
                self.freeze([plane])
        return found

    def tie_vector(self, tensor: Tensor, dim: int, vector: Tensor | None) -> None:
        """Tie the channels of `tensor` along `dim` to what a parameter [C] holds for each."""
        if vector is None:
            return
        own = self.planes(vector)
        for plane in self.planes(tensor):
            if dim in along(plane):
                if not own:
                    self.freeze([plane])
                for its in own:
                    self.tie(plane, its.view([-1 if d == dim else 1 for d in range(tensor.ndim)]))
        if not any(dim in along(plane) for plane in self.planes(tensor)):
            self.freeze(own)

    def meet(self, one: Tensor, other: Tensor) -> None:
        """Tie two planes that meet in a sum or product along some dimension, unless only heads meet there.

        Channels come after the heads in a view and get fewer, while the number of heads stays: a plane along heads
        alone is frozen, and channels along two dimensions, each beside the same heads, have nothing to do with each
        other.
        """
        coarse, fine = sorted((one, other), key=lambda plane: len(along(plane)))
        few, many = along(coarse), along(fine)
        if few < many and max(many) not in few:
            self.freeze([coarse])
        elif max(few) in many or max(many) in few:
            self.tie(one, other)

    def sum_over(self, lefts: Sequence[Tensor], rights: Sequence[Tensor], rooted: bool = False) -> None:
        """Note the planes over which a product of activations sums, unless they are shares."""
        shares = set(torch.cat([torch.zeros(0, dtype=torch.int64), *self.shares]).tolist())
        lefts = [plane for plane in lefts if not shares.issuperset(plane.flatten().tolist())]
        if not lefts:
            return
        self.queries += [plane.flatten() for plane in lefts]
        self.keys += [plane.flatten() for plane in rights]
        self.rooted += [plane.flatten() for plane in lefts if rooted]

    def tie_all(self, some: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        """Tie what meets in a sum; where one side has no channels, the other cannot be cut."""
        if not some or not others:
            self.freeze([*some, *others])
        for one, other in itertools.product(some, others):
            self.tie(one, other)
        for each in (some, others):
            for one, other in itertools.pairwise(each):
                self.tie(one, other)

    def freeze_against(self, plane: Tensor, others: Sequence[Tensor], ndim: int) -> None:
        """Freeze a plane that meets, along all its dimensions, numbers without channels, unless one is repeated there.

        Where it meets them along some, such as a number of each head, a unit is a part of each.
        """
        for other in others:
            sizes = (size if stride else 1 for size, stride in zip(other.shape, other.stride(), strict=True))
            shape = [1] * (ndim - other.ndim) + list(sizes)
            meeting = {d for d in along(plane) if shape[d] > 1}
            labelled: set[int] = set()
            for its in self.planes(other):
                labelled |= {d + ndim - other.ndim for d in along(its)}
            if unlike := meeting - labelled:
                self.freeze([plane]) if unlike == along(plane) else self.tie(plane, narrowed(plane, sorted(unlike)))

    def roots(self) -> np.ndarray:
        """For each label the least one that it is tied to; of what cannot be cut FIXED."""
        ties = torch.cat([torch.zeros(0, dtype=torch.int64), *self.ties]).unique().numpy()
        return _components(self.count, ties // PAIR, ties % PAIR)

    def units(self, roots: np.ndarray) -> dict[int, dict[tuple[str, int], list[int]]]:
        """By its root what is tied, as {(tensor name, dimension): positions}, without what cannot be cut."""
        units: dict[int, dict[tuple[str, int], list[int]]] = {}
        ends = [*(start for start, _, _ in self.places[1:]), self.count]
        for (start, name, dim), end in zip(self.places, ends, strict=True):
            for position, root in enumerate(roots[start:end].tolist()):
                if root != FIXED:
                    units.setdefault(root, {}).setdefault((name, dim), []).append(position)
        return units

    def sides_of(self, sides: Sequence[Tensor], roots: np.ndarray) -> list[list[tuple[str, int, int]]]:
        """Where the labels along some `sides` [size] were given, of those sides whose every position can be cut."""
        found = [roots[side.numpy()].tolist() for side in sides]
        return [[self.place_of(root) for root in side] for side in found if FIXED not in side]

    def weight_of(self, planes: Sequence[Tensor]) -> str | None:
        """The parameter whose rows and columns these planes are, if they are."""
        first = [int(plane.flatten()[0]) for plane in planes]
        if FIXED in first:
            return None
        places = [self.place_of(label) for label in first]
        names, dims = {name for name, _, _ in places}, {dim for _, dim, _ in places}
        return names.pop() if len(names) == 1 and len(dims) > 1 else None

    def places_of(self, vectors: Sequence[Tensor]) -> frozenset[tuple[str, int, int]]:
        """Where the labels of some vectors, and of biases beside them, were given, but for FIXED; see `place_of`."""
        labels = torch.cat([torch.zeros(0, dtype=torch.int64), *vectors]).unique()
        biases = [(pairs // PAIR)[torch.isin(pairs % PAIR, labels)] for pairs in self.biases]
        return frozenset(self.place_of(label) for label in torch.cat([labels, *biases]).tolist() if label != FIXED)

    def place_of(self, label: int) -> tuple[str, int, int]:
        """Where a label that is not FIXED was given: the tensor's name, its dimension, the position along that."""
        start, name, dim = self.places[bisect.bisect_right(self.places, label, key=lambda place: place[0]) - 1]
        return name, dim, label - start


def along(plane: Tensor) -> set[int]:
    """The dimensions on which the labels depend."""
    return {dim for dim, size in enumerate(plane.shape) if size > 1}


def narrowed(plane: Tensor, dims: Sequence[int]) -> Tensor:
    """The plane's first place along each of `dims`."""
    for dim in dims:
        plane = plane.narrow(dim, 0, 1)
    return plane


def compressed(plane: Tensor) -> Tensor:
    """The plane with size 1 along each dimension on which its labels do not depend."""
    for dim, size in enumerate(plane.shape):
        if size > 1 and (plane.stride(dim) == 0 or bool((plane == plane.narrow(dim, 0, 1)).all())):
            plane = plane.narrow(dim, 0, 1)
    return plane


def _pairs(one: Tensor, other: Tensor) -> Tensor:
    """What two planes, broadcast against each other, have at the same place, as PAIR · one + other."""
    left, right = torch.broadcast_tensors(one, other)
    return torch.unique(left.flatten() * PAIR + right.flatten())


def _components(count: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """For each of `count` labels the least one that it is tied to, over any number of the ties `one`–`other` [n]."""
    least = np.arange(count)
    while True:
        lower = np.minimum(least[one], least[other])
        now = least.copy()
        np.minimum.at(now, least[one], lower)
        np.minimum.at(now, least[other], lower)
        now = np.minimum(now, now[now])
        while not np.array_equal(now, now[now]):
            now = now[now]
        if np.array_equal(now, least):
            return least
        least = now
