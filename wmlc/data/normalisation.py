"""How pixels are normalised before a network sees them: what may be asked for, and which usual way fits a start.

Pixels are scaled to 0 … 1 first; a channel's mean is then subtracted, and the rest divided by its deviation.

B batch, C channels, H height, W width, K classes
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from wmlc.errors import InputError
from wmlc.stats import top1_difference

if TYPE_CHECKING:  # `wmlc --help` needs no torch
    from torch import Tensor

    from wmlc.data import Data

OWN = "data"  # the name of the training images' own mean and deviation
LARGEST_STD = 10.0  # nobody divides pixels of 0 … 1 by more: that is a deviation of pixels 0 … 255
SAME = 1e-3  # normalisations whose numbers all lie nearer to each other are one
WORTH_SAYING = 2.0  # points of top-1 by which another normalisation must be better
CLEAR = 5  # standard errors that are no accident
FIRST_LOOK = 256  # images that tell a network which knows nothing
LONGEST_SHOWN = 60  # letters of a value in a message
LIKE = (
    "half, data, or MEAN/STD of pixels scaled to 0 … 1, a number for all channels or one each, like 0.5/0.5; "
    "with fractions a colon parts them, like 127/255:128/255"
)


class Normalisation(NamedTuple):
    """Mean and deviation of pixels scaled to 0 … 1: one number for all channels, or one a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def of(self, channels: int) -> Normalisation:
        """The same with a number for each of the channels."""
        return Normalisation(*(each * channels if len(each) == 1 else each for each in self))

    def is_near(self, other: Normalisation) -> bool:
        """Whether a network could hardly tell them apart; both with a number a channel."""
        pairs = [pair for mine, theirs in zip(self, other, strict=True) for pair in zip(mine, theirs, strict=True)]
        return all(abs(mine - theirs) <= SAME for mine, theirs in pairs)


NAMED = {
    "imagenet": Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": Normalisation((0.5,), (0.5,)),  # pixels from -1 to 1
}
# What a trained network may have been trained with, by what `--normalise` calls it.
USUAL = NAMED | {"0/1": Normalisation((0.0,), (1.0,))}  # pixels as they are, from 0 to 1


class StartSeen(NamedTuple):
    """What a start makes of the held-out images under the usual normalisations, the one in force first."""

    top1: dict[str, float]  # in percent, by what `--normalise` calls each
    only: int | None = None  # the class that every image is answered as under the one in force, where that is so


def parse_normalisation(said: str) -> Normalisation | None:
    """What `--normalise` asks for; None for the training images' own, which only they tell.

    `imagenet`, `half`, `data`; M/S or M,M,M/S,S,S; and M:S, where each number may be a fraction. Raises `InputError`.
    """
    if said == OWN:
        return None
    if said in NAMED:
        return NAMED[said]
    mean, parted, std = said.partition(":" if ":" in said else "/")
    try:
        found = Normalisation(*(tuple(number(part) for part in side.split(",")) for side in (mean, std)))
    except (ValueError, ZeroDivisionError):
        found = None
    if not parted or found is None or not all(math.isfinite(value) for side in found for value in side):
        raise InputError(f"normalise must be imagenet, {LIKE}; got {_shown(said)}")
    if not all(0 <= value <= 1 for value in found.mean) or not all(0 < value <= LARGEST_STD for value in found.std):
        raise InputError(
            f"normalise is of pixels scaled to 0 … 1, so a mean is from 0 to 1 and a deviation above 0 and at most "
            f"{LARGEST_STD:g}, like 0.5/0.5, or 127/255:128/255 for pixels of 0 … 255; got {_shown(said)}"
        )
    return found


