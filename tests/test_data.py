"""What data/ promises: splits, determinism, augmentation, what is opened and when, one class a size of images."""

from __future__ import annotations

import dataclasses
import errno
import json
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_folders import make_folder, open_folder, read_part, rows, to_pixels
from PIL import Image

from wmlc.data import DataConfig, normalise, open_data, room
from wmlc.data.files import FileData
from wmlc.data.memory import MemoryData
from wmlc.errors import InputError
from wmlc.ranks import Ranks


def all_of(batches: Any) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


# The sets


def test_digits_are_read_whole_and_every_fifth_is_for_testing():
    datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn")
    digits = datasets.load_digits()
    data = open_data(DataConfig())
    assert (data.record.train + data.record.held_out, data.test_count()) == (1438, 359)
    assert data.record.input_shape == (1, 8, 8)
    assert data.record.class_names == [str(i) for i in range(10)]
    pixels, labels = all_of(data.test_pixels(100))
    expected = np.rint(digits.images[4::5] / 16 * 255)
    assert pixels.dtype == torch.uint8
    assert np.array_equal(pixels[..., 0].numpy(), expected)
    assert np.array_equal(labels.numpy(), digits.target[4::5])


def test_digits_come_from_scikit_learns_loader_where_their_file_is_elsewhere(monkeypatch):
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    from_file = all_of(open_data(DataConfig()).test_pixels(100))
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    for own, other in zip(from_file, all_of(open_data(DataConfig()).test_pixels(100)), strict=True):
        assert torch.equal(own, other)


def test_digits_are_shifted_by_a_pixel_at_most_and_never_mirrored():
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    data = open_data(DataConfig(train_images=40))
    shifted = set()
    for pixels in data.train_pixels(36):
        padded = np.pad(pixels.numpy(), ((1, 1), (1, 1), (0, 0)))
        shifted |= {padded[y : y + 8, x : x + 8].tobytes() for y in range(3) for x in range(3)}
    images, _ = all_of(data.train_batches(36, epoch=0))
    assert rows(to_pixels(images, data)) <= shifted


