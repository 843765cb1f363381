"""Networks of the caller's own code as their factories make them: wrapped, compiled, of other floats, trained. Takes 5 s."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from training import stopping, train

import wmlc
from wmlc import run as runs
from wmlc.arch import whole_name
from wmlc.compress import session
from wmlc.compress.begin import print_start, tell_trained
from wmlc.compress.config import settle
from wmlc.compress.learn.place import Device
from wmlc.compress.prepare import Made
from wmlc.compress.session import resume_run
from wmlc.compress.widths.graph import LeftWhole, left_whole, nothing_to_cut
from wmlc.errors import InputError
from wmlc.models import plain
from wmlc.models.factory import named_by_caller
from wmlc.models.foreign import a_kind, build_whole
from wmlc.models.start import Fitted, fit_start, read_start
from wmlc.models.zoo import build_network
from wmlc.run import Run
from wmlc.settings import CALLERS_ARCH

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


def test_masks_of_a_pruned_network_are_taken_off_here_and_in_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain._tell.cache_clear()
    theirs, images = Net(), torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    for layer, name in ((theirs.body.get_submodule("conv"), "weight"), (theirs.fc, "weight"), (theirs.fc, "bias")):
        prune.random_unstructured(layer, name, amount=0.5)
    answers = theirs.eval()(images)
    torch.save(theirs.state_dict(), tmp_path / "x.pth")
    network = whole(lambda: theirs)
    assert torch.equal(network(images), answers) and network.state_dict().keys() == Net().state_dict().keys()
    assert capsys.readouterr().err == (
        "net.py:make made masks of torch.nn.utils.prune; they are off, and body.conv.weight, fc.weight, fc.bias have "
        "their zeros until trained\n"
    )
    read = Net().eval()
    fit_start(read, read_start(str(tmp_path / "x.pth"), "net.py:make", SHAPE), list("abcde"), SHAPE)
    assert torch.equal(read(images), answers)


def test_a_buffer_of_other_floats_is_told_too(capsys: pytest.CaptureFixture[str]) -> None:
    plain._tell.cache_clear()

    def factory() -> nn.Module:
        network = Net().half()
        network.register_buffer("scale", torch.ones(1, dtype=torch.float64))
        return network

    assert whole(factory).get_buffer("scale").dtype is torch.float32
    assert "made float16 and float64 weights" in capsys.readouterr().err


FILE = """
from pathlib import Path
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv, self.bn, self.last = nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3)
        self.fc = nn.Linear(16, classes)

    def forward(self, x):
        return self.fc(self.last(self.bn(self.conv(x)).relu()).relu().mean((2, 3)))

def drawn(num_classes=10):
    return Net(num_classes)

def trained():
    network = Net(10)
    network.load_state_dict(torch.load(Path(__file__).with_name("weights.pth"), weights_only=True))
    return network

def with_new_head(num_classes=10):
    network = trained()
    network.fc = nn.Linear(16, num_classes)
    return network

def with_a_pooler(num_classes=10):
    network = with_new_head(num_classes)
    network.pooler = nn.Linear(16, 16)
    return network

class Pooled(Net):
    def forward(self, x):
        return super().forward(x) + 0 * self.pooler.weight.sum()

def pooled():
    network = with_a_pooler()
    network.__class__ = Pooled
    return network
"""
DIGITS = (1, 8, 8)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of factories, one of which loads the weights that lie beside it."""
    monkeypatch.setenv(CALLERS_ARCH, "")  # which goes back afterwards
    (tmp_path / "net.py").write_text(FILE)
    torch.manual_seed(7)
    torch.save(build_network(f"{tmp_path}/net.py:drawn", 10, DIGITS).state_dict(), tmp_path / "weights.pth")
    return tmp_path / "net.py"


def started(arch: str, classes: int) -> tuple[nn.Module, Fitted]:
    network = build_network(arch, classes, DIGITS)
    names = [f"class {n}" for n in range(classes)]
    return network, fit_start(network, read_start("pretrained", arch, DIGITS, classes=classes), names, DIGITS)


