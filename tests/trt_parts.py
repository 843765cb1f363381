"""What the tests of TensorRT share: a machine, a record of a plan, images, and layers as TensorRT's inspector tells them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from made import made_framing

from wmlc.files import sha256
from wmlc.forms import open_as_written
from wmlc.records import FileAbout, Machine, PlanRecord

Export = Callable[[str, str], Path]  # (architecture, form) -> ONNX file

RANGE = (1, 8, 32)
HERE = Machine(
    tensorrt="10.16.1.11", cuda="13.2", driver="580.95.05", gpu="NVIDIA A10", compute_capability="8.6"
)  # fmt: skip
L4 = {"gpu": "NVIDIA L4", "compute_capability": "8.9"}
NO_GPU = "needs an NVIDIA GPU and its driver, and torch sees none"
TF32_KERNEL = "sm80_xmma_fprop_implicit_gemm_f32f32_tf32f32_f32_nhwckrsc_nhwc_tilesize128x128x16_stage4"
ABOUT = FileAbout(
    architecture="resnet20", data="digits", method="wml", peer=1, ratio=0.5, achieved_ratio=0.5, ratio_of="params",
    top1=98.0, commit=None, class_names=["0", "1"], input_shape=(3, 32, 32), mean=[0.5] * 3, std=[0.25] * 3,
    framing=made_framing(32), with_preprocess=False, precision="fp32", params=1000, macs=100_000, opset=20,
)  # fmt: skip


def record_of(plan: Path, **changed: Any) -> PlanRecord:
    """The record of a file called plan, as if it had been built on `HERE`."""
    record = PlanRecord(
        **vars(HERE), batch_range=RANGE, version_compatible=False, hardware_compatible=False, precision="fp32",
        target=None, onnx_sha256="0" * 64, plan_sha256=sha256(plan), plan_bytes=plan.stat().st_size, build_seconds=1.0,
        network=ABOUT, time="2026-01-01T00:00:00+00:00", commit=None, versions={},
    )  # fmt: skip
    return replace(record, **changed)


def some_images(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, 32, 32), dtype=np.float32)


def as_written(onnx_file: Path, images_NCHW: np.ndarray) -> np.ndarray:
    """What a plan of this file has to agree with."""
    return np.asarray(open_as_written(onnx_file).run(["logits"], {"input": images_NCHW})[0])


def inspected(*layers: dict[str, Any]) -> str:
    return json.dumps({"Layers": layers})


def layer(reads: str, weights: str | None = None, kind: str = "CaskConvolution", **more: Any) -> dict[str, Any]:
    """A layer as TensorRT 10 writes it."""
    told = {"Weights": {"Type": weights, "Count": 9408}} if weights else {}
    return {"Name": "conv", "LayerType": kind, "Inputs": [{"Name": "x", "Format/Datatype": reads}], **told, **more}


def layer_11(reads: list[str], kind: str = "CaskConvolution", **more: Any) -> dict[str, Any]:
    """A layer as TensorRT 11 writes it, which tells type and format apart."""
    inputs = [{"Name": "x", "Datatype": each, "Format": "Row major linear format (kLINEAR)"} for each in reads]
    return {"Name": "conv", "LayerType": kind, "Inputs": inputs, **more}
