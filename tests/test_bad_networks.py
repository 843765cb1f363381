"""Everything that can be wrong with a network, its weights or its record: one line each, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from wmlc.cli import main
from wmlc.settings import CALLERS_ARCH

FILE = """
import torch
from torch import nn


def layers(classes, width=8):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes),
    )


def make(num_classes, width=8):
    return layers(num_classes, width)


class Wrapped(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.layers = layers(num_classes)

    def forward(self, images):
        return self.layers(images)


class Two(Wrapped):
    def forward(self, images, sizes):
        return self.layers(images)


class Maps(Wrapped):
    def forward(self, images):
        return self.layers[0](images)


class Tuple(Wrapped):
    def forward(self, images):
        return self.layers(images), images


class Few(Wrapped):
    def forward(self, images):
        return self.layers(images)[:, :4]


class Summed(Wrapped):
    def forward(self, images):
        return self.layers(images).sum(0, keepdim=True)


class Squeezed(Wrapped):
    def forward(self, images):
        return self.layers(images).squeeze()


class Across(Wrapped):
    def forward(self, images):
        logits = self.layers(images)
        return logits - logits.mean(0)


class ByHand(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_classes, 64))

    def forward(self, images):
        return (images.flatten(1).unsqueeze(1) * self.weight).sum(2)


class Crossing(nn.Module):
    '''How many channels there were early scales what is made of others late.'''

    def __init__(self, num_classes=10):
        super().__init__()
        self.parts = nn.ModuleList(nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.ReLU()) for i, o in SIZES)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, images):
        maps = self.parts[0](images)
        channels = maps.shape[1]
        for part in self.parts[1:]:
            maps = part(maps)
        return self.fc(maps.mean((2, 3)) / channels)


SIZES = (1, 8), (8, 16), (16, 16), (16, 16)


class Raises(Wrapped):
    def forward(self, images):
        raise RuntimeError("not\\ntoday")


class Numpy(Wrapped):
    '''Leaves torch, where nothing can follow it.'''

    def forward(self, images):
        maps = self.layers[0](images)
        return self.layers[1:](torch.from_numpy(maps.detach().numpy().copy()))


def boom(num_classes):
    raise KeyError("no\\nsuch thing")


def stops(num_classes):
    raise SystemExit(3)


def number(num_classes):
    return 3


def empty(num_classes):
    return nn.Flatten()
