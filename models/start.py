"""Trained weights as a run's start: read from a file, a run, a peer or their makers, and fitted into a network."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from wmlc.arch import TIMM, needs_caller
from wmlc.errors import InputError, some_of
from wmlc.models.checkpoint import SPEC_FILE, WEIGHTS_FILE, read_spec
from wmlc.models.foreign import Shape
from wmlc.models.head import classifiers_of, fit_channels
from wmlc.models.pixels import Pixels, own_pixels
from wmlc.models.pretrained import PRETRAINED, read_pretrained
from wmlc.models.shared import other_names
from wmlc.models.spelling import IS_AUXILIARY, IS_AVERAGE, IS_BOOKKEEPING, matched, spellings
from wmlc.models.weights_file import Copies, hub_file, read_weights
from wmlc.records import NetworkSpec
from wmlc.run import BASELINE, Run, is_run

IMAGENET = "imagenet"
WNIDS_FILE = Path(__file__).with_name("imagenet_wnids.txt")
MOST_NAMED = 5  # tensors that a message lists
MOST_OF_IT = 0.95  # of a network's tensors, from where on some are its: its stem and head may differ


@dataclass(frozen=True)
class Start:
    """Trained weights, and what is known of them besides."""

    where: str  # in words
    copies: Copies
    arch: str  # the network that they shall go into, in words
    class_names: list[str] | None = None  # of the head's outputs, in order


@dataclass(frozen=True)
class Fitted:
    """What became of a start in a network: of its head, and in lines for people."""

    head: Literal["kept", "rows", "new"]
    words: list[str]


def read_start(
    start: str, arch: str, input_shape: Shape, arch_args: str = "", start_classes: str | None = None,
    classes: int = 1000,
) -> Start:  # fmt: skip
    """The weights that `start` names: a file, a run's or a network's directory, or `pretrained`.

    Args: the network that they are for; the images' shape; what names the classes of their head, a file with a line
    each or `imagenet`, where they do not say so themselves; how many `classes` the data have. Raises `InputError`, one
    line, for what cannot be read.
    """
    if start == PRETRAINED:
        tensors, where = read_pretrained(arch, input_shape, arch_args, classes)
        found = Start(where, {"": tensors}, arch)
    elif (path := _path(start)).is_dir():
        where, path, spec = _of_directory(path)
        copies = read_weights(path / WEIGHTS_FILE)
        found = Start(where, copies, arch, list(spec.class_names))
    else:
        found = Start(str(path), read_weights(path), arch)
    return found if start_classes is None else replace(found, class_names=_class_names(start_classes))


def start_name(start: str) -> str:
    """A file's or a run's name; of a network in a run the run's too, which says more: `run/peers/1`."""
    parts = (Path(start).resolve() if set(Path(start).parts) <= {"."} or ".." in start else Path(start)).parts
    depth = 3 if parts[-2:-1] == ("peers",) else 2 if parts[-1] == "baseline" else 1
    return "/".join(parts[-depth:])


def start_pixels(start: str, arch: str) -> Pixels | None:
    """How the weights that `start` names want their pixels; fetches nothing.

    A file does not say; of a network of timm's it is likely to want what timm's own weights do. None: unknown.
    """
    if start == PRETRAINED:
        return own_pixels(arch)
    if not (path := _path(start)).is_dir():
        own = own_pixels(arch) if arch.startswith(TIMM) else None
        return own and replace(own, size=None)
    spec = _of_directory(path)[2]
    return Pixels(tuple(spec.mean), tuple(spec.std), spec.input_shape[1:])


def imagenet_wnids() -> list[str]:
    """The WordNet ids of ImageNet's 1,000 classes, in the order of its networks' outputs."""
    return WNIDS_FILE.read_text(encoding="ascii").split()


