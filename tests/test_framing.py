"""What is served is what was evaluated: a client that follows the manifest and the docs feeds what the bench feeds."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_folders import make_folder, open_folder
from made import made_family
from made_files import linear_file, manifest_of

from wmlc import records
from wmlc.data.decode import framing
from wmlc.export.card import model_card
from wmlc.export.config import ExportConfig
from wmlc.export.extract import OnnxFile
from wmlc.export.publish import read_manifest
from wmlc.records import About, NetworkSpec

pytest.importorskip("tritonclient.http")
DOCS = (Path(__file__).parent.parent / "docs" / "serving.md").read_text(encoding="utf-8")
MODEL = "models/resnet20_digits_p07/1"  # as the docs call it


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((131, 90), {"image_size": 96}),  # the shorter side to 110, 160 wide, 96 x 96 out of the middle
        ((90, 131), {"image_size": 96}),
        ((40, 21), {"image_size": 16}),  # small: both sides to 16
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
        std=record.std, widths={}, about=About(peer=1, ratio=0.5),
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


def test_manifest_card_and_network_say_what_evaluation_does(tmp_path: Path) -> None:
    record = replace(made_family().data, input_shape=(3, 96, 96), small=False)
    spec = NetworkSpec(
        arch="resnet20", class_names=["cat", "dog"], input_shape=(3, 96, 96), mean=[0.5] * 3, std=[0.25] * 3, widths={},
        about=About(peer=1, ratio=0.5, ratio_of="params"), framing=framing((3, 96, 96), small=False),
    )  # fmt: skip
    (tmp_path / "file").write_bytes(b"")
    words = "resized to 110 on the shorter side (bilinear, antialiased), 96 x 96 cut out of the middle"
    for number, (old, pixels) in enumerate(((False, False), (True, False), (False, True))):
        said = replace(spec, framing=None) if old else spec  # a network of an older run says nothing of it
        manifest = manifest_of(record, tmp_path / "file", tmp_path / f"run{number}", said, pixels)
        assert manifest.preprocess.framing == spec.framing
        assert json.loads(records.text(manifest))["preprocess"]["framing"]["shorter_side"] == 110
        assert words in model_card(manifest)
    assert framing((3, 224, 224), small=False).shorter_side == 256
    assert framing((1, 8, 8), small=True).words == "resized to 8 x 8 (bilinear, antialiased)"
