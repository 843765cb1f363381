"""What models/ promises: published networks as stages, their costs, a record on disk that fails in words."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

import wmlc
from wmlc.compress.widths.graph import cut_channels
from wmlc.errors import InputError
from wmlc.models.checkpoint import load_network, read_spec, save_network
from wmlc.models.cost import layer_costs, total_cost
from wmlc.models.widths import read_widths
from wmlc.models.zoo import ARCHITECTURES, build_network
from wmlc.records import Cost, NetworkSpec

IMAGENET, CIFAR = (3, 224, 224), (3, 32, 32)


def on_meta(arch: str, classes: int, shape: tuple[int, int, int]) -> nn.Sequential:
    with torch.device("meta"):
        return build_network(arch, classes, shape)


def parameters_of(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def with_lived_in_statistics(network: nn.Module) -> nn.Module:
    """Batch-norm statistics and affine parameters that differ from their initial 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
                module.num_batches_tracked.fill_(7)
    return network


# The networks and what they cost


@pytest.mark.parametrize(
    "arch, published",
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("mobilenet_v2", 3_504_872),
    ],
)
def test_parameter_counts_are_torchvisions(arch: str, published: int) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models, arch)()
    assert parameters_of(theirs) == published
    assert parameters_of(on_meta(arch, 1000, IMAGENET)) == published


def test_resnet50_takes_the_published_macs() -> None:
    assert total_cost(on_meta("resnet50", 1000, IMAGENET), IMAGENET).macs == pytest.approx(4.09e9, rel=0.01)


def test_mobilenet_takes_the_published_macs() -> None:
    assert total_cost(on_meta("mobilenet_v2", 1000, IMAGENET), IMAGENET).macs == pytest.approx(300e6, rel=0.01)


def test_layer_costs_of_resnet20_worked_by_hand() -> None:
    costs = layer_costs(on_meta("resnet20", 10, CIFAR), CIFAR)
    assert costs["stem.conv"] == Cost(params=16 * 3 * 9, macs=16 * 3 * 9 * 32 * 32)
    assert costs["stem.bn"] == Cost(params=2 * 16, macs=0)
    assert costs["stage2.0.conv1"] == Cost(params=32 * 16 * 9, macs=32 * 16 * 9 * 16 * 16)
    assert costs["stage2.0.downsample.0"] == Cost(params=32 * 16, macs=32 * 16 * 16 * 16)
    assert costs["stage3.2.conv2"] == Cost(params=64 * 64 * 9, macs=64 * 64 * 9 * 8 * 8)
    assert costs["head.fc"] == Cost(params=64 * 10 + 10, macs=64 * 10)
    assert list(costs)[:2] == ["stem.conv", "stem.bn"] and list(costs)[-1] == "head.fc"


def test_total_cost_of_resnet20_worked_by_hand() -> None:
    stem = 16 * 3 * 9 * 32 * 32
    block = 16 * 16 * 9 * 32 * 32  # the same in every stage: twice the channels, half the side
    first = block // 2 + 32 * 16 * 16 * 16  # of stage2 and of stage3, with its shortcut
    assert total_cost(on_meta("resnet20", 10, CIFAR), CIFAR).macs == stem + 16 * block + 2 * first + 640


def test_a_depthwise_convolution_costs_one_input_channel_per_output() -> None:
    depthwise = layer_costs(on_meta("mobilenet_v2", 10, CIFAR), CIFAR)["stage1.0.conv.0.0"]
    assert depthwise == Cost(params=32 * 9, macs=32 * 9 * 32 * 32)


def test_total_cost_is_the_sum_of_the_layers_and_of_all_parameters() -> None:
    network = build_network("resnet20", 10, (3, 8, 8))
    costs = layer_costs(network, (3, 8, 8)).values()
    total = Cost(parameters_of(network), sum(cost.macs for cost in costs))
    assert total_cost(network, (3, 8, 8)) == total


