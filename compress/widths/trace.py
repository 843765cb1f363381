"""Which channels of a network hang together, found by running it once on labels beside its numbers.

Every position along a dimension of every parameter gets a label of its own, and each operation of the forward pass says
what becomes of labels: a convolution or matrix product ties the channels that come in to the columns of its weight and
hands on the labels of its rows; an addition ties what it adds; views, concatenations and shuffles move labels as they
move numbers, since the very same operation is applied to them. What was tied can only be cut together.

Nothing is known of layer types, so that any network will do. What an operation that is not known here touches is left
whole, and so is what ends in the network's output.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wmlc.compress.widths.labels import Labels, along, narrowed
from wmlc.compress.widths.rules import ADDED_TO, factors_of, rule_of
from wmlc.models.cost import macs_of, without_fast_attention
from wmlc.models.head import own_modes

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Product:
    """A product without a weight: its MACs, and what these are proportional to.

    `sides` are those of its dimensions whose positions are channels, each as (tensor name, dimension, position).
    """

    macs: int
    sides: list[list[tuple[str, int, int]]]


@dataclass(frozen=True)
class Traced:
    """What a forward pass on labels told.

    `units` are the sets of positions that can only be cut together, each as {(tensor name, dimension): positions};
    `macs` the multiply-accumulates for one image in which a parameter is the weight, and `products` those of none, as
    attention's.
    """

    units: list[dict[tuple[str, int], list[int]]]
    macs: dict[str, int]
    products: list[Product]
    queries: frozenset[tuple[str, int, int]]  # as (tensor name, dimension, position); see `Labels`
    keys: frozenset[tuple[str, int, int]]
    rooted: frozenset[tuple[str, int, int]]
    unknown: list[str]  # operations that are not known here, by name
    ends: frozenset[str]  # weights whose rows are the output: they make the logits


def on_cpu(network: Network) -> Network:
    """`network`, or a copy of it on the CPU: labels lie there, and on a GPU operations go by other names."""
    if all(tensor.device.type in ("cpu", "meta") for tensor in network.state_dict().values()):
        return network
    return copy.deepcopy(network).cpu()


def trace_channels(network: nn.Module, example: Tensor) -> Traced:
    """Run `network` in eval mode on `example` [1, C, H, W] and on labels; whatever it raises comes through."""
    mode = _OnLabels(network)
    mode.of_images[id(example)] = example
    with own_modes(network), torch.no_grad(), without_fast_attention(), mode:
        output = network.eval()(example)
    roots = mode.labels.roots()
    units = mode.labels.units(roots)
    planes = [plane for leaf in tree_leaves(output) if isinstance(leaf, Tensor) for plane in mode.labels.planes(leaf)]
    whole = torch.cat([torch.zeros(0, dtype=torch.int64), *(plane.flatten() for plane in planes)]).tolist()
    outputs = {root: units.pop(root) for root in {int(roots[label]) for label in whole} & units.keys()}
    ends = _made(outputs.values()) - _made(units.values())
    products = [Product(macs, mode.labels.sides_of(labels, roots)) for macs, labels in mode.products]
    queries, keys, rooted = map(mode.labels.places_of, (mode.labels.queries, mode.labels.keys, mode.labels.rooted))
    return Traced(list(units.values()), mode.macs, products, queries, keys, rooted, list(mode.unknown), ends)


def labels_of_outputs(network: nn.Sequential, example: Tensor) -> tuple[Labels, dict[str, Tensor]]:
    """The labels of a forward pass of `network`, and what each of its parts put out, by name."""
    mode, outputs = _OnLabels(network), dict[str, Tensor]()
    with own_modes(network), torch.no_grad(), without_fast_attention(), mode:
        network.eval()
        now = example
        for name, part in network.named_children():
            outputs[name] = now = part(now)
    return mode.labels, outputs


def _made(units: Iterable[dict[tuple[str, int], list[int]]]) -> frozenset[str]:
    """The parameters that some units are rows of."""
    return frozenset(name for unit in units for name, dim in unit if dim == 0)


class _OnLabels(TorchDispatchMode):
    """Does to labels what each operation of a forward pass does to numbers, and counts MACs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.labels = Labels(network)
        self.macs: dict[str, int] = {}
        self.products: list[tuple[int, list[Tensor]]] = []  # MACs, and the labels along each dimension
        self.of_images: dict[int, Tensor] = {}  # what hangs on them, by its id: no weight
        self.unknown: dict[str, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        before = {id(tensor): self.labels.planes(tensor) for tensor in tensors}
        out = func(*args, **kwargs)
        if macs := macs_of(func, args, kwargs, out):
            self._count(macs, func, args, before)
        if any(id(tensor) in self.of_images for tensor in tensors):
            self.of_images |= {id(own): own for own in tree_leaves(out) if isinstance(own, Tensor)}
        first = out[0] if isinstance(out, tuple | list) and out else out
        if not any(before.values()) or not isinstance(first, Tensor):
            return out
        if rule := rule_of(func):
            rule(self.labels, func, args, kwargs, out)
        else:
            self.unknown[str(func.overloadpacket)] = None
            for planes in before.values():
                self.labels.freeze(planes)
        return out

    def _count(self, macs: int, func: Any, args: Any, before: dict[int, list[Tensor]]) -> None:
        """Add MACs to those of the parameter that is the weight, or note them as a product's."""
        factors = args[1:] if func.overloadpacket in ADDED_TO else args
        tensors = [leaf for leaf in factors if isinstance(leaf, Tensor) and id(leaf) not in self.of_images]
        weights = [weight for tensor in tensors if (weight := self.labels.weight_of(before[id(tensor)]))]
        if weights:
            self.macs[weights[-1]] = self.macs.get(weights[-1], 0) + macs
            return
        for share, sides in factors_of(func.overloadpacket, args):
            labels = [
                narrowed(plane, sorted(along(plane) - {dim})).flatten()
                for tensor, dim in sides for plane in before[id(tensor)] if dim in along(plane)
            ]  # fmt: skip
            self.products.append((round(share * macs), labels))