def for_channels(said: str, channels: int) -> Normalisation | None:
    """`parse_normalisation` with a number a channel; `InputError` where it is of images with other channels."""
    found = parse_normalisation(said)
    if found is None:
        return None
    for what, side in (("mean", found.mean), ("deviation", found.std)):
        if len(side) not in (1, channels):
            have = f"{channels} channel" + "s" * (channels > 1)
            raise InputError(
                f"normalise {_shown(said)} has a {what} for each of {len(side)} channels, the images have {have}; "
                f"pass {LIKE}"
            )
    return found.of(channels)


def as_text(mean: Sequence[float], std: Sequence[float]) -> str:
    """A normalisation as `--normalise` takes it, M,M,M/S,S,S, without the loss of a bit."""
    return "/".join(",".join(repr(float(value)) for value in side) for side in (mean, std))


def number(said: str) -> float:
    """A number or a fraction: 0.5, 1/255. Raises `ValueError` or `ZeroDivisionError`."""
    above, _, below = said.partition("/")
    return float(above) / float(below) if below else float(above)


def numbers(option: str, said: str, channels: int) -> list[float]:
    """What `--mean` or `--std` says for each channel: one number for all or one each, such as 0.5 or 1/255."""
    try:
        found = [number(part) for part in said.split(",")]
    except (ValueError, ZeroDivisionError):
        found = []
    least = 0.0 if option == "--std" else -math.inf
    if len(found) not in (1, channels) or not all(math.isfinite(each) and each > least for each in found):
        raise InputError(
            f"{option} must be a number or {channels} with commas between them, of pixels scaled to 0 … 1"
            f"{', above 0' if option == '--std' else ''}, like 0.5 or 1/255; got {said!r}"
        )
    return found * channels if len(found) == 1 else found


def renormalised(images_BCHW: Tensor, stated: Normalisation, other: Normalisation) -> Tensor:
    """Images that were normalised as `stated`, normalised as the `other` instead: x · S/s + (M - m)/s.

    M, S are the mean and deviation stated and m, s the other's, a number a channel. Returns a new tensor of the images'
    type, memory format and device.
    """
    import torch

    def across(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=images_BCHW.dtype, device=images_BCHW.device)[:, None, None]

    (mean, std), (other_mean, other_std) = stated, other
    scale = across([mine / theirs for mine, theirs in zip(std, other_std, strict=True)])
    shift = across([(m - o) / s for m, o, s in zip(mean, other_mean, other_std, strict=True)])
    return images_BCHW * scale + shift


def usual_normalisations(data: Data) -> dict[str, Normalisation]:
    """The normalisations worth trying on these data, a number a channel, by what `--normalise` calls them.

    The one in force comes first; those that are nearly an earlier one are left out.
    """
    channels = data.record.input_shape[0]
    known = {name: each.of(channels) for name, each in USUAL.items() if len(each.mean) in (1, channels)}
    known[OWN] = data.statistics
    in_force = Normalisation(tuple(data.record.mean), tuple(data.record.std))
    name = next((name for name, each in known.items() if each.is_near(in_force)), _rounded(in_force))
    found = {name: in_force}
    for other, each in known.items():
        if not any(each.is_near(earlier) for earlier in found.values()):
            found[other] = each
    return found


def start_accuracy(logits_of: Callable[[Tensor], Tensor], data: Data, batch_size: int) -> StartSeen:
    """Held-out top-1 in percent of a network under the usual normalisations, in one walk over the held-out images.

    Args: float32 [B, C, H, W] → logits [B, K], in eval mode; no gradient is kept. Raises `InputError` where no held-out
    image gets finite logits under any.
    """
    import torch

    found = usual_normalisations(data)
    in_force, *_ = found.values()
    right, images_seen, finite, answers = dict.fromkeys(found, 0), 0, False, set[int]()
    with torch.no_grad():
        for images_BCHW, labels_B in data.held_out_batches(batch_size):
            for name, other in found.items():
                shown_BCHW = images_BCHW if other is in_force else renormalised(images_BCHW, in_force, other)
                logits_BK = logits_of(shown_BCHW)
                answers_B = logits_BK.argmax(-1)
                right[name] += int((answers_B == labels_B).sum())
                answers |= set(answers_B.tolist()) if other is in_force else set()
                finite = finite or bool(logits_BK.isfinite().all(-1).any())
            images_seen += len(labels_B)
    if not finite:
        raise InputError("the start gives NaN or infinity for every held-out image; take an earlier checkpoint of it")
    only = answers.pop() if len(answers) == 1 else None
    return StartSeen({name: 100 * count / images_seen for name, count in right.items()}, only)


