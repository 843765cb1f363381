"""What training costs in MACs: by hand, by a loop, as recorded, and alike for methods that shall cost the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
from test_teacher import from_start
from toy_family import ToyData, toy_family
from training import SMALL

from wmlc.compress import rate
from wmlc.compress.begin import open_for_start
from wmlc.compress.config import settle, untaught
from wmlc.compress.finetune import as_long_as, fine_tuning, planned_macs, spending_of
from wmlc.compress.learn.family import family_of_one
from wmlc.compress.learn.place import Device
from wmlc.compress.learn.spending import Spending
from wmlc.compress.learn.train import epochs_of, lr_factor, steps_of
from wmlc.compress.prepare import Prepared, prepare, settle_teacher, trained_peers
from wmlc.data import Data
from wmlc.effort import epochs_of_unpruned
from wmlc.errors import InputError
from wmlc.models.checkpoint import read_spec
from wmlc.models.cost import total_cost
from wmlc.models.zoo import build_network
from wmlc.records import RateTrial
from wmlc.report.runs import read_runs
from wmlc.run import BASELINE, Run, read_config, read_epochs, read_family
from wmlc.settings import TrainConfig

CPU = Device("cpu", bf16=False)
BATCH = SMALL["batch_size"]
HELD_OUT = 26  # images of 260
STEPS = (260 - HELD_OUT) // BATCH  # an epoch


# --- by hand


def test_steps_by_hand() -> None:
    spending = Spending(batch_size=10, held_out=4, trained=100, teacher=30)
    assert spending.step() == 10 * (3 * 100 + 30) and spending.step(taught_anew=False) == 10 * 3 * 100
    assert spending.reweighing == 100 * (3 * 4 + 3 * 10)
    assert spending.forward(7) == 7 * 10 * 100
    # of five steps the first two are taught, and the second and the fourth weigh anew
    spending = dataclasses.replace(spending, taught=2, cadence=2)
    assert spending.until(5) == 5 * 3000 + 2 * 300 + 2 * 4200
    assert spending.until(0) == 0
    assert epochs_of_unpruned(3 * 200 * 50, full=200, images=50) == 1.0


@pytest.mark.parametrize(("taught", "cadence"), [(None, None), (3, 3), (None, 5)])
def test_affordable_steps_come_nearest(taught: int | None, cadence: int | None) -> None:
    spending = Spending(batch_size=2, held_out=1, trained=10, teacher=7, taught=taught, cadence=cadence)
    costs, spent = [0], 0
    for step in range(1, 40):
        spent += spending.step(taught is None or step <= taught)
        spent += spending.reweighing * (cadence is not None and step % cadence == 0)
        costs.append(spent)
    assert [spending.until(count) for count in range(40)] == costs
    for macs in range(0, costs[-1], 13):
        got = spending.affordable(macs)
        assert abs(costs[got] - macs) == min(abs(cost - macs) for cost in costs[1:])
    assert all(spending.affordable(cost) == count for count, cost in enumerate(costs[1:], 1))


# --- as recorded


def test_a_familys_cost_is_recorded_as_counted_by_hand(run: Run, tmp_path: Path) -> None:
    own = from_start(run, tmp_path / "run", ratios=(0.5, 0.3, 0.0), seed=4, epochs=2)
    family, epochs = read_family(own), read_epochs(own, "family")
    trained, full = family.peers[0].macs + family.peers[1].macs, family.full.macs  # they share nothing
    step = BATCH * (3 * trained + full)
    reweighing = trained * (3 * HELD_OUT + 3 * BATCH)
    # of the steps 1 to 6 every second one weighs anew: one of the first epoch, two of the second
    assert [epoch.training_macs for epoch in epochs] == [STEPS * step + reweighing, STEPS * step + 2 * reweighing]
    recalibrations = 2 * STEPS * BATCH * trained  # before the first step, and after the last
    assert family.training_macs == 2 * STEPS * step + 3 * reweighing + recalibrations
    assert family.baseline is not None and family.baseline.training_macs == 0  # the start, as it stands
    assert read_spec(own.network(BASELINE)).about.training_macs == 0
    (told,) = read_runs([own], with_bench=False)  # its epochs are of the cut peers alone
    assert [peer.peer for peer in told.trained_peers] == [1, 2]


def test_a_shared_stage_and_the_baseline_are_counted_once(run: Run) -> None:
    # the session's run: two peers from random weights, the tree, weights anew every second step
    family, config = read_family(run), read_config(run).settings
    full, cut = family.full.macs, family.peers[0].macs
    prepared = prepare(config, open_for_start(config, CPU)[1], CPU)
    trained = total_cost(prepared.family, (1, 8, 8)).macs
    shared = full + cut - trained
    assert 0 < shared < cut
    expected = 2 * STEPS * BATCH * 3 * trained + 3 * trained * 3 * (HELD_OUT + BATCH)
    assert family.training_macs == sum(epoch.training_macs or 0 for epoch in read_epochs(run, "family")) == expected
    assert family.baseline is not None
    assert family.baseline.training_macs == 2 * STEPS * BATCH * 3 * full


# --- steps


def test_steps_end_in_a_part_of_an_epoch_and_the_rate_at_0(run: Run, tmp_path: Path) -> None:
    own = from_start(run, tmp_path / "run", method="kd", ratios=(0.5,), steps=STEPS + 1, epochs=9, baseline=False)
    epochs, settings = read_epochs(own, "family"), read_config(own).settings
    assert len(epochs) == 2 == epochs_of(settings, STEPS) and steps_of(settings, STEPS) == STEPS + 1
    first, second = (epoch.training_macs for epoch in epochs)
    assert first == STEPS * (second or 0)
    # a cosine over four steps from a start, so without warm-up … but SMALL asks for half an epoch of it
    total = (STEPS + 1) / STEPS
    expected = [SMALL["lr"] * lr_factor("cosine", done, total, 0.5) for done in (1 - 1 / STEPS, 1.0)]
    assert [epoch.lr for epoch in epochs] == pytest.approx(expected)
    assert lr_factor("cosine", total, total, 0.5) == pytest.approx(0, abs=1e-12)


def test_more_steps_than_there_are_epochs_are_taken() -> None:
    config = settle({"start": "x", "epochs": 1, "steps": 7})
    assert steps_of(config, 3) == 7 and epochs_of(config, 3) == 3
    assert epochs_of(settle({"epochs": 5}), 3) == 5


# --- the same cost for all


@dataclass(frozen=True)
class Plan:
    """A method's settings, data and family before its first step."""

    config: TrainConfig
    data: Data
    prepared: Prepared

    @property
    def own(self) -> TrainConfig:
        return fine_tuning(self.config) if self.config.method == "prune-finetune" else self.config

    def macs(self) -> float:
        """Of the peers; and of the unpruned network, where the method trains that first."""
        spent = planned_macs(trained_peers(self.prepared.family, self.config), self.prepared, self.own, self.data)
        if self.config.method == "prune-finetune" and not self.prepared.trained:
            full = total_cost(family_of_one(self.prepared.full), self.data.record.input_shape).macs
            spent += self.config.epochs * STEPS * BATCH * 3 * full
        return spent

    def step(self) -> float:
        """The dearest one, with an update of the weights."""
        spending = spending_of(trained_peers(self.prepared.family, self.config), self.prepared, self.own, self.data)
        return spending.step() + spending.reweighing


