"""Networks whose code asks for values, makes tensors of its own, or cannot be trained as it is. Takes 2 s."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from hand_networks import CLASSES, Hand
from test_stages import EXAMPLE, SHAPE, InPlace, made
from torch import Tensor, nn

from wmlc.compress.begin import as_prepared, print_start
from wmlc.compress.config import settle
from wmlc.compress.learn.place import Device
from wmlc.compress.prepare import Made, Prepared, _check_step, prepare
from wmlc.compress.sweep.session import _compared, _differing
from wmlc.compress.widths.proof import read_channels
from wmlc.data import DataConfig, open_data
from wmlc.errors import InputError
from wmlc.models.checkpoint import load_network, save_network
from wmlc.models.cost import total_cost
from wmlc.models.foreign import why_not_captured
from wmlc.models.operations import operations_digest
from wmlc.models.resizable import untrained_spec
from wmlc.models.stages import split
from wmlc.models.start import fit_start, read_start


class Asks(InPlace):
    """It looks at a value, and goes on as every other image would."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 2 if float(x.sum()) > 1e9 else x)


class MakesItsOwn(InPlace):
    """A tensor of no named type, as user's code makes them, meets a weight."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.convs:
            x = layer(x)
        pooled = torch.zeros(x.shape[0], self.fc.in_features)
        return self.fc(pooled.copy_(x.mean((2, 3))))


class WithoutBf16(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits + torch.linalg.pinv(logits.unsqueeze(2)).squeeze(1)


class Detached(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


def test_what_a_network_costs_is_counted_where_its_code_asks_for_a_value() -> None:
    asks, plain = made(Asks), made(InPlace)
    assert total_cost(asks, SHAPE) == total_cost(plain, SHAPE)
    assert operations_digest(asks, SHAPE) == operations_digest(made(Asks), SHAPE) != operations_digest(plain, SHAPE)


def test_channels_are_proven_where_code_makes_tensors_of_no_named_type() -> None:
    graph = read_channels(made(MakesItsOwn), SHAPE)
    assert len(graph.groups) == 4 and torch.get_default_dtype() == torch.float32


def test_a_network_that_no_graph_can_be_made_of_is_told_before_it_is_trained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    mine = made(Asks).train()
    why = why_not_captured(mine, SHAPE)
    assert why and mine.training and why_not_captured(made(InPlace), SHAPE) is None
    said = capsys.readouterr()
    assert said.out == said.err == ""
    data = open_data(DataConfig(name="digits"))
    config = settle({"arch": "net.py:make_net", "data": "digits"})
    whole = made(Asks)
    print_start(config, data, Device("cpu", False), Made(split(whole, EXAMPLE).network, whole=whole))
    assert "so no ONNX file can be made of its peers; wmlc.load takes" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("kind", "bf16", "why"),
    [
        (WithoutBf16, True, r"mine cannot be trained in bf16: RuntimeError: linalg.pinv\(.*; pass --precision fp32"),
        (WithoutBf16, False, None),
        (Detached, True, "mine cannot be trained: RuntimeError: element 0 of tensors does not require grad"),
    ],
)
def test_a_network_that_cannot_be_trained_is_refused_in_words(
    kind: type[nn.Module], bf16: bool, why: str | None
) -> None:
    network = split(made(kind), EXAMPLE).network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    if why is None:
        _check_step(network, "mine", SHAPE, Device("cpu", bf16))
    else:
        with pytest.raises(InputError, match=why):
            _check_step(network, "mine", SHAPE, Device("cpu", bf16))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


class Tied(InPlace):
    def __init__(self) -> None:
        super().__init__()
        self.convs[4].weight = self.convs[1].weight


def test_tied_weights_that_safetensors_wrote_once_are_a_start(tmp_path: Path) -> None:
    safetensors.torch.save_model(made(Tied), str(tmp_path / "tied.safetensors"))
    torch.manual_seed(1)
    network = Tied()
    start = read_start(str(tmp_path / "tied.safetensors"), "mine.py:Tied", SHAPE)
    assert fit_start(network, start, list("abcde"), SHAPE).head == "kept"
    assert all(torch.equal(own, made(Tied).state_dict()[name]) for name, own in network.state_dict().items())


def test_a_head_that_lacks_its_bias_alone_is_no_head_that_is_missing(tmp_path: Path) -> None:
    tensors = made(InPlace).state_dict()
    torch.save({name: own for name, own in tensors.items() if name != "fc.bias"}, tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"missing: fc\.bias; "):
        fit_start(made(InPlace), read_start(str(tmp_path / "x.pth"), "mine.py:f", SHAPE), list("abcde"), SHAPE)


def test_a_head_for_other_classes_may_have_no_bias(tmp_path: Path) -> None:
    tensors = made(InPlace).state_dict()
    kept = {name: own for name, own in tensors.items() if not name.startswith("fc.")}
    torch.save(kept | {"fc.weight": torch.ones(7, 8)}, tmp_path / "x.pth")
    fitted = fit_start(made(InPlace), read_start(str(tmp_path / "x.pth"), "mine.py:f", SHAPE), list("abcde"), SHAPE)
    assert fitted.head == "new"


def test_a_step_that_is_tried_draws_nothing() -> None:
    class Drops(InPlace):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.dropout(super().forward(x), 0.5, self.training)

    network = made(Drops)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for bf16 in (False, True):
        _check_step(network, "mine", SHAPE, Device("cpu", bf16))
    assert torch.equal(torch.get_rng_state(), before)


ONE_STAGE = """
import torch
from torch import nn


