"""What an extracted peer promises: dense, complete, equal to the peer it came from, or not there at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import wmlc
from wmlc.data import normalise
from wmlc.errors import InputError
from wmlc.export import extract as extract_module
from wmlc.export import to_onnx
from wmlc.export.about import read_about
from wmlc.export.config import ExportConfig
from wmlc.export.extract import Extracted, OnnxFile, extract, run_file
from wmlc.export.for_bench import kept_file
from wmlc.files import check_writable, new_file, sha256
from wmlc.models.checkpoint import read_spec
from wmlc.models.cost import total_cost
from wmlc.run import Run, open_run_data

FP32 = ExportConfig()


def run_onnx(path: Path, fed: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"input": fed})[0])


@pytest.fixture(scope="module")
def peer_file(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "peer1.onnx"
    assert list(extract(run, "1", out, FP32, force=False)) == [Extracted(out)]
    return out


def test_the_file_is_the_peer_at_any_batch(run: Run, peer_file: Path) -> None:
    network = wmlc.load(run.network(1))
    spec = read_spec(run.network(1))
    images = normalise(open_run_data(run).train_pixels(33), spec.mean, spec.std).contiguous()
    for batch in (1, 7, 33):
        with torch.inference_mode():
            expected = network(images[:batch]).numpy()
        np.testing.assert_allclose(run_onnx(peer_file, images[:batch].numpy()), expected, atol=1e-4)


def test_the_file_is_dense_folded_and_says_what_it_is(run: Run, peer_file: Path) -> None:
    model, network = onnx.load(str(peer_file)), wmlc.load(run.network(1))
    cost = total_cost(network, (1, 8, 8))
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            assert shapes[name] == list(parameter.shape)
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert [value.name for value in model.graph.input] == ["input"]
    assert [value.name for value in model.graph.output] == ["logits"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    said = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert said["architecture"] == "resnet20" and said["data"] == "digits" and said["peer"] == 1
    assert said["class_names"] == [str(digit) for digit in range(10)]
    assert (said["params"], said["macs"]) == (cost.params, cost.macs)
    assert said["opset"] == next(entry.version for entry in model.opset_import if entry.domain == "") == to_onnx.OPSET
    assert said["framing"] == {"shorter_side": None, "size": [8, 8], "interpolation": "bilinear"}
    assert {"mean", "std", "ratio", "top1", "commit"} <= said.keys() and not {"target", "calibrator"} & said.keys()
    assert read_about(peer_file).weights_sha256 == sha256(run.network(1) / "weights.safetensors")
    assert str(Path(__file__).parent.parent).encode() not in peer_file.read_bytes(), "no path of the maker's machine"


def test_preprocessing_inside_the_file_takes_pixels(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "p.onnx"
    list(extract(run, "2", out, ExportConfig(with_preprocess=True), force=False))
    pixels = open_run_data(run).train_pixels(5)
    spec = read_spec(run.network(2))
    with torch.inference_mode():
        expected = wmlc.load(run.network(2))(normalise(pixels, spec.mean, spec.std)).numpy()
    np.testing.assert_allclose(run_onnx(out, pixels.numpy()), expected, atol=1e-4)


def test_all_and_baseline_as_directories_load_bit_identical(run: Run, tmp_path: Path) -> None:
    made = list(extract(run, "all", tmp_path / "family", FP32, force=False))
    assert [done.path.name for done in made] == ["baseline", "peer1", "peer2"]
    for peer, done in enumerate(made):
        first, second = wmlc.load(run.network(peer)).state_dict(), wmlc.load(done.path).state_dict()
        assert all(torch.equal(first[name], second[name]) for name in first)


def copy_of(run: Run, to: Path) -> Run:
    """The run as training left it, without a file of its networks."""
    shutil.copytree(run.root, to, ignore=shutil.ignore_patterns("onnx"))
    return Run(to)


@pytest.fixture
def exports(peer_file: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was asked of the exporter, call by call; in its place the file of `run`'s peer 1 is handed out."""
    calls: list[dict[str, Any]] = []

    def export(network: Any, spec: Any, out: Path, pixels: Any, **how: Any) -> None:
        calls.append(how)
        model = onnx.load(str(peer_file))
        said = {entry.key: entry.value for entry in model.metadata_props}
        onnx.helper.set_model_props(model, said | {key: json.dumps(value) for key, value in how.items()})
        out.parent.mkdir(exist_ok=True)
        onnx.save_model(model, str(out))

    monkeypatch.setattr(extract_module, "export_onnx", export)
    return calls


def test_one_export_serves_all_precisions(run: Run, tmp_path: Path, exports: list[dict[str, Any]]) -> None:
    copy = copy_of(run, tmp_path / "run")
    forms = [
        {"precision": "fp32"},
        {"precision": "fp16"},
        {"precision": "int8"},
        {"precision": "int8", "target": "gpu"},
    ]
    for number, form in enumerate(forms):
        list(extract(copy, "1", tmp_path / f"{number}.onnx", ExportConfig(**form), force=False))
        assert read_about(tmp_path / f"{number}.onnx").precision == form["precision"]
    assert len(exports) == 1, "and where it was made first, beside the run's other files"
    assert (tmp_path / "0.onnx").read_bytes() == run_file(copy, 1, "fp32").read_bytes()
    for precision in ("fp32", "fp16", "int8"):
        kept_files(copy, ExportConfig(precision=precision))
    assert len(exports) == 3, "one more for the baseline and for peer 2"


