"""How pixels are normalised: what may be asked for, where it gets to, and how well a start fits to it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from image_folders import make_folder, open_folder
from PIL import Image
from torch import nn

from wmlc.compress.config import settle
from wmlc.compress.prepare import Made
from wmlc.compress.save import _spec
from wmlc.data import Data, DataConfig, normalise, open_data
from wmlc.data.normalisation import (
    NAMED,
    Normalisation,
    answers_already,
    as_text,
    for_channels,
    parse_normalisation,
    renormalised,
    start_accuracy,
    start_words,
    usual_normalisations,
)
from wmlc.errors import InputError
from wmlc.models.checkpoint import read_spec, save_network
from wmlc.models.zoo import build_network
from wmlc.records import About, Framing
from wmlc.run import data_config


@pytest.mark.parametrize(
    ("said", "mean", "std"),
    [
        ("half", (0.5,) * 3, (0.5,) * 3),
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("0.5/0.25", (0.5,) * 3, (0.25,) * 3),
        ("0/1", (0.0,) * 3, (1.0,) * 3),
        ("0.1,0.2,0.3/0.4", (0.1, 0.2, 0.3), (0.4,) * 3),
        (" 0.1, 0.2, 0.3 / 4e-1, 0.5, 0.6 ", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        ("127/255:128/255", (127 / 255,) * 3, (128 / 255,) * 3),
        ("0:1/255", (0.0,) * 3, (1 / 255,) * 3),
    ],
)
def test_a_normalisation_is_read(said: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    found = for_channels(said, 3)
    assert found == (mean, std)
    assert parse_normalisation(as_text(*found)) == found  # and written without the loss of a bit


@pytest.mark.parametrize(
    "said", ["", "Half", "0.5", "0.5/", "/0.5", "nan/0.5", "0.5/inf", "1/2/3/4", "0,,1/1", "1/0:1"]
)
def test_what_says_no_normalisation_is_refused_in_one_line(said: str) -> None:
    with pytest.raises(InputError) as caught:
        settle({"normalise": said})
    assert str(caught.value) == (
        "normalise must be imagenet, half, data, or MEAN/STD of pixels scaled to 0 … 1, a number for all channels or one "
        f"each, like 0.5/0.5; with fractions a colon parts them, like 127/255:128/255; got {said!r}"
    )


@pytest.mark.parametrize("said", ["0.5/0", "0.5/-0.5", "-0.1/0.5", "123.7/58.4", "127/255", "0.5/0.5,0,0.5", "0/255"])
def test_numbers_that_cannot_be_of_pixels_up_to_1_are_refused(said: str) -> None:
    with pytest.raises(InputError) as caught:
        DataConfig(normalise=said)
    assert str(caught.value) == (
        "normalise is of pixels scaled to 0 … 1, so a mean is from 0 to 1 and a deviation above 0 and at most 10, like "
        f"0.5/0.5, or 127/255:128/255 for pixels of 0 … 255; got {said!r}"
    )


def test_long_values_are_cut_in_the_message() -> None:
    with pytest.raises(InputError, match=r"got '7{58}…$"):
        DataConfig(normalise="7" * 9999)


@pytest.mark.parametrize(
    ("said", "mode", "message"),
    [
        ("imagenet", "L", "normalise 'imagenet' has a mean for each of 3 channels, the images have 1 channel"),
        (
            "0.5/0.5,0.5",
            "RGB",
            "normalise '0.5/0.5,0.5' has a deviation for each of 2 channels, the images have 3 channels",
        ),
    ],
)
def test_a_normalisation_of_other_channels_is_refused(said: str, mode: str, message: str, tmp_path: Path) -> None:
    data = open_folder(make_folder(tmp_path, mode=mode), normalise=said)
    with pytest.raises(InputError) as caught:
        _ = data.record
    assert str(caught.value).split(";")[0] == message


@pytest.mark.parametrize("size", [(8, 8), (80, 70)])
def test_images_are_normalised_as_asked_and_their_own_statistics_stay_known(
    size: tuple[int, int], tmp_path: Path
) -> None:
    make_folder(tmp_path, train=4, size=size)
    own, half = (
        open_folder(tmp_path, image_size=None if size == (8, 8) else 72, normalise=said) for said in ("data", "half")
    )
    assert (half.record.mean, half.record.std) == ([0.5] * 3, [0.5] * 3)
    assert half.statistics == own.statistics == (tuple(own.record.mean), tuple(own.record.std))
    pixels, _ = next(half.test_pixels(4))
    assert torch.equal(next(half.test_batches(4))[0], normalise(pixels, [0.5] * 3, [0.5] * 3))
    images = next(half.train_batches(4, 0))[0]
    torch.testing.assert_close(renormalised(images, NAMED["half"].of(3), own.statistics), next(own.train_batches(4, 0))[0],
                               rtol=1e-5, atol=1e-5)  # fmt: skip


def test_a_batch_is_renormalised_in_its_memory_format() -> None:
    pixels = torch.randint(0, 256, (2, 5, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    one, other = Normalisation((0.5, 0.4, 0.3), (0.5, 0.25, 0.1)), NAMED["imagenet"]
    found = renormalised(normalise(pixels, *one), one, other)
    torch.testing.assert_close(found, normalise(pixels, *other), rtol=1e-5, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last) and found.dtype == torch.float32


def test_a_runs_setting_reaches_the_record_of_its_networks(tmp_path: Path) -> None:
    asked = {"normalise": "half", "interpolation": "bicubic", "crop": 0.8, "image_size": 16}
    root = make_folder(tmp_path, size=(30, 20))
    config = settle({"data": "imagefolder", "data_root": str(root), "workers": 0, **asked})
    data = open_data(data_config(config))
    network = build_network("resnet20", 2, data.record.input_shape)
    uncut = SimpleNamespace(full=network, made=Made(network))
    save_network(network, _spec(network, uncut, config, data, About()), tmp_path)
    spec = read_spec(tmp_path)
    assert (spec.mean, spec.std) == ([0.5] * 3, [0.5] * 3)
    assert spec.framing == Framing(shorter_side=20, size=(16, 16), interpolation="bicubic")


# How well a start fits


def brightness_folder(root: Path) -> Path:
    """Class `cat` of grey 140 … 190, `dog` of grey 200 … 250: told apart by their brightness alone."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 60), ("test", 2)):
        for name, low in (("cat", 140), ("dog", 200)):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.full((8, 8, 3), draw.integers(low, low + 51), np.uint8)
                pixels[0, 0] = 0  # no image has one colour only
                Image.fromarray(pixels).save(root / part / name / f"{i:02}.png")
    return root


