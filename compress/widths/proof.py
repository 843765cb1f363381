"""Is a group of channels cut right? A cut counts only where it gives the very logits that it must give.

*Exact* means: the network with channels cut gives the same logits, to a millionth of the largest, as the full network
in which they are muted: nothing reads them. Something may look at all channels at once (the mean that a layer norm
takes), and must then see those that are kept and no others; so a muted channel is made a copy of a kept one, which
leaves every mean as it is; attention's queries and keys are made zero, and where copies cannot be, all of it is.

It is tried in float64 on weights drawn anew, of such sizes that nothing is too small to be seen: a layer scale of
1e-6 would hide any mistake behind it.
"""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from wmlc.arch import whole_name
from wmlc.compress.widths.alike import beside, by_likeness, half_rooted, likeness, united
from wmlc.compress.widths.cut import cut_in_place
from wmlc.compress.widths.double import in_float64
from wmlc.compress.widths.graph import ChannelGraph, ChannelGroup, LeftWhole
from wmlc.compress.widths.grouping import graph_of, groups_of, out_of_groups
from wmlc.compress.widths.numbers import Names, numbers_around, sized, ways
from wmlc.compress.widths.trace import on_cpu, trace_channels
from wmlc.errors import InputError, one_line
from wmlc.models.residual import residual_blocks

EXACT = 1e-6  # of the largest logit
SMALLEST = torch.finfo(torch.float64).tiny  # that it is taken to be
SHARES = ((0.5,), (0.75, 0.5), (0.5, 0.75))  # of each group's units that are cut, in one trial after the other
STOPS = "cut, it stops with: "
SMALL_SIDE = 64  # pixels: channels hang together as in large images, where a network takes small ones at all


