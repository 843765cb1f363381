"""A caller's own network: `FILE.py:FACTORY` or `PACKAGE.MODULE:FACTORY`, imported and called."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from wmlc.errors import InputError, one_line, some_of
from wmlc.files import short_hash
from wmlc.models.foreign import raised
from wmlc.models.plain import in_float32, unwrapped, without_masks
from wmlc.settings import CALLERS_ARCH

# What a factory's parameters may be called that say what the data are.
CLASSES = ("num_classes", "classes", "n_classes")
CHANNELS = ("in_chans", "in_channels")
SIZE = ("img_size", "image_size")
HUBS = ("hf", "huggingface", "hub")  # what people take for one
MOST_NAMED = 8  # callables or parameters that a message lists


def load_factory(arch: str) -> Callable[..., Any]:
    """Import what `arch` names and give its factory; this runs the caller's code.

    A file is imported under a private name, with its directory on the search path, and once a process, so that its
    classes stay the same. Raises `InputError`, one line, where something is missing or the import fails.
    """
    place, _, name = arch.rpartition(":")
    module = _module_of_file(Path(place).expanduser()) if place.endswith(".py") else _module_of_name(place)
    found = getattr(module, name, None)
    if isinstance(found, nn.Module) or not callable(found):
        what = "is no function or class that makes a network" if hasattr(module, name) else "is not in it"
        own = [
            key
            for key, value in vars(module).items()
            if not key.startswith("_") and callable(value) and getattr(value, "__module__", None) == module.__name__
        ]
        there = f"it has {some_of(own, MOST_NAMED)}" if own else "it has no function or class of its own"
        raise InputError(f"{place}: {name or 'FACTORY'} {what}; {there}")
    return found


def named_by_caller(arch: str) -> None:
    """Note that the caller has named this code of theirs, so that networks which need it can be read from now on.

    The environment holds it, which worker processes inherit.
    """
    os.environ[CALLERS_ARCH] = arch


def factory_of_caller(arch: str, directory: Path) -> Callable[..., Any]:
    """The factory that the caller has named, for the network of `arch` in `directory`.

    What a record calls `arch` is never run for that. Raises `InputError` where the caller has named none.
    """
    if (named := os.environ.get(CALLERS_ARCH)) is None:
        said = one_line(ascii(arch)[1:-1], 80)
        raise InputError(
            f"{directory} is a network of somebody's own code ({said}), which no file makes wmlc run; pass --arch "
            f"FILE.py:FACTORY, as for its training; in Python wmlc.load(DIR, factory=…)"
        )
    return load_factory(named)


def call_factory(
    factory: Callable[..., Any], arch: str, classes: int, input_shape: tuple[int, int, int], given: Mapping[str, Any]
) -> nn.Module:
    """The network that a factory makes, told the class count, channels and size where it has parameters for them.

    Args: the arguments `given` by the caller, which come before all. Raises `InputError` where the factory does not
    take them, raises, or gives no `nn.Module`. What is compiled, or wrapped for
    several devices, comes without its wrapper, what is masked without its masks, and all floats are float32.
    """
    parameters = _parameters(factory)
    channels, height, width = input_shape
    known = {CLASSES: classes, CHANNELS: channels, SIZE: height if height == width else (height, width)}
    arguments = dict(given)
    if parameters is not None:
        open_ended = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
        if unknown := [key for key in given if key not in parameters and not open_ended]:
            takes = some_of(list(parameters), MOST_NAMED) if parameters else "no arguments"
            raise InputError(f"{arch} does not take {some_of(unknown, MOST_NAMED)}; it takes {takes}")
        for names, value in known.items():
            if not any(name in given for name in names):
                arguments |= {name: value for name in names if name in parameters}
    place = arch.rpartition(":")[0]
    with _beside(Path(place).expanduser().resolve()) if place.endswith(".py") else _beside(None):
        try:
            network = factory(**arguments)
        except Exception as error:
            said = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
            raise InputError(f"{arch}({said}) raised {raised(error)}") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"{arch} must give a torch.nn.Module, got {type(network).__name__}")
    return in_float32(without_masks(unwrapped(network), arch), arch)


def _module_of_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"there is no file {path}; write --arch FILE.py:FACTORY")
    path = path.resolve()
    name = f"_wmlc_{re.sub(r'[^0-9a-zA-Z_]', '_', path.stem)}_{short_hash(str(path))}"
    if name in sys.modules:
        return sys.modules[name]
    # a package of its directory, so that both `import blocks` and `from .blocks import Block` find what is beside it
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=[str(path.parent)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with _beside(path):
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            raise InputError(f"importing {path} raised {raised(error)}") from error
    return module


def _module_of_name(name: str) -> ModuleType:
    with _beside(None):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
                raise InputError(f"importing {name} raised {raised(error)}") from error
            if name in HUBS:
                raise InputError(
                    f"wmlc has no names of Hugging Face's, such as {name}:…; write a factory of three lines, which "
                    "docs/networks.md has (from_pretrained, in a module whose forward returns the logits), and pass "
                    "--arch FILE.py:FACTORY --start pretrained"
                ) from None
            raise InputError(
                f"there is no module {name!r} here; --arch takes FILE.py:FACTORY, PACKAGE.MODULE:FACTORY, "
                f"torchvision:NAME, timm:NAME or a built-in name"
            ) from None
        except (Exception, SystemExit) as error:
            raise InputError(f"importing {name} raised {raised(error)}") from error


@contextlib.contextmanager
def _beside(file: Path | None) -> Iterator[None]:
    """Let imports find first what lies beside `file`, as for a script; without one, last, what lies here."""
    directory = str(Path.cwd() if file is None else file.parent)
    sys.path.insert(len(sys.path) if file is None else 0, directory)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the code took it away itself
            sys.path.remove(directory)


def _parameters(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    """The parameters that can be given by name; None where Python cannot tell."""
    try:
        found = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return None
    return {name: each for name, each in found.items() if each.kind not in (each.VAR_POSITIONAL, each.POSITIONAL_ONLY)}
