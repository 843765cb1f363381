"""A pruned network's record: what was written comes back bit for bit, and no text makes a reader do anything else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from hand_networks import CLASSES, NETWORKS, SHAPE, Hand, conv, hand_network
from made import made_framing
from torch import Tensor, nn

import wmlc
from wmlc.arch import whole_name
from wmlc.compress.widths.cut import cut_channels
from wmlc.compress.widths.proof import read_channels
from wmlc.errors import InputError
from wmlc.models.checkpoint import load_stages, save_network, save_stages
from wmlc.models.stages import Staged, split
from wmlc.models.widths import cut_to, difference
from wmlc.records import NetworkSpec, StageCuts
from wmlc.settings import CALLERS_ARCH

EXAMPLE = torch.zeros(1, *SHAPE)


def images() -> Tensor:
    return torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))


def spec_of(staged: Staged, cut: nn.Sequential, arch: str = "hand.py:make") -> NetworkSpec:
    return NetworkSpec(
        arch=arch, class_names=[f"class {k}" for k in range(CLASSES)], input_shape=SHAPE, mean=[0.5] * 3, std=[0.5] * 3,
        widths=difference(staged.network, cut, whole_name), stages=staged.cuts, unused=staged.unused,
        framing=made_framing(8),
    )  # fmt: skip


def cut_half(network: nn.Module) -> tuple[Staged, nn.Sequential]:
    """The network in stages, and a copy without the odd units of each group."""
    staged = split(network, EXAMPLE)
    graph = read_channels(staged.network, SHAPE)
    kept = {group.root: torch.arange(0, group.units, 2) for group in graph.groups}
    cut = cut_channels(staged.network, graph.groups, kept).eval()
    assert isinstance(cut, nn.Sequential) and graph.groups
    return staged, cut


def saved(make: Callable[[], nn.Module], directory: Path) -> nn.Sequential:
    """A network that was cut, written into a directory."""
    staged, cut = cut_half(make().eval())
    directory.mkdir()
    save_stages(cut, spec_of(staged, cut), directory)
    return cut


@pytest.fixture
def peer(tmp_path: Path) -> Path:
    """Of `residual`, cut by half."""
    saved(lambda: hand_network("residual"), tmp_path / "peer")
    return tmp_path / "peer"


def changed(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads((directory / "spec.json").read_text())
    change(record)
    (directory / "spec.json").write_text(json.dumps(record))


def refused(directory: Path, load: Callable[..., Any] = wmlc.load) -> str:
    with pytest.raises(InputError) as caught:
        load(directory, NETWORKS["residual"])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1200
    return str(caught.value)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_cut_network_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    cut = saved(lambda: hand_network(name), tmp_path / "peer")
    loaded = wmlc.load(tmp_path / "peer", NETWORKS[name])
    assert type(loaded) is NETWORKS[name] and not loaded.training
    assert torch.equal(loaded(images()), cut(images()))
    stages = load_stages(tmp_path / "peer", NETWORKS[name])
    assert [part for part, _ in stages.named_children()] == [part for part, _ in cut.named_children()]
    assert torch.equal(stages(images()), cut(images())) and not any(part.training for part in stages.modules())
    for part, module in cut.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.LayerNorm | nn.BatchNorm2d):
            assert str(loaded.get_submodule(whole_name(part))) == str(module), part


def test_the_record_is_the_difference_in_numbers_by_the_networks_own_names(peer: Path) -> None:
    record = json.loads((peer / "spec.json").read_text())
    assert record["widths"] == {
        "a": {"out_channels": 4, "weight": [4, 3, 3, 3], "bias": [4]},
        "norm": {"num_features": 4, "weight": [4], "bias": [4], "running_mean": [4], "running_var": [4]},
        "b": {"in_channels": 4, "out_channels": 4, "weight": [4, 4, 3, 3], "bias": [4]},
        "fc": {"in_features": 4, "weight": [5, 4]},
    }
    staged = split(hand_network("residual"), EXAMPLE)
    assert difference(staged.network, staged.network) == {}


def test_a_number_that_forward_reads_is_in_the_record(tmp_path: Path) -> None:
    saved(lambda: hand_network("sized"), tmp_path / "peer")
    assert json.loads((tmp_path / "peer" / "spec.json").read_text())["widths"]["rows"] == {"width": 3}
    assert wmlc.load(tmp_path / "peer", NETWORKS["sized"]).get_submodule("rows").width == 3


class Twins(Hand):
    """One layer under two names, and one tensor in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv(8, 8)
        self.again, self.tied = self.first, conv(8, 8)
        self.tied.weight = self.first.weight

    def body(self, x: Tensor) -> Tensor:
        return self.tied(F.relu(self.again(x)))


class Shifted(Hand):
    """It adds to each channel numbers that no file of weights holds."""

    def __init__(self) -> None:
        super().__init__(6)
        self.b = conv(8, 6)
        self.register_buffer("shift", torch.arange(8.0).view(1, 8, 1, 1), persistent=False)

    def body(self, x: Tensor) -> Tensor:
        return self.b(x + self.shift)