def fit_start(network: nn.Module, start: Start, class_names: list[str], input_shape: Shape) -> Fitted:
    """Load a start's weights into `network`, in place, whose outputs are the classes `class_names`.

    Names of wrappers and of torchvision are seen through, other floats become the network's, and a head for other
    classes is cut to the rows of these or left new. Raises `InputError` that lists all that is missing or left over
    beyond the head.
    """
    due = network.state_dict()
    place, names = _best_copy(start, due)
    tensors = start.copies[place]
    heads: set[str] = set()
    with contextlib.suppress(InputError):  # then nothing about its head can be changed
        heads = classifiers_of(network, input_shape)
    words = [_found(start, place, tensors, names)]
    found = {*names.values()}
    found |= {other for one, other in other_names(network) if one in found}  # safetensors keeps one of tied weights
    missing = [name for name in due if name not in found and not IS_BOOKKEEPING.search(name)]
    over, said = _left_over(start, place, names, due)
    words += said
    fitting = {mine for theirs, mine in names.items() if tensors[theirs].shape == due[mine].shape}
    headless = bool(missing) and all(_layer(name) in heads and not _has_layer(name, fitting) for name in missing)
    if headless and len({_layer(name) for name in over}) <= 1:  # its own head, if it has one, is called otherwise
        missing, over = [], []
    kept, resized, other, said = _by_shape({mine: tensors[theirs] for theirs, mine in names.items()}, due, heads)
    words += said
    if missing or over or other:
        fits = sum(not IS_BOOKKEEPING.search(name) for name in kept)
        all_of_it = sum(not IS_BOOKKEEPING.search(name) for name in due)
        wrong = (("missing", missing), ("left over", over), ("of another shape or kind", other))
        raise InputError(
            f"{start.where} does not hold the weights of {start.arch}: {fits} of its {all_of_it} tensors fit; "
            f"{'; '.join(f'{what}: {_listed(each)}' for what, each in wrong if each)}; "
            f"{_remedy(tensors, start.arch, due, only_more=not missing and not other)}"
        )
    head, said, rows = _head(start, resized, class_names, headless)
    words += said
    if rows:
        kept |= {mine: tensors[theirs][rows] for theirs, mine in names.items() if _layer(mine) in heads}
    return Fitted(head, words + _load(kept, due, start.where))


def _has_layer(name: str, found: set[str]) -> bool:
    """Whether other tensors of its layer are among those `found`."""
    return any(_layer(other) == _layer(name) for other in found)


def _of_directory(path: Path) -> tuple[str, Path, NetworkSpec]:
    """A network's directory, or a run's for its baseline: in words, where the network lies, and its record."""
    where = str(path)
    if is_run(path):
        path = Run(path).network(BASELINE)
        where = f"the baseline of {where}"
        if not path.is_dir():
            raise InputError(f"--start: {where} is not there; name one of its peers, peers/1, peers/2, …")
    elif not (path / SPEC_FILE).is_file() and (file := hub_file(path)) is not None:
        raise InputError(
            f"--start: {path} is what save_pretrained writes; pass --start {file}, or let your factory build the "
            "network from the directory (from_pretrained) and pass --start pretrained"
        )
    elif not (path / SPEC_FILE).is_file():
        raise InputError(
            f"--start: {path} is neither a run nor a peer ({SPEC_FILE} and {WEIGHTS_FILE}); name one, or a file"
        )
    spec = read_spec(path)
    if spec.about.achieved_ratio:
        raise InputError(
            f"--start: {path} is pruned by {spec.about.achieved_ratio:.0%}, and a run starts from a whole network; "
            f"name the run for its baseline, or a peer of ratio 0"
        )
    return where, path, spec


def _path(start: str) -> Path:
    path = Path(start).expanduser()
    if not path.exists():
        raise InputError(f"--start: there is no {path}; name a file of weights, a run, a peer or 'pretrained'")
    return path


