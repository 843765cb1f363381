"""What an operation that moves numbers, and changes none, does to the labels of channels: the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from wmlc.compress.widths.labels import FIXED, Labels, along, compressed, narrowed

aten = torch.ops.aten

MOVES = {
    aten.view, aten._unsafe_view, aten.reshape, aten.permute, aten.transpose, aten.t, aten.slice, aten.select, aten.cat,
    aten.stack, aten.split, aten.split_with_sizes, aten.unbind, aten.expand, aten.alias, aten.detach, aten.unsqueeze,
    aten.squeeze, aten.flip, aten.roll, aten.repeat, aten.pixel_shuffle, aten.pixel_unshuffle, aten.index,
    aten.index_select, aten._reshape_alias, aten.unfold, aten.narrow, aten.chunk, aten.tile, aten.diagonal,
    aten.channel_shuffle, aten.movedim, aten.view_as, aten.as_strided, aten.native_channel_shuffle,
}  # fmt: skip
CHUNKS = {aten.split, aten.split_with_sizes}


def move(labels: Labels, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """The rule of all of them; see `wmlc.compress.widths.rules`."""
    if isinstance(args[0], list | tuple):
        _join(labels, func, args, kwargs, out)
        return
    splits = func.overloadpacket in (aten.view, aten._unsafe_view, aten.reshape)
    done = aten.reshape.default if func.overloadpacket in (aten.view, aten._unsafe_view) else func  # of any strides
    for layer, plane in enumerate(labels.planes(args[0])):
        now = done(laid_out(args[0], plane), *args[1:], **kwargs)
        if splits and len(along(small := compressed(now))) > len(along(plane)):
            # how often comes first in a view: heads, or groups that are shuffled; that stays, each gets smaller
            labels.tie(small, narrowed(small, sorted(along(small))[:-1]))
        elif func.overloadpacket in CHUNKS and len({part.shape for part in now}) == 1:  # chunks of any size
            for part in now[1:]:
                labels.tie(now[0], part)
        _give_all(labels, out, now, first=layer == 0)
    if splits and len(labels.planes(args[0])) > 1:
        labels.drop_frozen_beside(out)


def _join(labels: Labels, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """cat and stack."""
    stacked = func.overloadpacket is aten.stack
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0) % out.ndim
    for layer, planes in enumerate(_planes_alike(labels, args[0], None if stacked else dim)):
        given = [laid_out(tensor, plane) for tensor, plane in zip(args[0], planes, strict=True)]
        joined = func(given, *args[1:], **kwargs)
        ways = [along(small) for small in map(compressed, given)]
        if any(ways) and (stacked or all(dim not in way for way in ways)):
            labels.tie(joined, joined.narrow(dim, 0, 1))  # one behind the other, with the same channels
            joined = joined.narrow(dim, 0, 1).expand(joined.shape)
        _give_all(labels, out, joined, first=layer == 0)


def _planes_alike(labels: Labels, tensors: Sequence[Tensor], dim: int | None) -> Iterator[list[Tensor | None]]:
    """Of each tensor that is joined, along `dim` or a new one, the plane that runs as the others' do, or none."""
    found: list[tuple[set[int], list[Tensor | None]]] = []
    for k in sorted(range(len(tensors)), key=lambda k: -_size(tensors[k], dim)):
        for plane in labels.planes(tensors[k]):
            ways = [along(plane)]
            if dim is not None and _size(tensors[k], dim) == 1:  # the one place of what may run along
                ways.append(ways[0] | {dim})
            elif dim is not None and not ways[0]:  # a place of what no dimension runs along any more
                labels.freeze([plane])
                continue
            fits = [planes for way in ways for its, planes in found if its == way and planes[k] is None]
            if not fits:
                fits = [[None] * len(tensors)]
                found.append((ways[-1], fits[0]))
            fits[0][k] = plane
    return (planes for _, planes in found)


def _size(tensor: Tensor, dim: int | None) -> int:
    return 0 if dim is None or dim >= tensor.ndim else tensor.shape[dim]


def laid_out(tensor: Tensor, plane: Tensor | None) -> Tensor:
    return (torch.tensor(FIXED) if plane is None else plane).expand(tensor.shape)


def _give_all(labels: Labels, out: Any, planes: Any, first: bool) -> None:
    if isinstance(out, Tensor):
        out, planes = [out], [planes]
    for tensor, plane in zip(out, planes, strict=True):
        labels.give(tensor, [plane] if first else [*labels.planes(tensor), plane])
