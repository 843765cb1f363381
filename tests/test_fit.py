"""The training loop on a toy: its steps, weights and rates against loops by hand, and which epoch is kept."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from toy_family import BATCH, STEPS, Parameters, ToyData, gradients, papers_gradient, parameters_of, toy_family

from wmlc.compress import phase, save
from wmlc.compress.config import settle
from wmlc.compress.learn import train as loop
from wmlc.compress.learn.family import PeerFamily
from wmlc.compress.learn.losses import wml_losses
from wmlc.compress.learn.place import Device
from wmlc.compress.learn.reweigh import mirror_step
from wmlc.compress.learn.spending import Spending
from wmlc.compress.learn.state import TrainState
from wmlc.compress.learn.train import evaluate, fit, lr_factor, make_optimizer
from wmlc.console import LongWork
from wmlc.records import Branch, Epoch
from wmlc.run import Run
from wmlc.settings import TrainConfig

CPU = Device("cpu", bf16=False)
OMEGA = [0.2, 0.8]
NOBODY: Any = None
HARD = {
    "ratios": (0.5, 0.3), "epochs": 2, "batch_size": BATCH, "lr": 0.3, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1,
    "warmup_epochs": 0.75, "alpha": 0.3, "temperature": 2.0, "reweigh_every": 2, "weight_lr": 2.0,
}  # fmt: skip


def by_hand(family: PeerFamily, data: ToyData, config: TrainConfig) -> Iterator[tuple[Parameters, Tensor]]:
    """The parameters and ω after each step down P · Σ_i ω_i ℓ_i, by SGD's own formulae."""
    at, omega_P = parameters_of(family), torch.tensor(OMEGA)
    velocity = {name: torch.zeros_like(own) for name, own in at.items()}
    for step, (images, labels_B) in enumerate(data.train):
        lr = config.lr * lr_factor(config.schedule, step / STEPS, config.epochs, config.warmup_epochs or 0.0)
        at = {name: own.detach().requires_grad_() for name, own in at.items()}
        logits_PBC = functional_call(family, at, (images,))
        losses_P = wml_losses(logits_PBC, labels_B, config.alpha or 0.0, config.temperature or 0.0)
        down = gradients(2 * (omega_P @ losses_P), at)
        norm = torch.cat([own.flatten() for own in down.values()]).norm().item()
        share = 1.0 if config.clip is None else min(1.0, config.clip / norm)
        down = {name: share * own for name, own in down.items()}
        if (step + 1) % 2 == 0:
            move = {name: lr * own for name, own in down.items()}
            held_out = data.held_out[(step + 1) // 2]
            gradient_P = papers_gradient(family, at, losses_P, move, held_out, omega_P, rate=lr * 2 * share)
            omega_P = mirror_step(omega_P, gradient_P, config.weight_lr or 0.0)
        for name, own in at.items():
            pull = down[name] + config.weight_decay * own
            velocity[name] = config.momentum * velocity[name] + pull
            at[name] = own - lr * (pull + config.momentum * velocity[name] if config.nesterov else velocity[name])
        yield {name: own.detach() for name, own in at.items()}, omega_P.detach()


@pytest.mark.parametrize(
    "how", [{"clip": 0.05}, {"clip": 100.0}, {"schedule": "step", "nesterov": False}], ids=["clipped", "loose", "plain"]
)
def test_each_step_is_that_of_sgd_by_hand(how: dict[str, Any]) -> None:
    """A peer's loss counts by its weight, which every second step moves, before the network steps."""
    family, data, config = toy_family(), ToyData(), settle({**HARD, **how})
    expected = list(by_hand(family, data, config))
    steps: list[Parameters] = []
    epochs: list[Epoch] = []
    fit(
        family, make_optimizer(family, config), data, config, TrainState("family", OMEGA), CPU, None,
        Spending(BATCH, BATCH, 1, cadence=2), epochs.append,
        lambda *_: steps.append({name: own.detach() for name, own in parameters_of(family).items()}),
    )  # fmt: skip
    assert len(steps) == len(expected) == 4 and len(epochs) == 2
    for got, (parameters, _) in zip(steps, expected, strict=True):
        torch.testing.assert_close(got, parameters)
    for epoch, (_, omega_P) in zip(epochs, expected[1::2], strict=True):
        torch.testing.assert_close(torch.tensor(epoch.peer_weights), omega_P, rtol=1e-5, atol=0)
        assert abs(epoch.peer_weights[0] - OMEGA[0]) > 1e-3
    assert data.asked == [(BATCH, 1), (BATCH, 2)]


def test_the_weights_of_the_best_epoch_are_kept_and_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of those that are best; by the mean over peers."""
    scores = iter([(90.0, 30.0), (70.0, 90.0), (90.0, 70.0), (40.0, 60.0)])
    after: list[tuple[dict[str, Tensor], list[float]]] = []

    def scored(family: PeerFamily, batches: Any, weight_P: Tensor, device: Device) -> Any:
        after.append((copy.deepcopy(family.state_dict()), weight_P.tolist()))
        return list(next(scores)), (50.0, 50.0)

    monkeypatch.setattr(loop, "evaluate", scored)
    monkeypatch.setattr(phase, "_keeper", lambda *_: contextlib.nullcontext())
    family, config = toy_family(), settle({**HARD, "epochs": 4})
    state = phase.train_phase(
        Run(tmp_path), "baseline", family, NOBODY, config, ToyData(4), CPU, False,
        LongWork(1.0, lambda *_: None),
    )  # fmt: skip
    (second, weights), (last, _) = after[1], after[3]
    assert (state.best_epoch, state.best_top1, state.epoch) == (2, 80.0, 4)
    assert state.best_peer_weights == weights != state.peer_weights
    torch.testing.assert_close(dict(family.state_dict()), dict(second), rtol=0, atol=0)
    assert not any(torch.equal(own, last[name]) for name, own in second.items())


def test_the_ensemble_is_weighed_and_the_average_is_not() -> None:
    """Peer 1 says class 0 by a margin of 1, peer 2 class 1 by 2: at 9 : 1 the first has its way."""
    heads: dict[str, nn.Module] = {}
    for peer, says in enumerate(([1.0, 0.0], [0.0, 2.0]), 1):
        last = nn.Linear(4, 2)
        last.weight.data.zero_()
        last.bias.data = torch.tensor(says)
        heads[f"head_of_{peer}"] = nn.Sequential(nn.Flatten(), last)
    family = PeerFamily([Branch(name, "head", (peer,), None) for peer, name in enumerate(heads, 1)], heads)
    batches = [(torch.zeros(len(labels), 4), torch.tensor(labels)) for labels in ([0], [0, 1, 0])]
    assert evaluate(family, batches, torch.tensor([0.9, 0.1]), CPU) == ([75.0, 25.0], (75.0, 25.0))
    assert not family.training


def test_answers_that_are_no_numbers_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    family = toy_family()
    images = torch.zeros(4, 4)
    images[1] = torch.nan
    evaluate(family, [(images, torch.zeros(4, dtype=torch.int64))], torch.tensor([0.5, 0.5]), CPU)
    assert "25 % of the images get no finite logits from some peer: it has diverged" in capsys.readouterr().err


def test_a_warm_up_takes_half_of_a_short_training_at_most() -> None:
    at = [lr_factor("cosine", done, epochs=1, warmup_epochs=1.0) for done in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert at == pytest.approx([0.01, 0.5, 1.0, 0.5, 0.0])
    assert lr_factor("one-cycle", 0.0, epochs=1, warmup_epochs=1.0) == pytest.approx(0.04)


def test_processes_take_the_mean_of_statistics_and_counts_of_the_first() -> None:
    """As of a block that is left out at random, whose counts differ."""
    met: dict[str, list[Tensor]] = {}
    ranks: Any = SimpleNamespace(
        count=1, mean_=lambda own: met.update(mean=own), take_of_first=lambda own: met.update(first=own)
    )
    family: Any = nn.BatchNorm2d(2)
    loop._join(family, replace(CPU, ranks=ranks))
    assert [own is buffer for own, buffer in zip(met["mean"], (family.running_mean, family.running_var), strict=True)]
    assert len(met["first"]) == 1 and met["first"][0] is family.num_batches_tracked


@pytest.mark.parametrize("room", [save.save_peers, save.save_baseline])
def test_what_is_reported_of_a_network_is_computed_as_it_is_saved(
    room: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, whatever it was trained in."""
    asked = list[bool]()

    def evaluated(family: Any, batches: Any, weights: Any, device: Device) -> None:
        asked.append(device.bf16)
        raise KeyboardInterrupt

    monkeypatch.setattr(save, "evaluate", evaluated)
    prepared = SimpleNamespace(family=SimpleNamespace(peers=1), scored=None)
    data = SimpleNamespace(record=SimpleNamespace(small=True), test_batches=lambda size: [])
    state = SimpleNamespace(best_peer_weights=[1.0])
    given: dict[str, Any] = {"run": None, "prepared": prepared, "config": None, "data": data, "state": state}
    given |= {"peers": []} if room is save.save_peers else {"alone": None}
    with pytest.raises(KeyboardInterrupt):
        room(**given, device=Device("cpu", bf16=True))
    assert asked == [False]
