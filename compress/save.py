"""What training leaves in a run: every network with its record, and `family.json`, the sign that all is there."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from wmlc import records
from wmlc.compress.config import sharing
from wmlc.compress.describe import PeerFacts, family_notes
from wmlc.compress.learn.family import PeerFamily
from wmlc.compress.learn.methods import METHODS
from wmlc.compress.learn.place import Device
from wmlc.compress.learn.state import TrainState
from wmlc.compress.learn.train import evaluate, evaluation_batch
from wmlc.compress.prepare import Prepared
from wmlc.data import Data
from wmlc.files import new_directory
from wmlc.models.checkpoint import read_spec, save_network, save_stages, spec_of_cut
from wmlc.models.exits import exit_name
from wmlc.models.start import start_name
from wmlc.records import About, Baseline, Ensembled, Family, NetworkSpec, Peer
from wmlc.run import BASELINE, Run, commit
from wmlc.settings import TrainConfig


def save_peers(
    run: Run, prepared: Prepared, config: TrainConfig, data: Data, peers: list[PeerFacts], state: TrainState,
    device: Device,
) -> None:  # fmt: skip
    """Measure every peer on the test set, once, and write it as a network of its own; rank 0 writes."""
    family, weights = prepared.family, state.best_peer_weights
    if whole := family.peers - len(weights):  # uncut peers, which are the start or are trained as the baseline
        weights = [own * len(weights) / family.peers for own in weights] + [1 / family.peers] * whole
    omega_P = torch.tensor(weights, device=device.name)
    batches = data.test_batches(evaluation_batch(data))
    top1, (ensemble_top1, average_top1) = evaluate(family, batches, omega_P, device.in_float32())
    if not device.ranks.first:
        return
    together = Ensembled(
        ensemble_top1=ensemble_top1, average_ensemble_top1=average_top1, peer_weights=weights,
        best_epoch=state.best_epoch, seconds=round(state.seconds, 1), training_macs=state.training_macs,
    )  # fmt: skip
    with new_directory(run.root / "peers") as aside:
        for facts, accuracy in zip(peers, top1, strict=True):
            known = {name: value for name, value in vars(facts).items() if name != "left_out"}  # the record has it
            about = dataclasses.replace(_about(config, data), **known, top1=accuracy, family=together)
            network, directory = family.peer(facts.peer), aside / str(facts.peer)
            directory.mkdir()
            spec = _spec(network, prepared, config, data, about)
            if METHODS[config.method].exits and facts.peer < family.peers:  # nothing is cut, and its head is its own
                arch = exit_name(config.arch, facts.peer)
                save_network(network, dataclasses.replace(spec, arch=arch, widths={}, unused=[]), directory)
            else:
                save_stages(network, spec, directory)


def save_baseline(
    run: Run, alone: PeerFamily, prepared: Prepared, config: TrainConfig, data: Data, state: TrainState, device: Device
) -> None:
    """Measure the unpruned network on the test set, once, and write it; rank 0 writes."""
    weight_P = torch.ones(1, device=device.name)
    (top1,), _ = evaluate(alone, data.test_batches(evaluation_batch(data)), weight_P, device.in_float32())
    if not device.ranks.first:
        return
    about = dataclasses.replace(
        _about(config, data), peer=BASELINE, ratio=0.0, achieved_ratio=0.0, top1=top1, best_epoch=state.best_epoch,
        seconds=round(state.seconds, 1), training_macs=state.training_macs, **vars(prepared.scored.graph.cost),
    )  # fmt: skip
    with new_directory(run.network(BASELINE)) as aside:
        save_stages(alone.peer(1), _spec(alone.peer(1), prepared, config, data, about), aside)


def save_family(run: Run, config: TrainConfig, data: Data, prepared: Prepared, peers: list[PeerFacts]) -> Family:
    """Write `family.json` from the records of the networks that were saved."""
    abouts = [read_spec(run.network(facts.peer)).about for facts in peers]
    together = abouts[0].family
    assert together is not None
    baseline = _baseline(read_spec(run.network(BASELINE)).about) if config.baseline else None
    family = Family(
        arch=config.arch, method=config.method, share=sharing(config), ratio_of=config.ratio_of, divisor=config.divisor,
        trunk_ratio=config.trunk_ratio, epochs=config.epochs, data=data.record, full=prepared.scored.graph.cost,
        tree=prepared.family.branches,
        peers=[Peer(**vars(facts), top1=about.top1 or 0.0) for facts, about in zip(peers, abouts, strict=True)],
        **vars(together), baseline=baseline, latency=prepared.plan, notes=family_notes(peers, config),
    )  # fmt: skip
    records.write(run.family, family)
    return family


def _baseline(about: About) -> Baseline:
    return Baseline(**{field.name: getattr(about, field.name) for field in dataclasses.fields(Baseline)})


def _about(config: TrainConfig, data: Data) -> About:
    """What all networks of a run have in common."""
    return About(
        data=config.data, method=config.method, start=config.start and start_name(config.start),
        ratio_of=config.ratio_of, seed=config.seed, epochs=config.epochs, train_images=data.record.train,
        test_images=data.test_count(), commit=commit(),
    )  # fmt: skip


def _spec(network: nn.Module, prepared: Prepared, config: TrainConfig, data: Data, about: About) -> NetworkSpec:
    record = data.record
    spec = NetworkSpec(
        arch=config.arch, arch_args=config.arch_args, class_names=record.class_names, input_shape=record.input_shape,
        mean=record.mean, std=record.std, about=about, framing=record.framing,
        widths={},
    )  # fmt: skip
    return spec_of_cut(spec, prepared.full, network, prepared.made.staged)
