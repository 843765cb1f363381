"""How trained weights want their pixels, as timm and torchvision record it."""

from __future__ import annotations

from dataclasses import dataclass

from wmlc.arch import TIMM, TORCHVISION
from wmlc.models.foreign import timm_name, torchvision_name

HALF = (0.5, 0.5, 0.5)
MADE_FOR_HALF = ("googlenet", "inception_v3")  # their weights are TensorFlow's; torchvision converts inside, we do not


@dataclass(frozen=True)
class Pixels:
    """What weights were trained on: pixels in 0 … 1, normalised a channel, and how they were framed (None: unknown)."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None = None  # height, width
    interpolation: str | None = None  # bilinear, bicubic, nearest
    crop: float | None = None  # the share of the shorter side that is cut out of the middle


def own_pixels(arch: str) -> Pixels | None:
    """What timm's or torchvision's trained weights of `arch` want; None where there are none. Fetches nothing."""
    if arch.startswith(TIMM):
        import timm

        config = timm.get_pretrained_cfg(timm_name(arch))
        if config is None:
            return None
        height, width = config.input_size[-2:]
        return Pixels(tuple(config.mean), tuple(config.std), (height, width), config.interpolation, config.crop_pct)
    name = torchvision_name(arch) if arch.startswith(TORCHVISION) else arch
    return None if ":" in name else _torchvisions(name)


def _torchvisions(name: str) -> Pixels | None:
    from torchvision import models

    try:
        made = models.get_model_weights(name).DEFAULT.transforms()
    except ValueError:  # one of ours that torchvision does not have
        return None
    side = made.crop_size[0]
    mean, std = (HALF, HALF) if name in MADE_FOR_HALF else (tuple(made.mean), tuple(made.std))
    return Pixels(mean, std, (side, side), made.interpolation.value, side / made.resize_size[0])
