"""From what a trace found to the groups of channels that can be cut, and to what the network costs at any of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from wmlc.compress.widths.graph import PLAIN_FIRST, Block, ChannelGraph, ChannelGroup, Layer, LeftWhole, Place
from wmlc.compress.widths.trace import Product, Traced
from wmlc.models.residual import within

MOST_GROUPS = 3  # of a block that can be left out, as their widths are chosen together


def groups_of(traced: Traced, network: nn.Module) -> list[ChannelGroup]:
    """The groups that a trace of `network` found: units that are alike, made by a layer and read by one."""
    shapes = {name: tensor.shape for name, tensor in _tensors(network).items()}
    layers = {name for name in traced.macs if len(shapes[name]) > 1}
    alike: dict[tuple[tuple[tuple[str, int], int], ...], list[dict[tuple[str, int], list[int]]]] = {}
    for unit in traced.units:
        signature = tuple(sorted((place, len(positions)) for place, positions in unit.items()))
        alike.setdefault(signature, []).append(unit)
    order = {name: index for index, name in enumerate(shapes)}
    groups = []
    for units in alike.values():
        dims = sorted(units[0], key=lambda key: (key[0] not in layers or key[1] == 1, order[key[0]], key[1]))
        places = tuple(
            Place(name, dim, torch.tensor([unit[name, dim] for unit in units]), name in layers and dim == 1)
            for name, dim in dims
        )
        makes = places[0].tensor in layers and places[0].dim == 0
        queries, keys = (tuple(_rows_in(rows, places)) for rows in (traced.queries, traced.keys))
        read = queries or any(place.reads for place in places)
        if len(units) > 1 and makes and read:
            rooted = any(True for _ in _rows_in(traced.rooted, places))
            groups.append(ChannelGroup(places[0].module, len(units), places, queries=queries, keys=keys, rooted=rooted))
    return sorted(_named_apart(groups), key=lambda group: order[group.places[0].tensor])


def _named_apart(groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """Groups that one layer makes get names of their own."""
    seen: dict[str, int] = {}
    named = []
    for group in groups:
        seen[group.root] = seen.get(group.root, 0) + 1
        name = group.root if seen[group.root] == 1 else f"{group.root}#{seen[group.root]}"
        named.append(replace(group, root=name))
    return named


def _rows_in(of: Collection[tuple[str, int, int]], places: Sequence[Place]) -> Iterator[Place]:
    """Of a group's places the rows that are among those `of`."""
    for place in places:
        mine = [[p for p in unit if (place.tensor, place.dim, p) in of] for unit in place.positions.tolist()]
        if not place.reads and mine[0] and len(set(map(len, mine))) == 1:
            yield replace(place, positions=torch.tensor(mine))


def out_of_groups(traced: Traced, network: nn.Module, groups: Sequence[ChannelGroup]) -> list[LeftWhole]:
    """The layers whose channels are in no group, but for those that make the logits, and why."""
    made = {place.tensor for group in groups for place in group.places if not place.reads}
    shapes = {name: tensor.shape for name, tensor in _tensors(network).items()}
    names = [name for name in traced.macs if name not in made | traced.ends and len(shapes[name]) > 1]
    operations = ", ".join(name.removeprefix("aten.") for name in traced.unknown)
    why = f"what {operations} makes of channels is not known" if operations else "they cannot be cut one by one"
    if operations and any(
        ".parametrizations." in name or name.endswith(("weight_orig", "weight_g")) for name in shapes
    ):
        why += f"; spectral_norm and its like compute weights: {PLAIN_FIRST}"
    layers = [(name.rpartition(".")[0] or name).partition(".parametrizations.")[0] for name in names]
    return [LeftWhole((layer,), why) for layer in layers]  # or a parameter, which the network itself may hold


