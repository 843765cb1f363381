"""Published networks as sequences of stages, and what they cost."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from networks import with_lived_in_statistics
from torch import nn

from wmlc.compress.widths.trace import trace_channels
from wmlc.errors import InputError
from wmlc.models.cost import total_cost
from wmlc.models.zoo import ARCHITECTURES, build_network
from wmlc.records import Cost

IMAGENET, CIFAR = (3, 224, 224), (3, 32, 32)


def on_meta(arch: str, classes: int, shape: tuple[int, int, int]) -> nn.Sequential:
    with torch.device("meta"):
        return build_network(arch, classes, shape)


def parameters_of(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


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


def macs_of_weights(arch: str) -> dict[str, int]:
    """The MACs of each layer for one CIFAR image, by the name of its weight."""
    return trace_channels(on_meta(arch, 10, CIFAR), torch.empty(1, *CIFAR, device="meta")).macs


def test_layer_costs_of_resnet20_worked_by_hand() -> None:
    macs = macs_of_weights("resnet20")
    assert macs["stem.conv.weight"] == 16 * 3 * 9 * 32 * 32
    assert "stem.bn.weight" not in macs
    assert macs["stage2.0.conv1.weight"] == 32 * 16 * 9 * 16 * 16
    assert macs["stage2.0.downsample.0.weight"] == 32 * 16 * 16 * 16
    assert macs["stage3.2.conv2.weight"] == 64 * 64 * 9 * 8 * 8
    assert macs["head.fc.weight"] == 64 * 10
    assert next(iter(macs)) == "stem.conv.weight" and list(macs)[-1] == "head.fc.weight"


def test_total_cost_of_resnet20_worked_by_hand() -> None:
    stem = 16 * 3 * 9 * 32 * 32
    block = 16 * 16 * 9 * 32 * 32  # the same in every stage: twice the channels, half the side
    first = block // 2 + 32 * 16 * 16 * 16  # of stage2 and of stage3, with its shortcut
    assert total_cost(on_meta("resnet20", 10, CIFAR), CIFAR).macs == stem + 16 * block + 2 * first + 640


def test_a_depthwise_convolution_costs_one_input_channel_per_output() -> None:
    network = on_meta("mobilenet_v2", 10, CIFAR)
    assert parameters_of(network.get_submodule("stage1.0.conv.0.0")) == 32 * 9
    assert macs_of_weights("mobilenet_v2")["stage1.0.conv.0.0.weight"] == 32 * 9 * 32 * 32


def test_total_cost_is_the_sum_of_the_layers_and_of_all_parameters() -> None:
    network = build_network("resnet20", 10, (3, 8, 8))
    traced = trace_channels(network, torch.zeros(1, 3, 8, 8))
    total = Cost(parameters_of(network), sum(traced.macs.values()) + sum(own.macs for own in traced.products))
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
    assert str(caught.value) == (
        f"unknown architecture 'resnet19'; choose one of {', '.join(ARCHITECTURES)}, or torchvision:NAME, timm:NAME, "
        f"FILE.py:FACTORY ('wmlc list --networks TEXT' finds some)"
    )
