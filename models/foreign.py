"""Networks that wmlc has no code of: torchvision's, timm's, and the caller's own, whole and with random weights.

Free of torch where it is imported, so that a name can be looked at quickly.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from wmlc.arch import TIMM, TORCHVISION, needs_caller
from wmlc.errors import InputError, one_line
from wmlc.models.arguments import parse_args

if TYPE_CHECKING:
    from torch import nn

WITHOUT_TIMM = "timm is not installed; pip install 'wmlc[timm]'"
# What torchvision's networks are made with here: one output, and pixels as they come.
OF_TORCHVISION: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "transform_input": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "transform_input": False, "init_weights": True},
}
SIZED = {"vit_": "image_size", "maxvit_": "input_size"}  # by how the name begins, the argument for the images' size
NEAREST = 3  # names that a message suggests

Shape = tuple[int, int, int]  # channels, height, width


def build_whole(
    arch: str, classes: int, input_shape: Shape, arch_args: str = "", factory: Callable[..., Any] | None = None
) -> nn.Module:
    """The full foreign network with random weights: float32 [N, C, H, W] → logits [N, classes].

    Args: constructor arguments as `parse_args` reads them; for a network of the caller's own, the `factory`, which is
    else imported by its name. Under `torch.device("meta")` it is built there, unless it cannot be or keeps tensors that
    no weights file holds: then on the CPU. Raises `InputError`, one line, for what cannot be.
    """
    import torch

    def make() -> nn.Module:
        network = as_made(arch, classes, input_shape, arch_args, factory)
        return _with_classes(network, arch, classes, input_shape)

    if torch.get_default_device().type != "meta":
        return _counted(make(), arch, input_shape)
    with contextlib.suppress(Exception):  # whatever was wrong is as wrong, and said, on the CPU
        network = make()
        if not _keeps_tensors_to_itself(network):
            return network
    with torch.device("cpu"):
        return make()


def as_made(
    arch: str, classes: int, input_shape: Shape, arch_args: str = "", factory: Callable[..., Any] | None = None
) -> nn.Module:
    """A foreign network as its makers give it, told the class count, with whatever head that is."""
    given = parse_args(arch_args)
    if arch.startswith(TORCHVISION):
        return _torchvision(arch, classes, input_shape, given)
    if arch.startswith(TIMM):
        return timm_network(arch, input_shape, given, num_classes=classes)
    import torch

    from wmlc.models.factory import call_factory, load_factory

    network = call_factory(factory or load_factory(arch), arch, classes, input_shape, given)
    if isinstance(network, torch.jit.ScriptModule):
        raise InputError(f"{arch} gives a TorchScript module, whose layers cannot be cut; give the one it is made of")
    fits = input_shape[0] == 3 or _takes(network, input_shape)
    return network if fits else _with_channels(network, input_shape[0])


def _torchvision(arch: str, classes: int, input_shape: Shape, given: Mapping[str, Any]) -> nn.Module:
    name, (channels, height, width) = torchvision_name(arch), input_shape
    from torchvision import models

    own = {"num_classes": classes, **OF_TORCHVISION.get(name, {})}
    for begins, argument in SIZED.items():
        if name.startswith(begins):
            if height != width and argument == "image_size":
                raise InputError(f"{arch} takes square images, got {height} x {width}")
            own[argument] = height if argument == "image_size" else (height, width)
    network = _built(arch, models.get_model_builder(name), {**own, **given}, given)
    return network if channels == 3 else _with_channels(network, channels)


def timm_network(
    arch: str, input_shape: Shape, given: Mapping[str, Any], *, pretrained: bool = False, **own: Any
) -> nn.Module:
    """A network of timm's, made for images of `input_shape`; `own` arguments come after the caller's."""
    name = timm_name(arch)
    import timm

    channels, height, width = input_shape
    arguments = {"in_chans": channels, **own, **given}

    def make(**all_arguments: Any) -> nn.Module:
        return timm.create_model(name, pretrained=pretrained, **all_arguments)

    if (config := timm.get_pretrained_cfg(name)) and tuple(config.input_size[1:]) != (height, width):
        with contextlib.suppress(TypeError):  # most take images of any size, and no such argument
            return make(**{"img_size": height if height == width else (height, width), **arguments})
    return _built(arch, make, arguments, given)


def _built(arch: str, make: Callable[..., Any], arguments: Mapping[str, Any], given: Mapping[str, Any]) -> nn.Module:
    try:
        return make(**arguments)
    except Exception as error:
        if given and isinstance(error, TypeError) and "unexpected keyword" in str(error):
            takes: list[str] = []
            with contextlib.suppress(Exception):
                plain = make(**{key: value for key, value in arguments.items() if key not in given})
                takes = [each for each in inspect.signature(type(plain).__init__).parameters if each != "self"]
            if unknown := [key for key in given if takes and key not in takes]:
                raise InputError(f"{arch} does not take {', '.join(unknown)}; it takes {', '.join(takes)}") from None
        said = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise InputError(f"{arch} cannot be made with {said}: {raised(error)}") from error


def torchvision_name(arch: str) -> str:
    """The classifier of torchvision's that `arch` names; `InputError` with the nearest names where there is none."""
    from torchvision import models

    name = arch.removeprefix(TORCHVISION)
    if name in models.list_models(module=models):
        return name
    if name in models.list_models():
        raise InputError(f"{arch} is no image classifier; 'wmlc list --networks TEXT' finds some")
    raise InputError(f"torchvision has no network {name!r}; {nearest(name, models.list_models(module=models))}")


