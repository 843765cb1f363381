"""The training loop, once, for a family and for the baseline (a family of one).

Shape legend: P peers, B batch, C classes, S sources that a peer learns from.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from wmlc.compress.learn.extras import ensembles
from wmlc.compress.learn.family import PeerFamily
from wmlc.compress.learn.methods import METHODS, Forward, Taught, train_loss
from wmlc.compress.learn.place import Device, seed_all
from wmlc.compress.learn.reweigh import mirror_step, peer_weight_gradient, source_gradient
from wmlc.compress.learn.spending import Spending
from wmlc.compress.learn.state import TrainState
from wmlc.compress.learn.teacher import Teacher, losses_of_those_who_teach
from wmlc.compress.learn.teaching import alike, by_loss, from_teacher, source_step
from wmlc.compress.learn.watch import Watch
from wmlc.console import note
from wmlc.data import Data
from wmlc.models.checkpoint import tensors_digest
from wmlc.records import Epoch
from wmlc.settings import TrainConfig

CLIP_ROUNDING = 1e-6  # that torch adds to a norm before it divides by it


def lr_factor(schedule: str, done: float, epochs: float, warmup_epochs: float) -> float:
    """The learning rate as a share of its peak after `done` epochs (fractions count).

    Linear warm-up, then `cosine` to 0 or `step` (÷ 10 at 50 % and 75 % of the epochs); `one-cycle` rises
    linearly for 30 % of the epochs and falls along a cosine to 0, with its own warm-up.
    """
    if schedule == "one-cycle":
        peak = 0.3 * epochs
        return max(done / peak, 0.04) if done < peak else _cosine((done - peak) / (epochs - peak))
    warmup_epochs = min(warmup_epochs, epochs / 2)
    if done < warmup_epochs:
        return max(done / warmup_epochs, 0.01)
    if schedule == "step":
        return 0.1 ** ((done >= 0.5 * epochs) + (done >= 0.75 * epochs))
    return _cosine((done - warmup_epochs) / (epochs - warmup_epochs))


@torch.no_grad()
def evaluate(
    family: PeerFamily, batches: Iterable[tuple[Tensor, Tensor]], weight_P: Tensor, device: Device
) -> tuple[list[float], tuple[float, float]]:
    """Top-1 in percent of each peer, and of the method's ensemble and the plain average; leaves eval mode.

    Over the batches of all processes together. A note says where logits are no finite numbers, which have no class.
    """
    family.eval()
    counts = torch.zeros(family.peers + 4, dtype=torch.float64, device=device.name)  # read at the end, once
    for images, labels in batches:
        with device.autocast():
            logits_PBC, outputs = family.walk(images)
        logits_PBC = logits_PBC.float()
        ensembles_EBC = torch.stack(ensembles(family, logits_PBC, outputs, weight_P))
        counts[:-2] += (torch.cat([logits_PBC, ensembles_EBC]).argmax(-1) == labels).sum(1)
        counts[-2] += (~logits_PBC.isfinite().all(2).all(0)).sum()
        counts[-1] += len(labels)
    device.ranks.sum_(counts)
    *top1, own, average, lost, _ = (100 * counts / counts[-1]).tolist()
    if lost and device.ranks.first:
        note(
            f"{lost:.3g} % of the images get no finite logits from some peer: it has diverged; train with a lower --lr"
        )
    return top1, (own, average)


def evaluation_batch(data: Data) -> int:
    """Images a forward when nothing is kept for a backward."""
    return 512 if data.record.small else 32


def make_optimizer(family: PeerFamily, config: TrainConfig) -> torch.optim.SGD:
    """SGD over all parameters of the family; a shared stage's are there once."""
    return torch.optim.SGD(
        family.parameters(), lr=config.lr, momentum=config.momentum, nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )  # fmt: skip


def steps_of(config: TrainConfig, steps_an_epoch: int) -> int:
    """Training steps in all."""
    return config.steps or config.epochs * steps_an_epoch


def epochs_of(config: TrainConfig, steps_an_epoch: int) -> int:
    """Epochs in all, of which the last may be a part."""
    return math.ceil(steps_of(config, steps_an_epoch) / steps_an_epoch)


def reweighs(config: TrainConfig, peers: int, taught: bool) -> bool:
    """Whether the weights are learned: where there are several peers, or a frozen teacher and the labels."""
    return METHODS[config.method].reweighs and (peers > 1 or taught)


