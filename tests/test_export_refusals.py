"""Networks that torch's exporter drops parts of, or cannot write. Takes 6 s."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
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


class Windows(Net):
    """Attention within windows of 4 x 4 places, whose number goes with that of images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.qkv, self.fc = nn.Conv2d(3, 8, 1), nn.Linear(8, 24), nn.Linear(8, 4)
        self.bias = nn.Parameter(torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(0)))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        windows = maps.view(-1, 8, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, 8)
        query, key, value = (own.view(-1, 16, 2, 4).transpose(1, 2) for own in self.qkv(windows).chunk(3, -1))
        bias = self.bias.expand(windows.shape[0], -1, -1, -1)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2).contiguous()
        mixed = mixed.reshape(*windows.shape[:2], -1)
        return self.fc(mixed.view(-1, 64, 8).mean(1))


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


def test_attention_within_windows_is_written_as_it_was_captured(tmp_path: Path) -> None:
    export_onnx(Windows().eval(), SPEC, tmp_path / "net.onnx", PIXELS)  # which compares the answers


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
