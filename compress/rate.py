"""`--lr auto`: a peak learning rate found by short trials, which the run pays for."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Sequence

from wmlc.compress.finetune import cut_peers, of_peers, spending_of, teacher_of
from wmlc.compress.learn.family import PeerFamily
from wmlc.compress.learn.methods import METHODS
from wmlc.compress.learn.place import Device
from wmlc.compress.learn.recalibrate import recalibrate
from wmlc.compress.learn.spending import Spending
from wmlc.compress.learn.state import TrainState
from wmlc.compress.learn.teacher import losses_of_those_who_teach
from wmlc.compress.learn.train import fit, make_optimizer, steps_of
from wmlc.compress.learn.watch import NotFinite
from wmlc.compress.phase import in_step
from wmlc.compress.prepare import Prepared, trained_peers
from wmlc.console import note, progress, say
from wmlc.data import Data
from wmlc.errors import InputError
from wmlc.records import RateTrial
from wmlc.settings import TrainConfig

RATES = (0.01, 0.03, 0.1)
SHARE = 0.05  # of a run's steps, for each trial
LEAST = 10  # steps of a trial: fewer tell noise
RECALIBRATED = 512  # images that batch norm is taken over after a trial
HELD_OUT = 1024  # images that a trial is judged by
DEAR = 0.75  # of a run's steps: where trials leave fewer, that is told


def find_rate(
    config: TrainConfig, prepared: Prepared, data: Data, device: Device
) -> tuple[TrainConfig, list[RateTrial]]:
    """`config` with the rate whose trial ended best, and with as many steps fewer as the trials cost.

    A trial is the run in small: the same method from the same cut, its whole schedule in a twentieth of the steps, and
    the mean of the peers' cross-entropies on held-out images afterwards. Raises `InputError` for a run so short that
    trials would be most of it.
    """
    settings = of_peers(config)  # of a start it is all the training there is
    total, steps = _lengths(settings, data)
    part = copy.deepcopy(trained_peers(prepared.family, config))
    spending = spending_of(part, prepared, config, data)
    with in_step(part, config, device):  # as the run itself begins
        begun = recalibrate(part, cut_peers(part, config), data, config.batch_size, device)
    trials = []
    with progress("learning rates", len(RATES) * steps) as advance:
        for rate in RATES:
            own = dataclasses.replace(settings, lr=rate, steps=steps)
            trials.append(_trial(copy.deepcopy(part), prepared, own, data, device, spending, advance))
    once = spending.forward(begun)
    trials[0] = dataclasses.replace(trials[0], training_macs=trials[0].training_macs + once)
    best = min(trials, key=lambda trial: math.inf if trial.held_out_loss is None else trial.held_out_loss)
    if best.held_out_loss is None:
        raise InputError(f"no rate of {', '.join(f'{rate:g}' for rate in RATES)} keeps the loss finite; pass --lr")
    left = spending.until(total) - sum(trial.training_macs for trial in trials)
    remaining = spending.affordable(left)
    say(_in_words(trials, best, remaining, total))
    if remaining < DEAR * total:
        spent = f"{1 - remaining / total:.0%} of this run"
        note(f"the trials took {spent}; more epochs make them cheap, and --lr {best.lr:g} does without them")
    if METHODS[config.method].cuts_trained:
        config = dataclasses.replace(config, finetune_lr=best.lr)
    return dataclasses.replace(config, lr=best.lr, steps=remaining), trials


def check_trials(config: TrainConfig, data: Data) -> None:
    """Raise `InputError` for a run too short to find its rate; of one whose steps are found too, that is told then."""
    settings = of_peers(config)
    if config.lr_auto and config.as_long_as is None and settings.epochs:
        _lengths(settings, data)


def _lengths(config: TrainConfig, data: Data) -> tuple[int, int]:
    """The steps of a run and those of a trial."""
    total = steps_of(config, data.train_steps(config.batch_size))
    steps = max(LEAST, round(SHARE * total))
    if (least := 2 * len(RATES) * steps) > total:
        raise InputError(
            f"--lr auto tries {len(RATES)} rates for {LEAST} steps or more each, which is half of a run of {least} "
            f"steps, and this one has {total}; pass a rate, or more epochs"
        )
    return total, steps


def _in_words(trials: Sequence[RateTrial], best: RateTrial, remaining: int, total: int) -> str:
    losses = ", ".join(f"{trial.lr:g} {_shown(trial.held_out_loss)}" for trial in trials)
    return (
        f"learning rate {best.lr:g}: held-out losses after {best.steps} steps at {losses}; {remaining:,} of {total:,} "
        "steps are left"
    )


def _shown(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.3f}"


def _trial(
    family: PeerFamily, prepared: Prepared, config: TrainConfig, data: Data, device: Device, spending: Spending,
    advance: Callable[[int], None],
) -> RateTrial:  # fmt: skip
    """One short run; what it takes counts also where the loss does not stay finite."""
    start, macs = time.perf_counter(), 0.0
    state = TrainState("family", peer_weights=[1 / family.peers] * family.peers)
    teacher, loss = teacher_of(prepared, config, device), math.nan
    with in_step(family, config, device):
        try:
            fit(
                family, make_optimizer(family, config), data, config, state, device, teacher, spending,
                lambda _: None, lambda *_: advance(1),
            )  # fmt: skip
        except NotFinite:
            macs = spending.until(state.step) - state.training_macs  # of the epoch that it broke off in, too
        else:
            cut = cut_peers(family, config)
            macs = spending.forward(recalibrate(family, cut, data, config.batch_size, device, RECALIBRATED))
            held_out = data.held_out_batch(HELD_OUT, 0)
            loss = float(losses_of_those_who_teach(family, None, held_out, device).mean())
    return RateTrial(
        lr=config.lr, steps=config.steps or 0, held_out_loss=loss if math.isfinite(loss) else None,
        training_macs=macs + state.training_macs, seconds=round(time.perf_counter() - start, 1),
    )  # fmt: skip
