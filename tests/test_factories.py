"""Networks of the caller's own code as their factories make them: wrapped, compiled, of other floats. Takes 3 s."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wmlc
from wmlc.models import plain
from wmlc.models.foreign import build_whole

SHAPE = (3, 8, 8)


class Net(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        layers = {"conv": nn.Conv2d(3, 16, 3), "bn": nn.BatchNorm2d(16), "last": nn.Conv2d(16, 8, 3)}
        self.body = nn.Sequential()
        for name, layer in layers.items():
            self.body.add_module(name, layer)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).relu().mean((2, 3)))


class Around(nn.Module):
    """A network within another, as one that takes the logits out of an answer."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def compiled(network: nn.Module) -> Any:
    return torch.compile(network, backend="eager")


def compiled_in_place(network: nn.Module) -> nn.Module:
    network.compile(backend="eager")
    return network


def whole(factory: Callable[..., nn.Module], classes: int = 5) -> nn.Module:
    return build_whole("net.py:make", classes, SHAPE, factory=factory)


WRAPPED = pytest.mark.parametrize(
    "wrap, name",
    [
        (compiled, "body.conv"), (nn.DataParallel, "body.conv"), (compiled_in_place, "body.conv"),
        (lambda network: nn.DataParallel(compiled(network)), "body.conv"),
        (lambda network: Around(compiled(network)), "net.body.conv"),
    ],
    ids=["compile", "DataParallel", "in place", "both", "within"],
)  # fmt: skip


@WRAPPED
def test_a_network_comes_without_its_wrappers(wrap: Callable[[nn.Module], nn.Module], name: str) -> None:
    network = whole(lambda: wrap(Net()))
    assert isinstance(network.get_submodule(name), nn.Conv2d) and not plain.is_wrapped(network)
    assert type(network) in (Net, Around) and network.state_dict().keys() >= {f"{name}.weight"}


@WRAPPED
def test_copies_are_cut_from_the_network_within(wrap: Callable[[nn.Module], nn.Module], name: str) -> None:
    network = wrap(Net())
    names = [each for each, _ in network.named_modules()]
    (small,) = wmlc.family(network, torch.zeros(SHAPE), ratios=(0.5,), divisor=1)
    assert small.get_submodule(name).out_channels < 16 and type(small) in (Net, Around)  # type: ignore[operator]
    assert [each for each, _ in network.named_modules()] == names  # the caller's is as it was


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_of_other_floats_is_float32_from_the_beginning(
    dtype: torch.dtype, capsys: pytest.CaptureFixture[str]
) -> None:
    plain._tell.cache_clear()
    network = whole(lambda: Net().to(dtype))
    assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32, torch.int64}
    assert network.fc.weight is dict(network.named_parameters())["fc.weight"]
    whole(lambda: Net().to(dtype))
    with torch.device("meta"):  # where it is filled from a file
        assert whole(lambda: Net().to(dtype)).get_parameter("fc.weight").dtype is torch.float32
    kind = str(dtype).removeprefix("torch.")
    assert capsys.readouterr().err == f"net.py:make made {kind} weights; they are float32 from here on\n"


def test_a_buffer_of_other_floats_is_told_too(capsys: pytest.CaptureFixture[str]) -> None:
    plain._tell.cache_clear()

    def factory() -> nn.Module:
        network = Net().half()
        network.register_buffer("scale", torch.ones(1, dtype=torch.float64))
        return network

    assert whole(factory).get_buffer("scale").dtype is torch.float32
    assert "made float16 and float64 weights" in capsys.readouterr().err
