"""What each operation of a forward pass does to the labels of channels: what it ties, moves, or makes uncuttable.

A rule takes the labels, the operation, its arguments, and what it gave.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from wmlc.compress.widths.labels import FIXED, Labels, along, narrowed
from wmlc.compress.widths.moves import MOVES, laid_out, move

aten = torch.ops.aten


# Operations that give each number of what it is at its place, or of its neighbours along dimensions without channels.
PLACES = {
    aten.clone, aten._to_copy, aten.contiguous, aten.dropout, aten.native_dropout, aten._log_softmax, aten.lift_fresh,
    aten.cumsum, aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like,
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
ADDED_TO = {aten.addmm, aten.baddbmm}  # products that are added to their first argument
ADDITIONS = {aten.add, aten.add_}
# Pointwise, and not said so.
UNTAGGED = (
    "copy", "_prelu_kernel", "hardswish", "hardtanh", "leaky_relu", "where", "fill", "zero",
)  # fmt: skip

Rule = Callable[[Labels, Any, Any, Any, Any], None]


def rule_of(operation: Any) -> Rule | None:
    """The rule for an operation; None for one that is not known."""
    packet, name = operation.overloadpacket, str(operation.overloadpacket).removeprefix("aten.")
    for packets, rule in _RULES:
        if packet in packets:
            return rule
    return _pointwise if torch.Tag.pointwise in operation.tags or name.rstrip("_") in UNTAGGED else None


def _gate(labels: Labels, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """A gated linear unit: the first half times the sigmoid of the second; as many channels of each."""
    dim, kept = args[1] if len(args) > 1 else kwargs.get("dim", -1), []
    for plane in labels.planes(args[0]):
        value, gate = laid_out(args[0], plane).chunk(2, dim)
        labels.tie(value, gate)
        kept.append(value)
    labels.give(out, kept)


def _same(labels: Labels, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    labels.give(out[0] if isinstance(out, tuple) else out, labels.planes(args[0]))


def _soften(labels: Labels, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Softmax: along channels it makes shares of them, of which copies get less each."""
    labels.shares += [plane.flatten() for plane in labels.planes(args[0]) if args[1] % out.ndim in along(plane)]
    labels.give(out, labels.planes(args[0]))


