"""`wmlc data`: what it says of a folder, in text and as JSON, and the contact sheet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from image_folders import make_folder
from PIL import Image

from wmlc.cli import main
from wmlc.data import DataConfig, open_parts
from wmlc.data.look import survey


def run(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["data", *map(str, words), "--workers", "0"])
    return result.exit_code, result.stdout, result.stderr


def test_json_says_what_will_be_seen(tmp_path):
    root, sheet = make_folder(tmp_path / "set"), tmp_path / "sheet.png"
    (root / "train" / "cat" / "notes.txt").touch()
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.open(root / "train" / "cat" / "01.png").save(root / "train" / "cat" / "01.png", exif=turned)
    Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(root / "test" / "dog" / "00.png")
    code, said, aside = run(root, "--json", "--out", sheet)
    record = json.loads(said)
    assert (code, aside) == (0, f"skipped in {root / 'train'}: 1 .txt\n")
    assert record["train"] == {
        "folder": str(root / "train"), "images": 20, "looked_at": 20, "classes": {"cat": 10, "dog": 10},
        "sizes": {"8 x 8": 20}, "stored_as": {"PNG RGB": 20}, "turned": 1, "transparent": 0, "one_colour": [],
        "unreadable": {}, "skipped": {".txt": 1},
    }  # fmt: skip
    assert record["test"]["stored_as"] == {"PNG RGB": 5, "PNG RGBA": 1}
    assert record["test"]["one_colour"] == [str(root / "test" / "dog" / "00.png")]
    assert (record["input_shape"], record["trained_on"], record["held_out"]) == ([3, 8, 8], 18, 2)
    assert (record["leaks"], record["two_classes"], record["refused"]) == ([], [], None)
    assert len(record["mean"]) == len(record["std"]) == 3
    with Image.open(sheet) as image:
        assert image.format == "PNG" and image.width > 500


def test_a_leak_is_named_with_its_files(tmp_path):
    root = make_folder(tmp_path / "set", size=(40, 40))
    gradient = Image.linear_gradient("L").resize((40, 40)).convert("RGB")
    gradient.save(root / "train" / "dog" / "03.png")
    gradient.resize((32, 32)).resize((40, 40)).save(root / "test" / "dog" / "02.jpg", quality=70)
    (root / "test" / "cat" / "01.bmp").touch()
    Image.open(root / "train" / "cat" / "05.png").save(root / "test" / "cat" / "01.bmp")
    (root / "train" / "dog" / "07.png").write_bytes((root / "train" / "cat" / "07.png").read_bytes())
    code, said, _ = run(root, "--out", tmp_path / "sheet.png")
    lines = said.splitlines()
    assert code == 0
    assert lines[-5:] == [
        "2 of the test images are training images too, so top-1 will flatter:",
        f"  {root}/test/cat/01.bmp is {root}/train/cat/05.png",
        f"  {root}/test/dog/02.jpg is nearly {root}/train/dog/03.png",
        "1 training images lie in two classes:",
        f"  {root}/train/dog/07.png is {root}/train/cat/07.png",
    ]
    assert lines[0] == f"{root}: 20 training images (18 trained on, 2 held out), 8 test images"


def test_what_a_training_would_refuse_is_said_after_what_there_is(tmp_path):
    root = make_folder(tmp_path / "set")
    bad = root / "test" / "dog" / "01.png"
    bad.write_bytes(bad.read_bytes()[:60])
    code, said, aside = run(root, "--out", tmp_path / "sheet.png")
    assert code == 1
    assert f"  1 cannot be read: {bad}" in said.splitlines()
    assert aside.startswith(f"Error: {bad} is not a readable image (") and aside.count("\n") == 1
    assert not (tmp_path / "sheet.png").exists()


def test_large_pictures_are_looked_at_as_they_are_cut(tmp_path):
    root = make_folder(tmp_path / "set", train=3, test=1, size=(80, 70))
    code, said, _ = run(root, "--held-out", "0.3", "--image-size", "72", "--out", tmp_path / "sheet.png")
    assert code == 0
    assert (
        "the network gets colour, 72 x 72 (height x width), to test resized to 82 on the shorter side (bilinear, antialiased), "
        "72 x 72 cut out of the middle; to train, a random part resized to 72 x 72"
    ) in said.splitlines()


def test_only_a_sheet_of_its_own_is_replaced(tmp_path):
    root, sheet = make_folder(tmp_path / "set"), tmp_path / "sheet.png"
    assert run(root, "--out", sheet)[0] == run(root, "--out", sheet)[0] == 0
    Image.new("L", (3, 3)).save(sheet)
    code, _, aside = run(root, "--out", sheet)
    assert (code, "exists already" in aside) == (1, True)
    assert run(root, "--out", sheet, "--force")[0] == 0
    assert run(root, "--out", tmp_path / "sheet.jpg")[2] == f"Error: --out must be FILE.png, got {tmp_path}/sheet.jpg\n"
    assert run(root, "--data", "digits")[2] == "Error: --data must be imagefolder or imagenet, got 'digits'\n"


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_different_pictures_are_no_leak(tmp_path, mode):
    root: Path = make_folder(tmp_path / "set", train=30, test=20, size=(12, 12), mode=mode)
    assert survey(open_parts(DataConfig(name="imagefolder", root=root, workers=0))).leaks == []