class Auxiliary(Hand):
    """With a head that is for training only."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(8, 5)


@pytest.mark.parametrize("kind", [Twins, Shifted, Auxiliary])
def test_names_of_one_tensor_and_tensors_without_a_part_come_back(kind: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = kind().eval()
    try:
        cut = saved(lambda: network, tmp_path / "peer")
    except AssertionError:  # nothing of it can be cut
        staged = split(network, EXAMPLE)
        cut = staged.network
        (tmp_path / "peer").mkdir(exist_ok=True)
        save_stages(cut, spec_of(staged, cut), tmp_path / "peer")
    loaded = wmlc.load(tmp_path / "peer", kind)
    assert torch.equal(loaded(images()), cut(images()))
    assert loaded.state_dict().keys() == network.state_dict().keys()


def test_what_no_file_of_weights_holds_is_not_cut() -> None:
    graph = read_channels(Shifted().eval(), SHAPE)
    assert [group.root for group in graph.groups] == ["b"] and [left.layers for left in graph.left_whole] == [("a",)]
    with pytest.raises(InputError, match=r"^the recorded widths do not fit the architecture: the network has shift"):
        cut_to(Shifted(), {"": {"shift": [1, 4, 1, 1]}})


HOSTILE: list[tuple[str, Any, str]] = [
    ("nowhere", {"out_channels": 1}, "it has no module nowhere"),
    ("", {"fc": 1}, ": the network has fc 1, which is no size of it"),
    ("a.__class__", {"out_channels": 1}, "it has no module a.__class__"),
    ("__dict__", {"a": 1}, "it has no module __dict__"),
    ("a", {"strange": 1}, "a has strange 1, which is no size of it"),
    ("a", {"__class__": 1}, "a has __class__ 1, which is no size of it"),
    ("a", {"__dict__": [1]}, "a has __dict__ [1], which is no size of it"),
    ("a", {"forward": 1}, "a has forward 1, which is no size of it"),
    ("a", {"training": 1}, "a has training 1, which is no size of it"),
    ("a", {"_parameters": 1}, "a has _parameters 1, which is no size of it"),
    ("a", {"_version": 1}, "a has _version 1, which is no size of it"),
    ("a", {"padding_mode": 1}, "a has padding_mode 1, which is no size of it"),
    ("norm", {"eps": 1}, "norm has eps 1, which is no size of it"),
    ("a", {"out_channels": 9}, "a has out_channels 9, allowed is up to 8"),
    ("a", {"out_channels": 2**31}, "a has out_channels 2147483648, allowed is up to 8"),
    ("a", {"out_channels": [4]}, "a has out_channels [4], allowed is up to 8"),
    ("a", {"weight": 4}, "a has weight 4, allowed is up to [8, 3, 3, 3]"),
    ("a", {"weight": [4, 3, 3]}, "a has weight [4, 3, 3], allowed is up to [8, 3, 3, 3]"),
    ("a", {"weight": [4, 3, 3, 4]}, "a has weight [4, 3, 3, 4], allowed is up to [8, 3, 3, 3]"),
    ("a", {"weight": [1] * 100_000}, "a has weight [1, 1, "),
    ("a", {"out_channels": 4}, "norm.weight has shape [4], expected [8]"),  # and nothing else
    ("b", {"weight": [8, 4, 3, 3]}, "do not fit the architecture ("),
    ("x" * 5000, {"out_channels": 1}, "it has no module xxx"),
    ("\x1b[31m", {"out_channels": 1}, "a text in it has a control character"),
    ("a", {"x\u202ey": 1}, "a has x\\u202ey 1, which is no size of it"),
]


@pytest.mark.parametrize(("module", "change", "words"), HOSTILE, ids=[f"{k}" for k in range(len(HOSTILE))])
def test_widths_that_no_network_of_ours_has_are_refused(module: str, change: Any, words: str, peer: Path) -> None:
    changed(peer, lambda record: record.update(widths={module: change}))
    said = refused(peer)
    assert str(peer) in said and words in said and "extract the peer again" in said


@pytest.mark.parametrize("value", [0, -1, True, None, 1.5, "4", [], [0], [-1], [True], [[1]], [1.5], {}, 2**40, 10**30])
def test_what_is_no_size_is_refused_where_it_is_read(value: Any, peer: Path) -> None:
    changed(peer, lambda record: record["widths"]["a"].update(out_channels=value))
    said = refused(peer)
    assert str(peer / "spec.json") in said and ("out_channels" in said or "widths" in said)


@pytest.mark.parametrize("widths", [None, [], 1, {"a": None}, {"a": []}, {"a": 1}, {"a": {"weight": [[1]]}}])
def test_widths_of_another_shape_are_refused(widths: Any, peer: Path) -> None:
    changed(peer, lambda record: record.update(widths=widths))
    assert str(peer / "spec.json") in refused(peer)


def test_refusing_leaves_the_network_as_it_was() -> None:
    network = hand_network("residual")
    before = {name: tensor.shape for name, tensor in network.state_dict().items()}
    with pytest.raises(InputError):
        cut_to(network, {"a": {"out_channels": 4, "weight": [4, 3, 3, 3]}, "b": {"out_channels": 9}})
    assert network.get_submodule("a").out_channels == 8
    assert {name: tensor.shape for name, tensor in network.state_dict().items()} == before


def test_unused_tensors_are_those_that_the_logits_do_not_depend_on(peer: Path) -> None:
    path = peer / "weights.safetensors"
    tensors = safetensors.torch.load_file(path)
    for name in ("a.weight", "norm.running_mean", "fc.bias"):
        changed(peer, lambda record, name=name: record.update(unused=[name]))
        safetensors.torch.save_file({key: tensor for key, tensor in tensors.items() if key != name}, path)
        said = refused(peer)
        assert f"unused names tensors that the logits depend on: {name}; extract the peer again" in said
    changed(peer, lambda record: record.update(unused=["nothing.of.it", "norm.num_batches_tracked", "x" * 900]))
    safetensors.torch.save_file({key: t for key, t in tensors.items() if "tracked" not in key}, path)
    assert wmlc.load(peer, NETWORKS["residual"])(images()).isfinite().all()


def test_cuts_of_another_graph_are_refused_for_stages_and_no_matter_for_the_network(peer: Path) -> None:
    changed(peer, lambda record: record["stages"].update(cuts={"stem": "gone", "stage1": "os.system"}))
    assert wmlc.load(peer, NETWORKS["residual"])(images()).shape == (3, 5)
    said = refused(peer, load_stages)
    assert said.startswith(f"{peer / 'spec.json'}: the network has no cuts gone, os.system, so it is of other code")
    changed(peer, lambda record: record["stages"].update(opened=["__init__", "a.b.c", ""], cuts={"stem": "a"}))
    assert load_stages(peer, NETWORKS["residual"])(images()).shape == (3, 5)


ARCHES = [
    "os:system", "os:abort", "sys:exit", "builtins:exec", "evil.py:make", "./evil.py:make", "evil:make", "subprocess:run",
    "wmlc.cli:main", "torch.hub:load", ":", "evil.py:", ":make", "evil.py:make-exit1", "evil.py:make\n", "x:" + "y" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("stages", [True, False])
def test_no_record_makes_a_reader_import_anything(
    arch: str, stages: bool, peer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CALLERS_ARCH, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'code-ran')!r}).touch()\n")
    changed(peer, lambda record: record.update(arch=arch, **({} if stages else {"stages": None})))
    with pytest.raises(InputError) as caught:
        wmlc.load(peer)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert not (tmp_path / "code-ran").exists() and CALLERS_ARCH not in os.environ


def test_only_what_the_caller_names_is_run(peer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record may call it whatever it likes."""
    own = tmp_path / "own.py"
    own.write_text("from hand_networks import NETWORKS\n\n\ndef make():\n    return NETWORKS['residual']()\n")
    expected = wmlc.load(peer, NETWORKS["residual"])(images())
    changed(peer, lambda record: record.update(arch="os:abort"))
    monkeypatch.setenv(CALLERS_ARCH, f"{own}:make")
    assert torch.equal(wmlc.load(peer)(images()), expected)
    monkeypatch.setenv(CALLERS_ARCH, f"{own}:gone")
    with pytest.raises(InputError, match="gone is not in it; it has make"):
        wmlc.load(peer)


