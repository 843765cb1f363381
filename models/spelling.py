"""What the same tensor is called elsewhere: prefixes of wrappers, and torchvision's names against the built-in ones."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping

from wmlc.models.mobilenet import STAGES

# (built-in, elsewhere), patterns of how a name begins
RESNET = ((r"stem\.conv\.", "conv1."), (r"stem\.bn\.", "bn1."), (r"stage(\d+)\.", r"layer\1."), (r"head\.fc\.", "fc."))
# the same, as CIFAR's ResNets are often written
CIFAR = (*RESNET[:3], (r"head\.fc\.", "linear."))
IS_BOOKKEEPING = re.compile(r"(^|\.)(num_batches_tracked|n_averaged|total_ops|total_params)$")
IS_AVERAGE = re.compile(r"(^|[._])(ema|swa|averaged?)($|[._])", re.IGNORECASE)
IS_AUXILIARY = re.compile(
    r"(^|\.)(aux\d*|AuxLogits|aux_classifier|aux_head)\."
)  # heads that are there for training only


def spellings(names: Collection[str]) -> Iterator[dict[str, str]]:
    """Ways to call a network's tensors: their names elsewhere → their names here. The own one first."""
    yield {name: name for name in names}
    if any(name.startswith("stem.") for name in names):
        for table in (RESNET, CIFAR):
            yield {_renamed(name, table): name for name in names}
        yield {_renamed(name, CIFAR).replace(".downsample.", ".shortcut."): name for name in names}
        yield {_mobilenet(name): name for name in names}
    else:
        back = [(_pattern(to), _plain(of)) for of, to in RESNET]
        yield {_renamed(name, back): name for name in names}
        theirs = {_mobilenet(own): own for own in _mobilenet_names()}
        yield {_with_prefix_of(name, theirs): name for name in names}
    for count in range(1, 1 + _common_parts(names)):  # what a wrapper puts before all of them
        yield {name.split(".", count)[count]: name for name in names}


def _common_parts(names: Collection[str]) -> int:
    """How many parts all names begin with, each of which has more."""
    parts = [name.split(".")[:-1] for name in names]
    return sum(1 for own in itertools.takewhile(lambda own: len(set(own)) == 1, zip(*parts, strict=False)))


def matched(found: Collection[str], spelling: Mapping[str, str]) -> dict[str, str]:
    """Which of the `found` names are tensors of the network: name in the file → name here.

    One prefix that all of them have, such as `module.`, is seen through; else each may have one of its own, as long as
    no two become the same.
    """
    prefixes = Counter(name[: len(name) - len(end)] for name in found for end in _ends(name) if end in spelling)
    best: dict[str, str] = {}
    if prefixes:
        prefix = min(prefixes, key=lambda each: (-prefixes[each], bool(IS_AVERAGE.search(each)), len(each)))
        best = {name: spelling[name[len(prefix) :]] for name in found if _after(name, prefix) in spelling}
    loose = {name: spelling[end] for name in found if (end := next((e for e in _ends(name) if e in spelling), None))}
    return loose if len(loose) > len(best) and len(set(loose.values())) == len(loose) else best


def _after(name: str, prefix: str) -> str | None:
    return name[len(prefix) :] if name.startswith(prefix) else None


def _ends(name: str) -> Iterator[str]:
    """The name without its first 0, 1, 2 … parts."""
    parts = name.split(".")
    return (".".join(parts[first:]) for first in range(len(parts)))


def _renamed(name: str, table: Collection[tuple[str, str]]) -> str:
    for pattern, becomes in table:
        if (found := re.match(pattern, name)) is not None:
            return found.expand(becomes) + name[found.end() :]
    return name


def _pattern(becomes: str) -> str:
    return becomes.replace(r"\1", r"(\d+)").replace(".", r"\.") if "\\1" in becomes else re.escape(becomes)


def _plain(pattern: str) -> str:
    return pattern.replace(r"\.", ".").replace(r"(\d+)", r"\1")


def _mobilenet(name: str) -> str:
    """torchvision's name of a tensor of our mobilenet_v2."""
    for stage, blocks in STAGES.items():
        if stage == "head":
            continue
        if found := re.match(rf"{stage}\.(\d+)\.", name):
            return f"features.{blocks.start + int(found[1])}.{name[found.end() :]}"
    return re.sub(r"^head\.fc\.", "classifier.1.", re.sub(r"^head\.conv\.", f"features.{STAGES['head'].start}.", name))


def _mobilenet_names() -> list[str]:
    """How the names of our mobilenet_v2's tensors begin, block by block."""
    blocks = [f"{stage}.{n}." for stage, its in STAGES.items() if stage != "head" for n in range(its.stop - its.start)]
    return [*blocks, "head.conv.", "head.fc."]


def _with_prefix_of(name: str, begins: Mapping[str, str]) -> str:
    """The name with the first prefix that it has of `begins` replaced by what that is there."""
    for theirs, ours in begins.items():
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    return name
