"""A training loop that does not wait for the device: what it reads, and when. Takes 20 s."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from training import assert_same_weights, train

from wmlc.compress.learn import train as loop
from wmlc.compress.learn import watch
from wmlc.compress.learn.place import Device
from wmlc.compress.learn.watch import Watch
from wmlc.errors import InputError
from wmlc.models.factory import CALLERS_ARCH

CPU = Device("cpu", bf16=False)
READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__")
STEPS = 200
SMALL_NETWORK = """
from torch import nn
def block(into, out, stride):
    return nn.Sequential(nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())
def make(num_classes):
    blocks = block(1, 8, 1), block(8, 16, 1), block(16, 16, 2), block(16, 16, 1)
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))
"""


@pytest.fixture
def small_arch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "small.py").write_text(SMALL_NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(CALLERS_ARCH, "")  # given back afterwards
    return "small.py:make"


@pytest.fixture
def now_and_then(monkeypatch: pytest.MonkeyPatch) -> int:
    """Steps between two reads, on a CPU as on a GPU."""
    monkeypatch.setattr(watch, "READ_EVERY", {"cpu": 50})
    return 50


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the calls that read a tensor, as they are made."""
    found: list[str] = []
    for name in READS:
        read = getattr(Tensor, name)

        def counted(tensor: Tensor, *args: Any, name: str = name, read: Any = read, **kwargs: Any) -> Any:
            found.append(name)
            return read(tensor, *args, **kwargs)

        monkeypatch.setattr(Tensor, name, counted)
    return found


@pytest.mark.parametrize("start", [False, True], ids=["from nothing", "from a start"])
def test_two_hundred_steps_read_the_device_four_times(
    start: bool, small_arch: str, now_and_then: int, reads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With weights by the bilevel problem; what is read before the first step, or at an epoch's end, does not count.

    From a start its answers and its channels teach, and the gradient is clipped.
    """
    in_steps, objective, evaluate = list[list[str]](), loop.objective, loop.evaluate

    def from_here(*args: Any) -> Any:
        reads.clear()
        return objective(*args)

    def first_evaluation(*args: Any) -> Any:
        in_steps.append(list(reads))
        return evaluate(*args)

    monkeypatch.setattr(loop, "objective", from_here)
    monkeypatch.setattr(loop, "evaluate", first_evaluation)
    small: dict[str, Any] = {"arch": small_arch, "batch_size": 2, "baseline": False, "epochs": 1}
    own: dict[str, Any] = {"ratios": (0.5, 0.0)}
    if start:
        first = train(tmp_path / "start", **small, method="independent", ratios=(0.0,), train_images=20)
        own = {"start": str(first.network(1)), "ratios": (0.5, 0.3), "clip": 1.0}
        in_steps.clear()
    train(tmp_path / "run", **small, **own, reweigh_every=40, warmup_epochs=0.5, train_images=round(STEPS * 2 / 0.9))
    assert in_steps[0] == ["tolist"] * (STEPS // now_and_then)


def losses(values: list[float], of: Watch) -> None:
    for value in values:
        of.stepped(torch.tensor(value), 0.1)


def test_the_mean_is_over_all_steps(now_and_then: int) -> None:
    own = Watch(0, CPU)
    losses([float(step) for step in range(120)], own)
    assert own.mean() == pytest.approx(59.5)


@pytest.mark.parametrize("place", [0, 49, 50, 103])
def test_the_first_bad_step_is_named_though_it_is_seen_later(place: int, now_and_then: int) -> None:
    def end() -> None:
        own = Watch(2, CPU)
        losses([float("nan") if step >= place else 1.0 for step in range(104)], own)
        own.mean()

    assert words(end) == f"the loss became nan in epoch 3, step {place + 1}, at lr 0.1; " + (
        "lower --lr, raise --warmup-epochs or pass --clip 1, with --force to train anew"
    )


def test_a_gradient_of_weights_that_is_not_finite_is_named_before_the_loss_that_follows(now_and_then: int) -> None:
    def end() -> None:
        own = Watch(0, CPU)
        losses([1.0] * 60, own)
        own.reweighed(torch.tensor([1.0, 2.0]))
        losses([1.0], own)
        own.reweighed(torch.tensor([float("inf"), 2.0]))
        losses([1.0, float("nan")], own)
        own.mean()

    assert words(end).startswith("the gradient of the peer weights is not finite in epoch 1, step 62, at lr 0.1")


def words(of: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as error:
        of()
    return str(error.value)


def test_compiled_a_step_is_one_graph_made_once(
    small_arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and loss, through the joins of a tree, over two epochs and their updates of ω; by torch's tracer alone."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    settings: dict[str, Any] = {"arch": small_arch, "ratios": (0.5, 0.0), "baseline": False, "device": "cpu"}
    torch._dynamo.reset()
    counters.clear()
    compiled = train(tmp_path / "compiled", compile=True, **settings)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"], counters
    eager = train(tmp_path / "eager", **settings)
    for peer in (1, 2):
        assert_same_weights(compiled.network(peer), eager.network(peer))
