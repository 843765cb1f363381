"""Residual blocks, which a network does without: what they are given goes on as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wmlc.errors import InputError
from wmlc.models.head import own_modes


class LeftOut(nn.Module):
    """Stands where a residual block was, and gives back what it is given."""

    def forward(self, x: Tensor, *args: object, **named: object) -> Tensor:
        """Args: what is of no use without the block."""
        return x


def residual_blocks(network: nn.Module, example: Tensor) -> list[str]:
    """The modules, by name, that add something to what they are given: all their numbers zero, they give it back.

    The innermost of those that lie in one another. A block that ends in an activation is one where this leaves what it
    is given as it is, as ReLU does what another ReLU gave. Not among them: what runs twice, and what somebody would
    write into that was not the block's. Args: an `example` [N, C, H, W] on the network's device.
    """
    found = list[str]()
    with own_modes(network), torch.no_grad():
        given = _given(network.eval(), example)
        for name, calls in given.items():
            if len(calls) == 1 and _gives_back(network.get_submodule(name), calls[0]):
                found.append(name)
        innermost = [name for name in found if not any(other.startswith(f"{name}.") for other in found)]
        if _stay_as_they_are(network, innermost, example):
            return innermost
        return [name for name in innermost if _stay_as_they_are(network, [name], example)]


def leave_out(network: nn.Module, names: Sequence[str]) -> nn.Module:
    """`network` itself without the blocks of these `names`. Raises `InputError` for a name that is none of its own."""
    for name in names:
        try:
            network.set_submodule(name, LeftOut(), strict=True)
        except (AttributeError, ValueError):
            raise InputError(f"it has no module {ascii(name[:60])[1:-1]} to leave out") from None
    return network


def left_out(full: nn.Module, cut: nn.Module, name_of: Callable[[str], str] = str) -> list[str]:
    """The blocks of `full` that `cut` is without. Args: what each shall be called, by the name that it has in both."""
    there = dict(full.named_modules())
    found = [name for name, module in cut.named_modules() if isinstance(module, LeftOut)]
    return [name_of(name) for name in found if not isinstance(there[name], LeftOut)]


@dataclass(frozen=True)
class _Call:
    """What a module is given: a tensor [N, …], and what else."""

    x: Tensor
    others: tuple[object, ...]
    named: dict[str, object]


def _given(network: nn.Module, example: Tensor) -> dict[str, list[_Call]]:
    """The calls of each module in which it makes a tensor of the shape of the first that it is given."""
    begun, seen = dict[str, _Call](), dict[str, list[_Call]]()

    def entering(name: str) -> Callable[..., None]:
        def keep(_: nn.Module, inputs: tuple[object, ...], named: dict[str, object]) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                begun[name] = _Call(inputs[0].clone(), inputs[1:], named)

        return keep

    def leaving(name: str) -> Callable[..., None]:
        def keep(_: nn.Module, inputs: object, output: object) -> None:
            call = begun.pop(name, None)
            if call is not None and isinstance(output, Tensor) and output.shape == call.x.shape:
                seen.setdefault(name, []).append(call)

        return keep

    hooks = []
    for name, module in network.named_modules():
        if name and any(True for _ in module.children()) and any(True for _ in module.parameters()):
            hooks += [
                module.register_forward_pre_hook(entering(name), with_kwargs=True),
                module.register_forward_hook(leaving(name)),
            ]
    try:
        network(example.clone())
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _gives_back(block: nn.Module, call: _Call) -> bool:
    """Whether a block all of whose numbers are zero gives back what it is given."""
    muted = copy.deepcopy(block)
    for own in (*muted.parameters(), *muted.buffers()):
        own.zero_()
    try:
        return bool(torch.equal(muted(call.x.clone(), *call.others, **call.named), call.x))
    except Exception:  # whatever its code raises at numbers that nobody expects
        return False


def _stay_as_they_are(network: nn.Module, names: Sequence[str], example: Tensor) -> bool:
    """Whether without these blocks nobody writes into what one would be given, where somebody else may read it."""
    without, given = leave_out(copy.deepcopy(network), names), list[tuple[Tensor, int]]()
    for name in names:
        without.get_submodule(name).register_forward_hook(lambda _, inputs, x: given.append((x, x._version)))
    without(example.clone())
    return all(x._version == version for x, version in given)