class Asks(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.Linear(16, num_classes)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        return self.fc(x * 2 if x.sum() > 1e9 else x)
"""


def test_a_start_of_one_stage_teaches_without_its_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The default term looks at stages; that there are none is a note, and a sweep finds such a run again."""
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    (tmp_path / "mine.py").write_text(ONE_STAGE)
    given = {"arch": f"{tmp_path}/mine.py:Asks", "ratios": (0.4,), "epochs": 1}
    data = open_data(DataConfig(), "cpu")
    device = Device("cpu", bf16=False)
    prepared = prepare(settle(given), data, device)
    assert prepared.made.whole is not None
    torch.save(prepared.made.whole.state_dict(), tmp_path / "mine.pth")
    config = settle({**given, "start": str(tmp_path / "mine.pth")})
    prepared = prepare(config, data, device)
    assert isinstance(prepared, Prepared) and config.feature_loss == "channels"
    settled = as_prepared(config, prepared)
    assert "peers are not held against its channels" in capsys.readouterr().err
    assert (settled.teacher, settled.feature_loss, settled.feature_weight) == ("frozen", "none", None)
    assert settle(vars(settled)) == settled and _differing(_compared(settled), config) == []


class Caching(Hand):
    """It keeps what it makes of its bias in eval mode, as LeViT does, with a table that no meta device has."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.kept = nn.Parameter(torch.zeros(2, 8)), dict[str, Tensor]()
        self.table = torch.LongTensor([1])

    def train(self, mode: bool = True) -> Caching:
        self.kept = {} if mode else self.kept
        return super().train(mode)  # type: ignore[return-value]

    def body(self, x: Tensor) -> Tensor:
        if str(x.device) not in self.kept:
            self.kept[str(x.device)] = self.bias[self.table].view(1, 8, 1, 1)
        return x + self.kept[str(x.device)]


def test_what_a_network_keeps_of_weights_that_are_not_loaded_yet_is_forgotten(tmp_path: Path) -> None:
    network = Caching().eval()
    nn.init.normal_(network.bias)
    save_network(network, untrained_spec("net.py:Caching", "", CLASSES, SHAPE), tmp_path)
    images = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(load_network(tmp_path, Caching)(images), network(images))
