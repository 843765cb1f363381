"""The layers of an ONNX file: what they cost, whatever wrote the file and in whichever precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from measured import foreign_file, layers_in
from torch import nn

from wmlc.bench.layers import file_cost, file_precision
from wmlc.compress.widths.trace import trace_channels
from wmlc.errors import InputError
from wmlc.models.checkpoint import load_network
from wmlc.models.cost import total_cost

SHAPE = (3, 32, 32)
Export = Callable[[str, str], Path]


@pytest.mark.parametrize("arch", ["resnet20", "mobilenet_v2"])
@pytest.mark.parametrize("form", ["fp32", "fp16", "int8-cpu", "int8-gpu"])
def test_a_file_has_the_layers_of_its_network(
    exported: Export, pruned_network: Callable[[str], Path], arch: str, form: str
) -> None:
    network, file = load_network(pruned_network(arch)), exported(arch, form)
    macs = trace_channels(network, torch.zeros(1, *SHAPE)).macs
    costs = {name.removesuffix(".weight"): count for name, count in macs.items()}
    layers = layers_in(file)
    assert {layer.name: layer.macs for layer in layers} == costs
    assert all(layer.channels[0] * layer.channels[1] > 0 for layer in layers)
    assert file_precision(file) == form.removesuffix("-cpu").removesuffix("-gpu")
    folded = sum(module.num_features for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    whole = total_cost(network, SHAPE)
    params, macs, _ = file_cost(file)
    assert macs == whole.macs
    dropped = 10 if arch == "mobilenet_v2" else 0  # a bias of zeros, which the exporter leaves out
    assert params == whole.params - folded - dropped


def test_bytes_are_those_of_the_types_in_the_file(exported: Export) -> None:
    """stage1.0.conv1 of ResNet-20: 16 x 16 x 3 x 3 weights, 16 biases, 16 x 32 x 32 values in and out."""
    for form, item, bias in (("fp32", 4, 4), ("fp16", 2, 2), ("int8-cpu", 1, 4), ("int8-gpu", 1, 4)):
        layer = next(layer for layer in layers_in(exported("resnet20", form)) if layer.name == "stage1.0.conv1")
        weights, activations = 16 * 16 * 9 * item + 16 * bias, 2 * 16 * 32 * 32 * item
        assert layer.channels == (16, 16)
        assert layer.bytes_moved(1) == weights + activations
        assert layer.bytes_moved(8) == weights + 8 * activations
        assert layer.intensity(8) == 2 * 8 * layer.macs / layer.bytes_moved(8)


@pytest.mark.parametrize("batch", ["n", 1, 4])
def test_a_foreign_file_is_read_for_one_image(tmp_path: Path, batch: int | str) -> None:
    file = foreign_file(tmp_path, 6, batch=batch)
    layers = layers_in(file)
    assert [(layer.name, layer.op, layer.channels) for layer in layers] == [
        ("w1", "Conv", (3, 6)), ("w2", "Conv", (6, 6)), ("w3", "MatMul", (6, 5)),
    ]  # fmt: skip
    assert [layer.macs for layer in layers] == [6 * 3 * 9 * 64, 6 * 4 * 16, 30]
    assert layers[2].activation_bytes == 4 * (6 + 5)
    assert file_cost(file)[:2] == (6 * 27 + 6 * 4 + 30 + 5, sum(layer.macs for layer in layers))
    assert file_precision(file) == "fp32"


def test_files_that_cannot_be_read_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"leaves the shape of 'a' open, so its MACs .*; export it for images of one"):
        layers_in(foreign_file(tmp_path, 6, pixels="side"))
    with pytest.raises(InputError, match=r"none\.onnx is not a file; extract it again"):
        layers_in(tmp_path / "none.onnx")
    (tmp_path / "words.onnx").write_text("not a network")
    with pytest.raises(InputError, match=r"words\.onnx is not an ONNX file; extract it again"):
        file_precision(tmp_path / "words.onnx")
