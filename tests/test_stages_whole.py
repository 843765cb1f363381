"""What a network does in training, and what its statements write, is not lost by taking it apart. Takes 2 s."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hand_networks import SHAPE
from test_stages import EXAMPLE, Deep, InPlace, images, made
from torch import Tensor, nn

from wmlc.arch import whole_name
from wmlc.compress.widths.cut import cut_channels
from wmlc.compress.widths.proof import read_channels
from wmlc.models.stages import split
from wmlc.models.widths import cut_to, difference


def residual(x: Tensor, y: Tensor) -> Tensor:
    y.add_(x)
    return y


def relu(x: Tensor, y: Tensor) -> Tensor:
    F.relu(y, inplace=True)
    return y


@pytest.mark.parametrize("step", [residual, relu])
def test_a_statement_that_writes_into_a_tensor_is_a_step(step: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Nothing takes its result, but what it wrote."""

    class Statements(InPlace):
        def forward(self, x: Tensor) -> Tensor:
            x = self.convs[0](x)
            for layer in self.convs[1:]:
                x = step(x, layer(x))
            return self.fc(x.mean((2, 3)))

    whole = made(Statements).eval()
    staged = split(whole, EXAMPLE)
    with torch.no_grad():
        assert staged.note is None and torch.equal(staged.network(images()), whole(images()))


class Noisy(Deep):
    def forward(self, images: Tensor, flag: bool = False) -> Tensor:
        return super().forward(images + torch.randn_like(images) if self.training else images)


class DropsInTraining(Deep):
    def forward(self, images: Tensor, flag: bool = False) -> Tensor:
        maps = self.blocks(self.stem(images))
        return self.fc(F.dropout(maps, 0.5).mean((2, 3)) if self.training else maps.mean((2, 3)))


class Frozen(Deep):
    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.blocks.eval()
        return self


class Unfrozen(Deep):
    """Its train() does what any does, as that of Hugging Face's models."""

    def train(self, mode: bool = True) -> Unfrozen:
        super().train(mode)
        return self


class Conditional(Deep):
    """It asks for types and sizes that no image changes, and so goes one way."""

    def forward(self, images: Tensor, flag: bool = False) -> Tensor:
        if images.dtype != self.stem.weight.dtype or self.stem(images).shape[1] != 8:
            raise ValueError("what it was not made for")
        return super().forward(images)


class Counting(Deep):
    """Its way hangs on how many images there are."""

    def forward(self, images: Tensor, flag: bool = False) -> Tensor:
        return super().forward(images if images.shape[0] > 1 else images.clone())


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Counting()

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)


def test_why_nothing_can_be_shared_is_what_stopped_the_module_inside() -> None:
    note = split(made(Wrapped), EXAMPLE).note
    assert note and note.startswith("nothing can be shared: net cannot be traced (symbolically traced variables")


class Auxiliary(Deep):
    """More answers in training, as GoogLeNet's."""

    def forward(self, images: Tensor, flag: bool = False) -> Tensor:
        maps = self.blocks(self.stem(images))
        logits = self.fc(F.dropout1d(maps.mean((2, 3)), 0.5, self.training))
        return (logits, self.fc(maps.amax((2, 3)))) if self.training else logits  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Noisy, "its code does other things in training than in eval mode"),
        (DropsInTraining, "its code does other things in training than in eval mode"),
        (Frozen, "the train() of Frozen does more than set the mode"),
        (Unfrozen, None),
        (Conditional, None),
        (Auxiliary, None),
    ],
)
def test_what_is_another_network_in_training_is_not_taken_apart(kind: type[nn.Module], why: str | None) -> None:
    staged = split(made(kind), EXAMPLE)
    assert staged.note == (why and f"nothing can be shared: the network cannot be traced ({why})")


def test_a_weight_that_two_layers_share_is_in_one_stage() -> None:
    class Tied(InPlace):
        def __init__(self) -> None:
            super().__init__()
            self.convs[4].weight = self.convs[1].weight

    whole = made(Tied).eval()
    staged = split(whole, EXAMPLE)
    holders = [name for name, stage in staged.network.named_children()
               if any(own is whole.convs[1].weight for own in stage.parameters())]  # fmt: skip
    assert staged.note is None and len(holders) == 1
    with torch.no_grad():
        assert torch.equal(staged.network(images()), whole(images()))


class Numbered(InPlace):
    """Its own code lays images out by a number that it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.width = self.convs[0].out_channels

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.convs[0](x)).reshape(len(x), self.width, 2, -1).flatten(2).unflatten(2, x.shape[2:])
        for layer in self.convs[1:]:
            x = F.relu(layer(x))
        return self.fc(x.mean((2, 3)))


def test_a_number_that_the_networks_own_code_takes_gets_smaller_in_its_stages_too() -> None:
    whole = made(Numbered).eval()
    staged = split(whole, EXAMPLE)
    assert type(whole.width) is int
    graph = read_channels(staged.network, SHAPE)
    numbers = [number for group in graph.groups for number in group.attributes]
    assert not graph.left_whole and [(number.name, number.each) for number in numbers] == [("width", 1)]
    kept = {group.root: torch.arange(group.units // 2) for group in graph.groups}
    cut = cut_channels(staged.network, graph.groups, kept).eval()
    widths = difference(staged.network, cut, whole_name)
    assert widths[""] == {"width": whole.width // 2}
    again = cut_to(made(Numbered), widths).eval()
    again.load_state_dict({whole_name(name): tensor for name, tensor in cut.state_dict().items()})
    assert torch.equal(again(images()), cut(images()))
