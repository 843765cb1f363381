"""Pictures in tar shards and parquet tables: the same pixels as in folders, and messages. Takes 3 s."""

from __future__ import annotations

import importlib.util
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_folders import make_folder, open_folder
from PIL import Image

from wmlc.compress.config import settle
from wmlc.data import DataConfig, open_data
from wmlc.data.packed import _labels_of, _of_shard, _table, files_of, read_tables
from wmlc.data.sources import kind_and_place
from wmlc.errors import InputError

NAMES = ["cat", "dog"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache" / "hf"))


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def make_shards(folder: Path, out: Path, label: str = "cls") -> Path:
    """The pictures of an image folder in shards: train in two, test in one."""
    out.mkdir()
    for part, shards in (("train", 2), ("test", 1)):
        pictures = sorted((folder / part).rglob("*.png"))
        for shard in range(shards):
            with tarfile.open(out / f"{part}-{shard:04}.tar", "w") as tar:
                for number, picture in enumerate(pictures[shard::shards]):
                    own = NAMES.index(picture.parent.name)
                    add(tar, f"{number:06}.png", picture.read_bytes())
                    add(
                        tar,
                        f"{number:06}.{label}",
                        (json.dumps({"label": own}) if label == "json" else str(own)).encode(),
                    )
    (out / "classnames.txt").write_text("\n".join(NAMES) + "\n")
    return out


def by_pixels(batches: Any) -> Mapping[bytes, int]:
    return {
        image.numpy().tobytes(): int(label)
        for images, labels in batches
        for image, label in zip(images, labels, strict=True)
    }


@pytest.mark.parametrize(("size", "label"), [((80, 70), "cls"), ((16, 16), "json")], ids=["large", "small"])
def test_shards_hold_the_pictures_of_the_folders(size: tuple[int, int], label: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", size=size)
    options: dict[str, Any] = {"workers": 0} | ({"image_size": 72} if size[0] > 64 else {})
    theirs = open_folder(folder, **options)
    for _ in range(2):  # the second time from what was kept
        own = open_data(DataConfig(name="wds", root=make_shards(folder, tmp_path / "shards", label)
                                   if not (tmp_path / "shards").exists() else tmp_path / "shards", **options))  # fmt: skip
        assert own.record.class_names == NAMES and own.record.input_shape == theirs.record.input_shape
        assert by_pixels(own.test_pixels(4)) == by_pixels(theirs.test_pixels(4))
        assert own.train_pixels(18).shape == theirs.train_pixels(18).shape
    first, again = (torch.cat([images for images, _ in own.train_batches(3, 1)]) for _ in range(2))
    assert torch.equal(first, again)


def test_a_shard_is_walked_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = make_shards(make_folder(tmp_path / "folder", size=(16, 16)), tmp_path / "shards")
    config = DataConfig(name="wds", root=shards, workers=0)
    assert open_data(config).record.train == 18
    monkeypatch.setattr("wmlc.data.packed._of_shard", lambda shard: [])
    assert open_data(config).record.train == 18
    (shards / "train-0001.tar").unlink()
    with pytest.raises(InputError, match="has no images in cat, dog"):
        _ = open_data(config).record


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.png", b"", r"train-0000\.tar: a\.png has no label; put a \.cls or a \.json with a number beside it"),
        ("a.cls", b"cat", r"train-0000\.tar: a\.cls holds no label; it must be a number from 0"),
        ("a.cls", b"-1", "holds no label"),
        ("a.json", b"[1]", "holds no label"),
        ("a.json", b'{"label": true}', "holds no label"),
    ],
)
def test_shards_without_labels_are_named(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    shards = make_shards(make_folder(tmp_path / "folder", size=(16, 16)), tmp_path / "shards")
    with tarfile.open(shards / "train-0000.tar", "w") as tar:
        add(tar, name, content)
    with pytest.raises(InputError, match=words):
        _ = open_data(DataConfig(name="wds", root=shards, workers=0)).record


def test_a_json_may_tell_other_things_beside_a_label(tmp_path: Path) -> None:
    """As img2dataset writes it; where both hold a label it is that of .cls, in whatever order they come."""
    shard = tmp_path / "train-0000.tar"
    for about, order in ((b'{"width": 3}', ("cls", "json")), (b'{"label": 2}', ("json", "cls"))):
        with tarfile.open(shard, "w") as tar:
            add(tar, "a.png", b"")
            for ending in order:
                add(tar, f"a.{ending}", b"1" if ending == "cls" else about)
        assert [label for _, label in _of_shard(shard)] == [1]


def test_of_two_pictures_of_a_key_the_one_without_another_name_counts(tmp_path: Path) -> None:
    """As a mask may lie beside a photograph, before or after it."""
    photo, mask = (tmp_path / name for name in ("photo.png", "mask.png"))
    for file, colour in ((photo, 200), (mask, 0)):
        Image.fromarray(np.full((16, 16, 3), colour, dtype=np.uint8)).save(file)
    shards = make_shards(make_folder(tmp_path / "folder", size=(16, 16)), tmp_path / "shards")
    for first, second in ((("a.png", photo), ("a.mask.png", mask)), (("a.mask.png", mask), ("a.png", photo))):
        with tarfile.open(shards / "train-0000.tar", "w") as tar:
            for name, file in (first, second):
                add(tar, name, file.read_bytes())
            add(tar, "a.cls", b"0")
        ((name, label),) = _of_shard(shards / "train-0000.tar")
        assert name.endswith("a.png") and label == 0
    with tarfile.open(shards / "train-0000.tar", "w") as tar:
        for name in ("a.png", "a.jpg", "a.cls"):
            add(tar, name, b"0")
    with pytest.raises(InputError, match=r"a\.jpg is a second picture of its key, after \.png, and nobody can tell"):
        _of_shard(shards / "train-0000.tar")


def test_broken_shards_and_pictures_are_named(tmp_path: Path) -> None:
    shards = make_shards(make_folder(tmp_path / "folder", size=(16, 16)), tmp_path / "shards")
    whole = (shards / "test-0000.tar").read_bytes()
    (shards / "test-0000.tar").write_bytes(whole.replace(b"\x89PNG", b"none", 1))
    with pytest.raises(InputError, match=r"test-0000\.tar: 000000\.png is not a readable image"):
        open_data(DataConfig(name="wds", root=shards, workers=0)).check_test()
    skipping = open_data(DataConfig(name="wds", root=shards, workers=0, skip_broken=True))
    assert skipping.test_count() == 5
    (shards / "test-0000.tar").write_bytes(b"no tar at all")
    with pytest.raises(InputError, match=r"test-0000\.tar is no readable tar"):
        open_data(DataConfig(name="wds", root=shards, workers=0)).check_test()


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"wds needs --data wds:DIR, a folder of tar shards"):
        DataConfig(name="wds")
    with pytest.raises(InputError, match=r"is not a folder; name the one that holds \*\.tar files"):
        open_data(DataConfig(name="wds", root=tmp_path / "none"))
    (tmp_path / "train-0.tar").write_bytes(b"")
    with pytest.raises(InputError, match=r"has no \*\.tar with test, val or validation in its name"):
        open_data(DataConfig(name="wds", root=tmp_path))