def timm_name(arch: str) -> str:
    """The name of timm's that `arch` gives, with its tag; `InputError` where there is none, or no timm."""
    try:
        import timm
    except ImportError:
        raise InputError(WITHOUT_TIMM) from None
    name = arch.removeprefix(TIMM)
    bare, _, tag = name.partition(".")
    if not timm.is_model(bare):
        raise InputError(f"timm has no network {bare!r}; {nearest(bare, timm.list_models())}")
    tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{bare}.*")]
    if tag and tag not in tags:
        there = f"its tags are {', '.join(tags)}" if tags else "it has none"
        raise InputError(f"timm:{bare} has no tag {tag!r}; {there}")
    return name


def why_not_captured(network: nn.Module, input_shape: Shape) -> str | None:
    """Why torch cannot capture `network` as a graph, of which an ONNX file is written; None where it can.

    Both ways of torch.export are tried, as its ONNX exporter tries them. Costs seconds.
    """
    import torch

    example = torch.zeros(2, *input_shape, device=next(network.parameters()).device)
    shapes, failures = ({0: torch.export.Dim("batch")},), list[str]()
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        for strict in (False, True):
            try:
                copied = copy.deepcopy(network).eval()  # which may keep what it has seen
                torch.export.export(copied, (example,), dynamic_shapes=shapes, strict=strict)
                return None
            except Exception as error:  # whatever its code raises, or torch
                failures.append(one_line(raised(error), 120))
    return failures[0]


def raised(error: BaseException) -> str:
    """What somebody's code raised, in one line: the kind of error, and what it says if it says anything."""
    said = one_line(str(error))
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def a_kind(value: object) -> str:
    """What a value is, with its article: an int, a tuple."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOaeio' else 'a'} {name}"


def nearest(name: str, names: list[str]) -> str:
    """The names most like `name`, as the end of a message."""
    import difflib

    near = difflib.get_close_matches(name, names, n=NEAREST)
    return (f"nearest are {', '.join(near)}; " if near else "") + "'wmlc list --networks TEXT' searches them"


def _counted(network: nn.Module, arch: str, input_shape: Shape) -> nn.Module:
    """`network`; `InputError` where it takes no MACs that can be counted, by which it is cut and compared."""
    from wmlc.models.cost import total_cost

    if not total_cost(network, input_shape).macs:
        raise InputError(
            f"{arch} has no convolution, linear layer or other product that torch counts, and what a network costs "
            "goes by these; write its sums of products as such layers"
        )
    return network


def _keeps_tensors_to_itself(network: nn.Module) -> bool:
    """Whether it holds tensors that are not in its state dict, such as a table of indices."""
    import torch

    saved = network.state_dict().keys()
    plain = (value for module in network.modules() for value in vars(module).values())
    return any(name not in saved for name, _ in network.named_buffers()) or any(
        isinstance(value, torch.Tensor) for value in plain
    )


def _with_channels(network: nn.Module, channels: int) -> nn.Module:
    """`network` with a first convolution for images of so many channels, where it has one for 3."""
    from torch import nn

    from wmlc.models.head import with_input_channels

    first = next(((name, each) for name, each in network.named_modules() if isinstance(each, nn.Conv2d)), None)
    if first is not None and first[1].in_channels == 3 and first[1].groups == 1 and first[0]:
        network.set_submodule(first[0], with_input_channels(first[1], channels))
    return network  # and where it is not that, running it once will tell


def _takes(network: nn.Module, input_shape: Shape) -> bool:
    """Whether images of that shape go through the network as it was made."""
    from wmlc.models.head import run_once

    with contextlib.suppress(Exception):
        run_once(network, input_shape)
        return True
    return False


def _with_classes(network: nn.Module, arch: str, classes: int, input_shape: Shape) -> nn.Module:
    """`network`, run once to see that images give logits; a factory's head for other classes is replaced."""
    from wmlc.models.head import classifier_of, new_head

    made = _outputs(network, arch, input_shape)
    if made == classes:
        return network
    if not needs_caller(arch):
        raise InputError(f"{arch} gives {made} outputs, and the data have {classes} classes; check arch_args")
    try:
        name = classifier_of(network, input_shape)
    except InputError as error:
        raise InputError(f"{arch} gives {made} outputs, and the data have {classes} classes: {error}") from None
    new_head(network, name, classes)
    if (now := _outputs(network, arch, input_shape)) != classes:
        raise InputError(
            f"{arch} gives {made} outputs, and {now} with a new layer {name} for the {classes} classes of the data; "
            f"give the factory a parameter num_classes"
        )
    return network