def read_channels(
    network: nn.Module, input_shape: tuple[int, int, int], whole: nn.Module | None = None, with_blocks: bool = False
) -> ChannelGraph:  # fmt: skip
    """The channel groups of the full network for images [C, H, W], each proven, and what the network costs.

    Args: the `whole` network, of which it is the stages; whether to look for residual blocks. Raises `InputError` where
    the network cannot be run on labels.
    """
    network, whole = on_cpu(network), whole and on_cpu(whole)  # so that a GPU has the groups that a CPU has
    example = torch.zeros(1, *input_shape, dtype=torch.float32, device=next(network.parameters()).device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the network's own
            traced = trace_channels(network, example)
    except Exception as error:  # whatever its code raises
        raise InputError(f"the network's channels cannot be traced: {one_line(error, 160)}") from None
    groups = groups_of(traced, network)
    quiet = contextlib.redirect_stderr(io.StringIO())  # fx prints every cut that stops
    with quiet, in_float64(network, example):
        prover = Prover(network, example)
        proven, left = prover.prove(groups)
        if traced.products and not prover.holds(proven, example):  # attention, for which small images had one place
            proven, left = Prover(network, example, whole=True).prove(groups)
    blocks = _blocks(network, input_shape, whole) if with_blocks else []
    return graph_of(network, traced, proven, left + out_of_groups(traced, network, groups), blocks)


def _blocks(network: nn.Module, input_shape: tuple[int, int, int], whole: nn.Module | None) -> list[str]:
    """The residual blocks of a network in stages: no stage as a whole, and none that the `whole` network needs."""
    images = torch.rand(1, *input_shape, generator=torch.Generator().manual_seed(0))
    images = images.to(next(network.parameters()).device)
    blocks = [name for name in residual_blocks(network, images) if "." in name]
    if whole is None:
        return blocks
    known = set(residual_blocks(whole, images))  # a peer is read as that
    return [name for name in blocks if whole_name(name) in known]


class Prover:
    """Tries cuts of one network, on a copy whose weights are drawn anew."""

    def __init__(self, network: nn.Module, example: Tensor, whole: bool = False) -> None:
        self.network = copy.deepcopy(network).double().eval().requires_grad_(False).cpu()
        self.draw = torch.Generator().manual_seed(0)
        _draw_weights(self.network, self.draw)
        self.images = _images(self.network, example, self.draw, whole)
        self.copies: dict[str, bool] = {}  # of a proven group, whether copies stood in its place, or zeros
        self.together: list[set[str]] = []  # groups that were exact together

    def prove(self, groups: Sequence[ChannelGroup]) -> tuple[list[ChannelGroup], list[LeftWhole]]:
        """The groups that can be cut, each and together, and the others with the reason."""
        order = {group.root: k for k, group in enumerate(groups)}
        proven, failed = self._split(sorted(groups, key=likeness), copies=True)
        if failed:
            muted, failed = self._split(failed, copies=False)
            proven += muted
        for alike in by_likeness(failed):
            proven += self._changed(alike)
        as_one, whole = self._united([group for group in failed if group.root not in _roots(proven)])
        proven += as_one
        reasons = {likeness(alike[0]): self._told(alike[0]) for alike in by_likeness(whole)}
        left = [LeftWhole(group.makers, reasons[likeness(group)]) for group in whole]
        proven.sort(key=lambda group: order[group.root])
        while proven and _roots(proven) not in self.together:
            why = self._trial(proven, SHARES[1])
            if why is None:
                break
            left.append(LeftWhole(proven.pop().makers, why))  # each is exact, but not all together
        return proven, left

    def holds(self, proven: Sequence[ChannelGroup], example: Tensor) -> bool:
        """Whether what was proven on small images is exact on images as large as `example`."""
        if not proven or self.images.shape[-2:] == example.shape[-2:]:
            return True
        self.images = _images(self.network, example, self.draw, whole=True)
        return self._trial(proven, SHARES[1]) is None

    def _split(self, groups: list[ChannelGroup], copies: bool) -> tuple[list[ChannelGroup], list[ChannelGroup]]:
        """The groups that are exact together under any shares, and those that are not; halves tell which.

        Groups that are alike come one after another, and where the first and the last of many fail, all are left.
        """
        self.copies |= dict.fromkeys((group.root for group in groups), copies)
        if not groups or self._why_not(groups) is None:
            return groups, []
        if len(groups) == 1:
            return [], groups
        kinds = by_likeness(groups)
        if len(kinds) == 1 and len(groups) > 2 and all(map(self._why_not, ([groups[0]], [groups[-1]]))):
            return [], groups
        middle = len(groups) // 2
        if len(kinds) > 1:  # between two kinds
            ends = list(itertools.accumulate(map(len, kinds)))[:-1]
            middle = min(ends, key=lambda end: abs(end - middle))
        parts = [self._split(half, copies) for half in (groups[:middle], groups[middle:])]
        return parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]

    def _united(self, failed: list[ChannelGroup]) -> tuple[list[ChannelGroup], list[ChannelGroup]]:
        """Of groups that cannot be cut alone, those that can as one with what lies beside them; and the others."""
        proven, whole = list[ChannelGroup](), failed
        for several, as_seen in itertools.product(beside(failed), (False, True)):
            several = [own for own in several if _roots(own) <= _roots(whole) and (half_rooted(own) or not as_seen)]
            parts = {own[0].root: _roots(own) for own in several}
            for alike in by_likeness([united(own, as_seen) for own in several]):
                exact = self._changed(alike)
                if len(exact) == len(alike):  # not by chance, as where a single head is as wide as all channels
                    used = set[str]().union(*(parts[group.root] for group in exact))
                    whole, proven = [group for group in whole if group.root not in used], proven + exact
        return proven, whole

    def _changed(self, alike: list[ChannelGroup]) -> list[ChannelGroup]:
        """Those of some groups that are exact once numbers in modules, or the root of some, shrink with them."""
        first = alike[0]
        ways_to_root = (True,) if first.rooted else (False, True) if first.queries else (False,)
        for names in ways(numbers_around(first, self.network)):
            for rooted, copies in itertools.product(ways_to_root, (True, False)):
                self.copies[first.root] = copies
                why = self._why_not([sized(first, self.network, names, rooted)])
                if why is None and (proven := self._sized_alike(alike, names, rooted, copies)):
                    return proven
                if why is not None and why.startswith(STOPS):
                    break  # whatever stands for its channels
        return []

    def _sized_alike(self, alike: list[ChannelGroup], names: Names, rooted: bool, copies: bool) -> list[ChannelGroup]:
        """Those of some groups that are exact as the first is, with no more numbers of these `names` than it needs."""
        for name in sorted({name for _, name in names}):
            fewer = {each for each in names if each[1] != name}
            if self._why_not([sized(alike[0], self.network, fewer, rooted)]) is None:
                names = fewer
        changed = [sized(group, self.network, names, rooted) for group in alike]
        return changed if len(changed) == 1 else self._split(changed, copies)[0]

    def _told(self, group: ChannelGroup) -> str:
        """The reason for which it is left whole."""
        self.copies[group.root] = True
        return self._why_not([group]) or "it is not exact"

    def _why_not(self, groups: Sequence[ChannelGroup]) -> str | None:
        """Why the groups are not exact together under all shares; None where they are."""
        for shares in SHARES:
            if why := self._trial(groups, shares):
                return why
        odd = {group.root: torch.arange(max(1, group.units - 1)) for group in groups}  # which halves may not tell
        if why := self._run(groups, odd)[1]:
            return why
        self.together.append(_roots(groups))
        return None

    def _trial(self, groups: Sequence[ChannelGroup], shares: tuple[float, ...]) -> str | None:
        """Why a cut of all these groups is not exact; None where it is."""
        kept = {group.root: self._keep(group, shares[k % len(shares)]) for k, group in enumerate(groups)}
        got, why = self._run(groups, kept)
        if why:
            return why
        with torch.no_grad(), _put_back(self.network, groups):
            for group in groups:
                if self.copies[group.root]:
                    _copy(self.network, group, kept[group.root], self.draw)
                else:
                    _mute(self.network, group, kept[group.root], reads=False)
            for group in groups:
                _mute(self.network, group, kept[group.root], reads=True)
            expected = self.network(self.images)
        apart = _apart(got, expected)
        return None if apart <= EXACT else f"cut, its logits are {apart:.1e} from what they must be"

    def _run(self, groups: Sequence[ChannelGroup], kept: Mapping[str, Tensor]) -> tuple[Any, str]:
        """What the network gives with those units of the groups, or why it stops."""
        try:
            parameters = {id(own): own for own in self.network.parameters()}  # that a cut replaces, and none changes
            cut = cut_in_place(copy.deepcopy(self.network, dict(parameters)), groups, kept)
            with torch.no_grad():
                return cut(self.images), ""
        except Exception as error:  # whatever a network's code raises
            return None, f"{STOPS}{one_line(error, 100)}"

    def _keep(self, group: ChannelGroup, share: float) -> Tensor:
        """Units to keep, of which the others are a multiple wherever that can be, so that all have as many copies."""
        left = max(1, round(group.units * (1 - share)))
        if group.units % left:
            fitting = [n for n in range(2, group.units) if group.units % n == 0]
            left = min(fitting, key=lambda n: abs(n - left), default=left)
        return torch.randperm(group.units, generator=self.draw)[: min(left, group.units - 1)].sort().values


