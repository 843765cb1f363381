"""What a bench measures without its processes: networks measured by hand, and workers in this process."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from wmlc import records
from wmlc.bench.cells import Cell, Measurement
from wmlc.bench.engines.worker import Feed, Memory, Opened, Seat, _Bench
from wmlc.bench.layers import Layer, layers_of, read_graph
from wmlc.bench.subjects import Subject
from wmlc.records import About, Bench, Cost, Latency, Row, Speedup, WarmUp
from wmlc.run import Run

CELL = Cell(engine="ort", device="cpu", threads=1, batch=1)
FILE = Path(__file__)  # stands for a network's


class InProcess:
    """A `Worker` whose engine runs in this process."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._bench: _Bench | None = None

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bench is not None:
            self._bench.engine.close()

    def ready(self) -> Opened:
        engine = self._seat.opener(self._seat.path, self._seat.threads, self._seat.device)
        self._bench = _Bench(engine, self._seat, 1)
        return Opened(engine.provider, engine.precision, 1.0)

    def first(self, pixels_NHWC: np.ndarray) -> float:
        assert self._bench is not None
        return self._bench.first(pixels_NHWC)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bench, name)


def layers_in(onnx_file: Path) -> list[Layer]:
    """The layers of a file, in the order of its graph."""
    return [layer for _, layer in layers_of(read_graph(onnx_file))]


def engines_in_process(patch: pytest.MonkeyPatch) -> None:
    """From now on a bench's engines, and what they are held against, run in this process."""
    for room in ("cells", "agreement"):
        patch.setattr(f"wmlc.bench.{room}.Worker", InProcess)


def measured(peer: int, ms: float = 1.0, *, macs: int = 100, top1: float | None = 90.0, **changes: Any) -> Measurement:
    """A network of two launches, three rounds each of a burst of two calls that took `ms`; peer 0 is the baseline."""
    subject = Subject(
        peer=peer, name=f"peer{peer}" if peer else "baseline", precision="fp32", source=FILE, file_bytes=5,
        file_sha256="12", onnx_file=FILE, directory=None, input_shape=(1, 8, 8), batch=None, feed=Feed(), cost=Cost(10 * macs, macs),
        about=About(ratio=0.5 if peer else 0.0, achieved_ratio=0.45 if peer else 0.0, top1=top1),
    )  # fmt: skip
    subject = replace(subject, **{key: changes.pop(key) for key in list(changes) if hasattr(subject, key)})
    facts: dict[str, Any] = {
        "opened": [Opened("CPUExecutionProvider", "", 2.0), Opened("CPUExecutionProvider", "", 4.0)],
        "first_ms": [5.0, 7.0],
        "memory": Memory(100, 300),
        "apart": 1e-5,
        "top1": top1,
        "warm_ups": [WarmUp(calls=9, seconds=0.1, settled=True, median_ms=ms)] * 2,
        "bursts": [[np.full(2, ms)] * 3] * 2,
    }
    return Measurement(subject, **{**facts, **changes})


def made_row(peer: int, p50: float | None = 1.0, top1: float | None = 70.0, **changes: Any) -> Row:
    """A row of `bench.json`; its 99th percentile is twice the median."""
    times = p50 and Latency(mean=p50, min=p50, p50=p50, p90=p50, p99=2 * p50, std=0.0, n=100)
    row = Row(
        peer=peer, name=f"peer{peer}" if peer else "baseline", ratio=0.5, achieved_ratio=0.5, engine="ort",
        precision="fp32", threads=1, batch=1, device="cpu", provider=None, params=1, macs=10 * peer or 50, flops=1,
        mac_ratio=None, file_bytes=1000 * peer or 5000, file_sha256="", latency_ms=times or None, p50_interval=None,
        compute_ms=None, throughput_per_s=None, speedup=None, paid_out=None, load_ms=None, first_ms=None,
        peak_memory_bytes=None, engine_memory_bytes=None, top1=top1, top1_drop=None, scenarios={}, warm_up=None,
        logits_apart=None, on_front=None, notes=[],
    )  # fmt: skip
    return replace(row, **changes)


def faster(times: float, spread: float = 0.1) -> Speedup:
    """So many times as fast, and an interval around it."""
    return Speedup(median=times, low=times - spread, high=times + spread, n=6, launches=2)


def classifier(
    path: Path, width: int, *, batch: int | str = "n", kind: int = TensorProto.FLOAT, last: bool = False
) -> Path:
    """A made-up file: images → (cast) → (transpose) → conv 3x3 of `width` → global mean → fully connected, 10 classes."""
    draw = np.random.default_rng(0)
    weights = {
        "conv.weight": draw.normal(0, 0.2, (width, 1, 3, 3)), "fc.weight": draw.normal(0, 0.2, (10, width)),
        "fc.bias": np.zeros(10),
    }  # fmt: skip
    nodes, value = [], "pixels"
    if kind != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", [value], ["floats"], to=TensorProto.FLOAT))
        value = "floats"
    if last:
        nodes.append(helper.make_node("Transpose", [value], ["planes"], perm=[0, 3, 1, 2]))
        value = "planes"
    nodes += [
        helper.make_node("Conv", [value, "conv.weight"], ["maps"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["maps"], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc.weight", "fc.bias"], ["scores"], transB=1),
    ]
    shape = [batch, 8, 8, 1] if last else [batch, 1, 8, 8]
    graph = helper.make_graph(
        nodes, "classifier", [helper.make_tensor_value_info("pixels", kind, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 10])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )  # fmt: skip
    save_onnx(path, graph)
    return path


def flatten_file(path: Path, batch: int | str = "batch", precision: str = '"fp16"') -> Path:
    """A file whose logits are its input, flattened: 64 of them for images [N, 1, 8, 8]."""
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["input"], ["logits"])], "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 64])],
    )  # fmt: skip
    save_onnx(path, graph, precision)
    return path


def foreign_file(directory: Path, width: int, *, batch: int | str = "n", pixels: int | str = 8) -> Path:
    """A file from elsewhere: Conv, Relu, a depthwise Conv, pooling, MatMul and Add; nodes without names."""

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(np.ones(shape, np.float32), name)

    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], group=width, strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("MatMul", ["e", "w3"], ["f"]),
        helper.make_node("Add", ["f", "w4"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes, "foreign",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, pixels, pixels])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 5])],
        [weight("w1", width, 3, 3, 3), weight("w2", width, 1, 2, 2), weight("w3", width, 5),
         weight("w4", 5)],
    )  # fmt: skip
    file = directory / f"foreign{width}.onnx"
    save_onnx(file, graph)
    return file


def save_onnx(path: Path, graph: Any, precision: str = "") -> None:
    """Write a graph as an ONNX file that says in which `precision` it is, if any."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if precision:
        helper.set_model_props(model, {"precision": precision})
    onnx.save_model(model, str(path))


def copy_of(run: Run, to: Path) -> Run:
    shutil.copytree(run.root, to)
    return Run(to)


def change_rows(run: Run, **changes: Any) -> None:
    """Give all rows of the bench these values."""
    bench = records.read(run.bench, Bench, "bench", "")
    records.write(run.bench, replace(bench, rows=[replace(row, **changes) for row in bench.rows]))
