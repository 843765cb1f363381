"""Which images are trained on, held out and tested on, and what is told of them: slips that would still give numbers."""

from __future__ import annotations

import os
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_folders import make_folder, open_folder, rows, to_pixels
from PIL import Image

from wmlc.data import DataConfig, listing, open_data, open_parts
from wmlc.data.folders import class_folders, find_pictures
from wmlc.data.listing import found_of_files, listed
from wmlc.data.look import Look, _print, survey
from wmlc.data.noise import stand_in


def test_large_images_that_are_held_out_are_not_those_trained_on(tmp_path: Path) -> None:
    data: Any = open_folder(make_folder(tmp_path, size=(80, 72)), image_size=72, held_out=0.3)
    trained = rows(data.train_pixels(data.record.train))
    held = torch.cat([to_pixels(images, data) for images, _ in data.held_out_batches(4)])
    assert (len(trained), len(held), len(rows(held))) == (14, 6, 6)
    assert not trained & rows(held)
    drawn = torch.cat([to_pixels(data.held_out_batch(3, index)[0], data) for index in range(2)])
    assert rows(drawn) == rows(held)
    augmented = torch.cat([to_pixels(images, data) for images, _ in data.train_batches(7, epoch=0)])
    assert not rows(augmented) & (trained | rows(held)), "cut out at random and mirrored"


