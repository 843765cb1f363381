"""What people use from Python: the twenty lines of docs/python.md, and what `wmlc.family` promises of its copies."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

import wmlc
from wmlc.errors import InputError
from wmlc.models.cost import total_cost

DOC = Path(__file__).parent.parent / "docs" / "python.md"
SHAPE = (3, 32, 32)


class Small(nn.Module):
    """A residual network of somebody's own, small enough to be quick."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 32, 3, padding=1))
        self.head = nn.Linear(32, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        return self.head((features + self.body(features)).mean((2, 3)))


def test_the_twenty_lines_of_the_documentation_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)[0]
    monkeypatch.chdir(tmp_path)
    made: dict[str, object] = {}
    exec(compile(code, str(DOC), "exec"), made)
    network, half, third = (made[name] for name in ("network", "half", "third"))
    assert isinstance(network, nn.Module) and isinstance(half, nn.Module) and isinstance(third, nn.Module)
    full = total_cost(network, (3, 64, 64)).macs
    assert total_cost(half, (3, 64, 64)).macs / full == pytest.approx(0.5, abs=0.01)
    assert total_cost(third, (3, 64, 64)).macs / full == pytest.approx(0.33, abs=0.01)
    assert (tmp_path / "half.onnx").is_file() and isinstance(half, torchvision.models.ResNet)


def test_copies_are_of_the_class_dense_and_share_nothing_with_the_network() -> None:
    network = Small().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    small, same = wmlc.family(network, torch.zeros(SHAPE), ratios=(0.5, 0.0), divisor=1)
    assert type(small) is Small and small.training and network.training
    assert total_cost(small, SHAPE).macs / total_cost(network, SHAPE).macs == pytest.approx(0.5, abs=0.02)
    assert small.body[0].weight.shape[0] == small.body[2].weight.shape[1] < 64
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(torch.equal(before[name], tensor) for name, tensor in same.state_dict().items())
    own = {tensor.data_ptr() for tensor in network.state_dict().values()}
    assert own.isdisjoint(tensor.data_ptr() for peer in (small, same) for tensor in peer.state_dict().values())


def test_the_channels_that_stay_are_those_of_the_largest_weights() -> None:
    network = Small()
    with torch.no_grad():
        network.body[0].weight[::2] *= 10
        network.body[2].weight[:, ::2] *= 10
    (half,) = wmlc.family(network, torch.zeros(SHAPE), ratios=(0.6,), ratio_of="params", divisor=8)
    kept = len(half.body[0].weight)
    large = network.body[0].weight.abs().flatten(1).sum(1).topk(32).indices.sort().values
    assert kept <= 32
    found = (network.body[0].bias[:, None] == half.body[0].bias[None]).any(1).nonzero().flatten()
    assert set(found.tolist()) <= set(large.tolist())


@pytest.mark.parametrize(
    ("ratios", "changes", "words"),
    [
        ((1.0,), {}, "ratios must be numbers from 0 up to, not including, 1, got [1.0]"),
        ((), {}, "ratios must be numbers from 0 up to"),
        ((0.5,), {"ratio_of": "flops"}, "ratio_of must be params or macs, got 'flops'"),
        ((0.5,), {"rank": "taylor"}, "rank must be magnitude or random, got 'taylor'"),
        ((0.5,), {"divisor": 0}, "divisor must be at least 1, got 0"),
        ((0.999,), {}, "peer 1 cannot lose 100% of its macs: it reaches"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(ratios: tuple[float, ...], changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as caught:
        wmlc.family(Small(), torch.zeros(SHAPE), ratios, **changes)  # type: ignore[arg-type]
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_network_whose_code_stops_is_refused_in_one_line() -> None:
    class Broken(Small):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("needs captions\ntoo")

    with pytest.raises(InputError, match="the network's channels cannot be traced") as caught:
        wmlc.family(Broken(), torch.zeros(SHAPE), ratios=(0.5,))
    assert "\n" not in str(caught.value)