class Bright(nn.Module):
    """Logits for cat and dog, by whether the mean of the images is above a bound; counts its calls."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound, self.calls = bound, 0

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        above_B = images_BCHW.mean((1, 2, 3)) - self.bound
        return torch.stack([-above_B, above_B], 1)


def opened(root: Path, said: str | None) -> Data:
    return open_folder(root, held_out=0.25, normalise=said)


def test_the_starts_accuracy_depends_on_how_pixels_are_normalised(tmp_path: Path) -> None:
    brightness_folder(tmp_path)
    network = Bright(2 * 194 / 255 - 1)  # a network for pixels from -1 to 1
    found = (seen := start_accuracy(network, stated := opened(tmp_path, "half"), 8)).top1
    assert list(found) == ["half", "imagenet", "0/1", "data"]
    assert network.calls == 4 * 4  # 30 images held out, in one walk
    assert found["half"] == 100 and max(found["imagenet"], found["data"], found["0/1"]) < 95
    line, warning = start_words(seen, stated)
    others = ", ".join(f"{name} {found[name]:.2f} %" for name in ("imagenet", "0/1", "data"))
    assert (line, warning) == (f"start: 100.00 % of 30 held-out images as stated (half); {others}", None)

    for said in (None, "0.1,0.2,0.3/0.3"):  # the same, whatever is in force
        data = opened(tmp_path, said)
        again = (seen := start_accuracy(network, data, 30)).top1
        assert again["half"] == 100 and again["imagenet"] == found["imagenet"]
        line, warning = start_words(seen, data)
        how = "as stated (0.1,0.2,0.3/0.3)" if said else "by default (data)"
        own = next(iter(again.values()))
        assert line.startswith(f"start: {own:.2f} % of 30 held-out images {how}; imagenet ")
        assert warning == (
            f"the start is right on {100 - own:.2f} points more of the held-out images under the normalisation half; "
            "pass --normalise half"
        )


def test_equal_normalisations_are_tried_once(tmp_path: Path) -> None:
    brightness_folder(tmp_path)
    own = opened(tmp_path, None)
    cases: list[tuple[Any, list[str]]] = [
        ("0.5004,0.5,0.4996/0.5", ["half", "imagenet", "0/1", "data"]),
        ("imagenet", ["imagenet", "half", "0/1", "data"]),
        (as_text(*own.statistics), ["data", "imagenet", "half", "0/1"]),
    ]
    for said, names in cases:
        assert list(usual_normalisations(opened(tmp_path, said))) == names
    grey = open_folder(make_folder(tmp_path / "grey", mode="L"), normalise="half")
    assert list(usual_normalisations(grey)) == ["half", "0/1", "data"]


def test_a_start_that_gives_no_numbers_is_refused_before_anything_is_made_of_it(tmp_path: Path) -> None:
    brightness_folder(tmp_path)
    with pytest.raises(
        InputError, match=r"^the start gives NaN or infinity for every held-out image; take an earlier "
    ):
        start_accuracy(lambda images: torch.full((len(images), 2), float("nan")), opened(tmp_path, "half"), 8)


def test_only_a_network_that_knows_its_images_answers_already(tmp_path: Path) -> None:
    brightness_folder(tmp_path)
    data = open_folder(tmp_path, held_out=0.5, normalise="half")
    assert answers_already(Bright(2 * 194 / 255 - 1), data, 8) == 100
    assert answers_already(lambda images: torch.ones(len(images), 2), data, 8) is None  # the commonest class


def test_one_answer_for_all_images_is_told(tmp_path: Path) -> None:
    brightness_folder(tmp_path)
    data = opened(tmp_path, "half")
    seen = start_accuracy(lambda images: torch.tensor([[0.0, 1.0]]).expand(len(images), 2), data, 8)
    assert seen.only == 1 and len({*seen.top1.values()}) == 1
    assert "answers every held-out image as one class, dog, and so knows" in str(start_words(seen, data)[1])
