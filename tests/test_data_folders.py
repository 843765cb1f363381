"""Which files of a folder count, which are passed over and said to be, and which names are refused."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner
from image_folders import make_folder, open_folder
from PIL import Image

from wmlc.cli import main
from wmlc.data.folders import class_folders, find_pictures, in_words
from wmlc.errors import InputError


def found(root: Path, part: str = "train") -> tuple[Counter[int], dict[str, int]]:
    """Pictures by class, and what was passed over."""
    folder = root / part
    others = [root / name for name in ("train", "test", "val") if name != part and (root / name).is_dir()]
    pictures = find_pictures(folder, class_folders(folder), others)
    return Counter(pictures.labels), pictures.skipped


def refusal(root: Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        _ = open_folder(root, **options).record
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_links_in_a_circle_and_to_other_classes_add_nothing(tmp_path):
    train = make_folder(tmp_path) / "train"
    (train / "cat" / "all").symlink_to("..")
    (train / "cat" / "root").symlink_to(tmp_path)
    (train / "cat" / "tests").symlink_to(tmp_path / "test" / "cat")
    (train / "cat" / "dogs").symlink_to("../dog")
    (train / "dog" / "self").symlink_to(".")
    (train / "dog" / "up").symlink_to("../../train")
    assert found(tmp_path) == ({0: 10, 1: 10}, {"link to a folder that counts already": 6})


def test_two_folders_that_link_to_each_others_parent_end(tmp_path):
    train = make_folder(tmp_path) / "train"
    for one, other in (("cat", "dog"), ("dog", "cat")):
        (train / one / "deep").mkdir()
        (train / one / "deep" / "link").symlink_to(train / other)
        (train / one / "again").symlink_to(train / other / "deep")
    assert found(tmp_path)[0] == {0: 10, 1: 10}


def test_a_folder_that_is_only_linked_counts_once(tmp_path):
    train = make_folder(tmp_path / "set") / "train"
    more = tmp_path / "more"
    shutil.copytree(train / "cat", more / "deep")
    (train / "cat" / "one").symlink_to(more)
    (train / "cat" / "two").symlink_to(more / "deep")
    (train / "bird").symlink_to(tmp_path / "birds")
    shutil.copytree(train / "dog", tmp_path / "birds")
    counts, skipped = found(tmp_path / "set")
    assert counts == {0: 10, 1: 20, 2: 10}  # bird, cat, dog
    assert skipped == {"link to a folder that counts already": 1}


def test_one_folder_cannot_be_two_classes_or_two_parts(tmp_path):
    train = make_folder(tmp_path) / "train"
    shutil.rmtree(train / "dog")
    (train / "dog").symlink_to("cat")
    assert refusal(tmp_path) == f"{train / 'cat'} and {train / 'dog'} are the same folder; give each its own pictures"
    (train / "dog").unlink()
    (train / "dog").symlink_to(tmp_path)
    assert "are the same folder" in refusal(tmp_path)
    shutil.rmtree(tmp_path / "test")
    (tmp_path / "test").symlink_to("train")
    assert "are the same folder" in refusal(tmp_path)


def test_what_others_leave_behind_is_passed_over_at_every_depth(tmp_path):
    root = make_folder(tmp_path)
    for part in ("train", "test"):
        for place in (".ipynb_checkpoints", "@eaDir/00.png", "__MACOSX", "deep/.thumbs"):
            folder = root / part / "cat" / place
            folder.mkdir(parents=True)
            Image.new("RGB", (99, 99)).save(folder / "00.png")
        (root / part / "__MACOSX" / "cat").mkdir(parents=True)
        (root / part / "cat" / "._00.png").write_bytes(b"resource fork")
    assert found(root)[0] == {0: 10, 1: 10} and found(root, "test")[0] == {0: 3, 1: 3}
    data = open_folder(root)
    assert data.record.input_shape == data.input_shape == (3, 8, 8)


def test_a_machine_that_only_tests_needs_no_training_images(tmp_path):
    for picture in (make_folder(tmp_path) / "train").rglob("*.png"):
        picture.unlink()
    data = open_folder(tmp_path)
    assert data.input_shape == (3, 8, 8) and (data.test_classes(), data.test_count()) == (["cat", "dog"], 6)


def test_what_is_skipped_is_said_in_one_line_a_part(tmp_path, capsys, monkeypatch):
    train = make_folder(tmp_path) / "train"
    for name in ("a.txt", "b.TXT", "c.heic", "LICENSE"):
        (train / "cat" / name).touch()
    (train / "cat" / ".DS_Store").touch()
    (train / "cat" / "gone.png").symlink_to("nowhere.png")
    (train / "cat" / "loop.png").symlink_to("loop.png")
    os.mkfifo(train / "dog" / "pipe.png")
    (train / "lone.png").write_bytes((train / "cat" / "00.png").read_bytes())
    (train / "dog" / "locked").mkdir()
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda place: scandir(f"{place}/missing" if "locked" in str(place) else place))
    data = open_folder(tmp_path)
    assert (data.record.train, data.test_count()) == (18, 6)
    _ = data.record
    assert capsys.readouterr().err == (
        f"skipped in {train}: 2 .txt, 2 broken links, 1 .heic, 1 file without an ending, 1 hidden, "
        f"1 picture outside the class folders, 1 pipe or device, 1 unreadable folder\n"
    )
    assert in_words({f".{i}": 1 for i in range(10)}) == "1 .0, 1 .1, 1 .2, 1 .3, 1 .4, 1 .5, 1 .6, 1 .7 and 2 more"


def test_gif_and_jfif_are_read_and_the_endings_named_where_none_fits(tmp_path):
    root = make_folder(tmp_path)
    cats = sorted((root / "train" / "cat").iterdir())
    for path, ending in zip(cats, [".gif", ".jfif", ".JPEG"] * 4, strict=False):
        Image.open(path).save(path.with_suffix(ending), format="GIF" if ending == ".gif" else "JPEG")
        path.unlink()
    assert open_folder(root).record.train == 18
    for path in (root / "train" / "cat").iterdir():
        path.rename(path.with_suffix(".heic"))
    assert refusal(root) == (
        f"{root / 'train'} has no images in cat (skipped: 10 .heic); add some that end in .jpg, .jpeg, .jfif, .png, .gif, "
        f".bmp, .ppm, .pgm, .tif, .tiff, .webp, or remove the class"
    )


def test_val_is_tested_on_where_test_has_no_classes(tmp_path, capsys):
    root = make_folder(tmp_path)
    (root / "test").rename(root / "val")
    (root / "test").mkdir()
    for path in (root / "val" / "cat").iterdir():
        shutil.copy(path, root / "test")
    assert open_folder(root).test_count() == 6
    said = f"{root / 'test'} has no class folders (3 images without labels), so val/ is tested on\n"
    assert capsys.readouterr().err == said
    (root / "test" / "unsorted").mkdir()
    assert refusal(root) == (
        f"only one part of {root} has train/cat, train/dog, test/unsorted; give both the same class folders; "
        f"val/ has those of train/: to test on it, move test/ away"
    )
    (root / "test" / "unsorted").rmdir()
    shutil.rmtree(root / "val")
    assert refusal(root) == (
        f"{root / 'test'} has no class folders, only 3 images without labels; put test images into the class folders of "
        f"train/, below test/ or val/"
    )


@pytest.mark.parametrize(
    ("name", "what"),
    [
        (b"two\nlines", r"two\nlines has a control character in its name (\n)"),
        (b"esc\x1b[31m", r"esc\x1b[31m has a control character in its name (\x1b)"),
        ("line\u2028".encode(), r"line\u2028 has a control character in its name (\u2028)"),
        (b"caf\xe9", r"caf\xe9 has what is no Unicode in its name (\xe9)"),
    ],
)
def test_class_names_that_no_label_file_holds_are_refused(tmp_path, name, what):
    root = make_folder(tmp_path)
    os.mkdir(os.fsencode(root / "train") + b"/" + name)  # noqa: PTH102
    assert refusal(root) == f"the class folder {root / 'train'}/{what}; rename it"
    result = CliRunner().invoke(main, ["train", "--data", "imagefolder", "--data-root", str(root), "--dry-run"])
    assert (result.exit_code, result.output) == (1, f"Error: the class folder {root / 'train'}/{what}; rename it\n")


def test_a_root_that_no_record_holds_is_refused(tmp_path):
    root = make_folder(tmp_path / os.fsdecode(b"caf\xe9"))
    assert (
        refusal(root)
        == rf"{tmp_path}/caf\xe9 has \xe9 in its name, a control character or what is no Unicode; rename it"
    )


def test_class_names_are_compared_in_nfc(tmp_path):
    root = make_folder(tmp_path)
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    (root / "train" / "cat").rename(root / "train" / composed)
    (root / "test" / "cat").rename(root / "test" / decomposed)
    data = open_folder(root)
    assert data.record.class_names == [composed, "dog"] and data.test_count() == 6
    shutil.copytree(root / "test" / "dog", root / "test" / composed)
    assert refusal(root) == (
        f"{root / 'test'} has two folders called {composed}, which differ in their Unicode form only; merge them"
    )


def test_a_picture_whose_name_is_no_unicode_is_read_and_named_in_one_line(tmp_path):
    root = make_folder(tmp_path)
    odd = Path(os.fsdecode(os.fsencode(root / "train" / "cat") + b"/caf\xe9\n.png"))
    (root / "train" / "cat" / "00.png").rename(odd)
    assert open_folder(root).record.train == 18
    odd.write_bytes(b"")
    assert refusal(root).startswith(rf"{root / 'train' / 'cat'}/caf\xe9\n.png is not a readable image")