def _class_names(start_classes: str) -> list[str]:
    if start_classes == IMAGENET:
        return imagenet_wnids()
    from wmlc.files import read_text

    text = read_text(Path(start_classes).expanduser(), "list of classes", "give a name a line, or 'imagenet'")
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if len(set(names)) < len(names):
        raise InputError(f"{start_classes} names a class twice; give a name a line, in the order of the outputs")
    return names


def _best_copy(start: Start, due: dict[str, Tensor]) -> tuple[str, dict[str, str]]:
    """Where in the start the most tensors fit, and their names there and here; averages come last."""
    best, place, names = (-1, -1, False), "", dict[str, str]()
    ways = list(spellings(due))
    for at, tensors in start.copies.items():
        for spelling in ways:
            found = matched(tensors, spelling)
            fits = sum(tensors[theirs].shape == due[mine].shape for theirs, mine in found.items())
            rank = (fits, len(found), not IS_AVERAGE.search(at))
            if rank > best:
                best, place, names = rank, at, found
    return place, names


def _found(start: Start, place: str, tensors: dict[str, Tensor], names: dict[str, str]) -> str:
    inside = f", {place}" if place else ""
    first = next(
        ((theirs, mine) for theirs, mine in names.items() if theirs != mine and not IS_BOOKKEEPING.search(mine)), None
    )
    renamed = f", whose {first[0]} is {first[1]} here" if first else ""
    return f"start: {start.where}{inside}: {len(names)} of {len(tensors)} tensors{renamed}"


def _left_over(
    start: Start, place: str, names: dict[str, str], due: dict[str, Tensor]
) -> tuple[list[str], list[str]]:  # fmt: skip
    """The tensors of the start that have no place in the network, and words on those that need none."""
    over = [name for name in start.copies[place] if name not in names and not IS_BOOKKEEPING.search(name)]
    auxiliary = {name for name in over if IS_AUXILIARY.search(name)}
    words = [f"its auxiliary heads are left out ({len(auxiliary)} tensors)"] if auxiliary else []
    over = [name for name in over if name not in auxiliary]
    taken, again = {name for name in names.values() if not IS_BOOKKEEPING.search(name)}, set[str]()
    for way in spellings(due):
        same = {name for name, mine in matched(over, way).items() if mine in taken}
        again |= same if len(same) >= MOST_OF_IT * len(taken) else set()
    if any(IS_AVERAGE.search(name) for name in again | (start.copies.keys() - {place})):
        words.append("it has an averaged copy too (EMA), which is not taken")
    elif again:
        words.append(f"a second copy in it, of {len(again)} tensors, is not taken")
    return [name for name in over if name not in again], words


def _by_shape(
    got: dict[str, Tensor], due: dict[str, Tensor], heads: set[str]
) -> tuple[dict[str, Tensor], dict[str, int], list[str], list[str]]:
    """What was found: tensors that fit, heads by their other number of classes, what does not fit, and words."""
    kept: dict[str, Tensor] = {}
    resized: dict[str, int] = {}
    wrong, words = list[str](), list[str]()
    for name, tensor in got.items():
        here = due[name]
        if tensor.is_floating_point() != here.is_floating_point() or tensor.is_complex():
            wrong.append(f"{name} ({tensor.dtype} there)".replace("torch.", ""))
        elif tensor.shape == here.shape:
            kept[name] = tensor
        elif _layer(name) in heads and tensor.ndim and tensor.shape[1:] == here.shape[1:]:
            resized[_layer(name)] = len(tensor)
        elif _only_channels_differ(tensor, here) and {tensor.shape[1], here.shape[1]} == {1, 3}:
            kept[name] = fit_channels(tensor.float(), here.shape[1])
            how = "summed to" if here.shape[1] == 1 else "repeated for"
            words.append(f"{name} is for images of {tensor.shape[1]} channels, and is {how} {here.shape[1]}")
        else:
            wrong.append(f"{name} ({list(tensor.shape)} there, {list(here.shape)} here)")
    return kept, resized, wrong, words


def _layer(name: str) -> str:
    """The layer that a tensor belongs to."""
    return name.rpartition(".")[0]


