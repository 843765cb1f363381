"""One phase of a run, the family or the baseline: trained to its end, with a checkpoint after every epoch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from wmlc import run as runs
from wmlc.compress.describe import print_epoch, print_epoch_header
from wmlc.compress.finetune import cut_peers, spending_of, teacher_of
from wmlc.compress.learn.family import PeerFamily
from wmlc.compress.learn.methods import METHODS
from wmlc.compress.learn.place import Device
from wmlc.compress.learn.recalibrate import keeping_up, recalibrate, slow_norms
from wmlc.compress.learn.state import TrainState, load_state, save_state
from wmlc.compress.learn.sync_norm import synced
from wmlc.compress.learn.train import epochs_of, fit, make_optimizer, sources_of, steps_of
from wmlc.compress.prepare import Prepared
from wmlc.console import LongWork, note, say
from wmlc.data import Data
from wmlc.models.layout import holds_plain
from wmlc.ranks import Ranks
from wmlc.records import Epoch, Phase
from wmlc.run import Run
from wmlc.settings import TrainConfig


def train_phase(
    run: Run, phase: Phase, family: PeerFamily, prepared: Prepared, config: TrainConfig, data: Data, device: Device,
    resume: bool, work: LongWork,
) -> TrainState:  # fmt: skip
    """Train `family` to the end of its epochs and put its best weights back into it.

    Args: whether to `resume` from the checkpoint; the `work` of the whole run, which this is a part of.
    """
    with in_step(family, config, device):
        state, cut = TrainState(phase, peer_weights=[1 / family.peers] * family.peers), set[int]()
        if phase == "family" and (config.start is not None or METHODS[config.method].cuts_trained):
            cut = cut_peers(family, config)  # their batch norm's statistics are the whole network's
        slow = slow_norms(family)
        spending, an_epoch = spending_of(family, prepared, config, data), data.train_steps(config.batch_size)
        if not resume:
            batches = recalibrate(family, cut, data, config.batch_size, device)
            state.training_macs += spending.forward(batches)
            if phase == "family":
                trials = device.ranks.of_first(lambda: runs.read_config(run).rate_trials)
                state.training_macs += sum(trial.training_macs for trial in trials)
                state.seconds += sum(trial.seconds for trial in trials)
        if config.epochs == 0:
            return state
        optimizer, epochs = make_optimizer(family, config), epochs_of(config, an_epoch)
        if resume:
            state = _resumed(run, phase, family, optimizer, config, epochs, device.ranks)
        total = steps_of(config, an_epoch)

        def macs_until(epoch: int) -> float:
            return spending.until(min(epoch * an_epoch, total))

        work.skip(macs_until(state.epoch))
        print_epoch_header(phase, family.peers, epochs)
        first = device.ranks.first
        with _keeper(run, phase, state, family, optimizer) if first else contextlib.nullcontext() as keep:

            def on_epoch(epoch: Epoch) -> None:
                print_epoch(phase, epoch, epochs, work.left)
                if keep is not None:
                    keep(epoch)

            def on_step(epoch: int, share: float) -> None:
                work.advance(share * (macs_until(epoch) - macs_until(epoch - 1)), f"{phase} {epoch}/{epochs}")

            teacher = teacher_of(prepared, config, device)
            with keeping_up(slow):
                fit(family, optimizer, data, config, state, device, teacher, spending, on_epoch, on_step)
        family.load_state_dict(state.best)
        state.training_macs += spending.forward(recalibrate(family, cut, data, config.batch_size, device, slow=slow))
        return state


@contextlib.contextmanager
def in_step(family: PeerFamily, config: TrainConfig, device: Device) -> Iterator[None]:
    """Let all processes begin with rank 0's weights, and with `--sync-bn` have the same statistics meanwhile."""
    plain = holds_plain(family)
    for tensor in (*family.parameters(), *family.buffers()):
        if tensor.ndim == 4 and not plain:  # of others torch's own `to` takes none
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    device.ranks.take_of_first([*(own.data for own in family.parameters()), *family.buffers()])
    with synced(family, device.ranks) if config.sync_bn else contextlib.nullcontext():
        yield


def _resumed(
    run: Run, phase: Phase, family: PeerFamily, optimizer: torch.optim.SGD, config: TrainConfig, epochs: int,
    ranks: Ranks,
) -> TrainState:  # fmt: skip
    """The state that the checkpoint holds, with its weights and momentum in `family` and `optimizer`."""
    sources = sources_of(config, family.peers, config.teacher == "frozen")
    state = ranks.of_first(
        lambda: load_state(run.checkpoint, family, optimizer, peers=family.peers, epochs=epochs, sources=sources)
    )
    _take_of_first(family, optimizer, ranks)
    say(f"resuming the {phase} after epoch {state.epoch}")
    if ranks.first and (kept := len(runs.read_epochs(run, phase))) < state.epoch:
        note(f"{run.metrics(phase)} has lost {state.epoch - kept} of the {state.epoch} epochs that are done")
    return state


@contextlib.contextmanager
def _keeper(
    run: Run, phase: Phase, state: TrainState, family: PeerFamily, optimizer: torch.optim.SGD
) -> Iterator[Callable[[Epoch], None]]:
    """What writes an epoch's record, its curves and the checkpoint."""
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    runs.keep_epochs(run, phase, state.epoch)
    with SummaryWriter(run.tensorboard / phase, purge_step=state.epoch + 1) as writer:

        def keep(epoch: Epoch) -> None:
            runs.append_epoch(run, phase, epoch)
            _to_tensorboard(writer, epoch)
            save_state(run.checkpoint, state, family, optimizer)

        yield keep


def _take_of_first(family: PeerFamily, optimizer: torch.optim.SGD, ranks: Ranks) -> None:
    """Rank 0's weights and momentum, which it has read."""
    if ranks.count == 1:
        return
    has = ranks.of_first(
        lambda: {name for name, own in family.named_parameters() if "momentum_buffer" in optimizer.state[own]}
    )
    momentum = []
    for name, parameter in family.named_parameters():
        if name in has:
            momentum.append(optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter.data)))
    ranks.take_of_first([*(own.data for own in family.parameters()), *family.buffers(), *momentum])


def _to_tensorboard(writer: Any, epoch: Epoch) -> None:
    for name in ("train_loss", "ensemble_top1", "average_ensemble_top1", "images_per_s", "lr"):
        writer.add_scalar(name, getattr(epoch, name), epoch.epoch)
    for index, (top1, weight) in enumerate(zip(epoch.top1, epoch.peer_weights, strict=True)):
        writer.add_scalar(f"top1/peer{index + 1}", top1, epoch.epoch)
        writer.add_scalar(f"peer_weight/peer{index + 1}", weight, epoch.epoch)
