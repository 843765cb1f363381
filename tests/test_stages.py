"""Any network as a sequence of stages: the same numbers, names, gradients and randomness as the network itself."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hand_networks import SHAPE, Hand, conv, hand_network
from torch import Tensor, nn

from wmlc.arch import whole_name
from wmlc.errors import InputError
from wmlc.models.cost import total_cost
from wmlc.models.exits import end_at_exit, exit_stages
from wmlc.models.stages import split
from wmlc.records import StageCuts

EXAMPLE = torch.zeros(1, *SHAPE)


class Block(nn.Module):
    """Residual, with batch norm and dropout written as a function."""

    def __init__(self, into: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.one, self.norm, self.two = conv(into, out, stride=stride), nn.BatchNorm2d(out), conv(out, out)
        self.skip = conv(into, out, 1, stride=stride) if into != out or stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.skip(x) + self.two(F.dropout(F.relu(self.norm(self.one(x))), 0.2, self.training)))


class Deep(nn.Module):
    """Four blocks, a pool written as a function, and dropout before the classifier."""

    def __init__(self, extra: bool = False) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.blocks = nn.Sequential(Block(8, 8), Block(8, 12, 2), Block(12, 12), Block(12, 16, 2))
        self.fc = nn.Linear(16, 5)
        if extra:
            self.auxiliary = nn.Linear(16, 5)

    def forward(self, images: Tensor, flag: bool = False) -> Tensor:
        maps = self.blocks(self.stem(images))
        features = F.dropout(maps.mean((2, 3)), 0.5, self.training)
        return -self.fc(features) if flag else self.fc(features)


class InPlace(nn.Module):
    """Each part begins with something that writes into what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv(3 if k == 0 else 8, 8) for k in range(5))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.convs:
            x = layer(F.relu(x, inplace=True))
        return self.fc(x.mean((2, 3)))


class Sizes(Hand):
    """How many images there are is asked early, and used late."""

    def __init__(self) -> None:
        super().__init__(8 * 64)
        self.b, self.c = conv(8, 8), conv(8, 8)

    def forward(self, images: Tensor) -> Tensor:
        count, _, height, width = images.shape
        maps = F.relu(self.c(F.relu(self.b(F.relu(self.a(images))))))
        return self.fc(maps.view(count, 8 * height * width))