def _fresh(labels: Labels, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """A tensor of a shape that is said in numbers has no channels; where it meets some, they cannot be cut."""
    labels.give(out, [])


def _restride(labels: Labels, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """In place: another layout in memory, as long as the shape stays."""
    if tuple(out.shape) != tuple(args[1]) or len(labels.planes(out)) != len(labels.planes(args[0])):
        labels.freeze(labels.planes(args[0]))


def _pointwise(labels: Labels, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    result = out[0] if isinstance(out, tuple | list) else out
    merged: list[Tensor] = []
    for tensor in tensors:
        for plane in labels.planes(tensor):
            mine = plane.view([1] * (result.ndim - plane.ndim) + list(plane.shape))
            labels.freeze_against(mine, [t for t in tensors if t is not tensor], result.ndim)
            mine_along = along(mine)
            same = [other for other in merged if mine_along & along(other)]
            for other in same:
                labels.meet(mine, other)
                if func.overloadpacket in ADDITIONS and tensor.ndim == 1:
                    labels.note_bias(mine, other)
            if not any(mine_along <= along(other) for other in same):
                merged = [other for other in merged if not along(other) <= mine_along] + [mine]
    labels.give(result, merged)


def _neighbours(labels: Labels, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    result = out[0] if isinstance(out, tuple) else out
    kept = []
    for plane in labels.planes(args[0]):
        spatial = {d for d in along(plane) if d >= plane.ndim - (2 if "2d" in str(func) else 1)}
        if spatial:
            labels.freeze([plane])
        else:
            kept.append(plane)
    labels.give(result, kept)


def _pad(labels: Labels, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    padding, kept = args[1], []
    padded = {args[0].ndim - 1 - k for k in range(len(padding) // 2) if padding[2 * k] or padding[2 * k + 1]}
    for plane in labels.planes(args[0]):
        if not padded & along(plane):
            kept.append(plane)
        else:  # new channels, whose number is fixed
            kept.append(func(laid_out(args[0], plane), padding, FIXED))
    labels.give(out, kept)


def _reduce(labels: Labels, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    tensor = args[0]
    dims, keepdim = _reduced(func, args, kwargs, tensor.ndim)
    kept = []
    for plane in labels.planes(tensor):
        gone = along(plane) & dims
        if gone:  # of each head, or group, as many
            labels.tie(plane, narrowed(plane, sorted(along(plane) - gone)))
        else:
            kept.append(plane if keepdim else plane.squeeze(tuple(sorted(dims))) if dims else plane)
    for each in out if isinstance(out, tuple | list) else [out]:
        labels.give(each, kept)


def _batch_norm(labels: Labels, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    for vector in args[1:5]:
        if isinstance(vector, Tensor):
            labels.tie_vector(args[0], 1, vector)
    labels.give(out[0] if isinstance(out, tuple) else out, labels.planes(args[0]))


def _layer_norm(labels: Labels, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    tensor, shape = args[0], args[1]
    for vector in args[2:4]:
        if isinstance(vector, Tensor) and len(shape) == 1:
            labels.tie_vector(tensor, tensor.ndim - 1, vector)
        elif isinstance(vector, Tensor):
            labels.freeze([*labels.planes(tensor), *labels.planes(vector)])
    labels.give(out[0], labels.planes(tensor))


def _group_norm(labels: Labels, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    tensor, groups = args[0], args[6]
    for vector in args[1:3]:
        labels.tie_vector(tensor, 1, vector)
    each = groups == tensor.shape[1]  # every channel by itself: then their number shrinks with them
    for plane in labels.planes(tensor):
        if 1 in along(plane) and groups > 1 and not each:
            parts_GC = plane.expand(-1, tensor.shape[1], *plane.shape[2:]).transpose(0, 1).flatten(1)
            parts = parts_GC.reshape(groups, -1)
            labels.tie(parts, parts[:1])
    labels.give(out[0], labels.planes(tensor))


def _convolve(labels: Labels, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    images, weight, bias, transposed, groups = args[0], args[1], args[2], args[6], args[8]
    rows, columns = (1, 0) if transposed else (0, 1)
    row_O, column_I = labels.vectors(weight, rows), labels.vectors(weight, columns)
    channels_C = labels.vectors(images, 1)
    if transposed and groups > 1:
        labels.freeze([*row_O, *column_I, *channels_C])
        return
    outputs, each = out.shape[1], images.shape[1] // groups
    if groups == 1:
        labels.tie_all(channels_C, column_I)
    elif each == 1:  # depthwise: a filter goes with its channel
        labels.tie_all([channel.repeat_interleave(outputs // groups) for channel in channels_C], row_O)
        if not channels_C:
            labels.freeze(row_O)
    else:  # one channel of every group goes at a time
        labels.tie_all([channel.view(groups, each) for channel in channels_C], [c.view(1, -1) for c in column_I])
        for row in row_O:
            labels.tie(row.view(groups, -1), row.view(groups, -1)[:1])
    if bias is not None:
        bias_O = labels.vectors(bias, 0)
        labels.tie_all(row_O, bias_O)
        for its, row in itertools.product(bias_O, row_O):
            labels.note_bias(its, row)
    shape = [1, -1] + [1] * (out.ndim - 2)
    labels.give(out, [row.view(shape) for row in row_O])


def _multiply(labels: Labels, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """[…, M, K] × […, K, N], with a batch dimension before or none."""
    _product(labels, args[0], args[1], out)


def _product(labels: Labels, one: Tensor, other: Tensor, out: Tensor) -> None:
    batch = one.ndim - 2
    m, k, its_k, n = batch, batch + 1, batch, batch + 1
    lefts, rights, kept, its_kept = [], [], [], []
    for plane in labels.planes(one):
        if k in along(plane):
            lefts.append(plane.transpose(m, k)) if m not in along(plane) else labels.freeze([plane])
        else:
            kept.append(plane)
    for plane in labels.planes(other):
        if its_k in along(plane):
            rights.append(plane) if n not in along(plane) else labels.freeze([plane])
        else:
            its_kept.append(plane)
    if not lefts or not rights:
        labels.freeze([*lefts, *rights])
    for left, right in itertools.product(lefts, rights):  # both [b, K, 1]
        labels.tie(left, right)
    if not any(labels.weight_of(labels.planes(each)) for each in (one, other)):
        labels.sum_over(lefts, rights)
    for plane, its in itertools.product(kept, its_kept):
        if along(plane) & along(its):  # in heads
            labels.meet(plane, its)
    labels.give(out, [*kept, *its_kept])


def _add_multiply(labels: Labels, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    added, one, other = args[:3]
    _product(labels, one, other, out)
    product = labels.planes(out)
    for plane in labels.planes(added):
        mine = plane.view([1] * (out.ndim - plane.ndim) + list(plane.shape))
        meeting = [its for its in product if along(its) & along(mine)]
        for its in meeting:
            labels.tie(mine, its)
            labels.note_bias(mine, its)
        if not meeting:
            labels.freeze([mine])


def _attend(labels: Labels, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """softmax(q kᵀ) v, each [B, heads, N, D]; what is told apart by its place among N, as by a position, stays."""
    query, key, value = args[:3]
    if query.shape[:-2] != key.shape[:-2]:  # several heads of queries look at one of keys
        labels.freeze([plane for each in (query, key, value) for plane in labels.planes(each)])
        return
    places, channels = query.ndim - 2, query.ndim - 1
    lefts, rights = ([own for own in labels.planes(each) if channels in along(own)] for each in (query, key))
    for plane, other in itertools.product(lefts, rights):
        labels.tie(plane, other) if along(plane) == along(other) else labels.freeze([plane, other])
    if not lefts or not rights:
        labels.freeze([*lefts, *rights])
    labels.freeze([own for own in labels.planes(key) if channels not in along(own)])
    labels.sum_over(lefts, rights, rooted=kwargs.get("scale") is None)
    kept = [own for own in labels.planes(query) if channels not in along(own)]
    for plane in labels.planes(value):
        labels.freeze([plane]) if places in along(plane) else kept.append(plane)
    labels.give(out[0] if isinstance(out, tuple) else out, kept)


def factors_of(packet: Any, args: Any) -> list[tuple[float, list[tuple[Tensor, int]]]]:
    """Shares of an operation's MACs, and the dimensions of its arguments that each is proportional to."""
    if packet in ATTENTION:  # q kᵀ, and what is mixed of v
        query, value = args[0], args[2]
        share = query.shape[-1] / (query.shape[-1] + value.shape[-1])
        heads = [(query, 1)] if query.ndim == 4 else []
        return [(share, [*heads, (query, query.ndim - 1)]), (1 - share, [*heads, (value, value.ndim - 1)])]
    if packet in (aten.mm, aten.bmm, *ADDED_TO):
        one, other = args[1:3] if packet in ADDED_TO else args[:2]
        return [(1.0, [*((one, dim) for dim in range(one.ndim)), (other, other.ndim - 1)])]
    return [(1.0, [])]


def _reduced(func: Any, args: Any, kwargs: Any, ndim: int) -> tuple[set[int], bool]:
    """The dimensions that a reduction sums up, and whether they stay with size 1."""
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    dims = given.get("dim")
    if dims is None or dims == []:
        return set(range(ndim)), bool(given.get("keepdim", False))
    dims = [dims] if isinstance(dims, int) else dims
    return {dim % ndim for dim in dims}, bool(given.get("keepdim", False))


_RULES: list[tuple[set[Any], Rule]] = [
    (MOVES, move), (SPATIAL, _neighbours), (REDUCTIONS, _reduce), (BATCH_NORMS, _batch_norm), (ATTENTION, _attend),
    ({aten.as_strided_}, _restride), ({aten.constant_pad_nd}, _pad), (PLACES, _same), ({aten.convolution}, _convolve),
    ({aten.mm, aten.bmm}, _multiply), (ADDED_TO, _add_multiply),
    ({aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty}, _fresh),
    ({aten.native_layer_norm}, _layer_norm), ({aten.native_group_norm}, _group_norm), ({aten.glu}, _gate),
    ({aten._softmax}, _soften),
]  # fmt: skip
