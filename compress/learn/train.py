"""The training loop, once, for a family and for the baseline (a family of one).

Shape legend: P peers, B batch, C classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from wmlc.compress.learn.extras import ensembles
from wmlc.compress.learn.family import PeerFamily
from wmlc.compress.learn.methods import Forward, Method, train_loss
from wmlc.compress.learn.place import Device
from wmlc.compress.learn.reweigh import mirror_step, peer_weight_gradient
from wmlc.compress.learn.state import TrainState
from wmlc.data import Data
from wmlc.errors import InputError
from wmlc.records import Epoch
from wmlc.settings import TrainConfig


def lr_factor(schedule: str, done: float, epochs: int, warmup_epochs: float) -> float:
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
    """Top-1 in percent of each peer, and of the method's ensemble and the plain average; leaves eval mode."""
    family.eval()
    right_P, right_E, images_seen = torch.zeros(family.peers), torch.zeros(2), 0
    for images, labels in batches:
        with device.autocast():
            logits_PBC, outputs = family.walk(images)
        logits_PBC = logits_PBC.float()
        ensembles_EBC = torch.stack(ensembles(family, logits_PBC, outputs, weight_P))
        right_P += (logits_PBC.argmax(-1) == labels).sum(1).cpu()
        right_E += (ensembles_EBC.argmax(-1) == labels).sum(1).cpu()
        images_seen += len(labels)
    own, average = (100 * right_E / images_seen).tolist()
    return (100 * right_P / images_seen).tolist(), (own, average)


def evaluation_batch(data: Data) -> int:
    """Images a forward when nothing is kept for a backward."""
    return 512 if data.record.small else 32


def make_optimizer(family: PeerFamily, config: TrainConfig) -> torch.optim.SGD:
    """SGD over all parameters of the family; a shared stage's are there once."""
    return torch.optim.SGD(
        family.parameters(), lr=config.lr, momentum=config.momentum, nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )  # fmt: skip


def fit(
    family: PeerFamily,
    optimizer: torch.optim.SGD,
    data: Data,
    config: TrainConfig,
    method: Method,
    state: TrainState,
    device: Device,
    on_epoch: Callable[[Epoch], None],
    on_step: Callable[[int, float], None],
) -> None:
    """Train `family` from where `state` is to the last epoch.

    `on_epoch` gets each epoch's record, after each step `on_step` gets the epoch and the share of it that is done anew.

    `state` is advanced in place and holds the weights of the best epoch on the held-out images. The data
    order, augmentation and dropout depend on the seed and the epoch alone, so a run that is stopped
    and resumed at an epoch's end repeats, on a CPU, to the last bit. Raises `InputError` when the loss is
    not finite.
    """
    weight_P = torch.tensor(state.peer_weights, device=device.name)
    walk = torch.compile(family.walk) if config.compile else family.walk
    steps = data.train_steps(config.batch_size)
    for epoch in range(state.epoch, config.epochs):
        start, loss_sum = time.perf_counter(), 0.0
        torch.manual_seed(1_000_003 * config.seed + epoch)  # dropout; on_epoch may have drawn numbers
        family.train()  # evaluation left it in eval mode
        for index, (images, labels) in enumerate(data.train_batches(config.batch_size, epoch)):
            factor = lr_factor(config.schedule, epoch + index / steps, config.epochs, config.warmup_epochs)
            lr = config.lr * factor
            optimizer.param_groups[0]["lr"] = lr
            with device.autocast():
                logits_PBC, outputs = walk(images)
            loss = train_loss(Forward(family, logits_PBC.float(), outputs, labels, weight_P), config, method)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if config.clip is not None:
                torch.nn.utils.clip_grad_norm_(family.parameters(), config.clip)
            if not math.isfinite(value := loss.item()):
                raise InputError(
                    f"the loss became {value} in epoch {epoch + 1}, step {index + 1}, at lr {lr:.3g}; "
                    f"lower --lr, raise --warmup-epochs or pass --clip 1"
                )
            state.step += 1
            if method.reweighs and len(weight_P) > 1 and state.step % config.reweigh_every == 0:
                held_out = data.held_out_batch(config.batch_size, state.step // config.reweigh_every)
                weight_P = _reweigh(family, (images, labels), held_out, weight_P, config, lr, device)
            optimizer.step()
            loss_sum += value
            on_step(epoch + 1, 1 / steps)
        seconds = time.perf_counter() - start
        held_out_batches = data.held_out_batches(evaluation_batch(data))
        top1, (ensemble_top1, average_top1) = evaluate(family, held_out_batches, weight_P, device)
        state.epoch, state.peer_weights = epoch + 1, weight_P.tolist()
        state.seconds += seconds
        if sum(top1) / len(top1) > state.best_top1:
            state.best_epoch, state.best_top1 = epoch + 1, sum(top1) / len(top1)
            state.best_peer_weights = state.peer_weights
            state.best = {name: tensor.detach().clone() for name, tensor in family.state_dict().items()}
        on_epoch(
            Epoch(
                epoch=epoch + 1, seconds=round(seconds, 3),
                images_per_s=round(steps * config.batch_size / seconds, 1),
                train_loss=loss_sum / steps, top1=top1, ensemble_top1=ensemble_top1,
                average_ensemble_top1=average_top1, peer_weights=state.peer_weights, lr=lr,
            )
        )  # fmt: skip


def _reweigh(
    family: PeerFamily,
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    weight_P: Tensor,
    config: TrainConfig,
    lr: float,
    device: Device,
) -> Tensor:
    """Move the peer weights one mirror step, with the gradients that the training step just left."""
    peers = len(weight_P)
    gradients = {name: parameter.grad for name, parameter in family.named_parameters()}
    # the step descends P · L1, so a rate γ on L1 is lr · P, and its gradient is P times that of L1
    gradient_P = peer_weight_gradient(
        family, train, held_out, weight_P,
        {name: gradient / peers for name, gradient in gradients.items() if gradient is not None},
        alpha=config.alpha or 0.0, temperature=config.temperature or 1.0, inner_lr=lr * peers, autocast=device.autocast,
    )  # fmt: skip
    if not bool(gradient_P.isfinite().all()):
        raise InputError(
            f"the gradient of the peer weights is not finite at lr {lr:.3g}; lower --lr or raise --warmup-epochs"
        )
    return mirror_step(weight_P, gradient_P, config.weight_lr)


def _cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