def test_a_pattern_names_shards_as_a_shell_would(tmp_path: Path) -> None:
    shards = make_shards(make_folder(tmp_path / "folder", size=(16, 16)), tmp_path / "shards")
    whole = open_data(DataConfig(name="wds", root=shards, workers=0))
    for name in ("{train-{0000..0001},test-0000}.tar", "*.tar", "t[er]*-000?.tar"):
        own = open_data(DataConfig(name="wds", root=shards / name, workers=0))
        assert own.record.class_names == NAMES and torch.equal(own.train_pixels(18), whole.train_pixels(18))
    for shard in list(shards.glob("*.tar")):
        shard.rename(shard.with_name(f"latest-{shard.name}"))
    assert open_data(DataConfig(name="wds", root=shards, workers=0)).record.train == 18
    with pytest.raises(InputError, match=r"names .*/train-0000\.tar, and there is no such file; mend the pattern$"):
        open_data(DataConfig(name="wds", root=shards / "{train,test}-0000.tar"))
    with pytest.raises(InputError, match=r"is no path of this machine; fetch the files first, and name their folder$"):
        open_data(DataConfig(name="wds", root=Path("s3://bucket/train-{0000..0009}.tar")))


def test_a_part_is_told_by_the_file_or_else_by_its_folder_and_test_comes_before_validation(tmp_path: Path) -> None:
    def of(*names: str) -> list[list[str]]:
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(b"")
        return [[str(own.relative_to(root)) for own in files_of(root, "*.tar", train)] for train in (True, False)]

    assert of("train-0.tar", "validation-0.tar", "test-0.tar") == [["train-0.tar"], ["test-0.tar"]]
    assert of("train-0.tar", "valid-0.tar", "train-values-0.tar")[1] == ["valid-0.tar"]
    assert of("train_val/train-0.tar", "train_val/test-0.tar") == [["train_val/train-0.tar"], ["train_val/test-0.tar"]]
    assert of("train/0.tar", "val/0.tar", "other/0.tar") == [["train/0.tar"], ["val/0.tar"]]
    with pytest.raises(InputError, match=r"^train_val/0\.tar is of train and val by its name; name it one of them$"):
        of("train_val/0.tar")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (b"cat\n", r"has a label 1 and 1 classes; each needs a name and images to train on"),
        (b"cat\n\n", r"classnames\.txt has no name for class 1; give each a name of its own"),
        (b"cat\tn02121808\ndog\n", r"classnames\.txt has cat\\tn02121808 for class 0"),
        (b"cat\ncat\n", "has cat again for class 1"),
        (b"cat\ndog\nbird\n", "has no images in bird"),
        (b"\xff\n", r"classnames\.txt is not a readable list of class names"),
    ],
)
def test_names_that_do_not_fit_are_refused(names: bytes, words: str, tmp_path: Path) -> None:
    shards = make_shards(make_folder(tmp_path / "folder", size=(16, 16)), tmp_path / "shards")
    (shards / "classnames.txt").write_bytes(names)
    with pytest.raises(InputError, match=words):
        _ = open_data(DataConfig(name="wds", root=shards, workers=0)).record


