"""What data/ refuses, in one line: settings, folders and files that will not do."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from image_folders import make_folder, open_folder
from PIL import Image

from wmlc.data import DataConfig, open_data
from wmlc.errors import InputError


def refusal(call: Any) -> str:
    """The message of the `InputError` that `call` raises: one line, with no other error behind it."""
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "mnist"},
            "there is no data set 'mnist'; choose one of digits, cifar10, cifar100, imagefolder, imagenet, hf, wds",
        ),
        (
            {"name": "imagenet"},
            "imagenet needs --data-root DIR, a folder with train/ and val/ or test/",
        ),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"held_out": 0.0}, "held_out must be above 0 and at most 0.5, got 0.0"),
        ({"held_out": 0.6}, "held_out must be above 0 and at most 0.5, got 0.6"),
        ({"train_images": 1}, "train_images must be at least 2, got 1"),
        ({"image_size": 0}, "image_size must be at least 1 pixel, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_a_bad_config_is_refused(options, message):
    assert refusal(lambda: DataConfig(**options)) == message


WANTED = "--data-root must be a folder with train/ and val/ or test/, and in each a folder a class"


def test_what_is_only_tested_on_needs_no_train(tmp_path):
    root, whole = make_folder(tmp_path / "set"), open_folder(tmp_path / "set")
    (root / "train").rename(tmp_path / "away")
    data = open_folder(root, tested=True)
    assert (data.test_classes(), data.input_shape) == (whole.test_classes(), whole.input_shape)
    assert (data.test_digest(), data.test_count(), data.train_count()) == (whole.test_digest(), whole.test_count(), 0)
    assert refusal(lambda: data.train_pixels(1)) == (
        f"there is no {root / 'train'}, and this needs images of it; name with --data-root where they lie"
    )
    assert refusal(lambda: open_folder(root)) == f"{root} has no train/, only test/; {WANTED}"
    assert refusal(lambda: open_folder(tmp_path / "away", tested=True)).startswith(f"{tmp_path / 'away'} has no train/")


def test_bad_folders_are_refused_at_the_door(tmp_path):
    root = tmp_path / "set"
    assert refusal(lambda: open_folder(root)) == f"{root} is not a folder; {WANTED}"
    root.mkdir()
    assert refusal(lambda: open_folder(root)) == f"{root} is empty; {WANTED}"
    (root / "test" / "cat").mkdir(parents=True)
    assert refusal(lambda: open_folder(root)) == f"{root} has no train/, only test/; {WANTED}"
    (root / "train").mkdir()
    assert refusal(lambda: open_folder(root / "test")) == (
        f"{root / 'test'} has no train/, only cat/; did you mean {root}? {WANTED}"
    )
    remedy = "give each of at least 2 classes a folder of images"
    assert refusal(lambda: open_folder(root)) == f"{root / 'train'} has no class folders; {remedy}"
    (root / "train" / "cat").mkdir()
    assert refusal(lambda: open_folder(root)) == f"{root / 'train'} has one class only, cat; {remedy}"
    (root / "train" / "dog").mkdir()
    assert refusal(lambda: open_folder(root)) == (
        f"only one part of {root} has train/dog; give both the same class folders"
    )
    (root / "test" / "dog").mkdir()
    data = open_folder(root)
    assert refusal(lambda: data.train_steps(1)) == (
        f"{root / 'train'} has no images in cat, dog; add some that end in .jpg, .jpeg, .jfif, .png, .gif, .bmp, .ppm, "
        f".pgm, .tif, .tiff, .webp, or remove the class"
    )
    (root / "test" / "dog").rmdir()
    (root / "test" / "cat").rmdir()
    (root / "test").rmdir()
    assert refusal(lambda: open_folder(root)) == (
        f"{root} has no val/ or test/; put test images into one, in the class folders of train/"
    )


def test_too_few_and_too_many_images_are_refused(tmp_path):
    make_folder(tmp_path, train=2)
    assert refusal(lambda: open_folder(tmp_path).record) == (
        "4 training images are too few to hold out a share of 0.1: that is 0 of them; "
        "use more images or another held_out"
    )
    assert refusal(lambda: open_folder(tmp_path, train_images=5).record) == (
        "train_images must be at most 4 (all), got 5; null is all"
    )
    data = open_folder(tmp_path, held_out=0.25)
    assert refusal(lambda: data.train_batches(4, 0)) == (
        "a batch of 4 is more than the 3 images trained on; pass --batch-size 3 or less"
    )
    assert refusal(lambda: data.train_pixels(4)) == ("4 training images were asked for, there are 3; ask for fewer")


def test_a_file_of_another_size_is_named(tmp_path):
    data = open_folder(make_folder(tmp_path))
    odd = tmp_path / "test" / "dog" / "01.png"
    Image.new("RGB", (9, 8)).save(odd)
    assert refusal(lambda: next(data.test_pixels(4))) == (
        f"{odd} is 9 x 8, other files 8 x 8; pass --image-size to resize them all"
    )


def test_a_coloured_file_among_grey_ones_is_named(tmp_path):
    data = open_folder(make_folder(tmp_path, mode="L"))
    odd = tmp_path / "test" / "dog" / "01.png"
    Image.new("RGB", (8, 8)).save(odd)
    assert refusal(lambda: next(data.test_pixels(4))) == (
        f"{odd} has colour (mode RGB), other files are grey; convert one or the other"
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_file_is_named_by_whoever_decodes_it(tmp_path, workers):
    make_folder(tmp_path, size=(80, 70), test=1)
    bad = tmp_path / "test" / "dog" / "00.png"
    bad.write_bytes(bad.read_bytes()[:3000])  # the header is whole
    data = open_folder(tmp_path, image_size=72, workers=workers)
    message = refusal(lambda: list(data.test_pixels(4)))
    assert message.startswith(f"{bad} is not a readable image (")
    assert message.endswith("); repair or remove it, or train with --skip-broken")


def test_an_unreadable_header_is_named(tmp_path):
    bad = make_folder(tmp_path) / "train" / "cat" / "00.png"
    bad.write_bytes(b"")
    assert refusal(lambda: open_folder(tmp_path).record).startswith(f"{bad} is not a readable image (")


def test_a_missing_cifar_says_where_it_looked_and_a_damaged_one_is_not_unpickled(tmp_path):
    config = DataConfig(name="cifar10", root=tmp_path)
    folder = tmp_path / "cifar-10-batches-py"
    assert refusal(lambda: open_data(config)) == (
        f"cifar10 is not in {tmp_path} (there is no {folder}); pass --download to fetch it, "
        f"or --data-root DIR for where it is"
    )
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        (folder / name).write_bytes(b"cbuiltins\nexit\n(I3\ntR.")  # unpickled, this would end the process
    assert refusal(lambda: open_data(config).record) == (
        f"{folder} is incomplete or damaged: its checksums do not match; delete it and pass --download, "
        f"or pass --data-root DIR for a whole copy"
    )


def test_a_size_that_an_array_set_does_not_have_is_refused():
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    assert open_data(DataConfig(image_size=8)).train_steps(32) == 40
    assert refusal(lambda: open_data(DataConfig(image_size=16)).record) == (
        "image_size is 16, but digits has images of 8 x 8; leave --image-size out"
    )


def test_digits_without_scikit_learn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert refusal(lambda: open_data(DataConfig())) == (
        "digits needs scikit-learn, which is not installed; pip install 'wmlc[demo]'"
    )
