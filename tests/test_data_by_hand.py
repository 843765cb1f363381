"""Which picture has which label, and which share of which images is meant: small cases with one right answer."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from image_folders import make_folder
from PIL import Image

from wmlc.data import DataConfig, data_of, open_parts, packed, sheet
from wmlc.data.normalisation import StartSeen, start_words
from wmlc.data.packed import CLASS_FILES, _class_names, _of_shard, bytes_of, read_tables
from wmlc.data.parts import Parts
from wmlc.data.pictures import _from_range, _over_clear, is_grey
from wmlc.data.sources import Part, part_digest
from wmlc.errors import InputError


def a_shard(path: Path, **members: bytes) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_samples_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    members = {"cat/1.png": b"the cat", "cat/1.cls": b"0", "dog/1.png": b"the dog", "dog/1.cls": b"1"}
    found = _of_shard(a_shard(tmp_path / "train.tar", **members))
    assert [(bytes_of(name).read(), label) for name, label in found] == [(b"the cat", 0), (b"the dog", 1)]


def test_of_two_numbers_in_a_json_the_label_counts(tmp_path: Path) -> None:
    for content, label in ((b'{"cls": 1, "label": 2}', 2), (b'{"cls": 1}', 1)):
        ((_, found),) = _of_shard(a_shard(tmp_path / "train.tar", **{"a.png": b"x", "a.json": content}))
        assert found == label


class Table(list[Any]):
    """The rows of a parquet file, with what its columns are."""

    def __init__(self, rows: list[Any], names: list[str] | None) -> None:
        super().__init__(rows)
        self.features = {"image": None, "label": SimpleNamespace(names=names)}

    def __getitem__(self, key: Any) -> Any:
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


def test_rows_of_a_table_are_those_of_their_own_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def table(root: str, train: bool) -> tuple[Table, str, str]:
        rows = [
            {"image": {"bytes": b"%d of %s" % (n, b"train" if train else b"test")}, "label": n % 2} for n in range(3)
        ]
        return Table(rows[: 3 if train else 2], ["cat", "dog"]), "image", "label"

    monkeypatch.setattr(packed, "_table", table)
    for name in ("train-0.parquet", "test-0.parquet"):
        (tmp_path / name).touch()
    packed._labels_of.cache_clear()
    config = DataConfig(name="hf", root=tmp_path)
    train, test = (read_tables(config, part) for part in (True, False))
    packed._labels_of.cache_clear()
    assert [bytes_of(name).read() for name in train.paths] == [b"0 of train", b"1 of train", b"2 of train"]
    assert [bytes_of(name).read() for name in test.paths] == [b"0 of test", b"1 of test"]
    assert (train.labels_N.tolist(), test.labels_N.tolist()) == ([0, 1, 0], [0, 1])
    assert train.class_names == ["cat", "dog"]  # as the table has them, not numbers
    assert [[Path(file).name for file in part.hold] for part in (train, test)] == [
        ["train-0.parquet"],
        ["test-0.parquet"],
    ]


def test_class_names_come_from_a_file_or_are_the_numbers_trained_on(tmp_path: Path) -> None:
    assert _class_names(tmp_path, lambda: [0, 2, 1]) == ["0", "1", "2"]
    for name in reversed(CLASS_FILES):
        (tmp_path / name).write_text(f"{name} a\n{name} b\n")
    assert _class_names(tmp_path, lambda: [0]) == ["classnames.txt a", "classnames.txt b"]


def test_every_batch_of_the_held_out_walk_is_full_and_each_pass_another_order() -> None:
    def order(seed: int, index: int) -> list[int]:
        own: Any = SimpleNamespace(split=(None, torch.arange(10)), config=SimpleNamespace(seed=seed))
        return Parts.held_out_order(own, 4, index).tolist()

    walked = [order(0, index) for index in range(6)]
    assert [len(batch) for batch in walked] == [4] * 6
    passes = [walked[at] + walked[at + 1] for at in (0, 2, 4)]
    assert all(len(set(one)) == 8 for one in passes) and len({tuple(one) for one in passes}) == 3
    assert order(1, 0) != walked[0]


def test_images_under_another_size_are_the_same_and_shaped_anew(tmp_path: Path) -> None:
    config = DataConfig(name="imagefolder", root=make_folder(tmp_path), workers=0)
    parts = open_parts(config)
    assert parts.layout.input_shape == (3, 8, 8)
    other = parts.under(replace(config, image_size=16))
    assert other.layout.input_shape == (3, 16, 16) and other.train is parts.train


def held_out(images: int) -> Any:
    """Data of ten classes with so many images held out, under no normalisation that was asked for."""
    record = SimpleNamespace(held_out=images, class_names=list("abcdefghij"))
    return SimpleNamespace(config=SimpleNamespace(normalise=None), record=record)


@pytest.mark.parametrize(
    ("own", "other", "images", "advice"),
    [
        (1.5, 8.0, 400, "--start-classes FILE"), (1.5, 90.0, 400, "pass --normalise half"), (4.0, 4.0, 400, None),
        (6.0, 9.0, 10_000, "--start-classes FILE"), (9.0, 9.0, 10_000, None),
    ],
)  # fmt: skip
def test_a_start_below_chance_has_its_classes_in_another_order(
    own: float, other: float, images: int, advice: str | None
) -> None:
    _, warning = start_words(StartSeen({"data": own, "half": other}), held_out(images))
    assert warning is None if advice is None else advice in str(warning)


def test_a_better_normalisation_is_advised_where_it_is_certain_and_worth_it() -> None:
    def advised(better: float, images: int) -> bool:
        line, warning = start_words(StartSeen({"data": 50.0, "half": 50.0 + better}), held_out(images))
        assert line == f"start: 50.00 % of {images:,} held-out images by default (data); half {50 + better:.2f} %"
        return warning is not None and warning.endswith("pass --normalise half")

    assert advised(3.0, 100_000)
    assert not advised(3.0, 100)  # by chance
    assert not advised(1.5, 10_000_000)  # and not worth saying


def test_the_contact_sheet_shows_what_the_network_gets_above_its_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, colours = make_folder(tmp_path / "set"), {"cat": (200, 100, 50), "dog": (40, 80, 120)}
    for name, colour in colours.items():
        for file in (root / "train" / name).iterdir():
            Image.new("RGB", (8, 8), colour).save(file)
    shown: list[Any] = []

    def draw(parts: Any) -> Image.Image:
        shown.extend(parts)
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(sheet, "_draw", draw)
    parts = open_parts(DataConfig(name="imagefolder", root=root, workers=0))
    sheet.write_sheet(tmp_path / "x.png", parts)
    (_, train, names), (_, test, test_names) = shown
    assert set(names) == set(colours)
    for pixels, name in zip(train, names, strict=True):
        assert set(map(tuple, pixels.reshape(-1, 3).tolist())) - {(0, 0, 0)} == {colours[name]}, "moved over black"
    expected, labels = next(data_of(parts).test_pixels(6))
    assert torch.equal(torch.stack(test), expected)
    assert test_names == [["cat", "dog"][label] for label in labels.tolist()]


@pytest.mark.parametrize(
    ("colour", "grey"), [((9, 9, 9), True), ((9, 9, 10), False), ((10, 9, 9), False), ((9, 10, 9), False)]
)
def test_a_palette_is_grey_where_all_three_of_each_colour_are_alike(colour: tuple[int, int, int], grey: bool) -> None:
    picture = Image.new("P", (2, 2))
    picture.putpalette([0, 0, 0, *colour])
    assert is_grey(picture) is grey


def test_a_grey_of_twelve_bits_is_white_at_its_own_whitest() -> None:
    class Tiff:
        mode, format, info, tag_v2 = "I;16", "TIFF", dict[str, Any](), {258: (12,)}

        def __array__(self, *_: Any, **__: Any) -> np.ndarray:
            return np.array([[0, 2048, 4095]], np.uint16)

    assert np.asarray(_from_range(Tiff())).tolist() == [[0, 128, 255]]  # type: ignore[arg-type]


def test_a_clear_value_of_sixteen_bits_shows_a_ground_that_the_rest_stands_out_from() -> None:
    values = np.array([[7, 60_000]])
    assert _over_clear(np.array([[0, 255]], np.uint8), values, 7).tolist() == [[0, 255]]  # a white drawing
    assert _over_clear(np.array([[0, 10]], np.uint8), values, 7).tolist() == [[255, 10]]


def test_a_digest_tells_labels_pixels_names_and_sizes_apart_and_no_places(tmp_path: Path) -> None:
    def files(root: str, size: int = 3, name: str = "a.png") -> Part:
        (tmp_path / root / "cat").mkdir(parents=True)
        (tmp_path / root / "cat" / name).write_bytes(b"x" * size)
        path = str(tmp_path / root / "cat" / name)
        return Part(class_names=["cat"], labels_N=torch.tensor([0]), paths=[path], where=str(tmp_path / root))

    one, moved, larger, renamed = files("one"), files("two"), files("three", 4), files("four", name="b.png")
    assert part_digest(one) == part_digest(moved) != part_digest(larger)
    assert part_digest(one, sizes=False) == part_digest(larger, sizes=False) != part_digest(renamed, sizes=False)
    assert part_digest(replace(one, labels_N=torch.tensor([1]))) != part_digest(one)
    held = replace(one, hold=one.paths, paths=["cat.png"])
    assert part_digest(held) != part_digest(replace(held, paths=["dog.png"]))
    black = Part(
        class_names=["cat"], labels_N=torch.tensor([0]), pixels_NHWC=torch.zeros(1, 2, 2, 1, dtype=torch.uint8)
    )
    assert part_digest(black) != part_digest(replace(black, pixels_NHWC=black.pixels_NHWC + 1))


def test_two_classes_of_a_test_set_are_not_one_folder(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set")
    for picture in (root / "test" / "dog").iterdir():
        picture.unlink()
    (root / "test" / "dog").rmdir()
    (root / "test" / "dog").symlink_to(root / "test" / "cat")
    with pytest.raises(InputError, match=r"test/cat and .*test/dog are the same folder; give each its own pictures"):
        open_parts(DataConfig(name="imagefolder", root=root))


def test_imagefolder_is_tested_on_test_and_imagenet_on_val(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set", test=3)
    for name, count in (("cat", 1), ("dog", 1)):
        (root / "val" / name).mkdir(parents=True)
        for picture in sorted((root / "test" / name).iterdir())[:count]:
            (root / "val" / name / picture.name).write_bytes(picture.read_bytes())
    counts = {
        name: len(open_parts(DataConfig(name=name, root=root)).test.paths) for name in ("imagefolder", "imagenet")
    }
    assert counts == {"imagefolder": 6, "imagenet": 2}