def _remedy(tensors: dict[str, Tensor], arch: str, due: dict[str, Tensor], only_more: bool) -> str:
    """What to do about weights of another network; names the built-in one whose they are.

    Args: the tensors that are due; whether all that the network has is there, and more.
    """
    from wmlc.models.zoo import ARCHITECTURES, build_network

    for name in ARCHITECTURES:
        with torch.device("meta"):
            own = build_network(name, 10, (3, 32, 32)).state_dict()
        for way in spellings(own) if name != arch else ():
            fits = sum(tensors[there].shape == own[here].shape for there, here in matched(tensors, way).items())
            if fits >= MOST_OF_IT * max(len(own), len(tensors)):
                return f"they look like {name}'s: pass --arch {name}"
    shapes, wanted = (Counter(tuple(each.shape) for each in those.values()) for those in (tensors, due))
    if needs_caller(arch) and (shapes & wanted).total() >= MOST_OF_IT * max(shapes.total(), wanted.total()):
        return (
            "its tensors are of the network's shapes under other names, as libraries rename them: build the network "
            "with its library's own loader in the factory (from_pretrained), and pass --start pretrained"
        )
    if only_more:
        return "if what is left over is no part of the network (a loss's weights, say), save the file without it"
    return "name the network that they were trained in with --arch and --arch-args"


def _only_channels_differ(there: Tensor, here: Tensor) -> bool:
    return there.ndim == here.ndim == 4 and there.shape[0] == here.shape[0] and there.shape[2:] == here.shape[2:]


def _head(
    start: Start, resized: dict[str, int], class_names: list[str], missing: bool
) -> tuple[Literal["kept", "rows", "new"], list[str], list[int]]:
    """What becomes of the head, in words too, and which of its rows are the data's classes."""
    mine = len(class_names)
    there = next(iter(resized.values()), mine)
    if len({*resized.values()}) > 1:
        raise InputError(f"{start.where} has heads for {_listed(list(map(str, resized.values())))} classes; keep one")
    if missing:
        return "new", [f"it has no head, so {mine} classes get a new one"], []
    names = start.class_names
    if names is not None and len(names) != there:
        raise InputError(f"the head of {start.where} has {there} classes, and {len(names)} names were given for them")
    if names is None and there == 1000 and set(class_names) <= set(imagenet_wnids()):
        names = imagenet_wnids()
    if names is not None and set(class_names) <= set(names) and class_names != names:
        rows = [names.index(name) for name in class_names]
        return "rows", [f"its head's rows of {mine} of {there:,} classes are kept"], rows
    if there == mine:
        theirs = "" if names in (None, class_names) else f", which it calls {_listed(names or [])}"
        return "kept", [f"its head of {mine} classes is kept{theirs}"], []
    why = f"its head has {there:,} classes"
    if names is not None:
        why += f", none of them {_listed([name for name in class_names if name not in names])}"
    return "new", [f"{why}, so the data's {mine} get a new one"], []


def _load(kept: dict[str, Tensor], due: dict[str, Tensor], where: str) -> list[str]:
    """Copy the tensors that are `kept` into those of a network; says which were of another kind of float."""
    ready = {name: tensor.to(due[name].dtype) for name, tensor in kept.items()}
    if faulty := [name for name, tensor in ready.items() if not tensor.isfinite().all()]:
        raise InputError(f"{where} has NaN or infinite weights: {_listed(faulty)}; take an earlier checkpoint")
    with torch.no_grad():
        for name, tensor in ready.items():
            due[name].copy_(tensor)
    others = {t.dtype for name, t in kept.items() if t.is_floating_point() and t.dtype != due[name].dtype}
    shown = " and ".join(sorted(str(each).removeprefix("torch.") for each in others))
    return [f"converted from {shown} to float32"] if others else []


def _listed(names: list[str]) -> str:
    return some_of([ascii(name)[1:-1] for name in names], MOST_NAMED)