def test_a_digest_of_test_images_knows_their_sizes_and_one_of_training_images_does_not(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    before = open_folder(root)
    digests = before.train_digest(), before.test_digest()
    for part, same in (("train", (True, True)), ("test", (True, False))):
        with (root / part / "cat" / "00.png").open("ab") as file:
            file.write(b"more")
        after = open_folder(root)
        assert tuple(a == b for a, b in zip(digests, (after.train_digest(), after.test_digest()), strict=True)) == same


def test_classes_of_the_test_set_are_its_own(tmp_path: Path) -> None:
    data: Any = open_folder(make_folder(tmp_path))
    data._parts.__dict__["test"] = replace(data._parts.test, class_names=["dog", "cat"])
    assert data.test_classes() == ["dog", "cat"]


def test_labels_and_samples_of_small_images_are_in_their_order() -> None:
    data = open_data(DataConfig(workers=0))  # digits, whose classes are mixed
    labels = torch.cat([labels for _, labels in data.test_batches(100)])
    assert torch.equal(labels, torch.cat([labels for _, labels in data.test_pixels(100)]))
    assert not torch.equal(labels, labels.sort().values)
    count = data.record.train
    assert torch.equal(data.train_pixels(2)[1], data.train_pixels(count)[count // 2])


@pytest.mark.parametrize(
    ("size", "name", "small", "shape"),
    [((80, 8), "imagefolder", False, (3, 224, 224)), ((8, 8), "imagefolder", True, (3, 8, 8)),
     ((8, 6), "imagefolder", True, (3, 6, 8)), ((8, 8), "imagenet", False, (3, 224, 224))],
)  # fmt: skip
def test_images_are_small_where_both_sides_are(
    tmp_path: Path, size: tuple[int, int], name: str, small: bool, shape: tuple[int, int, int]
) -> None:
    root = make_folder(tmp_path, size=size)
    Image.new("L", size, 9).save(root / "train" / "cat" / "00.png")  # one that is grey makes no set grey
    layout = open_parts(DataConfig(name=name, root=root, workers=0)).layout
    assert (layout.small, layout.input_shape) == (small, shape)


def test_a_crop_keeps_its_share_to_the_nearest_pixel(tmp_path: Path) -> None:
    config = DataConfig(name="imagefolder", root=make_folder(tmp_path), workers=0, image_size=72, crop=0.7)
    assert open_parts(config).layout.framing.shorter_side == 103  # 102.86


def test_classes_are_numbered_by_their_names_in_one_form_of_unicode(tmp_path: Path) -> None:
    for name in ("e\u0301", "f", "a"):  # in parts, é comes before f
        (tmp_path / name).mkdir()
    assert list(class_folders(tmp_path)) == ["a", "f", unicodedata.normalize("NFC", "e\u0301")]


def test_pictures_come_by_class_folder_and_name(tmp_path: Path) -> None:
    root = make_folder(tmp_path) / "train"
    for folder, name in (("2", "00.png"), ("1", "01.png")):
        (root / "cat" / folder).mkdir()
        (root / "cat" / name).rename(root / "cat" / folder / name)
    found = find_pictures(root, class_folders(root))
    names = [str(Path(path).relative_to(root)) for path in found.paths]
    assert names[6:12] == ["cat/08.png", "cat/09.png", "cat/1/01.png", "cat/2/00.png", "dog/00.png", "dog/01.png"]
    assert found.labels == [0] * 10 + [1] * 10


def test_a_class_that_is_a_link_brings_no_test_images_in(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    (root / "train" / "dog").rename(root / "elsewhere")
    (root / "train" / "dog").symlink_to(root / "test")
    found = find_pictures(root / "train", class_folders(root / "train"), [root / "test"])
    assert (len(found.paths), set(found.labels)) == (10, {0})
    assert found.skipped == {"folder that counts already": 2}


def test_a_listing_that_was_kept_is_of_the_same_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MANY", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = make_folder(tmp_path / "set") / "train"
    for folder in (root, root / "cat", root / "dog"):
        os.utime(folder, (1, 1))
    classes = class_folders(root)
    assert len(listed(root, classes).paths) == 20
    assert len(listed(root, {"dog": classes["dog"]}).paths) == 10


def test_what_was_found_of_a_file_is_forgotten_with_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file, answers = tmp_path / "x", iter("abc")
    for content, expected in ((b"1", "a"), (b"2", "a"), (b"22", "b")):
        file.write_bytes(content)
        os.utime(file, (1, 1))
        assert found_of_files("seen", [str(file)], "how", lambda: next(answers)) == expected


def looked(root: Path, **options: Any) -> Look:
    return survey(open_parts(DataConfig(name="imagefolder", root=root, workers=1, **options)))


def test_pictures_that_are_not_the_same_are_no_leaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_folder(tmp_path, train=4, test=2, size=(16, 8))
    draw = np.random.default_rng(1)

    def save(place: str, pixels: np.ndarray) -> None:
        Image.fromarray(pixels.astype(np.uint8)).save(root / place)

    faint = [200 + draw.integers(0, 4, (8, 16, 3)) for _ in range(2)]  # alike in nothing but their brightness
    save("train/cat/00.png", faint[0])
    save("test/cat/00.png", faint[1])
    slope = np.broadcast_to(np.linspace(0, 200, 16)[None, :, None], (8, 16, 3))
    save("train/dog/00.png", slope)
    save("test/dog/00.png", slope * 0.5 + draw.integers(0, 100, (8, 16, 3)))  # correlated, and not the same
    for name in ("cat", "dog"):  # one colour tells nothing of its class
        Image.new("RGB", (16, 8), (9, 9, 9)).save(root / "train" / name / "01.png")
    Image.fromarray(np.dstack([draw.integers(0, 255, (8, 16))] * 2 + [np.full((8, 16), 7)]).astype(np.uint8)).save(
        root / "train" / "cat" / "02.png"
    )
    found = looked(root)
    assert (found.leaks, found.two_classes, found.refused) == ([], [], None)
    assert len(found.train.one_colour) == 2 and found.train.sizes == {"16 x 8": 8}
    _print(found)
    assert ["cat", "4", "2"] in [line.split() for line in capsys.readouterr().out.splitlines()]


def test_the_same_bytes_in_another_shape_are_another_picture(tmp_path: Path) -> None:
    root = make_folder(tmp_path, train=4, test=2)
    stripes = np.repeat(np.arange(0, 192, 3, dtype=np.uint8), 3).reshape(8, 8, 3)
    Image.fromarray(stripes).save(root / "train" / "cat" / "00.png")
    Image.fromarray(stripes.reshape(4, 16, 3)).save(root / "test" / "cat" / "00.png")
    assert not any(twins.exact for twins in looked(root, image_size=8).leaks)


def test_how_pictures_come_to_their_size_is_told_and_a_broken_test_image_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path, train=4, test=2)
    assert looked(root).brought_by == "as they are"
    resized = looked(root, image_size=16)
    assert resized.brought_by == open_parts(
        DataConfig(name="imagefolder", root=root, image_size=16)
    ).layout.framing.words != "as they are"  # fmt: skip
    (root / "test" / "dog" / "01.png").write_bytes(b"no picture")
    refused = looked(root)
    assert refused.refused is not None and "test/dog/01.png is not a readable image" in refused.refused


def test_noise_has_the_classes_and_the_normalisation_of_its_set() -> None:
    for name, classes in (("cifar10", 10), ("cifar100", 100), ("imagenet", 1000)):
        found = stand_in(DataConfig(name=name, root=Path("x"), normalise="0.1/0.2"), "cpu")
        assert found is not None and len(found.record.class_names) == classes
        assert (found.record.mean, found.record.std) == ([0.1] * 3, [0.2] * 3)
    plain = stand_in(DataConfig(name="cifar10"), "cpu")
    assert plain is not None and (plain.record.mean, plain.record.std) == ([0.5] * 3, [0.5] * 3)
