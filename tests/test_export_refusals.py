"""Networks that torch's exporter drops parts of, or cannot write. Takes 4 s."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from wmlc.errors import InputError
from wmlc.export.to_onnx import export_onnx
from wmlc.models.resizable import untrained_spec

PIXELS = torch.randint(0, 256, (8, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SPEC = untrained_spec("net.py:make", "", 4, (3, 8, 8))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.aux = nn.Conv2d(3, 5, 3), nn.Linear(5, 4), nn.Conv2d(5, 6, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.conv(images).mean((2, 3)))


class Placed(Net):
    """Beside what the images are, it sees what a layer makes of numbers that stay, as of relative positions."""

    def __init__(self) -> None:
        super().__init__()
        self.of_places = nn.Linear(2, 5)
        self.register_buffer("places", torch.randn(6, 2, generator=torch.Generator().manual_seed(0)))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.conv(images).mean((2, 3)) + self.of_places(input=self.places).amax(0))


class Bessel(Net):
    """Of an operator that ONNX has not."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(torch.special.i0e(images))


def test_a_layer_without_a_part_in_the_logits_is_not_missed(tmp_path: Path) -> None:
    export_onnx(Net().eval(), SPEC, tmp_path / "net.onnx", PIXELS)
    names = {tensor.name for tensor in onnx.load(str(tmp_path / "net.onnx")).graph.initializer}
    assert "conv.weight" in names and not any(name.startswith("aux") for name in names)


def test_what_a_layer_makes_of_constants_is_in_the_file_without_the_layer(tmp_path: Path) -> None:
    export_onnx(Placed().eval(), SPEC, tmp_path / "net.onnx", PIXELS)
    names = {tensor.name for tensor in onnx.load(str(tmp_path / "net.onnx")).graph.initializer}
    assert "conv.weight" in names and "of_places.weight" not in names


def test_a_weight_that_two_layers_share_is_there_for_both(tmp_path: Path) -> None:
    net = Net().eval()
    net.conv, net.fc = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)), nn.Linear(3, 4)  # type: ignore[assignment]
    net.conv[1].weight = net.conv[0].weight
    export_onnx(net, SPEC, tmp_path / "net.onnx", PIXELS)


def test_what_the_exporter_cannot_write_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^torch .* cannot write net\.py:make as ONNX \(.*i0e.*\); change its code, or use it"
    ):
        export_onnx(Bessel().eval(), SPEC, tmp_path / "net.onnx", PIXELS)
    assert not list(tmp_path.iterdir())