def graph_of(
    network: nn.Module, traced: Traced, groups: Sequence[ChannelGroup], left_whole: Sequence[LeftWhole],
    blocks: Sequence[str],
) -> ChannelGraph:  # fmt: skip
    """What `network` costs at any number of its `groups`' units. Args: its residual `blocks`."""
    parameters = dict(network.named_parameters())
    layers = []
    for name, macs in traced.macs.items():
        weight = parameters.get(name)
        if weight is not None and weight.ndim > 1:
            product = weight.shape[0] * weight.shape[1]
            bias = parameters.get(f"{name.rpartition('.')[0]}.bias")
            with_bias = bias is not None and bias.shape == weight.shape[:1] and name.endswith(".weight")
            layers.append(Layer(name, weight.numel() // product, macs / product, int(with_bias)))
    index = {layer.tensor: k for k, layer in enumerate(layers)}
    biases = {f"{layer.name}.bias" for layer in layers if layer.row_params}
    sides = np.zeros((2, len(layers), len(groups)))
    for g, group in enumerate(groups):
        for place in group.places:
            if place.tensor in index and place.dim < 2:
                sides[place.dim, index[place.tensor], g] += place.positions.shape[1]
    shapes = np.array([parameters[layer.tensor].shape[:2] for layer in layers], dtype=float).reshape(len(layers), 2)
    full_G = np.array([group.units for group in groups], dtype=int)
    besides = {name: own for name, own in parameters.items() if name not in {*index, *biases}}
    unit_params, fixed_params = _besides_layers(besides, groups)
    products = _products_by_group(traced.products, groups)
    macs_beside = {name: macs for name, macs in traced.macs.items() if name not in index}
    found = []
    for block in blocks:
        inside = [g for g, group in enumerate(groups) if all(within(place.tensor, block) for place in group.places)]
        own = [k for k, layer in enumerate(layers) if within(layer.tensor, block)]
        sized = (sides[0][np.ix_(own, inside)] + sides[1][np.ix_(own, inside)]).any(1)
        if 0 < len(inside) <= MOST_GROUPS and sized.all() and not any(within(name, block) for name in macs_beside):
            mine = {name: tensor for name, tensor in besides.items() if within(name, block)}
            found.append(Block(block, tuple(inside), tuple(own), *_besides_layers(mine, groups)))
    found = [block for block in found if not any(within(other.name, block.name) for other in found)]  # the innermost
    block_of = {g: block.name for block in found for g in block.groups}
    return ChannelGraph(
        groups=tuple(replace(group, block=block_of.get(g, "")) for g, group in enumerate(groups)), layers=tuple(layers),
        rows=sides[0], fixed_rows=shapes[:, 0] - sides[0] @ full_G,
        columns=sides[1], fixed_columns=shapes[:, 1] - sides[1] @ full_G,
        unit_params=unit_params, fixed_params=fixed_params,
        other_macs=products.pop((), 0) + sum(macs_beside.values()), products=products,
        left_whole=tuple(left_whole), blocks=tuple(found),
    )  # fmt: skip


def _products_by_group(products: Sequence[Product], groups: Sequence[ChannelGroup]) -> dict[tuple[int, ...], int]:
    """MACs by the groups whose units they are proportional to; by none, those whose channels are in no group."""
    group_of = {
        (place.tensor, place.dim, position): g
        for g, group in enumerate(groups) for place in group.places for position in place.positions.flatten().tolist()
    } if products else {}  # fmt: skip
    found: dict[tuple[int, ...], int] = {}
    for product in products:
        shrinking = list[int]()
        for side in map(set, product.sides):
            owners = {group_of.get(place) for place in side}
            if len(owners) == 1 and (g := owners.pop()) is not None and len(side) == groups[g].units:
                shrinking.append(g)
        key = tuple(sorted(shrinking))
        found[key] = found.get(key, 0) + product.macs
    return found


def _besides_layers(parameters: Mapping[str, Tensor], groups: Sequence[ChannelGroup]) -> tuple[np.ndarray, int]:
    """Of `parameters` how many go with each group's unit [G], and how many with none."""
    unit_params = np.zeros(len(groups))
    for g, group in enumerate(groups):
        for place in group.places:
            if place.tensor in parameters:
                tensor = parameters[place.tensor]
                unit_params[g] += place.positions.shape[1] * tensor.numel() // tensor.shape[place.dim]
    params = sum(parameter.numel() for parameter in parameters.values())
    return unit_params, params - round(float(unit_params @ [group.units for group in groups]))


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}
