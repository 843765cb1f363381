"""A network's widths as a record: the difference to the full network, module by module, in numbers and shapes.

Nothing here knows a kind of layer. A difference is read as what it is, text from outside: it sets numbers that exist,
to smaller ones, and gives tensors that exist a smaller shape; then the network is run once without being computed.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wmlc.errors import InputError, one_line
from wmlc.models.cost import NormsAsTheyCome

Difference = dict[str, dict[str, "int | list[int]"]]  # module → number or shape, by name


def difference(full: nn.Module, cut: nn.Module, name_of: Callable[[str], str] = str) -> Difference:
    """The whole numbers and the shapes in which `cut` is smaller than `full`, which has the same modules.

    Args: what a module shall be called, by the name that it has in both.
    """
    others, found = dict(cut.named_modules()), Difference()
    for name, module in full.named_modules():
        now = _sizes(others[name]) if name in others else {}
        if changed := {key: now[key] for key, size in _sizes(module).items() if now.get(key, size) != size}:
            found.setdefault(name_of(name), {}).update(changed)
    return found


def cut_to(full: nn.Module, widths: Mapping[str, Mapping[str, int | list[int]]]) -> nn.Module:
    """Give `full` the recorded numbers and shapes, in place; tensors that get smaller hold nothing yet.

    Raises `InputError`, naming the first offenders, for what is not in it or would not be smaller.
    """
    modules, wrong = dict(full.named_modules(remove_duplicate=False)), list[str]()
    for name, changes in widths.items():
        module = modules.get(name)
        if module is None:
            wrong.append(f"it has no module {_short(name)}")
            continue
        sizes = _sizes(module)
        for key, value in changes.items():
            if not _is_smaller(value, sizes.get(key)):
                allowed = f"allowed is up to {sizes[key]}" if key in sizes else "which is no size of it"
                wrong.append(f"{_short(name) or 'the network'} has {_short(key)} {_short(str(value))}, {allowed}")
    if wrong:
        shown = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise InputError(f"the recorded widths do not fit the architecture: {shown}; extract the peer again")
    for name, changes in widths.items():
        for key, value in changes.items():
            _set(modules[name], key, value)
    return full


def check_runs(
    network: nn.Module, classes: int, input_shape: tuple[int, int, int], unused: Collection[str] = ()
) -> None:
    """Raise `InputError` unless images go through the network and give logits [N, classes].

    Args: tensors of it that must have no part in that. On the meta device nothing is computed.
    """
    if (some := next(network.parameters(), None)) is None:
        raise InputError("the record leaves nothing of the network; extract the peer again")
    device, follow = some.device, _Follow(network, unused)
    norms = NormsAsTheyCome if some.is_meta and not follow.found else contextlib.nullcontext
    try:
        with torch.no_grad(), follow, norms():
            logits = network.eval()(torch.empty(1, *input_shape, device=device))
        made = list(logits.shape)
    except Exception as error:  # whatever its code raises
        raise InputError(
            f"the recorded widths do not fit the architecture ({one_line(error, 120)}); extract the peer again"
        ) from None
    if made != [1, classes]:
        raise InputError(f"the network gives {made} for an image, but the record names {classes} classes")
    if needed := follow.found.get(id(logits), set()):
        shown = ", ".join(map(_short, sorted(needed)[:5])) + (f" and {len(needed) - 5} more" if len(needed) > 5 else "")
        raise InputError(f"unused names tensors that the logits depend on: {shown}; extract the peer again")


class _Follow(TorchDispatchMode):
    """Follows some tensors of a network through a forward pass: what depends on which of them."""

    def __init__(self, network: nn.Module, names: Collection[str]) -> None:
        super().__init__()
        named = itertools.chain(network.named_parameters(), network.named_buffers())
        self.found = {id(tensor): {name} for name, tensor in named if name in set(names)}
        self.kept: list[Any] = []  # so that no id is given away

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.found:
            names = set[str]().union(*(self.found.get(id(leaf), ()) for leaf in tree_leaves((args, kwargs))))
            for leaf in tree_leaves(out) if names else ():
                self.found[id(leaf)] = self.found.get(id(leaf), set()) | names
                self.kept.append(leaf)
        return out


def _sizes(module: nn.Module) -> dict[str, int | list[int]]:
    """A module's own whole numbers, tuples of them, and the shapes of its tensors, by name."""
    found: dict[str, int | list[int]] = {}
    for key, value in vars(module).items():
        if key.startswith("_"):
            continue
        if type(value) is int:
            found[key] = value
        elif isinstance(value, tuple) and value and all(type(each) is int for each in value):
            found[key] = list(value)
    tensors: dict[str, Any] = {**module._parameters, **module._buffers}
    told = {
        key: each for key, each in tensors.items() if each is not None and (_is_saved(module, key) or is_even(each))
    }
    return found | {key: list(each.shape) for key, each in told.items()}


def _is_saved(module: nn.Module, key: str) -> bool:
    """Whether a file holds that tensor."""
    return key not in module._non_persistent_buffers_set


def is_even(tensor: Tensor) -> bool:
    """Whether all its numbers are the same, as a bias of zeros: then its shape tells what is left by a cut."""
    return not tensor.is_meta and bool((tensor == tensor.flatten()[:1]).all())


def _is_smaller(value: int | list[int], than: int | list[int] | None) -> bool:
    """Whether a number or all of a shape lie from 1 up to what they replace."""
    if isinstance(value, list) and isinstance(than, list):
        return len(value) == len(than) and all(_is_smaller(*pair) for pair in zip(value, than, strict=True))
    return type(value) is int and type(than) is int and 1 <= value <= than


def _set(module: nn.Module, key: str, value: int | list[int]) -> None:
    former = getattr(module, key)
    if not isinstance(former, Tensor):
        setattr(module, key, tuple(value) if isinstance(value, list) else value)
        return
    fresh = torch.empty(value, device=former.device, dtype=former.dtype)
    if not _is_saved(module, key):
        fresh.copy_(former.flatten()[0])
    setattr(module, key, nn.Parameter(fresh) if isinstance(former, nn.Parameter) else fresh)


def _short(text: str) -> str:
    shown = ascii(text)[1:-1]
    return shown if len(shown) <= 60 else shown[:59] + "…"