def test_a_class_that_only_the_test_part_has_is_refused(tmp_path: Path) -> None:
    shards = make_shards(make_folder(tmp_path / "folder", size=(16, 16)), tmp_path / "shards")
    (shards / "classnames.txt").unlink()
    with tarfile.open(shards / "test-0001.tar", "w") as tar:
        add(tar, "a.png", b"")
        add(tar, "a.cls", b"2")
    with pytest.raises(InputError, match=r"has a label 2 and 2 classes; each needs a name and images to train on"):
        open_data(DataConfig(name="wds", root=shards, workers=0)).test_count()


def test_a_set_and_its_place_are_one_word() -> None:
    config = settle({"data": "wds:some/where"})
    assert (config.data, config.data_root) == ("wds", "some/where")
    assert kind_and_place("hf:C:/x") == ("hf", "C:/x") and kind_and_place("cifar10") == ("cifar10", None)
    assert kind_and_place("imagefolder", "here") == ("imagefolder", "here")
    assert settle({"data": "wds:a/b", "data_root": "a/b"}).data_root == "a/b"
    with pytest.raises(InputError, match=r"^--data wds:a says where the set lies, and --data-root b another place"):
        settle({"data": "wds:a", "data_root": "b"})


def test_without_datasets_hf_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"hf needs the package datasets, which is not installed"):
        open_data(DataConfig(name="hf", root=tmp_path))


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="datasets is not installed")
def test_parquet_holds_the_pictures_of_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import pyarrow
    import pyarrow.parquet

    folder, out = make_folder(tmp_path / "folder", size=(16, 16)), tmp_path / "tables"
    out.mkdir()
    features = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}  # as datasets writes it
    for part in ("train", "test"):
        pictures = sorted((folder / part).rglob("*.png"))
        table = pyarrow.table({
            "image": [{"bytes": own.read_bytes(), "path": own.name} for own in pictures],
            "label": [NAMES.index(own.parent.name) for own in pictures],
        }).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})  # fmt: skip
        pyarrow.parquet.write_table(table, out / f"{part}-00000-of-00001.parquet")

    def connect() -> None:
        raise AssertionError("it told its makers")

    monkeypatch.setattr(datasets.load, "get_session", connect)
    theirs, own = open_folder(folder), open_data(DataConfig(name="hf", root=out, workers=0))
    assert own.record.class_names == NAMES
    assert by_pixels(own.test_pixels(4)) == by_pixels(theirs.test_pixels(4))
    assert np.array_equal(own.train_pixels(3).shape, (3, 16, 16, 3))
    by_pattern = DataConfig(name="hf", root=out / "{train,test}-*.parquet", workers=0, skip_broken=True)
    assert open_data(by_pattern).record.class_names == NAMES
    assert read_tables(by_pattern, False).hold == [str(out / "test-00000-of-00001.parquet")]
    test = out / "test-00000-of-00001.parquet"
    for label in (-1, None):
        table = pyarrow.parquet.read_table(test)
        labels = pyarrow.array([label, *table["label"].to_pylist()[1:]], "int64")
        pyarrow.parquet.write_table(table.set_column(1, "label", labels), test)
        _table.cache_clear()
        _labels_of.cache_clear()
        with pytest.raises(InputError, match=rf"label of row 0 of test is {label}; it must be the number of a class"):
            open_data(DataConfig(name="hf", root=out, workers=0)).test_count()