def test_another_network_than_the_recorded_one_is_refused(peer: Path) -> None:
    for name in ("concat", "tokens", "sized"):
        with pytest.raises(InputError) as caught:
            wmlc.load(peer, NETWORKS[name])
        assert "\n" not in str(caught.value) and str(peer) in str(caught.value)

    def boom() -> nn.Module:
        raise RuntimeError("no\nnetwork today")

    for factory, words in ((boom, "raised RuntimeError: no network today"), (lambda: 3, "must give a torch.nn.Module")):
        with pytest.raises(InputError) as caught:
            wmlc.load(peer, factory)
        assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_plain_network_needs_no_stages(tmp_path: Path) -> None:
    network = hand_network("residual")
    spec = spec_of(Staged(nn.Sequential(), StageCuts(opened=[], cuts={}), {}, []), nn.Sequential())
    save_network(network, spec, tmp_path)
    assert torch.equal(wmlc.load(tmp_path, NETWORKS["residual"])(images()), network(images()))
    assert [name for name, _ in load_stages(tmp_path, NETWORKS["residual"]).named_children()] == ["head"]


def test_a_run_is_told_from_its_networks(tmp_path: Path) -> None:
    (tmp_path / "peers").mkdir()
    with pytest.raises(InputError, match=r"is a run; name a network of it, such as .*/peers/1$"):
        wmlc.load(tmp_path)
