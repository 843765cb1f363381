"""Networks by name: torchvision's, timm's and a caller's own, whole, and one line for what is none."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from wmlc.arch import is_foreign, needs_caller
from wmlc.cli import main
from wmlc.compress.config import settle
from wmlc.compress.recipes import choose_config
from wmlc.errors import InputError
from wmlc.models.arguments import parse_args
from wmlc.models.foreign import build_whole
from wmlc.models.head import classifier_of, new_head
from wmlc.models.pixels import own_pixels

timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'wmlc[timm]'")

FILE = """
from torch import nn

import parts_of_mine
from .parts_of_mine import pool


class Two(nn.Module):
    def forward(self, images, sizes):
        return images


class Gives(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.conv, self.what = nn.Conv2d(3, 4, 1), what

    def forward(self, images):
        return {"tuple": (images,), "map": self.conv(images), "more": pool(self.conv(images))}[self.what]


class Aux(Gives):
    def forward(self, images):
        made = pool(self.conv(images))
        return (made, made) if self.training else made


def make_net(num_classes=7, width=8, in_chans=3):
    layers = nn.Conv2d(in_chans, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)
    return nn.Sequential(*layers)


def fixed():
    return make_net(5)


def boom():
    raise KeyError("x")


def three():
    return 3


made = fixed()
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A caller's file, with a helper beside it."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "parts_of_mine.py").write_text("def pool(images):\n    return images.mean((2, 3))\n")
    (folder / "net.py").write_text(FILE)
    (folder / "broken.py").write_text("import no_such_thing\n")
    return str(folder / "net.py")


def refused(arch: str, classes: int = 3, shape: tuple[int, int, int] = (3, 8, 8), args: str = "") -> str:
    with pytest.raises(InputError) as caught:
        build_whole(arch, classes, shape, args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("", {}),
        ("depth=20,rate=0.5,bias=false,act=relu", {"depth": 20, "rate": 0.5, "bias": False, "act": "relu"}),
        ("widths=[16,32],size=(2,3),name='a b',norm=None", {"widths": [16, 32], "size": (2, 3), "name": "a b", "norm": None}),
        ("low=-1,block=a.b-c/d,deep=[[1],(none,)]", {"low": -1, "block": "a.b-c/d", "deep": [[1], (None,)]}),
    ],
)  # fmt: skip
def test_arguments_are_literals(text: str, arguments: dict[str, Any]) -> None:
    assert parse_args(text) == arguments


@pytest.mark.parametrize(
    "text", ["a b", "3", "a=", "a=f()", "**a", "a=1)(", "a=1,a=2", "a=__import__('os')", "a=[" * 900]
)
def test_what_is_no_literal_is_refused(text: str) -> None:
    with pytest.raises(
        InputError, match=r"^arch_args must be key=value,key=value with numbers, true, false, none, texts"
    ):
        parse_args(text)


def test_names_say_whose_network_it_is() -> None:
    assert not is_foreign("resnet20") and is_foreign("timm:resnet50.a1_in1k")
    assert [needs_caller(arch) for arch in ("resnet20", "timm:x", "torchvision:x")] == [False] * 3
    assert needs_caller("net.py:make") and needs_caller("package.module:make")