def test_the_weights_that_a_factory_makes_are_a_start(own: Path) -> None:
    weights = torch.load(own.with_name("weights.pth"), weights_only=True)
    network, fitted = started(f"{own}:trained", 10)
    assert (fitted.head, fitted.words[0]) == ("kept", f"start: the weights that {own}:trained makes: 11 of 11 tensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())


def test_a_head_that_a_factory_draws_each_time_is_new(own: Path) -> None:
    state = torch.get_rng_state()
    read_start("pretrained", f"{own}:with_new_head", DIGITS, classes=4)
    assert torch.equal(torch.get_rng_state(), state)  # the run's own draws stay what they are
    network, fitted = started(f"{own}:with_new_head", 4)
    assert fitted.head == "new" and "makes, but for fc, drawn anew each time: 9 of 9 tensors" in fitted.words[0]
    assert torch.equal(network.get_parameter("conv.weight"), build_network(f"{own}:trained", 10, DIGITS).conv.weight)
    assert started(f"{own}:trained", 4)[1].words[1:] == ["its head has 10 classes, so the data's 4 get a new one"]


def test_what_is_drawn_each_time_and_reaches_no_logit_is_no_hindrance(own: Path) -> None:
    start = read_start("pretrained", f"{own}:with_a_pooler", DIGITS, classes=4)
    assert start.where.endswith(
        "makes, but for fc, drawn anew each time (pooler, drawn anew each time, without part in the logits)"
    )
    assert start.copies[""].keys() >= {"pooler.weight", "conv.weight"} and "fc.weight" not in start.copies[""]
    with pytest.raises(InputError, match="pooled gives other weights each time"):  # the same numbers, and yet a part
        read_start("pretrained", f"{own}:pooled", DIGITS, classes=10)


def test_a_factory_of_random_weights_makes_no_start(own: Path) -> None:
    with pytest.raises(
        InputError, match=r"net.py:drawn gives other weights each time it is called \(conv.weight, .*; let"
    ):
        read_start("pretrained", f"{own}:drawn", DIGITS, classes=10)


def test_a_run_from_what_a_factory_makes_goes_on_from_the_same_alone(own: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    arch, root = f"{own}:trained", tmp_path / "run"
    named_by_caller(arch)
    with stopping(session, "train_phase"), pytest.raises(BaseException, match="go on with"):
        train(root, arch=arch, start="pretrained", ratios=(0.4,), epochs=1)
    weights = torch.load(own.with_name("weights.pth"), weights_only=True)
    torch.save({name: tensor + 1 for name, tensor in weights.items()}, own.with_name("weights.pth"))
    with pytest.raises(InputError, match=r"the weights of .*net.py:trained are not those that .*run began with"):
        resume_run(Run(root))
    torch.save(weights, own.with_name("weights.pth"))
    family = runs.read_family(resume_run(Run(root)))
    assert family.finished and family.baseline is not None and family.baseline.best_epoch == 0


@pytest.mark.parametrize(("right", "told"), [(0.6, True), (0.25, False), (0.1, False)])
def test_a_trained_network_without_a_start_is_told(
    right: float, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = torch.arange(1000) % 10
    images = torch.nn.functional.one_hot(torch.where(torch.arange(1000) // 10 < 100 * right, labels, (labels + 1) % 10))
    shuffled = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:256]
    data: Any = SimpleNamespace(
        record=SimpleNamespace(held_out=1000, small=True, input_shape=(10, 1, 1)),
        held_out_batch=lambda size, index: (images[shuffled].float(), labels[shuffled]),
        held_out_batches=lambda size: [(images.float(), labels)],
    )
    config = settle({"arch": "net.py:make", "epochs": 1})
    print_start(config, data, Device("cpu", bf16=False), Made(nn.Sequential(nn.Identity())))
    said = "net.py:make already answers 60.0 % of 1,000 held-out images; pass --start pretrained to start from its weights\n"
    assert capsys.readouterr().err == said * told


def test_a_trained_body_under_a_new_head_without_a_start_is_told(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data: Any = SimpleNamespace(record=SimpleNamespace(input_shape=DIGITS, class_names=list("abcd")))
    for name, told in (("with_new_head", True), ("drawn", False)):
        torch.manual_seed(0)
        expected = torch.rand(1)
        torch.manual_seed(0)
        tell_trained(settle({"arch": f"{own}:{name}", "epochs": 1}), None, data, Device("cpu", bf16=False))
        assert torch.equal(torch.rand(1), expected)
        said = (
            "with_new_head makes the same weights each time, its head's aside, and without --start they count as random"
        )
        assert (said in capsys.readouterr().err) == told


@pytest.mark.parametrize("before", ["", "module.", "_orig_mod.", "net.", "module.net."])
def test_a_prefix_that_the_network_adds_is_seen_through(before: str, tmp_path: Path) -> None:
    theirs = Net()
    torch.save({before + name: tensor for name, tensor in theirs.state_dict().items()}, tmp_path / "x.pth")
    network = Around(Net())
    start = read_start(str(tmp_path / "x.pth"), "net.py:make", SHAPE)
    fitted = fit_start(network, start, list("abcde"), SHAPE)
    assert fitted.head == "kept" and torch.equal(network.get_parameter("net.fc.weight"), theirs.fc.weight)
    assert torch.equal(network.get_buffer("net.body.bn.running_mean"), theirs.get_buffer("body.bn.running_mean"))


def test_names_that_a_library_changed_are_for_its_own_loader(tmp_path: Path) -> None:
    theirs = {name.replace("body", "old.layers"): tensor for name, tensor in Net().state_dict().items()}
    torch.save({name.replace("conv", "first"): tensor for name, tensor in theirs.items()}, tmp_path / "x.pth")
    start = read_start(str(tmp_path / "x.pth"), "net.py:make", SHAPE)
    with pytest.raises(InputError, match=r"under other names, as .* \(from_pretrained\), and pass --start pretrained$"):
        fit_start(Net(), start, list("abcde"), SHAPE)


def test_what_save_pretrained_writes_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="is neither a run nor a peer"):
        read_start(str(tmp_path), "net.py:make", SHAPE)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(
        InputError, match=r"is what save_pretrained writes; pass --start .*/pytorch_model.bin, or let your"
    ):
        read_start(str(tmp_path), "net.py:make", SHAPE)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(
        InputError, match=r"pass --start .*/model.safetensors, or let your factory build .* pretrained$"
    ):
        read_start(str(tmp_path), "net.py:make", SHAPE)
    with pytest.raises(
        InputError, match=r"is what save_pretrained writes; name a factory .* --start pretrained \(docs"
    ):
        build_network(str(tmp_path), 5, SHAPE)
    with pytest.raises(InputError, match=r"no names of Hugging Face's, such as hf:…; write a factory of three lines"):
        build_network(f"hf:{tmp_path}", 5, SHAPE)


def test_a_line_names_layers_and_kinds_as_people_do() -> None:
    whole = (LeftWhole(("head.fc.net.vit.pool", "stage1.net.stem"), "code"),)
    graph: Any = SimpleNamespace(left_whole=whole, named=whole_name)
    assert left_whole(graph) == ", and 2 layers keep all channels, as net.vit.pool does: code"
    assert nothing_to_cut(graph) == "no channel of the network can be cut: net.vit.pool, net.stem: code"
    assert [a_kind(value) for value in (1, (), {}, OSError())] == ["an int", "a tuple", "a dict", "an OSError"]
