"""A network's channel widths: read them off a network; cut a full network down to them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from wmlc.errors import InputError

Widths = dict[str, list[int]]  # Conv2d: [out, in, groups]; Linear: [out, in]; BatchNorm2d: [features]

# Which attributes hold a layer's widths, in the order that the record lists them.
_FIELDS = {
    nn.Conv2d: ("out_channels", "in_channels", "groups"),
    nn.Linear: ("out_features", "in_features"),
    nn.BatchNorm2d: ("num_features",),
}


def read_widths(network: nn.Module) -> Widths:
    """Every layer's widths by module name: [out, in, groups], [out, in] or [features]."""
    return {
        name: [getattr(module, field) for field in _FIELDS[type(module)]]
        for name, module in network.named_modules()
        if type(module) in _FIELDS
    }


def check_widths(full: nn.Module, widths: Mapping[str, list[int]]) -> None:
    """Raise `InputError`, naming all offenders, unless `widths` is a cut of the network `full`."""
    allowed = read_widths(full)
    wrong = [f"{name} is missing" for name in allowed if name not in widths]
    for name, got in widths.items():
        full_widths = allowed.get(name)
        if full_widths is None:
            wrong.append(f"{name} is no layer of it")
        elif not _is_cut_of(got, full_widths):
            wrong.append(f"{name} has widths {got}, allowed up to {full_widths}")
    # what enters the first layer and leaves the last one are the image's channels and the classes: no widths
    first, last = next(iter(allowed)), list(allowed)[-1]
    for name, field in ((first, 1), (last, 0)):
        if not wrong and widths[name][field] != allowed[name][field]:
            wrong.append(f"{name} has widths {widths[name]}, but {allowed[name]} fit the record's images and classes")
    if wrong:
        shown = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise InputError(f"the recorded widths do not fit the architecture: {shown}; extract the peer again")


def cut_to_widths(full: nn.Module, widths: Mapping[str, list[int]]) -> nn.Module:
    """Give every layer of `full` the recorded widths, in place; the new weights are uninitialised.

    Meant for a network on the meta device, whose weights are read from a file next.
    """
    check_widths(full, widths)
    for name, module in full.named_modules():
        if name not in widths:
            continue
        for field, value in zip(_FIELDS[type(module)], widths[name], strict=True):
            setattr(module, field, value)
        for key, shape in _tensor_shapes(module).items():
            former = getattr(module, key)
            fresh = torch.empty(shape, device=former.device, dtype=former.dtype)
            setattr(module, key, nn.Parameter(fresh) if isinstance(former, nn.Parameter) else fresh)
    return full


def _is_cut_of(got: list[int], full: list[int]) -> bool:
    """Whether `got` are as many numbers from 1 up to `full`'s, and a convolution's groups divide its channels."""
    if len(got) != len(full) or not all(1 <= g <= f for g, f in zip(got, full, strict=True)):
        return False
    return len(got) < 3 or (got[0] % got[2] == 0 and got[1] % got[2] == 0)


def _tensor_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape that each of a layer's tensors must have for the layer's widths."""
    if isinstance(module, nn.Conv2d):
        shapes = {"weight": (module.out_channels, module.in_channels // module.groups, *module.kernel_size)}
        return shapes if module.bias is None else {**shapes, "bias": (module.out_channels,)}
    if isinstance(module, nn.Linear):
        shapes_linear: dict[str, tuple[int, ...]] = {"weight": (module.out_features, module.in_features)}
        return shapes_linear if module.bias is None else {**shapes_linear, "bias": (module.out_features,)}
    assert isinstance(module, nn.BatchNorm2d)
    return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (module.num_features,))
