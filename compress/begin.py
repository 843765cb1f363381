"""The start of a run that begins from trained weights: how their pixels are wanted, and how right they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from wmlc.compress.learn.place import Device
from wmlc.compress.learn.train import evaluation_batch
from wmlc.compress.prepare import Prepared
from wmlc.console import note, say
from wmlc.data import Data, data_of, open_parts
from wmlc.data.decode import Layout
from wmlc.data.normalisation import as_text, start_accuracy, start_words
from wmlc.errors import InputError
from wmlc.models.pixels import Pixels
from wmlc.models.start import start_pixels
from wmlc.run import data_config
from wmlc.settings import TrainConfig


def open_for_start(config: TrainConfig, device: Device) -> tuple[TrainConfig, Data]:
    """A run's data, and `config` with the normalisation, size, interpolation and crop that its start wants.

    What was asked for stays as it is. Raises `InputError` as `open_data` does.
    """
    parts = open_parts(data_config(config))
    pixels = start_pixels(config.start, config.arch) if config.start is not None else None
    if pixels is not None and len(pixels.mean) == parts.layout.channels:
        config = _as_wanted(config, pixels, parts.layout)
        parts = parts.under(data_config(config))
    return config, data_of(parts, device.name)


def _as_wanted(config: TrainConfig, pixels: Pixels, layout: Layout) -> TrainConfig:
    own: dict[str, Any] = {}
    if config.normalise is None:
        own["normalise"] = as_text(pixels.mean, pixels.std)
    if not layout.small:
        own |= _own_framing(pixels, config)
    return replace(config, **own)


def _own_framing(pixels: Pixels, config: TrainConfig) -> dict[str, Any]:
    """Of large images what the start's own are like, unless that was asked for."""
    own: dict[str, Any] = {"interpolation": pixels.interpolation, "crop": pixels.crop}
    if pixels.size is not None and pixels.size[0] == pixels.size[1]:
        own["image_size"] = pixels.size[0]
    return {key: value for key, value in own.items() if value is not None and getattr(config, key) is None}


def check_epochs(config: TrainConfig, prepared: Prepared) -> None:
    """Raise `InputError` for no epochs where there is something to learn."""
    if config.epochs == 0 and not prepared.trained:
        raise InputError(
            "epochs 0 trains nothing, and the head for these classes is new; train it for an epoch or more"
        )


def print_start(prepared: Prepared, data: Data | None, device: Device) -> None:
    """Say what became of a start, and how right it is on the held-out images under the usual normalisations."""
    fitted, staged = prepared.made.fitted, prepared.made.staged
    if staged is not None and staged.note:
        note(staged.note)
    if fitted is None:
        return
    for words in fitted.words:
        say(words)
    if data is None or not prepared.trained:
        return
    network = prepared.full.eval()

    def logits_of(images: Tensor) -> Tensor:
        with device.autocast():
            return network(images).float()

    line, warning = start_words(start_accuracy(logits_of, data, evaluation_batch(data)), data)
    say(line)
    if warning:
        note(warning)
