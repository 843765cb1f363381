"""A network on disk: it comes back bit for bit, and what is damaged is refused in one line."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from made import made_framing
from networks import with_lived_in_statistics
from torch import nn

import wmlc
from wmlc.compress.widths.cut import cut_channels
from wmlc.errors import InputError
from wmlc.models.checkpoint import load_network, read_spec, save_network
from wmlc.models.cost import total_cost
from wmlc.models.widths import cut_to, difference
from wmlc.models.zoo import build_network
from wmlc.records import About, NetworkSpec

WIDTHS: dict[str, dict[str, int | list[int]]] = {  # of a resnet20 whose first block has 8 channels inside
    "stage1.0.conv1": {"out_channels": 8, "weight": [8, 16, 3, 3]},
    "stage1.0.bn1": {"num_features": 8, "weight": [8], "bias": [8], "running_mean": [8], "running_var": [8]},
    "stage1.0.conv2": {"in_channels": 8, "weight": [16, 8, 3, 3]},
}


def save(network: nn.Module, directory: Path, arch: str = "resnet20", pixels: int = 8, **changes: Any) -> Path:
    values = {
        "arch": arch, "class_names": [f"class {n}" for n in range(10)], "input_shape": (3, pixels, pixels),
        "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "widths": {},
        "framing": made_framing(pixels), "about": About(peer=2),
    }  # fmt: skip
    directory.mkdir(exist_ok=True)
    save_network(network, NetworkSpec(**{**values, **changes}), directory)
    return directory


def assert_same_network(loaded: nn.Module, saved: nn.Module, images: torch.Tensor) -> None:
    """Every tensor and the outputs, bit for bit."""
    expected, got = saved.state_dict(), loaded.state_dict()
    assert list(got) == list(expected)
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype and torch.equal(got[name], tensor), name
    with torch.no_grad():
        same_outputs = torch.equal(loaded(images), copy.deepcopy(saved).eval()(images))
    assert same_outputs


@pytest.mark.parametrize("arch, pixels", [("resnet20", 8), ("mobilenet_v2", 8), ("resnet18", 72)])
def test_a_full_network_comes_back_bit_identical(arch: str, pixels: int, tmp_path: Path) -> None:
    network = with_lived_in_statistics(build_network(arch, 10, (3, pixels, pixels)))
    loaded = load_network(save(network, tmp_path, arch, pixels))
    assert_same_network(loaded, network, torch.randn(3, 3, pixels, pixels))


@pytest.mark.parametrize("arch", ["resnet20", "mobilenet_v2", "resnet50"])
def test_a_cut_network_comes_back_bit_identical(arch: str, scored_network: Callable[..., Any], tmp_path: Path) -> None:
    net = scored_network(arch)
    kept = net.widths(share="none")[0].kept
    network = with_lived_in_statistics(cut_channels(net.full, net.scored.graph.groups, kept))
    assert total_cost(network, net.input_shape).params < 0.35 * total_cost(net.full, net.input_shape).params
    saved = save(network, tmp_path, arch, widths=difference(net.full, network))
    assert_same_network(load_network(saved), network, net.images(3))


def test_a_loaded_network_is_dense_in_eval_mode_and_can_be_trained(tmp_path: Path) -> None:
    loaded = load_network(save(build_network("resnet20", 10, (3, 8, 8)), tmp_path))
    assert not any(module.training for module in loaded.modules())
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cpu"}
    loaded.train()(torch.randn(4, 3, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


@pytest.mark.parametrize("as_given", [str, Path])
def test_wmlc_load_takes_a_directory_as_text_or_path(as_given: type, tmp_path: Path) -> None:
    network = build_network("resnet20", 10, (3, 8, 8))
    assert_same_network(wmlc.load(as_given(save(network, tmp_path))), network, torch.randn(2, 3, 8, 8))


def test_the_record_says_how_to_feed_the_network(tmp_path: Path) -> None:
    spec = read_spec(save(build_network("resnet20", 10, (3, 8, 8)), tmp_path))
    assert (spec.arch, spec.input_shape, spec.mean, spec.std) == (
        "resnet20",
        (3, 8, 8),
        [0.5] * 3,
        [0.25] * 3,
    )
    assert spec.class_names[9] == "class 9" and spec.about == About(peer=2)
    assert spec.widths == {}


def test_the_record_names_the_modules_that_were_cut_and_no_others(saved: Path) -> None:
    assert read_spec(saved).widths == WIDTHS


# Damage


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    full = build_network("resnet20", 10, (3, 8, 8))
    network = cut_to(copy.deepcopy(full), WIDTHS)
    return save(network, tmp_path / "net", widths=difference(full, network))


def refusal(directory: Path) -> str:
    """What loading says about a directory that it must refuse: one line."""
    with pytest.raises(InputError) as caught:
        wmlc.load(directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "gone").startswith(f"{tmp_path / 'gone'} is not a directory")


def test_a_missing_record_is_named(saved: Path) -> None:
    (saved / "spec.json").unlink()
    assert refusal(saved).startswith(f"{saved / 'spec.json'} is missing")


@pytest.mark.parametrize("text", ['{"arch": "resnet20", "cl', "\x00\x01", "{}{}"])
def test_a_record_cut_short_or_garbled_is_named(saved: Path, text: str) -> None:
    (saved / "spec.json").write_text(text)
    said = refusal(saved)
    assert said.startswith(f"{saved / 'spec.json'} is not a readable network record: damaged")
    assert said.endswith("; extract the peer again")


def test_a_record_that_is_no_text_is_named(saved: Path) -> None:
    (saved / "spec.json").write_bytes(b"\xff\xfe\x80")
    assert str(saved / "spec.json") in refusal(saved)


@pytest.mark.parametrize("record", [[], "resnet20", None])
def test_a_record_that_is_no_object_is_named(saved: Path, record: Any) -> None:
    (saved / "spec.json").write_text(json.dumps(record))
    assert refusal(saved).startswith(f"{saved / 'spec.json'} is not a readable network record: it must be ")


def change_record(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = directory / "spec.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda r: r.pop("widths"), "widths is missing"),
        (lambda r: r.update(colour="red"), "colour is unknown"),
        (lambda r: r.update(arch=20), "arch must be"),
        (lambda r: r.update(class_names=[]), "class_names must"),
        (lambda r: r.update(class_names=10), "class_names must be"),
        (lambda r: r.update(input_shape=[8, 8]), "input_shape[2] is missing"),
        (lambda r: r.update(input_shape=[3, 8, "8"]), "input_shape[2] must be"),
        (lambda r: r.update(input_shape=[3, 8, 0]), "input_shape[2] must be"),
        (lambda r: r.update(mean=[0.5]), "mean must hold 3 numbers, got [0.5]"),
        (lambda r: r.update(std="0.25"), "std must be"),
        (lambda r: r.update(widths=[16]), "widths must be"),
        (lambda r: r["widths"].update({"stem.conv": {"out_channels": 0}}), "widths.stem.conv.out_channels"),
        (lambda r: r["widths"].update({"stem.conv": {"weight": [0, 3, 3, 3]}}), "widths.stem.conv.weight"),
        (lambda r: r["widths"].update({"stem.conv": 16}), "widths.stem.conv must be"),
        (lambda r: r["widths"].update({"stem.bn": {"num_features": "16"}}), "widths.stem.bn.num_features"),
        (lambda r: r["widths"].update({"stem.bn": {"num_features": True}}), "widths.stem.bn.num_features"),
        (lambda r: r["widths"].update({"stem.bn": {"num_features": None}}), "widths.stem.bn.num_features"),
    ],
)
def test_a_record_with_a_wrong_value_is_named(saved: Path, change: Callable[..., Any], words: str) -> None:
    change_record(saved, change)
    said = refusal(saved)
    assert str(saved / "spec.json") in said and words in said


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda r: r.update(arch="resnet19"), "unknown architecture 'resnet19'; choose one of resnet20"),
        (lambda r: r.update(arch="resnet32"), "stage1.3.conv1.weight is missing"),
        (
            lambda r: r["widths"].update({"stem.conv": {"out_channels": 17}}),
            "stem.conv has out_channels 17, allowed is up to 16",
        ),
        (lambda r: r["widths"].update({"stem.conv": {"weight": [16, 3]}}), "allowed is up to [16, 3, 3, 3]"),
        (lambda r: r["widths"].update({"stem.conv": {"weight": 16}}), "allowed is up to [16, 3, 3, 3]"),
        (lambda r: r["widths"].update({"stem.conv": {"groups": 2}}), "stem.conv has groups 2, allowed is up to 1"),
        (lambda r: r["widths"].update({"stem.conv": {"weight": [2**31, 3, 3, 3]}}), "allowed is up to [16, 3, 3, 3]"),
        (lambda r: r["widths"].update({"stem.conv": {"training": 1}}), "stem.conv has training 1, which is no size"),
        (lambda r: r["widths"].update({"stem.conv": {"forward": 1}}), "stem.conv has forward 1, which is no size"),
        (lambda r: r["widths"].update({"": {"_version": 1}}), "_version 1, which is no size of it"),
        (lambda r: r["widths"].pop("stage1.0.bn1"), "the recorded widths do not fit the architecture ("),
        (
            lambda r: r["widths"].update({"stem.bn": {"weight": [8]}}),
            "the recorded widths do not fit the architecture (",
        ),
        (lambda r: r["widths"].update({"stage9": {"weight": [1]}}), "it has no module stage9"),
        (
            lambda r: r["widths"].update({"head.fc": {"out_features": 9, "weight": [9, 64], "bias": [9]}}),
            "the network gives [1, 9] for an image, but the record names 10 classes",
        ),
        (lambda r: r.update(class_names=["only one"]), "head.fc.weight has shape [10, 64], expected [1, 64]"),
    ],
)
def test_widths_that_do_not_fit_the_architecture_are_named(saved: Path, change: Callable[..., Any], words: str) -> None:
    change_record(saved, change)
    assert words in refusal(saved)


def test_all_offenders_are_counted(saved: Path) -> None:
    change_record(saved, lambda r: r.update(widths={f"stage9.{n}": {"weight": [1]} for n in range(7)}))
    said = refusal(saved)
    assert "it has no module stage9.0; it has no module stage9.1; " in said and "; and 2 more; " in said


def test_weights_that_are_all_of_other_shapes_are_counted(saved: Path) -> None:
    change_record(saved, lambda r: r.update(widths={}))
    said = refusal(saved)
    assert said.startswith(f"{saved / 'weights.safetensors'} does not hold the network that spec.json records: ")
    assert "stage1.0.conv1.weight has shape [8, 16, 3, 3], expected [16, 16, 3, 3]" in said and "; and 1 more; " in said


def test_more_class_names_than_outputs_are_refused(saved: Path) -> None:
    change_record(saved, lambda r: r["class_names"].append("one too many"))
    assert "head.fc" in refusal(saved)


def test_more_image_channels_than_the_stem_takes_are_refused(saved: Path) -> None:
    change_record(saved, lambda r: r.update(input_shape=[4, 8, 8], mean=[0.5] * 4, std=[0.25] * 4))
    assert "stem.conv" in refusal(saved)


def test_widths_that_are_not_those_of_the_weights_are_refused(saved: Path) -> None:
    def seven(record: dict[str, Any]) -> None:
        block = record["widths"]
        block["stage1.0.conv1"] = {"out_channels": 7, "weight": [7, 16, 3, 3]}
        block["stage1.0.bn1"] = {key: 7 if key == "num_features" else [7] for key in block["stage1.0.bn1"]}
        block["stage1.0.conv2"] = {"in_channels": 7, "weight": [16, 7, 3, 3]}

    change_record(saved, seven)
    said = refusal(saved)
    assert "weights.safetensors" in said and "stage1.0.bn1.weight has shape [8], expected [7]" in said


def test_missing_weights_are_named(saved: Path) -> None:
    (saved / "weights.safetensors").unlink()
    assert refusal(saved).startswith(f"{saved / 'weights.safetensors'} is missing")


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_weights_cut_short_are_named(saved: Path, keep: float) -> None:
    path = saved / "weights.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    assert refusal(saved).startswith(f"{path} is damaged or truncated")


@pytest.mark.parametrize("content", [b"not tensors at all", b"\x80\x02}q\x00.", bytes(64)])
def test_weights_of_another_kind_are_named(saved: Path, content: bytes) -> None:
    (saved / "weights.safetensors").write_bytes(content)
    assert refusal(saved).startswith(f"{saved / 'weights.safetensors'} is damaged or truncated")


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_directory_or_a_pipe_in_place_of_the_weights_is_named(saved: Path, make: Callable[[Path], None]) -> None:
    weights = saved / "weights.safetensors"
    weights.unlink()
    make(weights)
    assert refusal(saved) == f"{weights} is no regular file; extract the peer again"


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda t: t.update({"stem.conv.weight": torch.zeros(8, 3, 3, 3)}),
            "shape [8, 3, 3, 3], expected [16, 3, 3, 3]",
        ),
        (lambda t: t.pop("head.fc.bias"), "head.fc.bias is missing"),
        (lambda t: t.update(stranger=torch.zeros(1)), "stranger is unexpected"),
        (lambda t: t.update({"head.fc.bias": torch.zeros(10, dtype=torch.float16)}), "head.fc.bias"),
        (lambda t: t.update({"head.fc.bias": torch.zeros(10, dtype=torch.int64)}), "head.fc.bias"),
    ],
    ids=["shape", "missing", "unexpected", "float16", "int64"],
)
def test_weights_of_another_network_are_named(saved: Path, change: Callable[..., Any], words: str) -> None:
    path = saved / "weights.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path)
    said = refusal(saved)
    assert str(path) in said and words in said
