"""`wmlc predict`: the classes of a picture, from the very pixels that the test set's top-1 is measured on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from image_folders import make_folder, open_folder
from made import made_family, made_run, made_settings
from networks import with_lived_in_statistics
from PIL import Image

import wmlc
from wmlc.cli import main
from wmlc.data import Data, DataConfig, open_data
from wmlc.models.checkpoint import save_network
from wmlc.models.zoo import build_network
from wmlc.records import NetworkSpec
from wmlc.run import Run


def write_untrained(root: Path, data: Data) -> Run:
    """A finished run of one peer with random weights."""
    record, config = data.record, data.config
    settings = made_settings(
        (50.0,), data=config.name, image_size=config.image_size,
        data_root=None if config.root is None else str(config.root),
    )  # fmt: skip
    run = made_run(root, settings, replace(made_family((50.0,), None, settings=settings), data=record))
    torch.manual_seed(0)
    network = with_lived_in_statistics(build_network("resnet20", len(record.class_names), record.input_shape))
    spec = NetworkSpec(
        arch="resnet20", class_names=record.class_names, input_shape=record.input_shape, mean=record.mean,
        std=record.std, widths={}, framing=record.framing,
    )  # fmt: skip
    save_network(network, spec, run.network(1))
    return run


def predict(run: Run, *words: object) -> Result:
    return CliRunner().invoke(main, ["predict", "--run", str(run.root), "--peer", "1", *map(str, words)])


def expected(run: Run, data: Data) -> torch.Tensor:
    """The network's probabilities on the first test images, as the evaluation gives them."""
    images, _ = next(iter(data.test_batches(4)))
    with torch.no_grad():
        return wmlc.load(run.network(1))(images).softmax(-1)


def assert_as_evaluated(found: list[dict], probabilities: torch.Tensor, class_names: list[str]) -> None:
    assert len(found) == len(probabilities)
    for prediction, own in zip(found, probabilities, strict=True):
        likeliest = own.argsort(descending=True)[:5].tolist()
        assert [each["name"] for each in prediction["classes"]] == [class_names[k] for k in likeliest]
        told = torch.tensor([each["probability"] for each in prediction["classes"]])
        torch.testing.assert_close(told, own[likeliest], rtol=1e-4, atol=1e-6)


def test_digits_as_the_evaluation_sees_them(tmp_path: Path) -> None:
    data = open_data(DataConfig())
    run = write_untrained(tmp_path / "run", data)
    pixels, _ = next(iter(data.test_pixels(4)))
    pictures = [tmp_path / f"{k}.png" for k in range(4)]
    for path, image in zip(pictures, pixels, strict=True):
        Image.fromarray(image[..., 0].numpy()).save(path)
    found = json.loads(predict(run, *pictures, "--json").stdout)
    assert [each["picture"] for each in found] == list(map(str, pictures)) and found[0]["network"] == "peer1"
    assert_as_evaluated(found, expected(run, data), data.record.class_names)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    said = f"Error: {tmp_path / 'red.png'} has colour, and the networks take grey pictures; convert it to grey\n"
    assert predict(run, tmp_path / "red.png").stderr == said


@pytest.mark.parametrize("size", [72, 24])  # read from files as they are needed, and held in memory
def test_files_of_any_size_as_the_evaluation_brings_them(size: int, tmp_path: Path) -> None:
    data = open_folder(make_folder(tmp_path / "set", train=4, test=2, size=(100, 80)), image_size=size)
    run = write_untrained(tmp_path / "run", data)
    pictures = sorted((tmp_path / "set" / "test").rglob("*.png"))
    result = predict(run, *pictures, "--json")
    assert result.stderr == ""
    assert_as_evaluated(json.loads(result.stdout), expected(run, data), ["cat", "dog"])


def test_a_table_and_what_cannot_be(tmp_path: Path) -> None:
    data = open_folder(make_folder(tmp_path / "set", train=4, test=2))
    run = write_untrained(tmp_path / "run", data)
    picture = tmp_path / "set" / "test" / "cat" / "00.png"
    title, header, first, second = predict(run, picture).stdout.splitlines()
    assert title == f"peer1 of {run.root}" and header.split() == ["picture", "class", "%"]
    (path, one, likely), (other, unlikely) = first.split(), second.split()
    assert path == str(picture) and {one, other} == {"cat", "dog"}
    assert float(likely) + float(unlikely) == pytest.approx(100, abs=0.011) and float(likely) >= 50
    large = tmp_path / "large.png"
    Image.new("RGB", (30, 20)).save(large)
    assert "large.png is 30 x 20; resized to 8 x 8" in predict(run, large, "--json").stderr
    (tmp_path / "no.png").write_bytes(b"no picture")
    large.write_bytes(picture.read_bytes()[:-40])
    for words, fault in (
        ([tmp_path / "no.png"], "WEBP); repair it, or name another"),
        ([large], "large.png is not a readable image (image file is truncated); repair it, or name another"),
        ([tmp_path / "lost.png"], f"there is no picture {tmp_path / 'lost.png'}"),
        ([tmp_path / "set"], f"{tmp_path / 'set'} is a folder; name the pictures in it"),
        ([picture, "--arch", "resnet20"], "--arch must be FILE.py:FACTORY or PACKAGE.MODULE:FACTORY, as a run"),
        ([picture, "--arch", "lost.py:make"], "--arch: there is no file lost.py"),
        ([picture, "--peer", "2"], "--peer must be 1 to 1"),
    ):
        result = predict(run, *words)
        assert result.exit_code == 1 and fault in result.stderr and len(result.stderr.splitlines()) == 1
    run.family.unlink()
    assert "is not finished" in predict(run, picture).stderr
