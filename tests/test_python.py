"""What people use from Python: the twenty lines of docs/python.md, and what `wmlc.family` promises of its copies."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import prune

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
        ((0.5,), {"divisor": 0}, "divisor must be a whole number from 1, got 0"),
        ((0.5,), {"divisor": "8"}, "divisor must be a whole number from 1, got '8'"),
        (0.5, {}, "ratios must be numbers from 0 up to, not including, 1, got 0.5"),
        (["a"], {}, "ratios must be numbers from 0 up to, not including, 1, got ['a']"),
        ((0.999,), {}, "peer 1 cannot lose 100% of its macs: it reaches"),
        ((0.5,), {"divisor": 64}, "a peer was asked to lose 50.0% of its macs and loses 0.0%: divisor=64 allows no"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(ratios: Any, changes: dict[str, object], words: str) -> None:
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_copies_are_of_the_networks_own_floats_and_layout(dtype: torch.dtype) -> None:
    network = Small().to(dtype).to(memory_format=torch.channels_last)
    (half,) = wmlc.family(network, torch.zeros(SHAPE), np.array([0.5]), divisor=1)
    assert {own.dtype for own in half.parameters()} == {dtype}
    assert half.body[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not half.body[0].weight.is_contiguous()


def test_networks_that_give_more_than_logits_are_cut_as_all_of_it_says() -> None:
    class Two(Small):
        def forward(self, images: Tensor) -> Any:
            features = self.stem(images)
            return {"maps": features, "logits": self.head((features + self.body(features)).mean((2, 3)))}

    (half,) = wmlc.family(Two(), torch.zeros(SHAPE), (0.4,), divisor=1)
    assert len(half.stem[0].weight) == 32 > len(half.body[0].weight) * 0.6
    assert half(torch.zeros(1, *SHAPE))["logits"].shape == (1, 5)


def test_nothing_happens_to_the_callers_own_network() -> None:
    class Counts(Small):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            self.last = images
            return super().forward(images)

    network, seen = Counts(), list[object]()
    network.body.register_forward_hook(lambda *given: seen.append(given))
    (half,) = wmlc.family(network, torch.zeros(SHAPE), (0.5,), divisor=1)
    assert not seen and int(network.calls) == 0 and not hasattr(network, "last")
    half(torch.zeros(1, *SHAPE))
    assert len(seen) == 1  # the copy has the network's hooks


def test_a_hook_that_a_network_cannot_run_without_stays() -> None:
    class Hooked(Small):
        def __init__(self) -> None:
            super().__init__()
            self.stem.register_forward_hook(Hooked.keep)
            self.stem.found = None

        @staticmethod
        def keep(module: nn.Module, _: object, output: Tensor) -> None:
            module.found = output

        def forward(self, images: Tensor) -> Tensor:
            self.stem(images)
            features = self.stem.found
            self.stem.found = None
            return self.head((features + self.body(features)).mean((2, 3)))

    (half,) = wmlc.family(Hooked(), torch.zeros(SHAPE), (0.5,), divisor=np.int64(1))
    assert half(torch.zeros(1, *SHAPE)).shape == (1, 5)


def test_a_ratio_that_widths_come_nowhere_near_is_told() -> None:
    with pytest.warns(UserWarning, match=r"asked to lose 40\.0% of its macs and loses 48\.9%: divisor=16 allows no"):
        wmlc.family(Small(), torch.zeros(SHAPE), (0.4,), divisor=16)


def test_what_a_network_does_in_training_alone_cannot_be_cut_behind_its_back() -> None:
    class Noisy(Small):
        def forward(self, images: Tensor) -> Tensor:
            features = self.body[0](self.stem(images))
            features = features + torch.randn(1, 64, 1, 1) if self.training else features
            return self.head(self.body[2](self.body[1](features)).mean((2, 3)))

    with pytest.raises(InputError, match=r"once cut, the network stops in training: RuntimeError: The size of tensor"):
        wmlc.family(Noisy(), torch.zeros(SHAPE), (0.5,), divisor=1)


def test_why_a_network_cannot_be_looked_at_is_said() -> None:
    computed = nn.Sequential(
        *(nn.utils.parametrizations.weight_norm(nn.Conv2d(3 if k == 0 else 16, 16, 3)) for k in range(2))
    )
    masked = Small()
    prune.l1_unstructured(masked.body[0], "weight", 0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        scripted = torch.jit.script(Small())
    cases: list[tuple[Any, Any, str]] = [
        (
            computed,
            torch.zeros(SHAPE),
            "take that off first (torch.nn.utils.parametrize.remove_parametrizations, of masks",
        ),
        (
            masked,
            torch.zeros(SHAPE),
            "first, by torch.nn.utils.prune.remove(layer, 'weight') for each layer that has one",
        ),
        (scripted, torch.zeros(SHAPE), "network is a ScriptModule, whose layers cannot be cut"),
        (Small().to("meta"), torch.zeros(SHAPE), "network is on the meta device and has no weights"),
        (Small(), SHAPE, "example must be a tensor of images [N, C, H, W] or [C, H, W], got tuple"),
    ]
    for network, example, words in cases:
        with pytest.raises(InputError) as caught:
            wmlc.family(network, example, (0.5,))
        assert words in str(caught.value)