def test_counting_leaves_the_network_as_it_was() -> None:
    network = build_network("resnet20", 10, (3, 8, 8)).train()
    former = copy.deepcopy(network.state_dict())
    total_cost(network, (3, 8, 8))
    assert network.training and all(not module._forward_hooks for module in network.modules())
    assert all(torch.equal(former[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_children_are_the_stages_in_order(arch: str) -> None:
    names = [name for name, _ in on_meta(arch, 10, CIFAR).named_children()]
    count = {"resnet20": 3, "resnet32": 3, "resnet56": 3, "mobilenet_v2": 5}.get(arch, 4)
    assert names == ["stem", *(f"stage{n + 1}" for n in range(count)), "head"]


@pytest.mark.parametrize("arch, blocks", [("resnet20", [3] * 3), ("resnet32", [5] * 3), ("resnet56", [9] * 3)])
def test_cifar_resnets_have_the_papers_depths_and_filters(arch: str, blocks: list[int]) -> None:
    network = on_meta(arch, 10, CIFAR)
    assert [len(getattr(network, f"stage{n}")) for n in (1, 2, 3)] == blocks
    assert [getattr(network, f"stage{n}")[-1].conv2.out_channels for n in (1, 2, 3)] == [16, 32, 64]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("pixels", [(64, 64), (32, 64)])
def test_the_stem_keeps_the_resolution_up_to_64_pixels(arch: str, pixels: tuple[int, int]) -> None:
    stem = on_meta(arch, 10, (3, *pixels)).get_submodule("stem")
    assert stem(torch.empty(2, 3, *pixels, device="meta")).shape[2:] == pixels


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("pixels", [(96, 96), (68, 32)])
def test_the_stem_is_imagenets_above_64_pixels(arch: str, pixels: tuple[int, int]) -> None:
    stem = on_meta(arch, 10, (3, *pixels)).get_submodule("stem")
    smaller = 2 if arch == "mobilenet_v2" else 4
    expected = tuple(side // smaller for side in pixels)
    assert stem(torch.empty(2, 3, *pixels, device="meta")).shape[2:] == expected


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_takes_grey_images_and_any_number_of_classes(arch: str) -> None:
    network = on_meta(arch, 7, (1, 8, 8))
    assert network(torch.empty(2, 1, 8, 8, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "mobilenet_v2"])
def test_output_is_torchvisions_under_its_weights(arch: str) -> None:
    theirs = with_lived_in_statistics(getattr(torchvision.models, arch)(num_classes=10)).eval()
    ours = build_network(arch, 10, (3, 96, 96)).eval()
    names, tensors = ours.state_dict().keys(), theirs.state_dict().values()
    ours.load_state_dict(dict(zip(names, tensors, strict=True)))
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))


def test_an_unknown_architecture_is_refused_in_words() -> None:
    with pytest.raises(InputError) as caught:
        build_network("resnet19", 10, CIFAR)
    assert str(caught.value) == f"unknown architecture 'resnet19'; choose one of {', '.join(ARCHITECTURES)}"


# A network on disk


def save(network: nn.Module, directory: Path, arch: str = "resnet20", pixels: int = 8, **changes: Any) -> Path:
    values = {
        "arch": arch, "class_names": [f"class {n}" for n in range(10)], "input_shape": [3, pixels, pixels],
        "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "widths": read_widths(network), "about": {"peer": 2},
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
    network = with_lived_in_statistics(cut_channels(net.full, net.input_shape, kept))
    assert parameters_of(network) < 0.35 * parameters_of(net.full)
    assert_same_network(load_network(save(network, tmp_path, arch)), network, net.images(3))


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
        [3, 8, 8],
        [0.5] * 3,
        [0.25] * 3,
    )
    assert spec.class_names[9] == "class 9" and spec.about == {"peer": 2}
    assert spec.widths["stem.conv"] == [16, 3, 1] and spec.widths["head.fc"] == [10, 64]
    assert spec.widths["stem.bn"] == [16]


def test_loading_imports_no_torch_pruning(tmp_path: Path) -> None:
    directory = save(build_network("resnet20", 10, (3, 8, 8)), tmp_path / "net")
    program = "import sys, wmlc; wmlc.load(sys.argv[1]); assert 'torch_pruning' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program, str(directory)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Damage


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(build_network("resnet20", 10, (3, 8, 8)), tmp_path / "net")


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


@pytest.mark.parametrize("text", ["", '{"arch": "resnet20", "cl', "\x00\x01", "{}{}"])
def test_a_record_cut_short_or_garbled_is_named(saved: Path, text: str) -> None:
    (saved / "spec.json").write_text(text)
    said = refusal(saved)
    assert said.startswith(f"{saved / 'spec.json'} is not a readable network record (damaged or truncated")
    assert said.endswith("; extract the peer again")


def test_a_record_that_is_no_text_is_named(saved: Path) -> None:
    (saved / "spec.json").write_bytes(b"\xff\xfe\x80")
    assert str(saved / "spec.json") in refusal(saved)


@pytest.mark.parametrize("record, kind", [([], "list"), ("resnet20", "str"), (None, "NoneType")])
def test_a_record_that_is_no_object_is_named(saved: Path, record: Any, kind: str) -> None:
    (saved / "spec.json").write_text(json.dumps(record))
    said = refusal(saved)
    assert f"{saved / 'spec.json'} is not a network record: expected a JSON object, got {kind};" in said


def change_record(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = directory / "spec.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda r: r.pop("widths"), "missing ['widths'], unknown nothing"),
        (lambda r: r.update(colour="red"), "missing nothing, unknown ['colour']"),
        (lambda r: r.update(arch=20), "arch must be a name, got 20"),
        (lambda r: r.update(class_names=[]), "class_names must list at least one class"),
        (lambda r: r.update(class_names=10), "class_names must list at least one class"),
        (lambda r: r.update(input_shape=[8, 8]), "input_shape must be [channels, height, width], got [8, 8]"),
        (lambda r: r.update(input_shape=[3, 8, "8"]), "input_shape must be [channels, height, width]"),
        (lambda r: r.update(input_shape=[3, 8, 0]), "input_shape must be [channels, height, width]"),
        (lambda r: r.update(mean=[0.5]), "mean must hold 3 numbers, got [0.5]"),
        (lambda r: r.update(std="0.25"), "std must hold 3 numbers, got '0.25'"),
        (lambda r: r.update(widths=[16]), "widths must be an object, got list"),
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
        (lambda r: r.update(arch="resnet32"), "stage1.3.conv1 is missing"),
        (
            lambda r: r["widths"].update({"stem.conv": [17, 3, 1]}),
            "stem.conv has widths [17, 3, 1], allowed up to [16, 3",
        ),
        (lambda r: r["widths"].update({"stem.conv": [0, 3, 1]}), "stem.conv has widths [0, 3, 1]"),
        (lambda r: r["widths"].update({"stem.conv": [16, 3]}), "stem.conv has widths [16, 3]"),
        (lambda r: r["widths"].update({"stem.conv": 16}), "stem.conv has widths 16"),
        (lambda r: r["widths"].update({"stem.bn": ["16"]}), "stem.bn has widths ['16']"),
        (lambda r: r["widths"].update({"stem.bn": [True]}), "stem.bn has widths [True]"),
        (lambda r: r["widths"].pop("stage2.0.conv1"), "stage2.0.conv1 is missing"),
        (lambda r: r["widths"].update({"stage9": [1]}), "stage9 is no layer of it"),
        (lambda r: r.update(class_names=["only one"]), "head.fc has widths [10, 64], allowed up to [1, 64]"),
    ],
)
def test_widths_that_do_not_fit_the_architecture_are_named(saved: Path, change: Callable[..., Any], words: str) -> None:
    change_record(saved, change)
    assert words in refusal(saved)


def test_all_offenders_are_counted(saved: Path) -> None:
    change_record(saved, lambda r: r.update(widths={}))
    said = refusal(saved)
    assert "stem.conv is missing; stem.bn is missing" in said and "more" in said


def test_more_class_names_than_outputs_are_refused(saved: Path) -> None:
    change_record(saved, lambda r: r["class_names"].append("one too many"))
    assert "head.fc" in refusal(saved)


def test_more_image_channels_than_the_stem_takes_are_refused(saved: Path) -> None:
    change_record(saved, lambda r: r.update(input_shape=[4, 8, 8], mean=[0.5] * 4, std=[0.25] * 4))
    assert "stem.conv" in refusal(saved)


def test_widths_that_do_not_fit_each_other_are_refused(saved: Path) -> None:
    change_record(saved, lambda r: r["widths"].update({"stem.bn": [8]}))
    said = refusal(saved)
    assert "weights.safetensors" in said and "stem.bn.weight has shape [16], expected [8]" in said


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


def test_a_directory_in_place_of_the_weights_is_named(saved: Path) -> None:
    (saved / "weights.safetensors").unlink()
    (saved / "weights.safetensors").mkdir()
    assert str(saved / "weights.safetensors") in refusal(saved)


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
