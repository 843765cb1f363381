"""Trained weights as a run's start: read from a file, a run, a peer or their makers, and fitted into a network."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from wmlc.errors import InputError
from wmlc.models.checkpoint import SPEC_FILE, WEIGHTS_FILE, read_spec
from wmlc.models.foreign import Shape
from wmlc.models.head import classifiers_of, fit_channels
from wmlc.models.pixels import Pixels
from wmlc.models.pretrained import PRETRAINED, read_pretrained
from wmlc.models.spelling import IS_AUXILIARY, IS_BOOKKEEPING, matched, spellings
from wmlc.models.weights_file import Copies, read_weights
from wmlc.run import BASELINE, Run, is_run

IMAGENET = "imagenet"
WNIDS_FILE = Path(__file__).with_name("imagenet_wnids.txt")
MOST_NAMED = 5  # tensors that a message lists
IS_AVERAGE = re.compile(r"(^|[._])(ema|swa|average[d]?)($|[._])", re.IGNORECASE)


@dataclass(frozen=True)
class Start:
    """Trained weights, and what is known of them besides."""

    where: str  # in words
    copies: Copies
    arch: str  # the network that they shall go into, in words
    pixels: Pixels | None = None  # what they were trained on
    class_names: list[str] | None = None  # of the head's outputs, in order


@dataclass(frozen=True)
class Fitted:
    """What became of a start in a network: of its head, and in lines for people."""

    head: Literal["kept", "rows", "new"]
    words: list[str]


def read_start(
    start: str, arch: str, input_shape: Shape, arch_args: str = "", start_classes: str | None = None
) -> Start:
    """The weights that `start` names: a file, a run's or a network's directory, or `pretrained`.

    Args: the network that they are for; the images' shape; what names the classes of their head, a file with a line
    each or `imagenet`, where they do not say so themselves. Raises `InputError`, one line, for what cannot be read.
    """
    if start == PRETRAINED:
        tensors, pixels, where = read_pretrained(arch, input_shape, arch_args)
        found = Start(where, {"": tensors}, arch, pixels)
    else:
        path = Path(start).expanduser()
        if not path.exists():
            raise InputError(f"--start: there is no {path}; name a file of weights, a run, a peer or 'pretrained'")
        found = _directory(path, arch) if path.is_dir() else Start(str(path), read_weights(path), arch)
    return found if start_classes is None else replace(found, class_names=_class_names(start_classes))


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
    got = {mine: tensors[theirs] for theirs, mine in names.items()}
    heads = classifiers_of(network, input_shape)
    words, wrong = [_found(start, place, tensors, names)], list[str]()
    missing = [name for name in due if name not in got and not IS_BOOKKEEPING.search(name)]
    over = [name for name in tensors if name not in names and not IS_BOOKKEEPING.search(name)]
    if auxiliary := [name for name in over if IS_AUXILIARY.search(name)]:
        words.append(f"its auxiliary heads are left out ({len(auxiliary)} tensors)")
    copies = _other_copies(over, due, set(names.values()))
    over = [name for name in over if name not in auxiliary and name not in copies]
    if copies or any(IS_AVERAGE.search(other) for other in start.copies if other != place):
        words.append("it has an averaged copy too (EMA), which is not taken")
    headless = {name.rpartition(".")[0] for name in missing}
    if len(headless) == 1 and headless <= heads:  # a backbone, or its head is called otherwise
        if len({name.rpartition(".")[0] for name in over}) <= 1:
            missing, over = [], []
    else:
        headless = set()
    wrong += [f"{name} is missing" for name in missing] + [f"{name} is left over" for name in over]
    kept: dict[str, Tensor] = {}
    resized: dict[str, int] = {}  # heads for another number of classes, and how many
    for name, tensor in got.items():
        now, head = due[name], name.rpartition(".")[0]
        if tensor.shape == now.shape:
            kept[name] = tensor
        elif head in heads and tensor.ndim and tensor.shape[1:] == now.shape[1:]:
            resized[head] = len(tensor)
        elif _only_channels_differ(tensor, now) and {tensor.shape[1], now.shape[1]} == {1, 3}:
            kept[name] = fit_channels(tensor.float(), now.shape[1])
            words.append(f"{name} is for {tensor.shape[1]} channels, and is fitted to {now.shape[1]}")
        else:
            wrong.append(f"{name} is {list(tensor.shape)} there, {list(now.shape)} here")
    if wrong:
        count = [name for name in due if not IS_BOOKKEEPING.search(name)]
        fits = sum(name in got and got[name].shape == due[name].shape for name in count)
        raise InputError(
            f"{start.where} does not hold the weights of {start.arch}: {fits} of its {len(count)} tensors fit; "
            f"{_listed(wrong)}; name the network that they were trained in with --arch and --arch-args"
        )
    head, said, rows = _head(start, resized, class_names, bool(headless))
    words += said
    for name, tensor in got.items():
        if rows and name.rpartition(".")[0] in heads:
            kept[name] = tensor[rows]
    words += _load(network, kept, due, start)
    return Fitted(head, words)


def _directory(path: Path, arch: str) -> Start:
    """The weights in a network's directory, or of a run's baseline."""
    where = f"{path}"
    if is_run(path):
        path = Run(path).network(BASELINE)
        where = f"the baseline of {where}"
        if not path.is_dir():
            raise InputError(f"--start: {where} is not there; name one of its peers, peers/1, peers/2, …")
    elif not (path / SPEC_FILE).is_file():
        raise InputError(
            f"--start: {path} is neither a run nor a peer ({SPEC_FILE} and {WEIGHTS_FILE}); name one, or a file"
        )
    spec = read_spec(path)
    pixels = Pixels(tuple(spec.mean), tuple(spec.std), spec.input_shape[1:])
    return Start(where, read_weights(path / WEIGHTS_FILE), arch, pixels, list(spec.class_names))


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
    first = next(((theirs, mine) for theirs, mine in names.items() if theirs != mine), None)
    renamed = f", whose {first[0]} is {first[1]} here" if first else ""
    return f"start: {start.where}{inside}: {len(names)} of {len(tensors)} tensors{renamed}"


def _other_copies(over: list[str], due: dict[str, Tensor], taken: set[str]) -> set[str]:
    """Of the tensors left over those that stand for one that was found already, under another prefix."""
    return {name for spelling in spellings(due) for name, mine in matched(over, spelling).items() if mine in taken}


def _only_channels_differ(there: Tensor, here: Tensor) -> bool:
    return there.ndim == here.ndim == 4 and there.shape[0] == here.shape[0] and there.shape[2:] == here.shape[2:]


def _head(
    start: Start, resized: dict[str, int], class_names: list[str], missing: bool
) -> tuple[Literal["kept", "rows", "new"], list[str], list[int]]:
    """What becomes of the head, in words too, and which of its rows are the data's classes."""
    mine = len(class_names)
    there = next(iter(resized.values()), mine)
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
        return "kept", [f"its head of {mine} classes is kept"], []
    why = f"its head has {there:,} classes"
    if names is not None:
        why += f", none of them {_listed([name for name in class_names if name not in names])}"
    return "new", [f"{why}, so the data's {mine} get a new one"], []


def _load(network: nn.Module, kept: dict[str, Tensor], due: dict[str, Tensor], start: Start) -> list[str]:
    """Copy the tensors into the network; says which were of another kind of float."""
    faulty = [name for name, tensor in kept.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if faulty:
        raise InputError(f"{start.where} has NaN or infinite weights: {_listed(faulty)}; take an earlier checkpoint")
    others = {str(t.dtype)[6:] for name, t in kept.items() if t.is_floating_point() and t.dtype != due[name].dtype}
    with torch.no_grad():
        for name, tensor in kept.items():
            due[name].copy_(tensor)
    return [f"converted from {' and '.join(sorted(others))} to float32"] if others else []


def _listed(names: list[str]) -> str:
    more = f"; and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return "; ".join(ascii(name)[1:-1] for name in names[:MOST_NAMED]) + more
