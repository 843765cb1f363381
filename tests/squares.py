"""Four pictures, two dark and two light ones, and a network that tells them apart, for tests of what is done with both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import torch
from made import made_framing
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from wmlc.records import About, NetworkSpec

SPEC = NetworkSpec(arch="resnet20", class_names=["dark", "light"], input_shape=(1, 2, 2), mean=[0.5], std=[0.25],
                   widths={}, framing=made_framing(2), about=About())  # fmt: skip


class Squares:
    """A data set of four test images: two dark ones and two light ones, and many to train on."""

    record = SimpleNamespace(train=1000)

    def train_pixels(self, count: int) -> Tensor:
        return torch.zeros(count, 2, 2, 1, dtype=torch.uint8)

    def test_pixels(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield (
            torch.tensor([0, 10, 240, 255], dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 2, 2, 1),
            torch.tensor([0, 0, 1, 1]),
        )

    def train_count(self) -> int:
        return 1000

    def test_count(self) -> int:
        return 4


DATA: Any = Squares()


def light_or_dark(path: Path, bias: float = 0.0) -> Path:
    """A classifier by the sum of the pixels; with a `bias` it calls everything light."""
    weight = np.array([[-1.0, 1.0]] * 4, np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]),
        ],
        "squares",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 1, 2, 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.array([0, bias], np.float32), "bias")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path
