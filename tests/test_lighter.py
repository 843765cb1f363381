"""A network that is made lighter for the exporter answers as before, and is afterwards what it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import settle_norms
from torch import Tensor, nn
from torch._export import utils as _utils
from torch.nn.utils import parametrizations
from torch.onnx._internal.exporter import _registration

from wmlc.export import lighter
from wmlc.export.lighter import folded, operators_listed_once, operators_read_once, out_of_place
from wmlc.models.zoo import build_network

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Of(nn.Module):
    """A convolution and a batch norm that is not trivial, in a `forward` of the test's."""

    def __init__(self, forward: Callable[[Of, Tensor], Tensor], bias: bool = True) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.conv, self.norm, self.act = nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        for tensor in (self.norm.weight, self.norm.bias, self.norm.running_mean, self.norm.running_var):
            assert tensor is not None
            nn.init.uniform_(tensor, 0.5, 2.0, generator=generator)
        self._forward = forward
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self._forward(self, images)


def names_of_norms(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("bias", [False, True])
def test_a_norm_goes_into_the_convolution_before_it(bias: bool) -> None:
    network = Of(lambda own, images: own.act(own.norm(own.conv(images))), bias)
    before, state = network(IMAGES), {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modules = list(network.modules())
    with folded(network, IMAGES):
        assert names_of_norms(network) == [] and network.conv.bias is not None
        torch.testing.assert_close(network(IMAGES), before)
    assert list(network.modules()) == modules and (network.conv.bias is not None) is bias
    assert network.state_dict().keys() == state.keys() and torch.equal(network(IMAGES), before)


@pytest.mark.parametrize("arch", ["resnet20", "mobilenet_v2"])
def test_no_norm_is_left_in_ours(arch: str) -> None:
    network = build_network(arch, 10, (3, 8, 8))
    settle_norms(network)
    before = network(IMAGES)
    with folded(network, IMAGES):
        assert names_of_norms(network) == []
        torch.testing.assert_close(network(IMAGES), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "forward",
    [
        lambda own, images: own.norm(own.act(own.conv(images))),  # in place, so it is the same tensor
        lambda own, images: own.norm(own.conv(images) + 1),
        lambda own, images: own.norm(own.norm(own.conv(images))),
        lambda own, images: own.norm(own.conv(images)) + own.conv(images + 1),
        lambda own, images: (made := own.conv(images)) + own.norm(made),
        lambda own, images: own.norm(own.conv(images)) * own.norm.weight.sum(),
    ],
    ids=["an activation between", "a sum between", "called twice", "a convolution called twice", "taken twice", "looked into"],
)  # fmt: skip
def test_what_would_answer_otherwise_stays(forward: Callable[[Of, Tensor], Tensor]) -> None:
    network = Of(forward)
    before, modules = network(IMAGES), list(network.modules())
    with folded(network, IMAGES):
        assert list(network.modules()) == modules and torch.equal(network(IMAGES), before)


def test_norms_of_batches_and_weights_that_are_computed_stay() -> None:
    training = Of(lambda own, images: own.norm(own.conv(images))).train()
    computed = Of(lambda own, images: own.norm(own.conv(images)))
    computed.conv = parametrizations.weight_norm(computed.conv)
    for network in (training, computed.eval()):
        with folded(network, IMAGES):
            assert names_of_norms(network) == ["norm"]


@pytest.mark.parametrize("leans", [False, True])
def test_activations_are_out_of_place_where_that_changes_nothing(leans: bool) -> None:
    def forward(own: Of, images: Tensor) -> Tensor:
        before = own.conv(images)
        after = own.act(before)
        return after + before if leans else after + 1

    network = Of(forward)
    with out_of_place(network, IMAGES):
        assert network.act.inplace is leans
    assert network.act.inplace is True


def test_the_table_of_operators_is_read_once_and_what_is_not_there_is_done_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = list[int]()

    class Registry:
        @classmethod
        def from_torchlib(cls, opset_version: int) -> str:
            asked.append(opset_version)
            return f"{cls.__name__} {opset_version}"

    before = vars(Registry)["from_torchlib"]
    monkeypatch.setattr(lighter, "_OPERATORS", {})
    monkeypatch.setattr("torch.onnx._internal.exporter._registration.ONNXRegistry", Registry)
    for _ in range(2):
        with operators_read_once():
            assert [Registry().from_torchlib(opset_version=own) for own in (20, 18, 20)] == [
                "Registry 20", "Registry 18", "Registry 20"
            ]  # fmt: skip
        assert vars(Registry)["from_torchlib"] is before
    assert asked == [20, 18]
    monkeypatch.delattr("torch.onnx._internal.exporter._registration.ONNXRegistry")
    with operators_read_once():
        pass


def test_operators_are_listed_once_an_export(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(_utils, "_materialize_cpp_cia_ops", lambda: calls.append(1))
    for _ in range(2):  # what has come in between is seen
        with operators_listed_once():
            _utils._collect_all_valid_cia_ops()
    assert calls == [1, 1]
    _utils._collect_all_valid_cia_ops()
    assert len(calls) > 3, "as before"
    monkeypatch.delattr(_utils, "_materialize_cpp_cia_ops")
    with operators_listed_once():
        pass


def test_the_exporter_of_this_torch_makes_its_tables_where_we_look_for_them() -> None:
    assert "from_torchlib" in vars(_registration.ONNXRegistry)
    assert callable(_utils._materialize_cpp_cia_ops)
