"""Weights that come with a network: torchvision's and timm's, for download, and what a caller's own factory makes."""

from __future__ import annotations

import contextlib
import threading
import urllib.error
import urllib.request
from pathlib import Path

import torch
from torch import Tensor, nn

from wmlc.arch import TIMM, TORCHVISION, needs_caller
from wmlc.errors import InputError, one_line, some_of
from wmlc.models.arguments import parse_args
from wmlc.models.foreign import Shape, as_made, timm_name, timm_network, torchvision_name
from wmlc.models.head import classifiers_of
from wmlc.models.spelling import IS_BOOKKEEPING

PRETRAINED = "pretrained"
SEEDS = (1, 2)  # under which a factory is called: what differs is drawn at random
MOST_NAMED = 3  # tensors that a message lists
ANSWERS_WITHIN_S = 5.0  # a host that is there


def read_pretrained(
    arch: str, input_shape: Shape, arch_args: str = "", classes: int = 1000
) -> tuple[dict[str, Tensor], str]:
    """The trained weights that the makers of `arch` offer, and where they come from, in words.

    Fetched unless they are in the cache of torch or of the Hugging Face hub; of a caller's own network those that its
    factory gives it, told the number of `classes`. Raises `InputError`, one line, where there are none, or they cannot
    be fetched.
    """
    if needs_caller(arch):
        return _callers(arch, input_shape, arch_args, classes)
    if arch.startswith(TIMM):
        network, where = _timms(arch, input_shape, arch_args)
    else:
        network, where = _torchvisions(arch)
    return {name: tensor.detach() for name, tensor in network.state_dict().items()}, where


def _torchvisions(arch: str) -> tuple[nn.Module, str]:
    from torchvision import models

    name = torchvision_name(arch) if arch.startswith(TORCHVISION) else arch
    if ":" in name or name not in models.list_models(module=models):
        raise InputError(f"nobody offers trained weights of {arch}; give --start a file")
    weights = models.get_model_weights(name).DEFAULT
    if not (Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]).is_file():
        _check_reachable(weights.url, arch)
    try:
        return models.get_model(name, weights=weights, progress=False), f"torchvision's {weights}"
    except (OSError, RuntimeError) as error:  # no answer, or another file than was promised
        raise InputError(f"the weights of {arch} cannot be fetched ({one_line(error, 200)}); try again") from None


def _timms(arch: str, input_shape: Shape, arch_args: str) -> tuple[nn.Module, str]:
    name = timm_name(arch)
    import timm
    from huggingface_hub import try_to_load_from_cache

    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise InputError(f"nobody offers trained weights of {arch}; give --start a file")
    cached = config.hf_hub_id and any(
        isinstance(try_to_load_from_cache(config.hf_hub_id, file), str)
        for file in ("model.safetensors", "pytorch_model.bin")
    )
    if not cached:
        _check_reachable("https://huggingface.co" if config.hf_hub_id else str(config.url), arch)
    given = {key: value for key, value in parse_args(arch_args).items() if key != "num_classes"}
    network = timm_network(arch, (3, *input_shape[1:]), given, pretrained=True)
    return network, f"timm's {config.architecture}.{config.tag}"


def makes_the_same(arch: str, input_shape: Shape, arch_args: str, classes: int) -> bool:
    """Whether the weights that a caller's factory makes are not drawn at random, but perhaps its head's."""
    try:
        tensors, _ = _callers(arch, input_shape, arch_args, classes)
    except InputError:
        return False
    return any(tensor.ndim > 1 for tensor in tensors.values())


def _callers(arch: str, input_shape: Shape, arch_args: str, classes: int) -> tuple[dict[str, Tensor], str]:
    """The weights that a caller's factory makes; without its head's where it draws that anew each time.

    Raises `InputError` where it draws others that have a part in the logits.
    """
    states = list[dict[str, Tensor]]()
    for seed in SEEDS:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            network = as_made(arch, classes, input_shape, arch_args)
        states.append({name: tensor.detach() for name, tensor in network.state_dict().items()})
    made, again = states
    drawn = [name for name, tensor in made.items() if not (name in again and _same(tensor, again[name]))]
    layers = {_layer(name) for name in drawn if not IS_BOOKKEEPING.search(name)}
    heads = set[str]()
    with contextlib.suppress(InputError):  # then it is no head that is drawn
        heads = layers & classifiers_of(network, input_shape) if layers else heads
    idle = layers - heads
    if idle and not _are_idle({name: made[name] for name in drawn if _layer(name) in idle}, network, input_shape):
        raise InputError(
            f"{arch} gives other weights each time it is called ({some_of(drawn, MOST_NAMED)}), so they are random; "
            "let it load trained ones (from_pretrained, load_state_dict), or give --start a file"
        )
    kept = {name: tensor for name, tensor in made.items() if _layer(name) not in heads}
    anew = f", but for {some_of(sorted(heads), MOST_NAMED)}, drawn anew each time" if heads else ""
    more = f" ({some_of(sorted(idle), MOST_NAMED)}, drawn anew each time, without part in the logits)" if idle else ""
    return kept, f"the weights that {arch} makes{anew}{more}"


def _are_idle(tensors: dict[str, Tensor], network: nn.Module, input_shape: Shape) -> bool:
    """Whether `tensors`, by name, have no part in what `network` answers in eval mode.

    No gradient comes to its own, and with `tensors` in their place its answers are bit for bit the same. The network
    is left with these.
    """
    images = torch.rand(2, *input_shape, generator=torch.Generator().manual_seed(0))
    with contextlib.suppress(Exception), torch.enable_grad():  # whatever its code raises: then it cannot be told
        state = network.eval().state_dict(keep_vars=True)
        own = {name: state[name] for name in tensors}
        logits = network(images)
        floats = [tensor.requires_grad_() for tensor in own.values() if tensor.is_floating_point()]
        gradients = torch.autograd.grad(network(images).sum(), floats, allow_unused=True)
        for name, tensor in own.items():
            tensor.detach().copy_(tensors[name])
        return all(gradient is None for gradient in gradients) and torch.equal(logits, network(images))
    return False


def _same(one: Tensor, other: Tensor) -> bool:
    if one.is_floating_point() and other.is_floating_point():  # what is wrong with NaN is said later
        one, other = one.nan_to_num(), other.nan_to_num()
    return torch.equal(one, other)


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _check_reachable(url: str, arch: str) -> None:
    """Raise `InputError` unless the host of `url` answers soon; what fetches would try again for a minute."""
    trouble: list[object] = ["no answer"]

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=ANSWERS_WITHIN_S).close()
            trouble.clear()
        except urllib.error.HTTPError:  # an answer all the same
            trouble.clear()
        except OSError as error:
            trouble[0] = getattr(error, "reason", error)

    asking = threading.Thread(target=ask, daemon=True)  # as looking up a name has no time limit
    asking.start()
    asking.join(2 * ANSWERS_WITHIN_S)
    if trouble:
        host = url.split("/")[2]
        raise InputError(
            f"the weights of {arch} are not in the cache, and {host} cannot be reached ({one_line(trouble[0], 100)}); "
            f"go online, or give --start a file"
        )