def sources_of(config: TrainConfig, peers: int, taught: bool) -> int:
    """How many sources each peer learns from, itself counted; 0 where these have no weights of their own.

    Args: whether there is a frozen teacher.
    """
    weighed = config.weigh == "sources" and METHODS[config.method].sources and (peers > 1 or taught)
    return weighed and 1 + taught + peers


def objective(
    family: PeerFamily, config: TrainConfig, device: Device
) -> Callable[[Tensor, Tensor, Tensor, Tensor | None, Taught | None], Tensor]:
    """What a training step descends: (images, class ids, ω, the weights of sources, what the teacher says) → a scalar.

    With `compile` the forward, the loss and, once it is asked for, the backward are compiled, once for all steps.
    """

    def loss_of(
        images: Tensor, labels_B: Tensor, weight_P: Tensor, teaching_SP: Tensor | None, taught: Taught | None
    ) -> Tensor:
        with device.autocast():
            logits_PBC, outputs = family.walk(images)
        forward = Forward(family, logits_PBC.float(), outputs, labels_B, weight_P, teaching_SP, taught, device.ranks)
        return train_loss(forward, config)

    return torch.compile(loss_of, dynamic=False) if config.compile else loss_of


def fit(
    family: PeerFamily,
    optimizer: torch.optim.SGD,
    data: Data,
    config: TrainConfig,
    state: TrainState,
    device: Device,
    teacher: Teacher | None,
    spending: Spending,
    on_epoch: Callable[[Epoch], None],
    on_step: Callable[[int, float], None],
) -> None:
    """Train `family` from where `state` is to the last step.

    Args: the frozen `teacher` that the method has, if it has one; what a step costs, and after how many the weights
    move. `on_epoch` gets each epoch's record, after each step `on_step` gets the epoch and the share of it that is done
    anew.

    `state` is advanced in place and holds the weights of the best epoch on the held-out images. The data
    order, augmentation and dropout depend on the seed and the epoch alone, so a run that is stopped
    and resumed at an epoch's end repeats, on a CPU, to the last bit. Raises `InputError` when the loss is
    not finite.
    """
    _agree_on_weights(family, device, "the processes did not begin alike; start them with the same command")
    weight_P = torch.tensor(state.peer_weights, device=device.name)
    teaching_SP = _teaching(family, data, config, state, device, teacher)
    loss_of = objective(family, config, device)
    steps, total = data.train_steps(config.batch_size), steps_of(config, data.train_steps(config.batch_size))
    for epoch in range(state.epoch, epochs_of(config, steps)):
        start, watch, spent = time.perf_counter(), Watch(epoch, device), 0.0
        # dropout, another's in each process; on_epoch may have drawn numbers
        seed_all(1_000_003 * config.seed + epoch + 500_000_003 * device.ranks.rank)
        family.train()  # evaluation left it in eval mode
        now = min(steps, total - epoch * steps)
        batches = data.train_batches(config.batch_size, epoch if teacher is None else teacher.replayed(epoch))
        for index, (images, labels) in zip(range(now), batches, strict=False):
            factor = lr_factor(config.schedule, epoch + index / steps, total / steps, config.warmup_epochs or 0.0)
            lr = config.lr * factor
            optimizer.param_groups[0]["lr"] = lr
            spent += spending.step(teacher is None or not teacher.knows(epoch, index))
            taught = None if teacher is None else teacher.answer(images, epoch, index)
            loss = loss_of(images, labels, weight_P, teaching_SP, taught)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            device.ranks.mean_gradients(list(family.parameters()))
            clipped: Tensor | float = 1.0  # what the gradients were multiplied by
            if config.clip is not None:
                norm = torch.nn.utils.clip_grad_norm_(family.parameters(), config.clip)
                clipped = (config.clip / (norm + CLIP_ROUNDING)).clamp(max=1.0)
            state.step += 1
            if spending.cadence and state.step % spending.cadence == 0:
                held_out = data.held_out_batch(config.batch_size, state.step // spending.cadence)
                weight_P, teaching_SP = _reweigh(
                    family, (images, labels), taught, held_out, (weight_P, teaching_SP), config, lr, clipped, device,
                    watch,
                )  # fmt: skip
                spent += spending.reweighing
            optimizer.step()
            watch.stepped(loss, lr)
            on_step(epoch + 1, 1 / now)
        _join(family, device)
        mean_loss = watch.mean()  # the device has ended when it is known
        seconds = time.perf_counter() - start
        held_out_batches = data.held_out_batches(evaluation_batch(data))
        top1, (ensemble_top1, average_top1) = evaluate(family, held_out_batches, weight_P, device)
        state.epoch, state.peer_weights = epoch + 1, weight_P.tolist()
        state.teaching = [] if teaching_SP is None else teaching_SP.T.tolist()
        state.seconds, state.training_macs = state.seconds + seconds, state.training_macs + spent
        if sum(top1) / len(top1) > state.best_top1:
            state.best_epoch, state.best_top1 = epoch + 1, sum(top1) / len(top1)
            state.best_peer_weights = state.peer_weights
            state.best = {name: tensor.detach().clone() for name, tensor in family.state_dict().items()}
        on_epoch(
            Epoch(
                epoch=epoch + 1, seconds=round(seconds, 3), training_macs=spent,
                images_per_s=round(now * config.batch_size / seconds, 1),
                train_loss=mean_loss, top1=top1, ensemble_top1=ensemble_top1,
                average_ensemble_top1=average_top1, peer_weights=state.peer_weights,
                teaching=state.teaching or None, lr=lr,
            )
        )  # fmt: skip


def _join(family: PeerFamily, device: Device) -> None:
    """Give the processes the same running statistics, the mean of all, and see that they have the same weights.

    Whole numbers are rank 0's: of a block that is left out at random, each has counted other steps.
    """
    device.ranks.mean_([buffer for buffer in family.buffers() if buffer.is_floating_point()])
    device.ranks.take_of_first([buffer for buffer in family.buffers() if not buffer.is_floating_point()])
    _agree_on_weights(family, device, "the processes have drifted apart; train again")


def _agree_on_weights(family: PeerFamily, device: Device, advice: str) -> None:
    """Raise `InputError` where processes have other weights, or other widths and by that other weights."""
    if device.ranks.count == 1:
        return
    device.ranks.agree({"the hash of the weights": tensors_digest(family.state_dict().values())[:12]}, advice)


def _teaching(
    family: PeerFamily, data: Data, config: TrainConfig, state: TrainState, device: Device, teacher: Teacher | None
) -> Tensor | None:  # fmt: skip
    """The weight of each source of each peer, [S, P], where the method and the settings give sources weights.

    A learned one starts by how right those who teach are on held-out images.
    """
    if not sources_of(config, family.peers, teacher is not None):
        return None
    if state.teaching:
        return torch.tensor(state.teaching, device=device.name).T.contiguous()
    method, alpha, peers = METHODS[config.method], config.alpha or 0.0, family.peers
    if method.reweighs:
        held_out = data.held_out_batch(evaluation_batch(data), 0)
        teaching_SP = by_loss(losses_of_those_who_teach(family, teacher, held_out, device).cpu(), peers, alpha)
    elif method.teacher_alone:
        teaching_SP = from_teacher(peers, alpha)
    else:
        teaching_SP = alike(peers, teacher is not None, alpha)
    return teaching_SP.to(device.name)


def _reweigh(
    family: PeerFamily,
    train: tuple[Tensor, Tensor],
    taught: Taught | None,
    held_out: tuple[Tensor, Tensor],
    weights: tuple[Tensor, Tensor | None],
    config: TrainConfig,
    lr: float,
    clipped: Tensor | float,
    device: Device,
    watch: Watch,
) -> tuple[Tensor, Tensor | None]:
    """Move the peer `weights`, and those of sources, one mirror step, with the gradients that the step just left.

    Args: what clipping multiplied these by. The step moves as far as it would without at that share of its rate.
    """
    weight_P, teaching_SP = weights
    gradients = {name: p.grad for name, p in family.named_parameters() if p.grad is not None}
    alpha, temperature = config.alpha or 0.0, config.temperature or 1.0
    if teaching_SP is None:
        # the step descends P · L1, so a rate γ on L1 is lr · P, and its gradient is P times that of L1
        peers = len(weight_P)
        inner = {name: gradient / (peers * clipped) for name, gradient in gradients.items()}
        gradient_P = peer_weight_gradient(
            family, train, held_out, weight_P, inner, alpha=alpha, temperature=temperature,
            inner_lr=lr * peers * clipped, device=device,
        )  # fmt: skip
    else:
        teacher_BC = None if taught is None else taught.logits_BC
        gradient_SP, gradient_P = source_gradient(
            family, train, teacher_BC, held_out, weight_P, gradients,
            temperature=temperature, inner_lr=lr, device=device,
        )  # fmt: skip
        moved_SP = source_step(teaching_SP, gradient_SP, config.weight_lr or 0.0)
        teaching_SP = torch.where(gradient_SP.isfinite().all(), moved_SP, teaching_SP)
    watch.reweighed(gradient_P)
    return mirror_step(weight_P, gradient_P, config.weight_lr or 0.0), teaching_SP


def _cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
