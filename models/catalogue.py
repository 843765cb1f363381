"""The names that `--arch` takes, to be searched."""

from __future__ import annotations

from typing import NamedTuple

from wmlc.console import note
from wmlc.models.foreign import TIMM, TORCHVISION, WITHOUT_TIMM


class Found(NamedTuple):
    """A network that can be named."""

    network: str
    origin: str
    params: int | None  # as its maker states them, for ImageNet's 1,000 classes; None: not without building it
    pretrained: bool  # its makers offer weights


def find(text: str) -> list[Found]:
    """The built-in networks, torchvision's classifiers and timm's whose name holds every word of `text`.

    timm's are listed by their tags, such as resnet50.a1_in1k, where the text has a point in it. Without timm a note
    says how to get it. Fetches nothing.
    """
    words = text.lower().split()
    return [
        each for each in [*_built_in(), *_torchvisions(), *_timms(tagged="." in text)] if _fits(each.network, words)
    ]


def _fits(name: str, words: list[str]) -> bool:
    return all(word in name.lower() for word in words)


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