def test_a_record_is_read_from_the_files_and_can_be_written_as_json(tmp_path):
    data = open_folder(make_folder(tmp_path, size=(12, 10)))
    record = data.record
    assert json.loads(json.dumps(dataclasses.asdict(record)))["input_shape"] == [3, 10, 12]
    assert record.class_names == ["cat", "dog"]
    assert (record.train, record.held_out, record.small, data.test_count()) == (18, 2, True, 6)
    scaled = data.train_pixels(18).numpy() / 255
    np.testing.assert_allclose(record.mean, scaled.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(record.std, scaled.std((0, 1, 2)), rtol=1e-12)


def test_cifar_is_read_from_torchvisions_files(tmp_path, monkeypatch):
    # Ours are not the real files, so their checksums differ.
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    draw = np.random.default_rng(0)
    planes = draw.integers(1, 256, (60, 3, 32, 32), dtype=np.uint8)
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        batch = {"data": planes[10 * i : 10 * i + 10].reshape(10, -1), "labels": list(range(10))}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    data = open_data(DataConfig(name="cifar10", root=tmp_path))
    images_NHWC = torch.from_numpy(planes.transpose(0, 2, 3, 1).copy())
    pixels, labels = all_of(data.test_pixels(3))
    assert torch.equal(pixels, images_NHWC[50:])
    assert labels.tolist() == list(range(10))
    assert (data.record.class_names, data.record.train) == (list("abcdefghij"), 45)
    held_out = to_pixels(all_of(data.held_out_batches(2))[0], data)
    assert rows(data.train_pixels(45)) | rows(held_out) == rows(images_NHWC[:50])
    for image, label in zip(*all_of(data.train_batches(9, 0)), strict=True):
        row = to_pixels(image[None], data)[0, 16, 8:24].numpy()  # never padding, whatever the shift
        own = images_NHWC[int(label) : 50 : 10].numpy()
        assert any(part.tobytes() in line.tobytes() for part in (row, row[::-1]) for line in own.reshape(-1, 32, 3))


def test_grey_files_make_one_channel(tmp_path):
    data = open_folder(make_folder(tmp_path, mode="L"))
    assert data.record.input_shape == (1, 8, 8)
    assert next(data.test_batches(4))[0].shape == (4, 1, 8, 8)


@pytest.mark.parametrize(
    ("size", "image_size", "name", "shape", "small"),
    [
        ((8, 8), 16, "imagefolder", (3, 16, 16), True),
        ((80, 70), 16, "imagefolder", (3, 16, 16), True),
        ((80, 70), None, "imagefolder", (3, 224, 224), False),
        ((80, 70), 72, "imagefolder", (3, 72, 72), False),
        ((8, 8), 32, "imagenet", (3, 32, 32), False),
    ],
)
def test_size_decides_what_is_held_in_memory(tmp_path, size, image_size, name, shape, small):
    make_folder(tmp_path, train=3, test=1, size=size)
    data = open_folder(tmp_path, image_size=image_size, name=name, held_out=0.3)
    assert (data.record.input_shape, data.record.small, type(data)) == (shape, small, MemoryData if small else FileData)
    for batch in (data.train_batches(2, 0), data.held_out_batches(2), data.test_batches(2)):
        assert next(batch)[0].shape[1:] == shape
    assert data.held_out_batch(2, 5)[0].shape[1:] == shape
    assert data.train_pixels(4).shape == (4, shape[1], shape[2], 3)


# Splits and walks


def test_train_and_held_out_are_disjoint_and_together_all(tmp_path):
    data = open_folder(make_folder(tmp_path), held_out=0.3)
    train = rows(data.train_pixels(14))
    held_out = rows(to_pixels(all_of(data.held_out_batches(4))[0], data))
    assert (len(train), len(held_out)) == (14, 6)
    assert not train & held_out
    assert train | held_out == rows(read_part(tmp_path / "train"))


def test_train_images_takes_the_same_subset_for_the_same_seed(tmp_path):
    make_folder(tmp_path)
    first, again, other = (open_folder(tmp_path, train_images=10, seed=seed) for seed in (1, 1, 2))
    assert first.record.train + first.record.held_out == 10
    assert torch.equal(first.train_pixels(9), again.train_pixels(9))
    assert rows(first.train_pixels(9)) != rows(other.train_pixels(9))


@pytest.mark.parametrize("size", [(8, 8), (80, 70)], ids=["in memory", "from files"])
def test_a_sample_is_spread_over_all_images_and_the_same_for_every_seed(tmp_path: Path, size: tuple[int, int]) -> None:
    make_folder(tmp_path, size=size)  # twenty, of two classes one after the other
    first, other = (open_folder(tmp_path, seed=seed, held_out=0.3) for seed in (0, 1))
    assert rows(first.train_pixels(14)) != rows(other.train_pixels(14))
    batches = [to_pixels(own, first) for own in first.sample_batches(4, 2)]
    again = [to_pixels(own, other) for own in other.sample_batches(4, 2)]
    assert [len(own) for own in batches] == [4, 4]
    assert all(torch.equal(own, one) for own, one in zip(batches, again, strict=True))
    if size == (8, 8):
        part = read_part(tmp_path / "train")
        wanted = [part[[0, 5, 10, 15]], part[[2, 7, 12, 17]]]
        assert all(torch.equal(own, one) for own, one in zip(batches, wanted, strict=True))
    assert [len(own) for own in first.sample_batches(16, 2)] == [20], "too few for two batches"
    few = open_folder(tmp_path, train_images=10, seed=0, held_out=0.3)
    sampled = rows(to_pixels(torch.cat(list(few.sample_batches(5, 9))), few))
    assert len(sampled) == 10 and rows(few.train_pixels(7)) <= sampled


def test_held_out_walk_visits_all_once_a_pass_and_depends_on_its_arguments_only(tmp_path):
    data = open_folder(make_folder(tmp_path), held_out=0.3)
    passes = [[data.held_out_batch(2, 3 * nth + step)[0] for step in range(3)] for nth in range(3)]
    for batches in passes:
        assert rows(to_pixels(torch.cat(batches), data)) == rows(to_pixels(all_of(data.held_out_batches(6))[0], data))
    assert not all(torch.equal(torch.cat(passes[0]), torch.cat(batches)) for batches in passes[1:])
    assert torch.equal(data.held_out_batch(2, 4)[0], passes[1][1])
    assert len(data.held_out_batch(100, 7)[0]) == 6


# Batches


@pytest.mark.parametrize("size", [(8, 8), (80, 70)])
def test_an_epoch_depends_on_seed_and_epoch_only_and_leaves_the_global_generator(tmp_path, size):
    data = open_folder(make_folder(tmp_path, train=5, size=size), image_size=None if size == (8, 8) else 72)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    images, labels = all_of(data.train_batches(3, epoch=1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    images_again, labels_again = all_of(data.train_batches(3, epoch=1))
    assert torch.equal(images, images_again)
    assert torch.equal(labels, labels_again)
    assert not torch.equal(images, all_of(data.train_batches(3, epoch=2))[0])
    assert len(images) == 9 == 3 * data.train_steps(3)


def test_workers_change_nothing(tmp_path):
    make_folder(tmp_path, train=5, test=1, size=(80, 70))
    here, there = (open_folder(tmp_path, image_size=72, workers=workers) for workers in (0, 1))
    for epoch in range(2):
        for batch, other in zip(here.train_batches(3, epoch), there.train_batches(3, epoch), strict=True):
            assert torch.equal(batch[0], other[0])
            assert torch.equal(batch[1], other[1])
        assert torch.equal(all_of(here.held_out_batches(2))[0], all_of(there.held_out_batches(2))[0])


def test_workers_are_kept_from_epoch_to_epoch_also_where_one_was_left_early(tmp_path):
    make_folder(tmp_path, train=5, test=1, size=(80, 70))
    data = open_folder(tmp_path, image_size=72, workers=1)
    whole = all_of(data.train_batches(3, 1))[0]
    (before,) = multiprocessing.active_children()
    next(iter(data.train_batches(3, 0)))
    assert torch.equal(all_of(data.train_batches(3, 1))[0], whole)
    (after,) = multiprocessing.active_children()
    assert after.pid == before.pid


@pytest.mark.parametrize("size", [(80, 70), (16, 16)], ids=["files", "memory"])
def test_processes_share_an_epoch_and_walk_through_the_test_images_once(size, tmp_path):
    root = make_folder(tmp_path, train=6, test=3, size=size)
    whole = open_folder(root, held_out=0.3, **({"image_size": 72} if size[0] > 64 else {}))
    first, second = (whole.shared(Ranks(rank, 2)) for rank in range(2))
    batches, *parts = (list(own.train_batches(4, 1)) for own in (whole, first, second))
    for batch, *own in zip(batches, *parts, strict=True):
        for images_or_labels, halves in zip(batch, zip(*own, strict=True), strict=True):
            assert torch.equal(images_or_labels, torch.stack(halves, 1).flatten(0, 1))
    for name in ("held_out_batches", "test_batches"):
        images, labels = all_of(getattr(whole, name)(2))
        for rank, part in enumerate((first, second)):
            own_images, own_labels = all_of(getattr(part, name)(2))
            assert torch.equal(own_images, images[rank::2]) and torch.equal(own_labels, labels[rank::2])


def test_batches_are_normalised_channels_last_with_their_labels(tmp_path):
    data = open_folder(make_folder(tmp_path))
    images, labels = all_of(data.test_batches(4))
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert next(data.train_batches(4, 0))[0].is_contiguous(memory_format=torch.channels_last)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    pixels, pixel_labels = all_of(data.test_pixels(4))
    assert torch.equal(pixels, read_part(tmp_path / "test"))
    assert torch.equal(pixel_labels, labels)
    assert torch.equal(images, normalise(pixels, data.record.mean, data.record.std))


@pytest.mark.parametrize(("side", "pad"), [(8, 1), (32, 4)])
def test_augmentation_moves_and_mirrors_but_keeps_pixels(tmp_path, side, pad):
    make_folder(tmp_path, size=(side, side))
    data = open_folder(tmp_path)
    crops: dict[bytes, tuple[int, int, int, bool]] = {}
    for i, pixels in enumerate(data.train_pixels(18).numpy()):
        padded = np.pad(pixels, ((pad, pad), (pad, pad), (0, 0)))
        for y in range(2 * pad + 1):
            for x in range(2 * pad + 1):
                crop = padded[y : y + side, x : x + side]
                crops[crop.tobytes()] = (i, y, x, False)
                crops[crop[:, ::-1].tobytes()] = (i, y, x, True)
    seen = set()
    for epoch in range(4):
        images, _ = all_of(data.train_batches(6, epoch))
        found = [crops[row.numpy().tobytes()] for row in to_pixels(images, data)]
        assert {i for i, *_ in found} == set(range(18))  # each image once
        seen |= {(y, x, flip) for _, y, x, flip in found}
    assert {flip for *_, flip in seen} == {False, True}
    assert {y for y, *_ in seen} == {x for _, x, _ in seen} == set(range(2 * pad + 1))


def test_labels_follow_their_images_through_the_shuffle(tmp_path):
    make_folder(tmp_path)
    for path in tmp_path.glob("*/dog/*.png"):
        Image.new("RGB", (8, 8)).save(path)  # dogs are black
    data = open_folder(tmp_path)
    images, labels = all_of(data.train_batches(6, 0))
    assert torch.equal(to_pixels(images, data).amax((1, 2, 3)) == 0, labels == 1)


def test_normalise_subtracts_the_mean_and_divides_by_the_deviation():
    pixels = torch.tensor([[[[0, 255], [51, 102]]]], dtype=torch.uint8)
    expected = torch.tensor([[[[-1.0, -0.6]], [[3.0, 0.0]]]])
    torch.testing.assert_close(normalise(pixels, [0.5, 0.4], [0.5, 0.2]), expected)


# What is opened, and when


def test_test_images_are_not_opened_before_they_are_asked_for(tmp_path):
    data = open_folder(make_folder(tmp_path))
    (tmp_path / "test" / "cat" / "00.png").write_bytes(b"no image")
    all_of(data.train_batches(4, 0))
    all_of(data.held_out_batches(4))
    data.held_out_batch(4, 0)
    data.train_pixels(4)
    assert data.test_count() == 6
    with pytest.raises(InputError, match=r"00\.png is not a readable image"):
        next(data.test_batches(4))


@pytest.mark.parametrize("size", [(8, 8), (80, 70)])
def test_testing_needs_no_train_images(tmp_path, size):
    make_folder(tmp_path, size=size)
    for path in tmp_path.glob("train/*/*.png"):
        path.unlink()
    data = open_folder(tmp_path)
    pixels, labels = all_of(data.test_pixels(4))
    assert (len(pixels), labels.tolist()) == (6, [0, 0, 0, 1, 1, 1])


def test_images_that_are_too_many_for_the_memory_are_the_same_from_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    held = open_data(DataConfig())
    monkeypatch.setattr(room, "SHARE", 0)
    mapped = open_data(DataConfig())
    for walk in ("train_batches", "held_out_batch"):
        for one, other in zip(getattr(held, walk)(64, 1), getattr(mapped, walk)(64, 1), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    said = capsys.readouterr()
    assert f"over 0% of this machine's memory; they lie in {tmp_path}/wmlc" in said.err
    assert list((tmp_path / "wmlc").iterdir()) == []


def test_a_disk_that_images_do_not_fit_on_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(room, "SHARE", 0)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(room.os, "posix_fallocate", full)
    with pytest.raises(
        InputError, match=r"/wmlc has no room for 0\.0 GB of images \(No space left on device\); make room, "
    ):
        next(iter(open_data(DataConfig()).train_batches(64, 1)))
    assert list((tmp_path / "wmlc").iterdir()) == []


def test_images_live_on_a_device_only_where_they_are_a_small_part_of_its_memory(monkeypatch):
    monkeypatch.setattr(room, "_memory_bytes", lambda device: 1000)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert [room.home_of(250, gpu), room.home_of(251, gpu), room.home_of(251, cpu)] == [gpu, cpu, cpu]


def test_a_container_and_the_processes_beside_it_have_less_memory_than_the_machine(monkeypatch, tmp_path):
    limit, none = tmp_path / "memory.max", tmp_path / "none"
    limit.write_text("8000\n")
    monkeypatch.setattr(room, "LIMITS", (none, limit))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert room._memory_bytes(torch.device("cpu")) == 2000
    limit.write_text("max\n")
    assert room._memory_bytes(torch.device("cpu")) > 10**6
