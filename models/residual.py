"""Residual blocks, which a network can do without: what they are given goes on as it is."""

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

    And that the network runs without, one as well as all. A block that ends in an activation is one where this leaves
    what it is given as it is, as ReLU does what another ReLU gave. Not among them is what runs twice, what others hold
    a part of, and what somebody writes into that it gave, as that would be what it was given. Some may lie in others.
    Args: an `example` [N, C, H, W] on the network's device.
    """
    with own_modes(network), torch.no_grad():
        calls, named = _calls(network.eval(), example), _named(network)
        found = [
            name
            for name, _ in network.named_modules()
            if len(own := calls.get(name, [])) == 1 and own[0].made._version == own[0].version
            and _is_its_own(named, name) and _gives_back(network.get_submodule(name), own[0])
        ]  # fmt: skip
        if _runs_without(network, found, example):
            return found
        return [name for name in found if _runs_without(network, [name], example)]


def within(name: str, block: str) -> bool:
    """Whether a module or tensor lies in a block, by their names."""
    return name.startswith(f"{block}.")


def leave_out(network: nn.Module, names: Sequence[str]) -> nn.Module:
    """`network` itself without the blocks of these `names`. Raises `InputError` for a name that is none of its own."""
    for name in names:
        try:
            network.set_submodule(name, LeftOut(), strict=True)
        except (AttributeError, ValueError):
            raise InputError(f"it has no module {ascii(name[:60])[1:-1]} to leave out") from None
    return network


def left_out(cut: nn.Module, name_of: Callable[[str], str] = str) -> list[str]:
    """The blocks that a network is without. Args: what each shall be called, by the name that it has there."""
    return [name_of(name) for name, module in cut.named_modules() if isinstance(module, LeftOut)]


@dataclass(frozen=True)
class _Call:
    """What a module is given, a tensor [N, …] and what else, and what it makes of that."""

    x: Tensor
    others: tuple[object, ...]
    named: dict[str, object]
    made: Tensor
    version: int  # of that, as it was made


def _calls(network: nn.Module, example: Tensor) -> dict[str, list[_Call]]:
    """The calls of each module in which it makes a tensor of the shape of the first that it is given."""
    begun, seen = dict[str, tuple[Tensor, tuple[object, ...], dict[str, object]]](), dict[str, list[_Call]]()

    def entering(name: str) -> Callable[..., None]:
        def keep(_: nn.Module, inputs: tuple[object, ...], named: dict[str, object]) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                begun[name] = inputs[0].clone(), inputs[1:], named

        return keep

    def leaving(name: str) -> Callable[..., None]:
        def keep(_: nn.Module, inputs: object, made: object) -> None:
            call = begun.pop(name, None)
            if call is not None and isinstance(made, Tensor) and made.shape == call[0].shape:
                seen.setdefault(name, []).append(_Call(*call, made, made._version))

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


def _named(network: nn.Module) -> list[tuple[str, object]]:
    """The modules and tensors of a network by all of their names."""
    named: list[tuple[str, object]] = [*network.named_modules(remove_duplicate=False)]
    return [
        *named, *network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)
    ]  # fmt: skip


def _is_its_own(named: Sequence[tuple[str, object]], block: str) -> bool:
    """Whether no other name, of all those `named`, stands for the block, a module in it, or a tensor of it."""
    inside = {id(own) for name, own in named if name == block or within(name, block)}
    return not any(id(own) in inside for name, own in named if name != block and not within(name, block))


def _gives_back(block: nn.Module, call: _Call) -> bool:
    """Whether a block all of whose numbers are zero gives back what it is given."""
    muted = copy.deepcopy(block)
    for own in (*muted.parameters(), *muted.buffers()):
        own.zero_()
    try:
        return bool(torch.equal(muted(call.x.clone(), *call.others, **call.named), call.x))
    except Exception:  # whatever its code raises at numbers that nobody expects
        return False


def _runs_without(network: nn.Module, names: Sequence[str], example: Tensor) -> bool:
    """Whether the network runs without these blocks: its code may look into them."""
    outermost = [name for name in names if not any(within(name, other) for other in names)]
    try:
        leave_out(copy.deepcopy(network), outermost)(example.clone())
    except Exception:  # whatever its code raises
        return False
    return True