"""
OWN = ["--data", "digits", "--device", "cpu", "--ratios", "0.3,0"]
OWN += ["--ratio-of", "macs", "--share", "none", "--divisor", "1"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory to work in with a caller's file; nothing but what a test puts there may be in it afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(CALLERS_ARCH, raising=False)
    (tmp_path / "net.py").write_text(FILE)
    yield tmp_path
    os.environ.pop(CALLERS_ARCH, None)


def said(*words: str) -> str:
    """The one line that a command refuses with."""
    result = CliRunner().invoke(main, list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 1, result.output
    lines = result.output.splitlines()
    assert lines and lines[-1].startswith("Error: ") and "Traceback" not in result.output
    assert sum(line.startswith("Error: ") for line in lines) == 1 and len(lines[-1]) < 900
    return lines[-1].removeprefix("Error: ")


def refused(here: Path, *words: str) -> str:
    """`wmlc train` of these words refuses, and leaves nothing."""
    before = sorted(path for path in here.rglob("*") if "__pycache__" not in path.parts)
    message = said("train", *OWN, "--out", str(here / "run"), *words)
    assert sorted(path for path in here.rglob("*") if "__pycache__" not in path.parts) == before
    return message


NO_CLASSIFIER = "it is no classifier"


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("net.py:Two", "net.py:Two: its forward needs images, sizes; wmlc gives a network images alone"),
        ("net.py:Maps", f"net.py:Maps must give logits [N, classes], got [N, 8, 8, 8] for N images; {NO_CLASSIFIER}"),
        ("net.py:Tuple", f"net.py:Tuple must give logits [N, classes], got a tuple; {NO_CLASSIFIER}"),
        ("net.py:Few", "net.py:Few gives 4 outputs, and the data have 10 classes: no Linear or Conv2d of the network makes"),
        ("net.py:Summed", "net.py:Summed must give logits [N, classes], got [1, 10] for "),
        ("net.py:Squeezed", "net.py:Squeezed must give logits [1, 10] for one image, got [10]; its code may say squeeze()"),
        ("net.py:Across", "the network answers otherwise for an image beside others than for it alone: its code looks "),
        ("net.py:ByHand", "net.py:ByHand has no convolution, linear layer or other product that torch counts, and what a "),
        ("net.py:Crossing", "once cut, Crossing gives answers that are "),
        ("net.py:Raises", "net.py:Raises cannot take images of 1 x 8 x 8 (channels, height, width): RuntimeError: not today"),
        ("net.py:boom", "net.py:boom(num_classes=10) raised KeyError: 'no\\nsuch thing'"),
        ("net.py:number", "net.py:number must give a torch.nn.Module, got int"),
        ("net.py:empty", "net.py:empty "),
        ("net.py:mak", "net.py: mak is not in it; it has layers, make, Wrapped"),
        ("nets.py:make", "there is no file nets.py; write --arch FILE.py:FACTORY"),
        ("no.such.module:make", "there is no module 'no.such.module' here; --arch takes FILE.py:FACTORY, "),
        ("resnet2", "unknown architecture 'resnet2'; choose one of resnet20, "),
        ("torchvision:resnet19", "torchvision has no network 'resnet19'; nearest are resnet1"),
        ("torchvision:", "arch must be a built-in name, torchvision:NAME, timm:NAME"),
    ],
)  # fmt: skip
def test_a_network_that_is_none_for_us_is_a_line(arch: str, message: str, here: Path) -> None:
    assert refused(here, "--arch", arch).startswith(message)


def test_a_name_of_timms_with_a_typo_is_a_line(here: Path) -> None:
    pytest.importorskip("timm", reason="timm is not installed: pip install 'wmlc[timm]'")
    assert refused(here, "--arch", "timm:mobilenetv3_smal_100").startswith(
        "timm has no network 'mobilenetv3_smal_100'; nearest are "
    )


def test_a_way_that_nothing_can_follow_leaves_its_channels_whole(here: Path) -> None:
    """Into numpy and back: what comes before it is no group, and gets no gradient."""
    result = CliRunner().invoke(main, ["train", *OWN, "--arch", "net.py:Numpy", "--precision", "fp32", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "left whole: the channels of layers.0 (they cannot be cut one by one)" in result.output
    assert not (here / "run").exists() and not (here / "runs").exists()


@pytest.mark.parametrize("name", ["a.pth", "b.safetensors"])
def test_weights_of_another_architecture_are_a_line(name: str, here: Path) -> None:
    import safetensors.torch
    from torchvision.models import squeezenet1_1

    tensors = squeezenet1_1(num_classes=10).state_dict()
    (safetensors.torch.save_file if name.endswith("safetensors") else torch.save)(tensors, here / name)
    message = refused(here, "--arch", "net.py:make", "--start", name)
    assert message.startswith(f"{name} does not hold the weights of net.py:make: 0 of its 10 tensors fit; missing: ")
    assert "; left over: " in message and " here)" in message


def test_a_pickled_module_is_a_line_and_is_not_opened(here: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(1, 1)), here / "net.pth")
    message = refused(here, "--arch", "net.py:make", "--start", "net.pth")
    assert message.startswith("net.pth is no plain state dict: to open it would import and run torch.nn.modules.")
    assert message.endswith("save the weights alone: torch.save(network.state_dict(), FILE)")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--start", "gone.pth"], "--start: there is no gone.pth; name a file of weights, a run, a peer or 'pretrained'"),
        (["--start", "."], "--start: . is neither a run nor a peer (spec.json and weights.safetensors); name one, or a file"),
        (["--start", "net.py"], "net.py is no file of weights ("),
        (["--start", "pretrained"], "net.py:make gives other weights each time it is called (0.weight, 0.bias, 3.weight"),
        (["--epochs", "0"], "epochs"),
        (["--normalise", "nonsense"], "normalise"),
        (["--normalise", "0.5/0"], "normalise"),
        (["--normalise", "nan/1"], "normalise"),
        (["--normalise", "0.5"], "normalise"),
        (["--normalise", "1,2,3/1,2,3"], "normalise"),
        (["--arch-args", "width"], "arch_args must be key=value"),
        (["--arch-args", "depth=3"], "net.py:make does not take depth; it takes num_classes, width"),
        (["--arch-args", "width=0"], "net.py:make"),
        (["--arch-args", "width='x'"], "net.py:make(width='x', num_classes=10) raised TypeError"),
        (["--share", "stage9"], "unknown --share 'stage9' for this network; choose one of "),
        (["--ratios", "0.97,0"], "peer 1 cannot lose 97% of its macs"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_the_network_are_a_line(words: list[str], message: str, here: Path) -> None:
    assert message in refused(here, "--arch", "net.py:make", *words)


def state(here: Path, classes: int = 10) -> None:
    from wmlc.models.factory import load_factory

    torch.save(load_factory(str(here / "net.py") + ":make")(classes).state_dict(), here / "net.pth")


def test_no_epochs_with_a_new_head_are_a_line(here: Path) -> None:
    state(here, classes=7)
    message = refused(here, "--arch", "net.py:make", "--start", "net.pth", "--epochs", "0")
    assert message == "epochs 0 trains nothing, and the head for these classes is new; train it for an epoch or more"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a caller's network that needed no training: its start was a trained one, for all we know."""
    root = tmp_path_factory.mktemp("trained")
    (root / "net.py").write_text(FILE)
    state(root)
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.chdir(root)
        result = CliRunner().invoke(
            main, ["train", *OWN, "--arch", "net.py:make", "--start", "net.pth", "--epochs", "0", "--out", "run"]
        )
    os.environ.pop(CALLERS_ARCH, None)
    assert result.exit_code == 0, result.output
    return root


