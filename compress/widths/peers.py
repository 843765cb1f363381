"""Smaller dense copies of a network, for a training loop of somebody's own."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.prune import is_pruned

from wmlc.compress.widths.choose import Asked, PeerWidths, Scored, choose_widths, ranked_by
from wmlc.compress.widths.cut import cut_channels
from wmlc.compress.widths.graph import nothing_to_cut
from wmlc.compress.widths.proof import read_channels
from wmlc.compress.widths.rank import group_magnitude, random_scores
from wmlc.errors import InputError, one_line
from wmlc.models.foreign import raised
from wmlc.models.head import run_once
from wmlc.models.plain import inside, is_wrapped, unwrapped

NEAR = 0.02  # of the full network, that a peer may lose more or less than it was asked to without a word


def dense_peers(
    network: nn.Module, example: Tensor, ratios: Sequence[float], ratio_of: str = "macs", divisor: int = 8,
    rank: str = "magnitude",
) -> list[nn.Module]:  # fmt: skip
    """See `wmlc.family`, which this is."""
    wanted, (channels, height, width) = _numbers(ratios), _shape_of(example)
    if ratio_of not in ("params", "macs"):
        raise InputError(f"ratio_of must be params or macs, got {ratio_of!r}")
    if not isinstance(divisor, int | np.integer) or divisor < 1:
        raise InputError(f"divisor must be a whole number from 1, got {divisor!r}")
    if rank not in ("magnitude", "random"):
        raise InputError(f"rank must be magnitude or random, got {rank!r}")
    if torch.is_inference_mode_enabled():
        raise InputError("peers made in torch.inference_mode() could not be trained; leave it for this call")
    network = _without_wrappers(network)
    plain = _plain_copy(network)
    _without_hooks(plain, (channels, height, width))
    graph = read_channels(plain, (channels, height, width))
    if not graph.groups:
        raise InputError(nothing_to_cut(graph))
    scores = group_magnitude(plain, graph) if rank == "magnitude" else random_scores(graph)
    scored = ranked_by(Scored(graph, np.ones(len(graph.layers)), [], []), scores)
    widths = choose_widths(scored, Asked(tuple(wanted), "none", ratio_of, divisor, uniform=True))
    for own in widths:
        _tell_how_near(own, ratio_of, divisor)
    narrowest = min(widths, key=lambda own: own.macs)
    _check_training(plain, cut_channels(plain, graph.groups, narrowest.kept), (channels, height, width))
    return [cut_channels(network, graph.groups, own.kept) for own in widths]


def _numbers(ratios: Any) -> list[float]:
    try:
        wanted = [float(ratio) for ratio in ratios]
    except (TypeError, ValueError):
        wanted = []
    if not wanted or not all(0 <= ratio < 1 for ratio in wanted):
        got = one_line(repr(wanted or ratios), 80)
        raise InputError(f"ratios must be numbers from 0 up to, not including, 1, got {got}")
    return wanted


def _shape_of(example: Any) -> tuple[int, int, int]:
    if not isinstance(example, Tensor):
        raise InputError(f"example must be a tensor of images [N, C, H, W] or [C, H, W], got {type(example).__name__}")
    if example.ndim not in (3, 4):
        raise InputError(f"example must be images [N, C, H, W] or one [C, H, W], got {list(example.shape)}")
    channels, height, width = example.shape[-3:]
    return channels, height, width


def _plain_copy(network: Any) -> nn.Module:
    """`network` in float32, to be looked at, so that nothing happens to the caller's own."""
    if not isinstance(network, nn.Module) or not any(True for _ in network.parameters()):
        raise InputError(f"network must be a torch.nn.Module with parameters, got {type(network).__name__}")
    if isinstance(network, torch.jit.ScriptModule):
        raise InputError("network is a ScriptModule, whose layers cannot be cut; give the module that it was made of")
    if any(parameter.is_meta for parameter in network.parameters()):
        raise InputError("network is on the meta device and has no weights; load them first")
    if is_pruned(network):
        raise InputError(
            "the network has masks of torch.nn.utils.prune, with which its weights are computed; make them its weights "
            "first, by torch.nn.utils.prune.remove(layer, 'weight') for each layer that has one"
        )
    return _copied(network).float()


def _copied(network: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(network)
    except Exception as error:  # whatever its attributes raise: locks, files, tensors with a history
        raise InputError(f"the network cannot be copied: {raised(error)}") from None


def _without_wrappers(network: Any) -> Any:
    """`network` without what torch.compile or DataParallel puts around it; in a copy, where that is within it."""
    if not isinstance(network, nn.Module):
        return network
    network = inside(network)
    return unwrapped(_copied(network)) if is_wrapped(network) else network


def _without_hooks(network: nn.Module, shape: tuple[int, int, int]) -> None:
    """Take the forward hooks off, which write where the caller reads; unless the network cannot run without them."""
    hooks = [(module, module._forward_hooks.copy()) for module in network.modules() if module._forward_hooks]
    if not hooks:
        return
    for module, _ in hooks:
        module._forward_hooks.clear()
    try:
        run_once(network, shape, 1)
    except Exception:  # it needs what they do
        for module, own in hooks:
            module._forward_hooks.update(own)


def _tell_how_near(own: PeerWidths, ratio_of: str, divisor: int) -> None:
    """A warning where a peer is far from what was asked; `InputError` where it lost nothing."""
    if abs(own.ratio - own.achieved_ratio) <= NEAR:
        return
    said = f"a peer was asked to lose {own.ratio:.1%} of its {ratio_of} and loses {own.achieved_ratio:.1%}"
    said += f": divisor={divisor} allows no nearer width, a smaller one would" if divisor > 1 else ""
    if not own.achieved_ratio:
        raise InputError(said)
    warnings.warn(said, stacklevel=4)


def _check_training(full: nn.Module, peer: nn.Module, shape: tuple[int, int, int]) -> None:
    """Raise `InputError` where a network runs in training and its peer does not: code that eval mode never runs."""
    images = torch.zeros(2, *shape, device=next(full.parameters()).device)
    with torch.no_grad():
        try:
            full.train()(images)
        except Exception:  # then the cut is not what it is about
            return
        try:
            peer.train()(images)
        except Exception as error:  # whatever its code raises
            raise InputError(
                f"once cut, the network stops in training: {raised(error)}; what "
                "its code does in training alone (an auxiliary head, noise) is not followed: take it out"
            ) from None