def answers_already(logits_of: Callable[[Tensor], Tensor], data: Data, batch_size: int) -> float | None:
    """Held-out top-1 in percent of a network that is clearly better than chance, as only a trained one is; else None.

    Chance is to name the commonest class each time. Some images are looked at first, and all only where those say so.
    """
    import torch

    def top1(batches: Iterable[tuple[Tensor, Tensor]]) -> float | None:
        right, seen = 0, list[torch.Tensor]()
        with torch.no_grad():
            for images_BCHW, labels_B in batches:
                right += int((logits_of(images_BCHW).argmax(-1) == labels_B).sum())
                seen.append(labels_B)
        labels_N = torch.cat(seen)
        share, chance = right / len(labels_N), int(labels_N.bincount().max()) / len(labels_N)
        clear = chance + CLEAR * math.sqrt(chance * (1 - chance) / len(labels_N))
        return 100 * share if share >= max(clear, min(3 * chance, (1 + chance) / 2)) else None

    some = (each.split(batch_size) for each in data.held_out_batch(FIRST_LOOK, 0))
    return None if top1(zip(*some, strict=True)) is None else top1(data.held_out_batches(batch_size))


def start_words(seen: StartSeen, data: Data) -> tuple[str, str | None]:
    """What `start_accuracy` found in one line, and a warning of what may be wrong.

    That is a normalisation not in force that fits better, one answer for all images, or fewer right answers than chance
    has, which knows the classes by other numbers.
    """
    (in_force, own), *others = seen.top1.items()
    how = "as stated" if data.config.normalise is not None else "by default"
    rest = ", ".join(f"{name} {value:.2f} %" for name, value in others)
    images, classes = data.record.held_out, data.record.class_names
    line = f"start: {own:.2f} % of {images:,} held-out images {how} ({in_force}); {rest}"
    best = max(seen.top1, key=lambda name: seen.top1[name])
    chance = 100 / len(classes)
    error = math.sqrt(chance * (100 - chance) / images)
    if seen.only is None and own < chance - CLEAR * error and seen.top1[best] < chance + CLEAR * error:
        return line, (
            f"the start is right on fewer of the held-out images than chance ({chance:.2g} %), as one is that has the "
            "classes in another order: pass --start-classes FILE, a class a line in the order of its outputs"
        )
    certain, _ = top1_difference(seen.top1[best], own, images)
    if seen.top1[best] - own > WORTH_SAYING and certain > 0:  # few images tell normalisations apart by chance
        return line, (
            f"the start is right on {seen.top1[best] - own:.2f} points more of the held-out images under the "
            f"normalisation {best}; pass --normalise {best}"
        )
    if seen.only is None or len(classes) == 1:
        return line, None
    return line, (
        f"the start answers every held-out image as one class, {classes[seen.only]}, and so knows nothing of them: it "
        "was not trained for them, or for pixels prepared in another way (--normalise)"
    )


def _rounded(found: Normalisation) -> str:
    """A normalisation for people: 0.491,0.482,0.447/0.247,0.243,0.262."""
    sides = [[f"{value:.3g}" for value in side] for side in found]
    return "/".join(side[0] if len(set(side)) == 1 else ",".join(side) for side in sides)


def _shown(said: str) -> str:
    """A value for a message, cut where it is long."""
    shown = repr(said)
    return shown if len(shown) <= LONGEST_SHOWN else shown[: LONGEST_SHOWN - 1] + "…"