def test_a_file_that_takes_pixels_is_an_export_of_its_own(
    run: Run, tmp_path: Path, exports: list[dict[str, Any]]
) -> None:
    copy = copy_of(run, tmp_path / "run")
    for out, pixels in (("a", False), ("b", True), ("c", True), ("d", False)):
        list(extract(copy, "1", tmp_path / f"{out}.onnx", ExportConfig(with_preprocess=pixels), force=False))
    assert [how["with_preprocess"] for how in exports] == [False, True]


def kept_files(run: Run, config: ExportConfig) -> list[Path]:
    return [kept_file(run, peer, open_run_data(run), config) for peer in (0, 1, 2)]


def test_files_are_made_again_where_the_weights_have_changed(
    run: Run, tmp_path: Path, exports: list[dict[str, Any]]
) -> None:
    copy, weights = copy_of(run, tmp_path / "run"), "weights.safetensors"
    made = kept_files(copy, FP32)
    assert len(exports) == 3
    os.utime(made[1], (0, 0))  # an older file of the same weights is as good
    assert kept_files(copy, FP32) == made and len(exports) == 3
    shutil.copy(copy.network(1) / "spec.json", copy.network(2))
    shutil.copy(copy.network(1) / weights, copy.network(2))
    made[0].write_bytes(b"cut short")
    kept_files(copy, FP32)
    assert [how["weights_sha256"] for how in exports[3:]] == [sha256(copy.network(peer) / weights) for peer in (0, 2)]


def test_a_run_that_cannot_be_written_to_is_extracted_all_the_same(
    run: Run, tmp_path: Path, exports: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = copy_of(run, tmp_path / "run")
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != copy.root and access(path, mode))
    list(extract(copy, "1", tmp_path / "p.onnx", ExportConfig(precision="fp16"), force=False))
    assert len(exports) == 1 and not copy.onnx.exists() and (tmp_path / "p.onnx").is_file()


def test_a_file_that_disagrees_is_not_written(
    run: Run, peer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = copy_of(run, tmp_path / "run")
    monkeypatch.setattr(to_onnx, "_write", lambda network, spec, path, *_: shutil.copy(peer_file, path))
    monkeypatch.setattr(to_onnx, "MOST_APART", 0.0)
    with pytest.raises(InputError, match=r"family-peer1\.onnx was not written: at batch \d ONNX Runtime's logits are"):
        list(extract(copy, "1", tmp_path / "p.onnx", FP32, force=False))
    assert not copy.onnx.exists() and [path.name for path in tmp_path.iterdir()] == ["run"]


def test_damaged_weights_leave_nothing_but_the_error(run: Run, tmp_path: Path) -> None:
    copy = Run(tmp_path / "copy")
    shutil.copytree(run.root, copy.root)
    file = copy.network(1) / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"weights\.safetensors is damaged or truncated"):
        list(extract(copy, "1", tmp_path / "p.onnx", FP32, force=False))
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_existing_outputs_stay_unless_forced(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "peer"
    out.mkdir()
    (out / "mine").write_text("keep")
    with pytest.raises(InputError, match="exists already; choose another --out, or pass --force"):
        list(extract(run, "1", out, FP32, force=False))
    assert (out / "mine").read_text() == "keep"
    with pytest.raises(InputError, match="is a directory that wmlc did not make; choose another --out"):
        list(extract(run, "1", out, FP32, force=True))
    assert (out / "mine").read_text() == "keep"
    (out / "spec.json").write_text('{"name": "somebody else\'s"}')
    with pytest.raises(InputError, match="is a directory that wmlc did not make; choose another --out"):
        list(extract(run, "1", out, FP32, force=True))
    shutil.copy(run.network(1) / "spec.json", out)  # as in an extracted peer, but for somebody's file in it
    with pytest.raises(InputError, match="is a directory that wmlc did not make; choose another --out"):
        list(extract(run, "1", out, FP32, force=True))
    (out / "mine").unlink()
    list(extract(run, "1", out, FP32, force=True))
    assert sorted(path.name for path in out.iterdir()) == ["spec.json", "weights.safetensors"]


@pytest.mark.parametrize(
    ("peer", "out", "message"),
    [
        ("3", "p.onnx", "--peer must be 1 to 2, all, or baseline, got '3'"),
        ("0", "p.onnx", "--peer must be 1 to 2, all, or baseline, got '0'"),
        ("two", "p.onnx", "--peer must be 1 to 2, all, or baseline, got 'two'"),
        ("1", "p.pt", "--out must end in .onnx, .plan or .engine, or have no ending and become a directory; got p.pt"),
    ],
)
def test_what_cannot_be_extracted_is_said(run: Run, peer: str, out: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        list(extract(run, peer, Path(out), FP32, force=False))
    assert str(caught.value) == message


def test_an_onnx_file_of_another_program_is_said_to_be_one(run: Run, peer_file: Path, tmp_path: Path) -> None:
    model, out = onnx.load(str(peer_file)), tmp_path / "p.onnx"
    del model.metadata_props[:]
    onnx.save_model(model, str(out))
    with pytest.raises(InputError, match=r"p\.onnx is not a readable ONNX file of wmlc: architecture is missing; data"):
        read_about(out)
    out.write_bytes(b"no ONNX")
    with pytest.raises(InputError, match=r"p\.onnx is not a readable ONNX file \(.*\); extract it again"):
        read_about(out)
    with pytest.raises(InputError, match=r"ONNX Runtime cannot open .*p\.onnx \(.*\); extract it again"):
        OnnxFile(out, read_spec(run.network(1)), FP32)


def test_directories_that_were_made_for_nothing_go_again(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b" / "file.onnx")
    with pytest.raises(ZeroDivisionError), new_file(tmp_path / "c" / "d" / "file.onnx") as aside:
        aside.write_bytes(b"half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
