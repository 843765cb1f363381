"""The names that `--arch` takes, to be searched."""

from __future__ import annotations

import difflib
from typing import NamedTuple

from wmlc.arch import TIMM, TORCHVISION
from wmlc.console import note
from wmlc.models.foreign import WITHOUT_TIMM

MOST_NEAR = 5  # names that are listed for one that nobody has


class Found(NamedTuple):
    """A network that can be named."""

    network: str
    origin: str
    params: int | None  # as its maker states them, for ImageNet's 1,000 classes; None: not without building it
    pretrained: bool  # its makers offer weights


def find(text: str) -> list[Found]:
    """The built-in networks, torchvision's classifiers and timm's whose name holds every word of `text`.

    Where none does, they are those with the names most like it, and a note says so. timm's are listed by their tags,
    such as resnet50.a1_in1k, where the text has a point in it. Without timm a note says how to get it. Fetches nothing.
    """
    known = [*_built_in(), *_torchvisions(), *_timms(tagged="." in text)]
    words = text.lower().split()
    if found := [each for each in known if all(word in each.network.lower() for word in words)]:
        return found
    near = set(difflib.get_close_matches(text.lower(), {_bare(each) for each in known}, n=MOST_NEAR))
    if near:
        note(f"no network has {text!r} in its name; these are nearest")
    return [each for each in known if _bare(each) in near]


def _bare(found: Found) -> str:
    return found.network.rpartition(":")[2]


def _built_in() -> list[Found]:
    from torchvision import models

    from wmlc.models.zoo import ARCHITECTURES

    theirs = models.list_models(module=models)
    return [Found(name, "built in", None, name in theirs) for name in ARCHITECTURES]


def _torchvisions() -> list[Found]:
    from torchvision import models

    found = []
    for name in models.list_models(module=models):
        best = models.get_model_weights(name).DEFAULT
        found.append(Found(f"{TORCHVISION}{name}", "torchvision", best.meta["num_params"], True))
    return found


def _timms(tagged: bool) -> list[Found]:
    try:
        import timm
    except ImportError:
        note(WITHOUT_TIMM)
        return []
    trained = timm.list_pretrained()
    having = {name.partition(".")[0] for name in trained}
    names = trained if tagged else timm.list_models()
    return [Found(f"{TIMM}{name}", "timm", None, name.partition(".")[0] in having) for name in names]