class Weird(Hand):
    """Its way depends on what is in the images, so that nothing can follow it."""

    def body(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Everywhere(Hand):
    """All data never flows through one tensor before the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.c = conv(8, 8), conv(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.b(self.a(images)).mean((2, 3))) + self.c(F.relu(self.a(images))).mean((2, 3))


KINDS: dict[str, Callable[[], nn.Module]] = {"deep": Deep, "in place": InPlace, "sizes": Sizes}


def made(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    network = kind()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 1.5)
    return network


def images(count: int = 3) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_in_a_row_are_the_whole(kind: str) -> None:
    network = made(KINDS[kind]).eval()
    staged = split(network, EXAMPLE)
    for count in (1, 3):  # one more than it was traced with
        before = images(count)
        assert torch.equal(staged.network.eval()(images(count)), network(before))
    assert staged.note is None and staged.unused == []
    assert list(dict(staged.network.named_children()))[-1] == "head"
    assert [name for name, _ in staged.network.get_submodule("head").named_children()] == ["features", "fc"]
    assert total_cost(staged.network, SHAPE) == total_cost(network, SHAPE)


@pytest.mark.parametrize("kind", KINDS)
def test_stages_hold_the_networks_own_modules_under_their_names(kind: str) -> None:
    network = made(KINDS[kind])
    staged = split(network, EXAMPLE).network
    own = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    theirs = {**dict(staged.named_parameters()), **dict(staged.named_buffers())}
    assert {whole_name(name) for name in theirs} == own.keys()
    assert all(tensor is own[whole_name(name)] for name, tensor in theirs.items()), "not copies"
    assert {whole_name(name) for name in staged.state_dict()} == network.state_dict().keys()
    assert {module for module in network.modules() if not list(module.children())} <= set(staged.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_and_batch_norms_statistics_are_the_wholes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = made(KINDS[kind]).train(), made(KINDS[kind]).train()
    staged = split(other, EXAMPLE).network
    assert other.training and staged.train().training
    labels = torch.tensor([0, 3, 1])
    monkeypatch.setattr(F, "dropout", lambda x, p=0.5, training=True, inplace=False: x)
    loss, again = (F.cross_entropy(network(images()), labels) for network in (one, staged))
    assert torch.equal(loss, again)
    loss.backward()
    again.backward()
    theirs = dict(staged.named_parameters())
    own = {whole_name(name): parameter for name, parameter in theirs.items()}
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter.grad, own[name].grad), name
    for name, buffer in one.named_buffers():
        assert torch.equal(buffer, dict(other.named_buffers())[name]), name


def test_dropout_that_is_written_as_a_function_drops_in_training_and_only_there() -> None:
    staged = split(made(Deep).eval(), EXAMPLE).network
    rates = sorted(module.p for module in staged.modules() if isinstance(module, nn.Dropout))
    assert rates.count(0.5) == 1, "the one outside of any block"
    fixed = staged.train()
    for module in fixed.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    torch.manual_seed(0)
    once, again = fixed(images()), fixed(images())
    assert not torch.equal(once, again)
    staged.eval()
    assert torch.equal(staged(images()), staged(images()))


def test_a_part_that_writes_into_what_it_is_given_works_on_a_copy() -> None:
    """Peers that share a trunk are all given its one output."""
    staged = split(made(InPlace).eval(), EXAMPLE).network
    now = images()
    for _, stage in list(staged.named_children())[:-1]:
        given = now
        kept = given.clone()
        now = stage(given)
        assert torch.equal(given, kept)


def test_whatever_mode_the_network_was_in_it_stays() -> None:
    network = made(Deep).train()
    network.get_submodule("blocks.1.norm").eval()
    split(network, EXAMPLE)
    assert network.training and not network.get_submodule("blocks.1.norm").training
    assert network.get_submodule("blocks.0.norm").training
    before = copy.deepcopy(network.state_dict())
    assert split(network, torch.randn(1, *SHAPE)).network.training
    assert not any(module.training for module in split(made(Deep).eval(), EXAMPLE).network.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_how_many_images_there_are_crosses_a_cut() -> None:
    network = made(Sizes).eval()
    staged = split(network, EXAMPLE)
    assert len(staged.network) > 2
    assert torch.equal(staged.network(images(7)), network(images(7)))


@pytest.mark.parametrize(("kind", "why"), [(Weird, "the network cannot be traced ("), (Everywhere, "all data flows through one tensor nowhere in the network")])  # fmt: skip
def test_a_network_without_a_cut_is_one_stage_and_says_why(kind: type[nn.Module], why: str) -> None:
    network = made(kind).eval()
    staged = split(network, EXAMPLE)
    assert [name for name, _ in staged.network.named_children()] == ["head"]
    assert staged.note is not None and staged.note.startswith(f"nothing can be shared: {why}")
    assert "\n" not in staged.note
    assert staged.cuts == StageCuts(opened=[], cuts={}) and staged.unused == []
    assert torch.equal(staged.network(images()), network(images()))
    assert {whole_name(name) for name in staged.network.state_dict()} == network.state_dict().keys()
    again = split(made(kind).eval(), EXAMPLE, staged.cuts)
    assert torch.equal(again.network(images()), network(images()))


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_cuts_give_the_same_stages(kind: str) -> None:
    first = split(made(KINDS[kind]).eval(), EXAMPLE)
    again = split(made(KINDS[kind]).eval(), EXAMPLE, first.cuts)
    assert again.cuts == first.cuts and again.ends == first.ends
    assert list(again.network.state_dict()) == list(first.network.state_dict())
    assert torch.equal(again.network(images()), first.network(images()))


@pytest.mark.parametrize(
    "cuts",
    [
        {"stem": "nowhere"}, {"stem": "blocks_0", "stage1": "blocks_0"}, {"stem": "blocks_1", "stage1": "blocks_0"},
        {"stage1": "blocks_0", "stem": "blocks_1"}, {"head": "stem"}, {"features": "blocks_0", "stage4": "blocks_1"},
        {"a.b": "stem"}, {"": "stem"}, {"forward": "stem"}, {"__class__": "stem"}, {"stem": ""}, {"x" * 9000: "stem"},
    ],
)  # fmt: skip
def test_cuts_of_another_network_are_refused(cuts: dict[str, str]) -> None:
    with pytest.raises(InputError) as caught:
        split(made(Deep), EXAMPLE, StageCuts(opened=["", "blocks"], cuts=cuts))
    assert str(caught.value).startswith("the network has no cuts ") and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_modules_that_are_not_there_open_nothing() -> None:
    network = made(Deep).eval()
    staged = split(network, EXAMPLE, StageCuts(opened=["", "gone", "__init__", "blocks.7"], cuts={"stem": "stem"}))
    assert torch.equal(staged.network(images()), network(images()))


def test_stages_end_at_about_equal_shares_of_the_macs() -> None:
    """Of eight blocks that cost the same the second, fourth and sixth end a stage."""

    class Even(Hand):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(*[nn.Sequential(conv(8, 8), nn.ReLU()) for _ in range(8)])

        def body(self, x: Tensor) -> Tensor:
            return self.blocks(x)

    staged = split(made(Even), EXAMPLE)
    assert staged.cuts.opened == ["", "blocks"], "a block that ends with a cut stays one step"
    assert staged.ends == {
        "stem": "a", "stage1": "blocks.1", "stage2": "blocks.3", "stage3": "blocks.5", "stage4": "blocks.7", "head": "fc",
    }  # fmt: skip


def test_what_has_no_part_in_the_forward_pass_is_named() -> None:
    network = made(lambda: Deep(extra=True)).eval()
    staged = split(network, EXAMPLE)
    assert staged.unused == ["auxiliary.weight", "auxiliary.bias"]
    assert torch.equal(staged.network(images()), network(images()))


def test_forward_mode_gradients_through_the_stages_are_finite_differences() -> None:
    """The outer problem asks for the derivative of the logits along a direction of the weights."""
    staged = split(made(Deep).double().eval(), EXAMPLE.double()).network
    parameters = {name: parameter.detach() for name, parameter in staged.named_parameters()}
    torch.manual_seed(2)
    along = {name: torch.randn_like(parameter) for name, parameter in parameters.items()}
    given = images().double()

    def logits(step: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(staged, step, (given,))

    _, tangent = torch.func.jvp(logits, (parameters,), (along,))
    by, ends = 1e-6, []
    for sign in (1, -1):
        ends.append(logits({name: value + sign * by * along[name] for name, value in parameters.items()}))
    torch.testing.assert_close(tangent, (ends[0] - ends[1]) / (2 * by), rtol=1e-6, atol=1e-6)


def test_a_split_network_can_be_copied_and_cut_at_an_exit() -> None:
    network = made(Deep).eval()
    staged = split(network, EXAMPLE).network
    assert torch.equal(copy.deepcopy(staged)(images()), network(images()))
    exited = end_at_exit(staged, 1, SHAPE).eval()
    assert [name for name, _ in exited.named_children()][-2:] == [exit_stages(staged)[0], "head"]
    assert exited(images()).shape == (3, 5)


def test_a_networks_attention_splits() -> None:
    network = hand_network("attention")
    staged = split(network, EXAMPLE)
    assert torch.equal(staged.network(images()), network(images())) and len(staged.network) >= 3


class Roots(InPlace):
    """No numbers for pixels below 0, as noise has them."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.sqrt())


def test_a_network_that_gives_no_numbers_for_noise_is_taken_apart_all_the_same() -> None:
    assert split(made(Roots).eval(), EXAMPLE).network(EXAMPLE.abs()).isfinite().all()