@pytest.fixture
def run(here: Path, trained: Path) -> Path:
    shutil.copytree(trained / "run", here / "run")
    return here / "run"


NEEDED = "is a network of somebody's own code (net.py:make), which no file makes wmlc run; pass --arch FILE.py:FACTORY"


@pytest.mark.parametrize(
    "words",
    [
        ("extract", "--run", "run", "--peer", "1", "--out", "p1.onnx"),
        ("extract", "--run", "run", "--peer", "2", "--out", "p2"),
        ("bench", "--run", "run", "--engine", "ort", "--precision", "fp32"),
    ],
)  # fmt: skip
def test_code_of_the_callers_own_is_asked_for_and_never_found_in_a_file(
    words: tuple[str, ...], run: Path, here: Path
) -> None:
    """Not even where it lies at the place that the record names."""
    (here / "net.py").write_text(f"import pathlib\npathlib.Path({str(here / 'code-ran')!r}).touch()\n")
    before = sorted(path for path in here.rglob("*") if path.is_file())
    assert NEEDED in said(*words)
    assert sorted(path for path in here.rglob("*") if path.is_file()) == before


def test_a_run_of_the_callers_own_code_goes_on_only_where_it_is_named(run: Path, here: Path) -> None:
    (run / "family.json").unlink()
    assert NEEDED in said("train", "--resume", "--out", "run")
    assert not (run / "family.json").exists()
    result = CliRunner().invoke(main, ["train", "--resume", "--out", "run", "--arch", "net.py:make"])
    assert result.exit_code == 0, result.output
    assert (run / "family.json").exists()


def test_a_pruned_network_is_no_start(run: Path, here: Path) -> None:
    before = sorted(here.rglob("*"))
    message = said("train", *OWN, "--arch", "net.py:make", "--start", "run/peers/1", "--epochs", "1", "--out", "other")
    assert message.startswith("--start: run/peers/1 is pruned by ") and message.endswith("a peer of ratio 0")
    assert [path for path in sorted(here.rglob("*")) if "__pycache__" not in path.parts] == before


@pytest.mark.parametrize("arch", ["evil.py:make", "evil:make", "os:abort"])
def test_a_recorded_name_never_runs_code_whatever_it_is(arch: str, run: Path, here: Path) -> None:
    (here / "evil.py").write_text(f"import pathlib\npathlib.Path({str(here / 'code-ran')!r}).touch()\n")
    for name in ("peers/1/spec.json", "config.json"):
        record = json.loads((run / name).read_text())
        record.get("settings", record)["arch"] = arch
        (run / name).write_text(json.dumps(record))
    assert f"somebody's own code ({arch})" in said("extract", "--run", "run", "--peer", "1", "--out", "p1.onnx")
    (run / "family.json").unlink()
    assert f"somebody's own code ({arch})" in said("train", "--resume", "--out", "run")
    assert not (here / "code-ran").exists()