def _images(network: nn.Module, example: Tensor, draw: torch.Generator, whole: bool) -> Tensor:
    """Noise to try cuts on: small unless it shall be `whole`, where the network takes that and gives what it should."""
    channels, *sides = example.shape[1:]
    large = torch.randn((1, channels, *sides), generator=draw, dtype=torch.float64)
    if whole or max(sides) <= SMALL_SIDE:
        return large
    small = large[:, :, :SMALL_SIDE, :SMALL_SIDE].contiguous()
    with torch.no_grad():
        try:
            logits = network(small)
        except Exception:  # it is of one size only
            return large
    return small if all(own.ndim == 2 and bool(own.isfinite().all()) for own in _tensors(logits)) else large


def _tensors(output: Any) -> list[Tensor]:
    """What a network gives: its logits, or the tensors in whatever holds them."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _apart(got: Any, expected: Any) -> float:
    """How far two outputs are apart, over the largest number in each of their tensors."""
    pairs = zip(_tensors(got), _tensors(expected), strict=True)
    apart = [(own - due).abs().max() / due.abs().max().clamp_min(SMALLEST) for own, due in pairs]
    return float(torch.stack(apart).max()) if apart else math.nan


def _roots(groups: Sequence[ChannelGroup]) -> set[str]:
    return {group.root for group in groups}


def _draw_weights(network: nn.Module, draw: torch.Generator) -> None:
    def normal(tensor: Tensor, size: float) -> Tensor:
        return torch.randn(tensor.shape, generator=draw, dtype=torch.float32) * size  # which is quicker

    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1 and parameter[0].numel() > 1:
                parameter.copy_(normal(parameter, parameter[0].numel() ** -0.5))
            elif name.endswith("weight"):
                parameter.copy_(torch.rand(parameter.shape, generator=draw, dtype=torch.float64) + 0.5)
            else:
                parameter.copy_(normal(parameter, 0.3))
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(normal(buffer, 0.1))
            elif name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=draw, dtype=torch.float64) + 0.5)


@contextlib.contextmanager
def _put_back(network: nn.Module, groups: Sequence[ChannelGroup]) -> Iterator[None]:
    """Within, the tensors of some groups may be written into; afterwards they are as before."""
    names = {place.tensor for group in groups for place in group.places}
    before = [(tensor, tensor.clone()) for tensor in (attrgetter(name)(network) for name in names)]
    try:
        yield
    finally:
        for tensor, values in before:
            tensor.copy_(values)


def _mute(network: nn.Module, group: ChannelGroup, kept: Tensor, reads: bool) -> None:
    """Set all that makes the other units to zero, or all that reads them."""
    lost = group.lost(kept)
    for place in group.places:
        if place.reads is reads:
            attrgetter(place.tensor)(network).index_fill_(place.dim, place.positions[lost].flatten(), 0)


def _copy(network: nn.Module, group: ChannelGroup, kept: Tensor, draw: torch.Generator) -> None:
    """Make each of the other units a copy of a kept one, all of these as often as it goes.

    Whose copy is drawn: in order, a layer that reads them in another order could find the right one by chance.
    """
    lost = group.lost(kept).nonzero().flatten()
    twin = kept[(torch.arange(len(lost)) % len(kept))[torch.randperm(len(lost), generator=draw)]]
    for place in group.places:
        if not place.reads:
            tensor = attrgetter(place.tensor)(network)
            copied = tensor.index_select(place.dim, place.positions[twin].flatten())
            tensor.index_copy_(place.dim, place.positions[lost].flatten(), copied)
    for place in (*group.queries, *group.keys):  # of which copies would count in their product
        attrgetter(place.tensor)(network).index_fill_(place.dim, place.positions[lost].flatten(), 0)