def plan(**settings: Any) -> Plan:
    small = {name: value for name, value in SMALL.items() if name != "reweigh_every"}
    config = settle({**small, "ratios": (0.5, 0.3, 0.0), "epochs": 40, **settings})
    config, data = open_for_start(config, CPU)
    prepared = prepare(config, data, CPU)
    config = settle_teacher(config, prepared.made)
    return Plan(as_long_as(config, prepared, data, CPU), data, prepared)


@pytest.fixture(scope="module")
def wml(run: Run) -> Callable[..., Plan]:
    """What wml would take, from the start and from random weights."""
    plans: dict[str | None, Plan] = {}

    def of(start: str | None) -> Plan:
        if start not in plans:
            plans[start] = plan(start=start)
        return plans[start]

    return of


@pytest.mark.parametrize(
    ("start", "settings"),
    [
        (True, {"method": "kd", "as_long_as": "wml"}),
        (True, {"method": "dml", "as_long_as": "wml"}),
        (True, {"method": "prune-finetune"}),
        (False, {"method": "prune-finetune"}),
        (False, {"method": "independent", "as_long_as": "wml"}),
    ],
)
def test_equal_cost_is_within_a_step(
    start: bool, settings: dict[str, Any], run: Run, wml: Callable[..., Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    trained = str(run.root) if start else None
    theirs = wml(trained)
    capsys.readouterr()
    mine = plan(start=trained, **settings)
    assert mine.config.steps and mine.config.as_long_as == "wml"
    assert abs(mine.macs() - theirs.macs()) <= mine.step() / 2
    before = ", with the unpruned network's before them" if settings["method"] == "prune-finetune" and not start else ""
    epochs = mine.config.steps / STEPS
    said = f"{mine.config.steps:,} steps, {epochs:.2f} epochs, cost as much as 40 epochs of wml{before}\n"
    assert capsys.readouterr().out.endswith(said)
    assert settle(vars(mine.config)) == mine.config  # as a run that goes on reads them


def test_equal_cost_is_that_of_a_start_that_cannot_teach(tmp_path: Path) -> None:
    start = str(tmp_path / "seven.safetensors")
    safetensors.torch.save_file(build_network("resnet20", 7, (1, 8, 8)).state_dict(), start)
    mine, theirs = (plan(start=start, method=method) for method in ("prune-finetune", "wml"))
    assert (mine.config.teacher, theirs.config.teacher) == ("none", "trained")
    assert abs(mine.macs() - theirs.macs()) <= mine.step() / 2


def test_an_answer_that_is_kept_is_time_for_steps(run: Run) -> None:
    anew, kept = (plan(method="kd", start=str(run.root), as_long_as="wml-p", reuse_teacher=n) for n in (0, 2))
    like = plan(method="wml-p", start=str(run.root), reuse_teacher=2, feature_loss="none")
    assert abs(kept.macs() - like.macs()) <= kept.step() / 2  # the other method keeps answers too
    full = kept.prepared.scored.graph.macs
    spending = spending_of(trained_peers(kept.prepared.family, kept.config), kept.prepared, kept.config, kept.data)
    assert spending.teacher == full and kept.config.steps is not None and anew.config.steps is not None
    own = 3 * BATCH * spending.trained
    assert kept.macs() == kept.config.steps * own + 2 * STEPS * BATCH * full
    assert anew.macs() == anew.config.steps * (own + BATCH * full)


@pytest.mark.parametrize("start", [True, False])
def test_the_steps_of_prune_finetune_are_the_same_for_every_seed(start: bool, run: Run) -> None:
    how = {"start": str(run.root) if start else None, "method": "prune-finetune", "ratios": (0.5, 0.0)}
    plans = [plan(**how, seed=seed, budget="uniform") for seed in (0, 1)]
    assert len({(each.macs(), each.config.steps) for each in plans}) == 1
    if start:
        return
    # by scores of a batch of the seed's own, layers differ by roundings and so may what they cost
    steps = [plan(**how, seed=seed, budget="snip").config.steps or 0 for seed in (0, 1)]
    assert max(steps) - min(steps) <= 0.03 * min(steps)


def test_a_family_that_the_other_method_cannot_have_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        plan(method="prune-finetune", ratios=(0.89, 0.0))
    assert str(caught.value).startswith("no wml family has these ratios to last as long as (")
    assert str(caught.value).endswith("); pass --finetune-epochs or --steps")


def test_steps_and_epochs_that_were_asked_for_stay() -> None:
    assert plan(method="prune-finetune", steps=3).config.steps == 3
    assert plan(method="prune-finetune", finetune_epochs=2).config.steps is None


def test_a_rate_is_found_at_the_runs_own_cost_and_one_that_diverges_counts(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rate, "LEAST", 2)
    monkeypatch.setattr(rate, "RATES", (1e-6, 0.05, 1e30))
    own = plan(method="kd", start=str(run.root), ratios=(0.5,), epochs=5, lr_auto=True)
    found, trials = rate.find_rate(own.config, own.prepared, own.data, CPU)
    assert [trial.lr for trial in trials if trial.held_out_loss is None] == [1e30] and found.lr == 0.05
    spending = spending_of(trained_peers(own.prepared.family, own.config), own.prepared, own.config, own.data)
    assert trials[2].training_macs == spending.until(2)
    left = spending.until(5 * STEPS) - sum(trial.training_macs for trial in trials)
    assert found.steps == spending.affordable(left)
    dear = (
        f"the trials took {1 - found.steps / (5 * STEPS):.0%} of this run; more epochs make them cheap, and --lr 0.05"
    )
    assert found.steps < rate.DEAR * 5 * STEPS and dear in " ".join(capsys.readouterr().err.split())


def test_a_rate_of_fine_tuning_is_found_in_its_epochs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate, "LEAST", 2)
    how: dict[str, Any] = {"method": "prune-finetune", "start": str(run.root), "ratios": (0.5,), "finetune_epochs": 5}
    own = plan(**how, lr_auto=True)
    found, _ = rate.find_rate(own.config, own.prepared, own.data, CPU)
    assert found.steps is not None and found.steps < 5 * STEPS and found.finetune_lr == found.lr
    assert settle(vars(found)) == found  # as a run that goes on reads them
    assert found.finetune_epochs == 5
    later = dataclasses.replace(found, epochs=0)  # the start's own: what is trained is what comes after the cut
    assert settle(vars(later)) == later
    with pytest.raises(InputError, match="lr auto finds the rate of fine-tuning; leave out finetune_lr, got "):
        settle({**how, "lr_auto": True, "finetune_lr": 0.002})


def test_what_a_family_by_sensitivity_costs_is_known_to_a_method_that_cuts_nothing(run: Run) -> None:
    start = str(run.root)
    mine = plan(start=start, method="self-distillation", as_long_as="wml", ratios=())
    theirs = plan(start=start, ratios=())
    assert abs(mine.macs() - theirs.macs()) <= mine.step() / 2
    with pytest.raises(InputError, match="as_long_as self-distillation: it has an exit at each stage, and no peers of"):
        settle({"as_long_as": "self-distillation"})


def test_steps_of_fine_tuning_are_not_the_unpruned_networks() -> None:
    assert untaught(settle({"method": "prune-finetune", "steps": 3})).steps is None
    assert untaught(settle({"method": "wml", "steps": 3})).steps == 3


@pytest.mark.parametrize(("given", "expected"), [(None, 0.04), (0.02, 0.02)])
def test_fine_tuning_has_its_own_rate_and_length_and_no_warm_up(given: float | None, expected: float) -> None:
    config = settle(
        {"method": "prune-finetune", "lr": 0.4, "warmup_epochs": 2.0, "epochs": 9, "finetune_epochs": 3, "finetune_lr": given}
    )  # fmt: skip
    half = fine_tuning(config)
    assert (half.lr, half.warmup_epochs, half.epochs) == (expected, 0.0, 3)
    assert fine_tuning(dataclasses.replace(config, finetune_epochs=None)).epochs == 9


def test_each_trial_of_a_rate_begins_with_the_weights_that_the_run_begins_with(monkeypatch: pytest.MonkeyPatch) -> None:
    family, seen = toy_family(), list[tuple[float, int | None, list[list[float]]]]()
    losses = dict(zip(rate.RATES, (1.5, 0.5, None), strict=True))

    def trial(part: Any, prepared: Any, config: TrainConfig, data: Any, *_: Any) -> RateTrial:
        seen.append((config.lr, config.steps, [own.flatten().tolist() for own in part.parameters()]))
        for own in part.parameters():
            own.data += 1
        macs = spending_of(part, prepared, config, data).until(20)
        return RateTrial(lr=config.lr, steps=20, held_out_loss=losses[config.lr], training_macs=macs, seconds=0.0)

    monkeypatch.setattr(rate, "_trial", trial)
    monkeypatch.setattr(ToyData, "train_steps", lambda *_: 100)
    config = settle({"method": "independent", "start": "a", "ratios": (0.5, 0.3), "epochs": 4, "lr": "auto"})
    prepared: Any = SimpleNamespace(family=family)
    begun = [own.flatten().tolist() for own in family.parameters()]
    found, _ = rate.find_rate(config, prepared, ToyData(), CPU)
    assert seen == [(lr, 20, begun) for lr in rate.RATES]
    assert begun == [own.flatten().tolist() for own in family.parameters()]
    assert (found.lr, found.steps) == (rate.RATES[1], 400 - 3 * 20)
