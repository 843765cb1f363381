"""What a run's networks see on pictures: the likeliest classes, from pixels as the evaluation takes them.

H height, W width, C channels
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import wmlc
from wmlc.console import note, say_exactly
from wmlc.data import normalise
from wmlc.data.decode import ImageFiles, Layout, framed
from wmlc.data.pictures import REPAIR, Header, read_header, shown
from wmlc.data.sources import Part
from wmlc.errors import InputError
from wmlc.records import DataRecord
from wmlc.run import Run, peer_name, read_config, read_family, select_peers
from wmlc.settings import TrainConfig
from wmlc.table import Table

if TYPE_CHECKING:
    from torch import Tensor, nn

LIKELIEST = 5


@dataclass(frozen=True)
class Likely:
    """A class and how likely it is that a picture shows it, from 0 to 1, as the network's softmax says."""

    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What one network says of one picture, the likeliest class first."""

    picture: str
    network: str
    classes: list[Likely]


def print_predictions(run: Run, peer: str, pictures: Sequence[Path], as_json: bool) -> None:
    """Print what the networks that `peer` names (K, all or baseline) say of each picture, as tables or as JSON."""
    found = predict(run, peer, pictures)
    if as_json:
        say_exactly(json.dumps([asdict(prediction) for prediction in found], indent=2))
        return
    for network in dict.fromkeys(prediction.network for prediction in found):
        rows = [
            [prediction.picture if rank == 0 else "", likely.name, f"{100 * likely.probability:.2f}"]
            for prediction in found
            if prediction.network == network
            for rank, likely in enumerate(prediction.classes)
        ]
        Table(["picture", "class", "%"], rows, f"{network} of {run.root}", words=2).show()


def predict(run: Run, peer: str, pictures: Sequence[Path]) -> list[Prediction]:
    """What each of the networks says of each of the `pictures`.

    Reads nothing of the data set. Raises `InputError` for a picture that cannot be read and an unfinished run.
    """
    import torch

    family, settings = read_family(run), read_config(run).settings
    data = family.data
    networks = {peer_name(k): wmlc.load(run.network(k)) for k in select_peers(family, peer)}
    found = []
    for picture, pixels_HWC in zip(pictures, read_pictures(pictures, data, settings), strict=True):
        images = normalise(pixels_HWC[None], data.mean, data.std)
        with torch.no_grad():
            found += [
                Prediction(str(picture), name, _likeliest(network, images, data.class_names))
                for name, network in networks.items()
            ]
    return found


def read_pictures(pictures: Sequence[Path], data: DataRecord, settings: TrainConfig) -> list[Tensor]:
    """The pictures' pixels, uint8 [H, W, C], brought to the network's size as the test images were.

    Sets of small images have one size, to which a picture of another is resized, with a note.
    """
    import torch

    channels, height, width = data.input_shape
    if data.framing.size != (height, width):
        raise InputError(
            f"the run's record is damaged: its pictures are {data.framing.words}, its networks take {height} x {width}"
            "; train it again"
        )
    layout = Layout(small=data.small, height=height, width=width, channels=channels, framing=data.framing)
    part = Part(
        class_names=data.class_names,
        labels_N=torch.zeros(len(pictures), dtype=torch.int64),
        paths=list(map(str, pictures)),
    )
    images = ImageFiles(part=part, layout=layout, transform=framed(data.framing))
    found = []
    for place, picture in enumerate(pictures):
        header, item = _header(picture, channels), images[place]
        if isinstance(item, InputError):
            raise _of_a_picture(item)
        if data.small and settings.image_size is None and (header.width, header.height) != (width, height):
            note(
                f"{picture} is {header.width} x {header.height}; "
                f"resized to {width} x {height}, as the networks take {data.name}"
            )
        found.append(item[0])
    return found


def _header(picture: Path, channels: int) -> Header:
    """The picture's header; `InputError` where it cannot be used, or has colour and the networks know grey alone."""
    try:
        header = read_header(str(picture))
    except InputError as error:
        raise _of_a_picture(error) from None
    if channels == 1 and not header.grey:
        raise InputError(f"{shown(str(picture))} has colour, and the networks take grey pictures; convert it to grey")
    return header


def _of_a_picture(error: InputError) -> InputError:
    """What is wrong with a picture, without what a training could do about it."""
    return InputError(str(error).replace(REPAIR, "; repair it, or name another"))


def _likeliest(network: nn.Module, images: Tensor, class_names: Sequence[str]) -> list[Likely]:
    probabilities_C = network(images)[0].softmax(-1)
    best = probabilities_C.topk(min(LIKELIEST, len(class_names)))
    return [
        Likely(class_names[place], value)
        for place, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