@pytest.mark.parametrize(
    ("arch", "shape"),
    [
        ("torchvision:resnet18", (1, 32, 32)),
        ("torchvision:mobilenet_v3_small", (3, 32, 32)),
        ("timm:resnet10t.c3_in1k", (1, 32, 32)),
        ("timm:vit_tiny_patch16_224", (3, 32, 48)),
    ],
)
def test_a_network_is_made_for_the_data(arch: str, shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    network = build_whole(arch, 5, shape)
    assert network.training and network.eval()(torch.randn(2, *shape)).shape == (2, 5)
    with torch.device("meta"):
        lean = build_whole(arch, 5, shape)
    same = {name: tensor.shape for name, tensor in lean.state_dict().items()}
    assert same == {name: tensor.shape for name, tensor in network.state_dict().items()}
    assert {tensor.device.type for tensor in lean.state_dict().values()} == {"meta"}


def test_what_no_weights_file_holds_is_never_left_on_meta() -> None:
    with torch.device("meta"):
        network = build_whole("timm:levit_128s", 4, (3, 32, 32))
    assert {tensor.device.type for tensor in [*network.buffers(), *network.parameters()]} == {"cpu"}


def test_one_channel_is_the_sum_of_three() -> None:
    torch.manual_seed(0)
    grey = build_whole("torchvision:resnet18", 3, (1, 32, 32)).eval()
    torch.manual_seed(0)
    coloured = build_whole("torchvision:resnet18", 3, (3, 32, 32)).eval()
    images = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(grey(images), coloured(images.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_a_factory_is_told_what_the_data_are(own: str) -> None:
    network = build_whole(f"{own}:make_net", 3, (1, 8, 8), "width=4")
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 3) and network[0].out_channels == 4  # type: ignore[index]
    assert build_whole(f"{own}:fixed", 3, (1, 8, 8))(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    kinds = {type(build_whole(f"{own}:Gives", 4, (3, 8, 8), "what=more")) for _ in range(2)}
    assert len(kinds) == 1, "a file is imported once"
    assert str(Path(own).parent) not in sys.path
    handed = build_whole(
        "nobody.knows:it", 3, (3, 8, 8), factory=lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    )
    assert handed(torch.zeros(1, 3, 8, 8)).shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("boom", "", "boom() raised KeyError: 'x'"),
        ("three", "", "three must give a torch.nn.Module, got int"),
        ("nope", "", " nope is not in it; it has Two, Gives, Aux, make_net, fixed, boom, three"),
        ("made", "", " made is no function or class that makes a network; it has Two, Gives, Aux, make_net, fixed, boom, three"),
        ("make_net", "depth=3", "make_net does not take depth; it takes num_classes, width, in_chans"),
        ("Two", "", "Two: its forward needs images, sizes; wmlc gives a network images alone"),
        ("Gives", "what=tuple", "Gives must give logits [N, classes], got a tuple; it is no classifier as it stands: if the logits are in there, wrap it in a module whose forward returns them"),
        ("Gives", "what=map", "Gives must give logits [N, classes], got [N, 4, 8, 8] for N images; it is no classifier"),
        ("Aux", "what=more", "Aux gives a tuple in training, as auxiliary heads do; leave them out, as --arch-args aux_logits=false does for some, or wrap it in a module whose forward returns the logits alone"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_factory_is_a_line(own: str, name: str, args: str, message: str) -> None:
    assert refused(f"{own}:{name}", args=args) == f"{own}:{message}"


def test_what_cannot_be_imported_is_a_line(own: str) -> None:
    broken = Path(own).with_name("broken.py")
    assert refused(f"{broken}:f") == f"importing {broken} raised ModuleNotFoundError: No module named 'no_such_thing'"
    assert refused("gone.py:f") == "there is no file gone.py; write --arch FILE.py:FACTORY"
    assert refused("gone.for.good:f").startswith(
        "there is no module 'gone.for.good' here; --arch takes FILE.py:FACTORY, "
    )


@pytest.mark.parametrize(
    ("arch", "args", "message"),
    [
        ("torchvision:resnet18x", "", "torchvision has no network 'resnet18x'; nearest are resnet18, resnet152, resnet101; 'wmlc list --networks TEXT' searches them"),
        ("torchvision:fcn_resnet50", "", "torchvision:fcn_resnet50 is no image classifier; 'wmlc list --networks TEXT' finds some"),
        ("torchvision:resnet18", "depth=3", "torchvision:resnet18 does not take depth; it takes block, layers, num_classes, "),
        ("torchvision:resnet18", "num_classes=7", "torchvision:resnet18 gives 7 outputs, and the data have 3 classes; check arch_args"),
        ("torchvision:alexnet", "", "torchvision:alexnet cannot take images of 3 x 8 x 8 (channels, height, width): RuntimeError: "),
        ("timm:resnet10", "", "timm has no network 'resnet10'; nearest are "),
        ("timm:hf-hub:somebody/network", "", "timm has no network "),
        ("timm:resnet10t.mine", "", "timm:resnet10t has no tag 'mine'; its tags are c3_in1k"),
        ("timm:resnet10t", "foo=1", "timm:resnet10t does not take foo; it takes block, layers, num_classes, "),
    ],
)  # fmt: skip
def test_what_torchvision_or_timm_does_not_have_is_a_line(arch: str, args: str, message: str) -> None:
    assert refused(arch, args=args).startswith(message)


def test_without_timm_a_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert refused("timm:resnet10t") == "timm is not installed; pip install 'wmlc[timm]'"


def test_settings_and_recipes_run_nobodys_code(tmp_path: Path) -> None:
    for given, message in (
        ({"arch_args": "depth=3"}, "resnet20 is built in and takes no arguments; leave out arch_args"),
        ({"start_classes": "imagenet"}, "start_classes names the classes of a start; pass start with it"),
        ({"arch": "timm:"}, "arch must be a built-in name, torchvision:NAME, timm:NAME, FILE.py:FACTORY or "),
    ):
        with pytest.raises(InputError) as caught:
            settle(given)
        assert str(caught.value).startswith(message)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("arch: net.py:make\nseed: 3\n")
    with pytest.raises(InputError) as caught:
        choose_config(str(recipe), {"seed": 4})
    assert str(caught.value) == (
        f"{recipe} names code of yours, which runs only if you name it too; pass --arch net.py:make, or to a sweep "
        "--set arch=net.py:make"
    )
    for arch in ("net.py:make", "other.py:make", "resnet20"):
        config = choose_config(str(recipe), {"arch": arch})
        assert (config.arch, config.seed) == (arch, 3)


def test_a_head_is_found_and_replaced() -> None:
    network = build_whole("torchvision:squeezenet1_1", 6, (3, 32, 32)).eval()
    assert classifier_of(network, (3, 32, 32)) == "classifier.1"
    images = torch.randn(2, 3, 32, 32)
    assert new_head(network, "classifier.1", 9)(images).shape == (2, 9) and network.num_classes == 9
    assert type(network.get_submodule("classifier.1")) is nn.Conv2d
    with pytest.raises(InputError, match=r"^no Linear or Conv2d of the network makes its 192 outputs"):
        classifier_of(nn.Sequential(nn.Flatten()), (3, 8, 8))


def test_trained_weights_say_how_they_want_their_pixels() -> None:
    resnet, inception, vit = (
        own_pixels(name) for name in ("resnet18", "torchvision:inception_v3", "timm:vit_tiny_patch16_224")
    )
    assert resnet is not None and inception is not None and vit is not None
    assert (resnet.mean, resnet.size, resnet.interpolation, resnet.crop) == (
        (0.485, 0.456, 0.406),
        (224, 224),
        "bilinear",
        0.875,
    )
    assert (inception.mean, inception.size, vit.interpolation, vit.crop) == (
        (0.5, 0.5, 0.5),
        (299, 299),
        "bicubic",
        0.9,
    )
    assert own_pixels("resnet20") is own_pixels("net.py:make") is None


def test_names_are_searched() -> None:
    found = CliRunner().invoke(main, ["list", "--networks", "ResNet 18", "--json"])
    first, second, *others = json.loads(found.output)
    assert first == {"network": "resnet18", "from": "built in", "params": None, "pretrained": True}
    assert second == {"network": "torchvision:resnet18", "from": "torchvision", "params": 11689512, "pretrained": True}
    assert {"network": "timm:resnet18d", "from": "timm", "params": None, "pretrained": True} in others
    tagged = CliRunner().invoke(main, ["list", "--networks", "resnet10t."]).output.split("\n")
    assert [line.split() for line in tagged[:2]] == [
        ["network", "from", "params", "pretrained"],
        ["timm:resnet10t.c3_in1k", "timm", "yes"],
    ]
    near = CliRunner().invoke(main, ["list", "--networks", "resnt18"]).output
    assert "no network has 'resnt18' in its name; these are nearest" in near and "\nresnet18 " in near
    assert CliRunner().invoke(main, ["list", "--networks", "§§"]).output.startswith("no network has that in its name")
