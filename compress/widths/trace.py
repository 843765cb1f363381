"""Which channels of a network hang together, found by running it once on labels beside its numbers.

Every position along a dimension of every parameter gets a label of its own, and each operation of the forward pass says
what becomes of labels: a convolution or matrix product ties the channels that come in to the columns of its weight and
hands on the labels of its rows; an addition ties what it adds; views, concatenations and shuffles move labels as they
move numbers, since the very same operation is applied to them. What was tied can only be cut together.

Nothing is known of layer types, so that any network will do. What an operation that is not known here touches is left
whole, and so is what ends in the network's output. A plane is a tensor of labels shaped as the tensor that it is about,
with size 1 along a dimension on which the labels do not depend; a tensor has one for each way its channels run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten

FIXED = 0  # the label of what cannot be cut

# Operations that move numbers and change none: the same is done to labels.
MOVES = {
    aten.view, aten._unsafe_view, aten.reshape, aten.permute, aten.transpose, aten.t, aten.slice, aten.select, aten.cat,
    aten.stack, aten.split, aten.split_with_sizes, aten.unbind, aten.expand, aten.alias, aten.detach, aten.unsqueeze,
    aten.squeeze, aten.flip, aten.roll, aten.repeat, aten.pixel_shuffle, aten.pixel_unshuffle, aten.index,
    aten.index_select, aten._reshape_alias, aten.unfold, aten.narrow, aten.chunk, aten.tile, aten.diagonal,
    aten.channel_shuffle, aten.movedim, aten.view_as, aten.as_strided, aten.native_channel_shuffle,
}  # fmt: skip
# Operations that give each number of what it is at its place, or of its neighbours along dimensions without channels.
PLACES = {
    aten.clone, aten._to_copy, aten.contiguous, aten.dropout, aten.native_dropout, aten._softmax, aten._log_softmax,
    aten.lift_fresh, aten.cumsum, aten.constant_pad_nd,
}  # fmt: skip
SPATIAL = {
    aten.max_pool2d_with_indices, aten.max_pool2d, aten.avg_pool2d, aten._adaptive_avg_pool2d, aten.adaptive_avg_pool2d,
    aten.adaptive_max_pool2d, aten.reflection_pad2d, aten.replication_pad2d, aten.upsample_nearest2d,
    aten.upsample_bilinear2d, aten.upsample_bicubic2d, aten._upsample_bilinear2d_aa, aten._upsample_bicubic2d_aa,
    aten._upsample_nearest_exact2d, aten.max_pool1d_with_indices, aten.avg_pool1d, aten.adaptive_avg_pool1d,
    aten.mkldnn_max_pool2d,
}  # fmt: skip
REDUCTIONS = {
    aten.mean, aten.sum, aten.amax, aten.amin, aten.max, aten.min, aten.var, aten.std, aten.var_mean, aten.std_mean,
    aten.linalg_vector_norm, aten.norm, aten.logsumexp, aten.prod,
}  # fmt: skip
BATCH_NORMS = {
    aten.native_batch_norm, aten._native_batch_norm_legit_no_training, aten._native_batch_norm_legit, aten.batch_norm,
    aten.cudnn_batch_norm, aten._batch_norm_no_update, aten._batch_norm_with_update,
}  # fmt: skip
ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu, aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_efficient_attention, aten._scaled_dot_product_cudnn_attention,
    aten._scaled_dot_product_attention_math, aten.scaled_dot_product_attention,
}  # fmt: skip
UNTAGGED = (
    "copy",
    "prelu",
    "hardswish",
    "hardtanh",
    "leaky_relu",
    "where",
    "fill",
    "zero",
)  # pointwise, and not said so


@dataclass(frozen=True)
class Traced:
    """What a forward pass on labels told.

    `units` are the sets of positions that can only be cut together, each as {(tensor name, dimension): positions};
    `macs` the multiply-accumulates for one image in which a parameter is the weight, and `other_macs` those of no
    parameter, as in attention's products; `fixed` the places of which nothing can be cut.
    """

    units: list[dict[tuple[str, int], list[int]]]
    macs: dict[str, int]
    other_macs: int
    unknown: list[str]  # operations that are not known here, by name


def trace_channels(network: nn.Module, example: Tensor) -> Traced:
    """Run `network` in eval mode on `example` [1, C, H, W] and on labels; whatever it raises comes through."""
    fast, training = (
        torch.backends.mha.get_fastpath_enabled(),
        {name for name, module in network.named_modules() if module.training},
    )
    mode = _Labels(network)
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # one operation for a whole layer of attention
        with torch.no_grad(), mode:
            output = network.eval()(example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for name, module in network.named_modules():
            module.training = name in training
    for tensor in (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)):
        mode.freeze(mode.planes(tensor))
    return mode.traced()


class _Labels(TorchDispatchMode):
    """Carries planes of labels along with the tensors of a forward pass, and notes which labels are tied."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        named = itertools.chain(network.named_parameters(), network.named_buffers())
        self.names = {id(tensor): name for name, tensor in named}
        self.kept = [network]  # so that no id is given away
        self.count = 1  # of labels; 0 is FIXED
        self.places: list[tuple[int, str, int]] = []  # the first label of a tensor's dimension
        self.ties: list[Tensor] = []  # pairs of labels, one number each
        self.macs: dict[str, int] = {}
        self.other_macs = 0
        self.unknown: dict[str, None] = {}
        self._planes: dict[int, tuple[Tensor, list[Tensor]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        before = {id(leaf): self.planes(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **kwargs)
        first = out[0] if isinstance(out, tuple | list) and out and isinstance(out[0], Tensor) else out
        name = str(packet).removeprefix("aten.")
        if packet in flop_registry:
            self._count_macs(packet, args, kwargs, out, before)
        if not any(before.values()) or not isinstance(first, Tensor):
            pass
        elif rule := self._rule(func, name):
            rule(func, args, kwargs, out)
        else:
            self.unknown[name] = None
            for planes in before.values():
                self.freeze(planes)
        return out

    def _rule(self, func: Any, name: str) -> Callable[[Any, Any, Any, Any], None] | None:
        packet = func.overloadpacket
        for packets, rule in (
            (MOVES, self._move), (SPATIAL, self._neighbours), (REDUCTIONS, self._reduce), (BATCH_NORMS, self._batch_norm),
            (ATTENTION, self._attend), ({aten.as_strided_}, self._restride), ({aten.constant_pad_nd}, self._pad), (PLACES, self._same),
        ):  # fmt: skip
            if packet in packets:
                return rule
        own = {
            "convolution": self._convolve, "linear": self._linear, "mm": self._multiply, "bmm": self._multiply,
            "addmm": self._add_multiply, "baddbmm": self._add_multiply, "native_layer_norm": self._layer_norm,
            "native_group_norm": self._group_norm, "_native_multi_head_attention": None,
        }  # fmt: skip
        if name in own:
            return own[name]
        return self._pointwise if torch.Tag.pointwise in func.tags or name.rstrip("_") in UNTAGGED else None

    # --- labels

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
        self._planes[id(tensor)] = (tensor, [p for p in map(_compressed, planes) if p.numel() > 1 or int(p) != FIXED])

    def tie(self, one: Tensor, other: Tensor) -> None:
        """What two planes, broadcast against each other, have at the same place is cut together."""
        left, right = torch.broadcast_tensors(one, other)
        self.ties.append(torch.unique(left.flatten() * 2**31 + right.flatten()))

    def freeze(self, planes: Sequence[Tensor]) -> None:
        """What these planes hold cannot be cut."""
        for plane in planes:
            self.tie(plane, torch.tensor(FIXED))

    def traced(self) -> Traced:
        """The units, and what was counted."""
        ties = torch.cat([torch.zeros(0, dtype=torch.int64), *self.ties]).unique().numpy()
        groups = _components(self.count, ties // 2**31, ties % 2**31)
        units: dict[int, dict[tuple[str, int], list[int]]] = {}
        ends = [start for start, _, _ in self.places[1:]] + [self.count]
        for (start, name, dim), end in zip(self.places, ends, strict=True):
            for position, group in enumerate(groups[start:end].tolist()):
                if group != FIXED:
                    units.setdefault(group, {}).setdefault((name, dim), []).append(position)
        return Traced(list(units.values()), self.macs, self.other_macs, list(self.unknown))

    def _count_macs(self, packet: Any, args: Any, kwargs: Any, out: Any, before: dict[int, list[Tensor]]) -> None:
        """Half the operations that torch's own counter counts, for the parameter that is the weight."""
        macs = int(flop_registry[packet](*args, **kwargs, out_val=out)) // 2
        tensors = [leaf for leaf in args if isinstance(leaf, Tensor)]
        weights = [weight for tensor in tensors if (weight := self._weight_in(before[id(tensor)]))]
        if weights:
            self.macs[weights[-1]] = self.macs.get(weights[-1], 0) + macs
        else:
            self.other_macs += macs

    def _weight_in(self, planes: list[Tensor]) -> str | None:
        """The parameter whose rows and columns these planes are, if they are."""
        if len(planes) < 2:
            return None
        names = {self._name_of(int(plane.flatten()[0])) for plane in planes}
        return names.pop() if len(names) == 1 else None

    def _name_of(self, label: int) -> str | None:
        if label == FIXED:
            return None
        index = int(np.searchsorted([start for start, _, _ in self.places], label, side="right")) - 1
        return self.places[index][1]

    # --- what operations do to labels

    def _move(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if func.overloadpacket in (aten.index, aten.index_select):
            tensors = [args[0]]  # the others are indices
        if isinstance(args[0], list | tuple):  # cat, stack
            count = max(len(self.planes(tensor)) for tensor in tensors)
            for layer in range(count):
                given = [
                    self._laid_out(t, self.planes(t)[layer] if layer < len(self.planes(t)) else None) for t in tensors
                ]
                self._give_all(out, func(given, *args[1:], **kwargs), first=layer == 0)
            return
        splits = func.overloadpacket in (aten.view, aten._unsafe_view, aten.reshape)
        done = aten.reshape.default if func.overloadpacket in (aten.view, aten._unsafe_view) else func  # of any strides
        for layer, plane in enumerate(self.planes(args[0])):
            now = done(self._laid_out(args[0], plane), *args[1:], **kwargs)
            if splits and len(_along(compressed := _compressed(now))) > len(_along(plane)):
                # how often comes first in a view: heads, or groups that are shuffled; that stays, each gets smaller
                self.tie(compressed, _narrowed(compressed, sorted(_along(compressed))[:-1]))
            elif func.overloadpacket is aten.split and len({part.shape for part in now}) == 1:  # chunks of any size
                for part in now[1:]:
                    self.tie(now[0], part)
            self._give_all(out, now, first=layer == 0)

    def _laid_out(self, tensor: Tensor, plane: Tensor | None) -> Tensor:
        return (torch.tensor(FIXED) if plane is None else plane).expand(tensor.shape)

    def _give_all(self, out: Any, planes: Any, first: bool) -> None:
        if isinstance(out, Tensor):
            out, planes = [out], [planes]
        for tensor, plane in zip(out, planes, strict=True):
            self.give(tensor, [plane] if first else [*self.planes(tensor), plane])

    def _same(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        self.give(out[0] if isinstance(out, tuple) else out, self.planes(args[0]))

    def _restride(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """In place: another layout in memory, as long as the shape stays."""
        if tuple(out.shape) != tuple(args[1]) or len(self.planes(out)) != len(self.planes(args[0])):
            self.freeze(self.planes(args[0]))

    def _pointwise(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if func.overloadpacket is aten.prelu and tensors[1].numel() > 1:
            self._tie_vector(args[0], 1, args[1])
            self.give(out, self.planes(args[0]))
            return
        result = out[0] if isinstance(out, tuple | list) else out
        merged: list[Tensor] = []
        for tensor in tensors:
            shape = [1] * (result.ndim - tensor.ndim) + list(tensor.shape)
            for plane in self.planes(tensor):
                mine = plane.view([1] * (result.ndim - plane.ndim) + list(plane.shape))
                self._tie_or_freeze(mine, [t for t in tensors if t is not tensor], result.ndim)
                along = _along(mine)
                same = [other for other in merged if along & _along(other)]
                for other in same:
                    self.tie(mine, other)
                if not any(along <= _along(other) for other in same):
                    merged = [other for other in merged if not _along(other) <= along] + [mine]
            del shape
        self.give(result, merged)

    def _tie_or_freeze(self, plane: Tensor, others: Sequence[Tensor], ndim: int) -> None:
        """Freeze a plane that meets, along its channels, numbers that have none."""
        for other in others:
            shape = [1] * (ndim - other.ndim) + list(other.shape)
            meeting = {d for d in _along(plane) if shape[d] > 1}
            labelled: set[int] = set()
            for its in self.planes(other):
                labelled |= {d + ndim - other.ndim for d in _along(its)}
            if meeting - labelled:
                self.freeze([plane])

    def _neighbours(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        result = out[0] if isinstance(out, tuple) else out
        kept = []
        for plane in self.planes(args[0]):
            spatial = {d for d in _along(plane) if d >= plane.ndim - (2 if "2d" in str(func) else 1)}
            if spatial:
                self.freeze([plane])
            else:
                kept.append(plane)
        self.give(result, kept)

    def _pad(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        padding, kept = args[1], []
        padded = {args[0].ndim - 1 - k for k in range(len(padding) // 2) if padding[2 * k] or padding[2 * k + 1]}
        for plane in self.planes(args[0]):
            if not padded & _along(plane):
                kept.append(plane)
            else:  # new channels, whose number is fixed
                kept.append(func(self._laid_out(args[0], plane), padding, FIXED))
        self.give(out, kept)

    def _reduce(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        tensor = args[0]
        dims, keepdim = _reduced(func, args, kwargs, tensor.ndim)
        kept = []
        for plane in self.planes(tensor):
            gone = _along(plane) & dims
            if gone and gone != _along(plane):
                self.freeze([plane])
            elif not gone:
                kept.append(plane if keepdim else plane.squeeze(tuple(sorted(dims))) if dims else plane)
        for each in out if isinstance(out, tuple | list) else [out]:
            self.give(each, kept)

    def _tie_vector(self, tensor: Tensor, dim: int, vector: Tensor | None) -> None:
        """Tie the channels of `tensor` along `dim` to what a parameter [C] holds for each."""
        if vector is None:
            return
        own = self.planes(vector)
        for plane in self.planes(tensor):
            if dim in _along(plane):
                if not own:
                    self.freeze([plane])
                for its in own:
                    self.tie(plane, its.view([-1 if d == dim else 1 for d in range(tensor.ndim)]))
        if not any(dim in _along(plane) for plane in self.planes(tensor)):
            self.freeze(own)

    def _batch_norm(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        for vector in args[1:5]:
            if isinstance(vector, Tensor):
                self._tie_vector(args[0], 1, vector)
        self.give(out[0] if isinstance(out, tuple) else out, self.planes(args[0]))

    def _layer_norm(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        tensor, shape = args[0], args[1]
        for vector in args[2:4]:
            if isinstance(vector, Tensor) and len(shape) == 1:
                self._tie_vector(tensor, tensor.ndim - 1, vector)
            elif isinstance(vector, Tensor):
                self.freeze([*self.planes(tensor), *self.planes(vector)])
        self.give(out[0], self.planes(tensor))

    def _group_norm(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        tensor, groups = args[0], args[6]
        for vector in args[1:3]:
            self._tie_vector(tensor, 1, vector)
        for plane in self.planes(tensor):
            if 1 in _along(plane) and groups > 1:
                parts_GC = plane.expand(-1, tensor.shape[1], *plane.shape[2:]).transpose(0, 1).flatten(1)
                parts = parts_GC.reshape(groups, -1)
                self.tie(parts, parts[:1])
        self.give(out[0], self.planes(tensor))

    def _convolve(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        images, weight, bias, transposed, groups = args[0], args[1], args[2], args[6], args[8]
        rows, columns = (1, 0) if transposed else (0, 1)
        row_O, column_I = self._vectors(weight, rows), self._vectors(weight, columns)
        channels_C = self._vectors(images, 1)
        if transposed and groups > 1:
            self.freeze([*row_O, *column_I, *channels_C])
            return
        outputs, each = out.shape[1], images.shape[1] // groups
        if groups == 1:
            self._tie_all(channels_C, column_I)
        elif each == 1:  # depthwise: a filter goes with its channel
            self._tie_all([channel.repeat_interleave(outputs // groups) for channel in channels_C], row_O)
            if not channels_C:
                self.freeze(row_O)
        else:  # one channel of every group goes at a time
            self._tie_all([channel.view(groups, each) for channel in channels_C], [c.view(1, -1) for c in column_I])
            for row in row_O:
                self.tie(row.view(groups, -1), row.view(groups, -1)[:1])
        if bias is not None:
            self._tie_all(row_O, self._vectors(bias, 0))
        shape = [1, -1] + [1] * (out.ndim - 2)
        self.give(out, [row.view(shape) for row in row_O])

    def _vectors(self, tensor: Tensor, dim: int) -> list[Tensor]:
        """The labels of a tensor's channels along `dim`, those that depend on other dimensions too being frozen."""
        found = []
        for plane in self.planes(tensor):
            if _along(plane) == {dim}:
                found.append(plane.flatten())
            elif dim in _along(plane):
                self.freeze([plane])
        return found

    def _tie_all(self, some: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        """Tie what meets in a sum; where one side has no channels, the other cannot be cut."""
        if not some or not others:
            self.freeze([*some, *others])
        for one, other in itertools.product(some, others):
            self.tie(one, other)
        for each in (some, others):
            for one, other in itertools.pairwise(each):
                self.tie(one, other)

    def _linear(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        tensor, weight = args[:2]
        last = tensor.ndim - 1
        kept = self._contract(tensor, last, weight, 1)
        rows = [p.flatten() for p in self.planes(weight) if _along(p) == {0}]
        if len(args) > 2 and args[2] is not None:
            self._tie_all(rows, self._vectors(args[2], 0))
        self.give(out, [*kept, *(row.view([1] * last + [-1]) for row in rows)])

    def _contract(self, one: Tensor, dim: int, other: Tensor, its_dim: int) -> list[Tensor]:
        """Tie a sum's two sides where nothing but the summed dimension matters; returns `one`'s other planes."""
        mine = [plane.flatten() for plane in self.planes(one) if _along(plane) == {dim}]
        self.freeze([p for p in self.planes(one) if dim in _along(p) and len(_along(p)) > 1])
        self._tie_all(mine, [p.flatten() for p in self.planes(other) if _along(p) == {its_dim}])
        return [plane for plane in self.planes(one) if dim not in _along(plane)]

    def _multiply(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """[…, M, K] × […, K, N], with a batch dimension before or none."""
        self._product(args[0], args[1], out)

    def _product(self, one: Tensor, other: Tensor, out: Tensor) -> None:
        batch = one.ndim - 2
        m, k, its_k, n = batch, batch + 1, batch, batch + 1
        lefts, rights, kept = [], [], []
        for plane in self.planes(one):
            if k in _along(plane):
                lefts.append(plane.transpose(m, k)) if m not in _along(plane) else self.freeze([plane])
            else:
                kept.append(plane)
        for plane in self.planes(other):
            if its_k in _along(plane):
                rights.append(plane) if n not in _along(plane) else self.freeze([plane])
            else:
                kept.append(plane)
        if not lefts or not rights:
            self.freeze([*lefts, *rights])
        for left, right in itertools.product(lefts, rights):  # both [b, K, 1]
            self.tie(left, right)
        self.give(out, kept)

    def _add_multiply(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        added, one, other = args[:3]
        self._product(one, other, out)
        product = self.planes(out)
        for plane in self.planes(added):
            mine = plane.view([1] * (out.ndim - plane.ndim) + list(plane.shape))
            meeting = [its for its in product if _along(its) & _along(mine)]
            for its in meeting:
                self.tie(mine, its)
            if not meeting:
                self.freeze([mine])

    def _attend(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """softmax(q kᵀ) v, each [B, heads, N, D]."""
        query, key, value = args[:3]
        for plane, other in itertools.product(self.planes(query), self.planes(key)):
            self.tie(plane, other) if _along(plane) == _along(other) else self.freeze([plane, other])
        if not self.planes(query) or not self.planes(key):
            self.freeze([*self.planes(query), *self.planes(key)])
        kept = []
        for plane in self.planes(value):
            self.freeze([plane]) if value.ndim - 2 in _along(plane) else kept.append(plane)
        self.give(out[0] if isinstance(out, tuple) else out, kept)


def _along(plane: Tensor) -> set[int]:
    """The dimensions on which the labels depend."""
    return {dim for dim, size in enumerate(plane.shape) if size > 1}


def _narrowed(plane: Tensor, dims: Sequence[int]) -> Tensor:
    """The plane's first place along each of `dims`."""
    for dim in dims:
        plane = plane.narrow(dim, 0, 1)
    return plane


def _compressed(plane: Tensor) -> Tensor:
    """The plane with size 1 along each dimension on which its labels do not depend."""
    for dim, size in enumerate(plane.shape):
        if size > 1 and (plane.stride(dim) == 0 or bool((plane == plane.narrow(dim, 0, 1)).all())):
            plane = plane.narrow(dim, 0, 1)
    return plane


def _reduced(func: Any, args: Any, kwargs: Any, ndim: int) -> tuple[set[int], bool]:
    """The dimensions that a reduction sums up, and whether they stay with size 1."""
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    dims = given.get("dim")
    if dims is None or dims == []:
        return set(range(ndim)), bool(given.get("keepdim", False))
    dims = [dims] if isinstance(dims, int) else dims
    return {dim % ndim for dim in dims}, bool(given.get("keepdim", False))


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
