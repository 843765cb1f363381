"""A finished and benched run made by hand, weights and files with it: for tests that a training would only slow."""

from __future__ import annotations

import functools
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from made import TIME, made_bench, made_epoch, made_family, made_framing, made_row, made_run, made_settings
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from wmlc import records
from wmlc.compress.widths.cut import cut_channels
from wmlc.compress.widths.proof import read_channels
from wmlc.data import DataRecord
from wmlc.export.card import make_manifest
from wmlc.export.config import ShipConfig
from wmlc.export.layouts import Model
from wmlc.files import sha256
from wmlc.models.checkpoint import save_network
from wmlc.models.widths import Difference, cut_to, difference
from wmlc.models.zoo import build_network
from wmlc.records import Cost, FileAbout, Manifest, NetworkSpec, PlanRecord, ShippedAccuracy
from wmlc.run import Run

SHAPE = (1, 8, 8)  # of the handwritten digits


def small_network() -> nn.Module:
    """resnet20 with eight channels everywhere."""
    network = cut_to(build_network("resnet20", 10, SHAPE), small_widths())
    for tensor in network.state_dict().values():
        tensor.zero_()
    return network


@functools.cache
def small_widths() -> Difference:
    """The record of resnet20 with eight channels everywhere."""
    full = build_network("resnet20", 10, SHAPE)
    groups = read_channels(full, SHAPE).groups
    return difference(full, cut_channels(full, groups, {group.root: torch.arange(8) for group in groups}))


def write_onnx(path: Path) -> None:
    """A linear classifier of 8 x 8 pixels that says of itself what ours say."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [64, 10], [0.0] * 640)
    nodes = [helper.make_node("Flatten", ["images"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["logits"])]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("images", ["N", *SHAPE]), ("logits", ["N", 10]))
    ]
    graph = helper.make_graph(nodes, "classifier", ends[:1], ends[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"ratio": "0.5", "mean": "[0.5]", "std": "[0.25]"})
    onnx.save(model, path)


def write_plan(path: Path) -> None:
    """A file in a plan's place, and the record beside it that describes it."""
    path.write_bytes(b"a plan")
    about = FileAbout(
        architecture="resnet20", data="digits", method="wml", peer=1, ratio=0.7, achieved_ratio=0.7,
        ratio_of="params", top1=90.0, commit=None, class_names=["a", "b"], input_shape=SHAPE, mean=[0.5],
        std=[0.25], framing=made_framing(8), with_preprocess=False, precision="fp32", params=10, macs=10, opset=18,
    )  # fmt: skip
    record = PlanRecord(
        time=TIME, commit=None, versions={}, tensorrt="10.3", cuda=None, driver=None, gpu="a GPU",
        compute_capability="8.0", batch_range=(1, 8, 32), version_compatible=False, hardware_compatible=False,
        precision="fp32", target=None, onnx_sha256="0" * 64, plan_sha256=sha256(path),
        plan_bytes=path.stat().st_size, build_seconds=1.0, network=about,
    )  # fmt: skip
    records.write(path.with_name(f"{path.name}.json"), record)


def write_run(root: Path) -> Run:
    """A finished and benched run of two peers and the baseline, with weights, ONNX files and a plan."""
    run, network = Run(root), small_network()
    settings = made_settings(data="digits", epochs=2, train_images=260, workers=0)
    run.onnx.mkdir(parents=True)
    for peer, name in enumerate(("baseline", "peer1", "peer2")):
        spec = NetworkSpec(
            arch="resnet20", class_names=[f"class {i}" for i in range(10)], input_shape=SHAPE, mean=[0.5],
            std=[0.25], widths=small_widths(), framing=made_framing(8),
            about=records.About(data="digits", peer=peer, ratio=0.7 if peer == 1 else 0.0, test_images=10),
        )  # fmt: skip
        run.network(peer).mkdir(parents=True)
        save_network(network, spec, run.network(peer))
        write_onnx(run.onnx / f"family-{name}.onnx")
    plan = run.onnx / "family-peer1.plan"
    write_plan(plan)
    rows = [replace(made_row(peer, 2.0 - peer / 4, (1.0, 1.1, 1.2) if peer else None),
                    file_sha256=sha256(run.onnx / "family-baseline.onnx")) for peer in range(3)]  # fmt: skip
    rows.append(replace(rows[1], engine="trt", file_sha256=sha256(plan)))
    epochs = [made_epoch(n, [80.0 + n, 85.0], peer_weights=[n / 4, 1 - n / 4]) for n in (1, 2)]
    family = made_family(settings=settings)
    family = replace(family, data=replace(family.data, class_names=[str(digit) for digit in range(10)]))
    made_run(root.with_name("made"), settings, family, epochs=epochs,
             baseline_epochs=[made_epoch(1, [85.0])], bench=made_bench(rows))  # fmt: skip
    shutil.rmtree(root.with_name("made") / "peers")
    shutil.copytree(root.with_name("made"), root, dirs_exist_ok=True)
    shutil.rmtree(root.with_name("made"))
    return run


def linear_file(path: Path, input_shape: tuple[int, int, int]) -> Path:
    """An ONNX classifier of two classes that looks at every pixel."""
    size = int(np.prod(input_shape))
    weights = np.random.default_rng(0).standard_normal((size, 2)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["input"], ["flat"]), helper.make_node("MatMul", ["flat", "weights"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *input_shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(weights, "weights")],
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save_model(helper.make_model(graph, opset_imports=opset, ir_version=10), str(path))
    return path


def manifest_of(record: DataRecord, file: Path, root: Path, spec: NetworkSpec, pixels: bool = False) -> Manifest:
    """The manifest of `file` as shipped from a run on that data."""
    settings = made_settings(data="imagefolder", data_root="somewhere")
    run = made_run(root, settings, replace(made_family(settings=settings), data=record))
    model = Model(
        name="m", version=1, file_name="model.onnx", labels=spec.class_names, input_dims=list(spec.input_shape),
        pixels=pixels, device="cpu", threads=1, preferred_batches=[],
    )  # fmt: skip
    return make_manifest(
        model, file, spec, run,
        accuracy=ShippedAccuracy(top1=None, top1_drop=None, test_images=6, engine="ort"), latency=None,
        cost=Cost(1, 1), config=ShipConfig(with_preprocess=pixels), plan=None,
    )  # fmt: skip
