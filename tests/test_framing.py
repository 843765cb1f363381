"""What is served is what was evaluated: a client that follows the manifest and the docs feeds what the bench feeds."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_folders import make_folder, open_folder
from made import made_family
from made_files import linear_file, manifest_of

from wmlc import records
from wmlc.bench.pictures import fit
from wmlc.compress.config import settle
from wmlc.data import DataConfig, open_parts
from wmlc.data.decode import large_transform
from wmlc.errors import InputError
from wmlc.export.card import model_card
from wmlc.export.config import ExportConfig
from wmlc.export.extract import OnnxFile
from wmlc.export.publish import read_manifest
from wmlc.records import About, Framing, NetworkSpec

pytest.importorskip("tritonclient.http")
DOCS = (Path(__file__).parent.parent / "docs" / "serving.md").read_text(encoding="utf-8")
MODEL = "models/resnet20_digits_p07/1"  # as the docs call it


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((131, 90), {"image_size": 96}),  # the shorter side to 110, 160 wide, 96 x 96 out of the middle
        ((90, 131), {"image_size": 96}),
        ((90, 131), {"image_size": 96, "interpolation": "bicubic", "crop": 0.7}),
        ((40, 21), {"image_size": 16}),  # small: both sides to 16
        ((40, 21), {"image_size": 16, "interpolation": "nearest"}),
        ((40, 21), {"image_size": 16, "interpolation": "bicubic", "crop": 0.9}),  # the shorter side to 18
        ((12, 12), {}),  # small, as the files are
    ],
)
def test_the_clients_way_and_the_benchs_give_the_same_logits(
    tmp_path: Path, size: tuple[int, int], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_folder(make_folder(tmp_path / "set", train=3, test=3, size=size), **options)
    record = data.record
    spec = NetworkSpec(
        arch="resnet20", class_names=record.class_names, input_shape=record.input_shape, mean=record.mean,
        std=record.std, widths={}, framing=record.framing, about=About(peer=1, ratio=0.5),
    )  # fmt: skip
    (tmp_path / MODEL).mkdir(parents=True)
    file = linear_file(tmp_path / MODEL / "model.onnx", record.input_shape)
    manifest = manifest_of(record, file, tmp_path / "run", spec)
    records.write(tmp_path / MODEL / "manifest.json", manifest)
    assert read_manifest(tmp_path / MODEL) == manifest
    session = OnnxFile(file, spec, ExportConfig())
    bench_NC = session.logits(next(iter(data.test_pixels(6)))[0].numpy())

    (program,) = re.findall(r"```python\n(.*?)client = triton", DOCS, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for picture, expected_C in zip(sorted((tmp_path / "set" / "test").rglob("*.png")), bench_NC, strict=True):
        names: dict[str, Any] = {}
        exec(program.replace("digit.png", str(picture)), names)
        (logits_C,) = session._session.run(["logits"], {"input": names["batch"]})[0]
        np.testing.assert_allclose(logits_C, expected_C, rtol=1e-4, atol=1e-3)


def test_manifest_and_card_say_what_evaluation_does(tmp_path: Path) -> None:
    framing = Framing(shorter_side=110, size=(96, 96), interpolation="bicubic")
    record = replace(made_family().data, input_shape=(3, 96, 96), small=False, framing=framing)
    spec = NetworkSpec(
        arch="resnet20", class_names=["cat", "dog"], input_shape=(3, 96, 96), mean=[0.5] * 3, std=[0.25] * 3, widths={},
        about=About(peer=1, ratio=0.5, ratio_of="params"), framing=framing,
    )  # fmt: skip
    (tmp_path / "file").write_bytes(b"")
    for number, pixels in enumerate((False, True)):
        manifest = manifest_of(record, tmp_path / "file", tmp_path / f"run{number}", spec, pixels)
        assert json.loads(records.text(manifest))["preprocess"]["framing"] == {
            "shorter_side": 110, "size": [96, 96], "interpolation": "bicubic",
        }  # fmt: skip
        assert framing.words in model_card(manifest)
    assert framing.words == "resized to 110 on the shorter side (bicubic, antialiased), 96 x 96 cut out of the middle"


@pytest.mark.parametrize(
    ("size", "options", "words"),
    [
        ((80, 70), {}, "resized to 256 on the shorter side (bilinear, antialiased), 224 x 224 cut out of the middle"),
        ((80, 70), {"image_size": 240, "crop": 240 / 255, "interpolation": "bicubic"},
         "resized to 255 on the shorter side (bicubic, antialiased), 240 x 240 cut out of the middle"),
        ((80, 70), {"image_size": 72, "crop": 1.0, "interpolation": "nearest"},
         "resized to 72 on the shorter side (nearest), 72 x 72 cut out of the middle"),
        ((80, 70), {"image_size": 16}, "resized to 16 x 16 (bilinear, antialiased)"),
        ((8, 8), {"interpolation": "bicubic"}, "resized to 8 x 8 (bicubic, antialiased)"),
        ((8, 8), {"crop": 0.5}, "resized to 8 x 8 (bilinear, antialiased)"),
    ],
)  # fmt: skip
def test_the_data_say_how_their_pictures_are_framed(
    size: tuple[int, int], options: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = open_folder(make_folder(tmp_path, train=3, test=1, size=size), held_out=0.3, **options)
    assert data.record.framing.words == words
    said = "images of imagefolder are used as they are, 8 x 8; crop 0.5 changes nothing\n"
    assert capsys.readouterr().err == (said if options == {"crop": 0.5} else "")


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_training_resizes_as_testing_does(interpolation: str, tmp_path: Path) -> None:
    parts = open_parts(DataConfig(
        name="imagefolder", root=make_folder(tmp_path, size=(80, 70)), image_size=72, interpolation=interpolation,
    ))  # fmt: skip
    for augment in (False, True):
        first, *_ = large_transform(parts.config, parts.layout, augment).transforms  # type: ignore[attr-defined]
        assert first.interpolation.value == interpolation


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"interpolation": "lanczos"}, "interpolation must be one of bilinear, bicubic, nearest, got 'lanczos'"),
        ({"crop": 1.1}, "crop must be from 0.1 to 1 (all of the shorter side), got 1.1"),
        ({"crop": 0.0}, "crop must be from 0.1 to 1 (all of the shorter side), got 0"),
    ],
)
def test_a_framing_that_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    for make in (settle, lambda given: DataConfig(**given)):
        with pytest.raises(InputError) as caught:
            make(settings)
        assert str(caught.value) == message


def test_a_framing_that_nobody_knows_is_refused_where_it_is_read() -> None:
    for change, message in (
        ({"interpolation": "lanczos"}, 'interpolation must be "bilinear", "bicubic" or "nearest", got "lanczos"'),
        ({"antialias": False}, "antialias is unknown"),
    ):
        said = {"shorter_side": 8, "size": [8, 8], "interpolation": "bilinear"} | change
        with pytest.raises(InputError, match=message):
            records.parse(json.dumps(said), Framing, "here", "framing", "extract again")


def test_a_bench_of_a_file_reads_pictures_as_the_file_says(tmp_path: Path) -> None:
    root = make_folder(tmp_path, train=3, test=3, size=(40, 30))
    for options in ({"crop": 0.8, "interpolation": "bicubic"}, {"interpolation": "nearest"}):
        trained = open_folder(root, image_size=16, held_out=0.3, **options)
        plain = open_folder(root, held_out=0.3)
        said = trained.record.framing
        fitted = fit(plain, trained.record.input_shape, said)
        expected = [pixels for pixels, _ in trained.test_pixels(4)]
        found = [pixels for pixels, _ in fitted.images.test_pixels(4)]
        assert fitted.words == f"{said.words}, as the first file says"
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
        other, _ = next(fit(plain, trained.record.input_shape).images.test_pixels(4))
        assert not torch.equal(other, expected[0])