def _outputs(network: nn.Module, arch: str, input_shape: Shape) -> int:
    """The number of logits that `network` gives for each image; `InputError` where it gives anything else."""
    import torch

    from wmlc.models.cost import NormsAsTheyCome
    from wmlc.models.head import run_once

    on_meta = any(parameter.is_meta for parameter in network.parameters())  # where only shapes are told
    norms = NormsAsTheyCome if on_meta else contextlib.nullcontext
    needed = [
        key
        for key, each in inspect.signature(network.forward).parameters.items()
        if each.default is each.empty and each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    if len(needed) > 1:
        raise InputError(f"{arch}: its forward needs {', '.join(needed)}; wmlc gives a network images alone")
    words = " x ".join(map(str, input_shape))
    try:
        with norms():
            made = run_once(network, input_shape)
    except Exception as error:
        raise InputError(f"{arch} cannot take images of {words} (channels, height, width): {raised(error)}") from error
    if not isinstance(made, torch.Tensor):
        raise InputError(
            f"{arch} must give logits [N, classes], got {a_kind(made)}; it is no classifier as it stands: "
            "if the logits are in there, wrap it in a module whose forward returns them"
        )
    if made.ndim != 2 or len(made) != 2:
        shape = ["N", *made.shape[1:]] if len(made.shape) and made.shape[0] == 2 else list(made.shape)
        raise InputError(
            f"{arch} must give logits [N, classes], got [{', '.join(map(str, shape))}] for N images; "
            f"it is no classifier"
        )
    with norms():
        alone = run_once(network, input_shape, 1)
    if alone.shape != (1, made.shape[1]):
        raise InputError(
            f"{arch} must give logits [1, {made.shape[1]}] for one image, got {list(alone.shape)}; its code may say "
            "squeeze(), which takes the first dimension too: flatten(1) does not"
        )
    _check_training(network, arch, input_shape)
    return made.shape[1]


def _check_training(network: nn.Module, arch: str, input_shape: Shape) -> None:
    """Raise `InputError` for a network that gives more than logits in training, as auxiliary heads do.

    It runs on the meta device, which costs nothing; where it cannot, training will tell.
    """
    import torch

    from wmlc.models.cost import NormsAsTheyCome
    from wmlc.models.head import own_modes

    tensors = {name: tensor.detach().to("meta") for name, tensor in network.state_dict().items()}
    made: object = None
    with own_modes(network), torch.no_grad(), NormsAsTheyCome(), contextlib.suppress(Exception):
        network.train()
        made = torch.func.functional_call(network, tensors, (torch.empty(2, *input_shape, device="meta"),))
    if made is not None and not isinstance(made, torch.Tensor):
        raise InputError(
            f"{arch} gives {a_kind(made)} in training, as auxiliary heads do; leave them out, as --arch-args "
            "aux_logits=false does for some, or wrap it in a module whose forward returns the logits alone"
        )
