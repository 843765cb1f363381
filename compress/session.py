"""A whole training run: plan the family, train it, train the baseline, and write the run directory."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wmlc import records
from wmlc import run as runs
from wmlc.compress.config import TrainConfig, config_from
from wmlc.compress.describe import (
    family_notes,
    peer_records,
    print_family,
    print_share_choices,
    print_targets,
    share_records,
    target_records,
)
from wmlc.compress.learn.family import PeerFamily
from wmlc.compress.learn.finetune import measure_steps
from wmlc.compress.learn.state import Phase, TrainState, load_state, peek_phase, save_state
from wmlc.compress.learn.train import (
    Device,
    check_compiler,
    choose_device,
    evaluate,
    evaluation_batch,
    fit,
    make_optimizer,
)
from wmlc.compress.planning import Images, Planned, cut_peers, cut_trained, family_of_one, plan
from wmlc.console import note, say
from wmlc.data import Data, open_data
from wmlc.data.noise import stand_in
from wmlc.errors import InputError
from wmlc.files import clear_asides, new_directory, refuse_existing
from wmlc.models.checkpoint import load_network, read_spec, save_network
from wmlc.models.exits import exit_name
from wmlc.models.widths import read_widths
from wmlc.records import About, Baseline, Cost, DeviceRecord, Ensembled, Epoch, Family, NetworkSpec, Peer, RunRecord
from wmlc.run import BASELINE, Run
from wmlc.settings import OF_A_BASELINE, names_of


def dry_run(config: TrainConfig, as_json: bool = False) -> None:
    """Print the family that `config` would train, and what the other sharing trees would do to it.

    Without the data on disk noise takes the images' place, in CIFAR's and ImageNet's shapes, and a note says so.
    """
    device = choose_device(config.device, config.precision)
    images: Images
    try:
        images = open_data(config.data_config(), device.name)
    except InputError as error:
        noise = stand_in(config.data_config(), device.name)
        if noise is None:
            raise
        note(f"{error}; this plan is made on noise instead, so a saliency that looks at images may cut other layers")
        images = noise
    planned = plan(config, images, device)
    peers, choices = peer_records(planned.family, planned.plans), share_records(planned.scored, config)
    if as_json:
        notes = family_notes(peers, config)
        say(
            json.dumps(
                {
                    "peers": peers,
                    "smallest_peer_by_share": choices,
                    "targets": target_records(peers),
                    "notes": notes,
                },
                indent=2,
            )
        )
        return
    print_family(peers, planned.scored, config)
    if choices:
        print_share_choices(choices, config)
    print_targets(peers, planned.full)


def start_run(config: TrainConfig, root: Path, force: bool, command: str = "") -> Run:
    """Train a new run in `root`; where that exists, only with `force` and if it is a run.

    Args: the `command` that the record shall name.
    """
    run = Run(root)
    if root.exists() and not force:
        raise InputError(
            f"{root} exists already; choose another --out, pass --resume to go on with it, or --force to start it over"
        )
    refuse_existing(root, force, marker=run.config.name)
    device = choose_device(config.device, config.precision)
    data = open_data(config.data_config(), device.name)
    planned = plan(config, data, device)
    # what can be refused is refused now, before the directory is made or an old run given up
    data.train_steps(config.batch_size)
    data.test_count()
    if config.compile:
        check_compiler(device)
    if config.method == "prune-finetune" and config.finetune_epochs is None:
        config = _as_long_as_a_family(config, planned, data, device)
    baseline = None if config.baseline_from is None else _matching_baseline(config, Path(config.baseline_from), data)
    settings = config
    if config.data_root is not None:  # the run must find its data from any working directory
        settings = dataclasses.replace(config, data_root=str(Path(config.data_root).expanduser().resolve()))
    record = RunRecord(
        command=command, settings=settings, device=DeviceRecord(name=device.name, bf16=device.bf16),
        threads=torch.get_num_threads(), **vars(runs.provenance()),
    )  # fmt: skip
    with new_directory(root) as aside:
        records.write(aside / run.config.name, record)
        if baseline is not None:
            network, spec = baseline
            (aside / "baseline").mkdir()
            save_network(network, spec, aside / "baseline")
    return _train(run, config, data, planned, device)


def resume_run(run: Run) -> Run:
    """Go on with a run from its last complete checkpoint; says so if it is finished."""
    with contextlib.suppress(InputError):  # a damaged family.json is written anew
        runs.read_family(run)
        say(f"{run.root} is finished")
        return run
    config = config_from(vars(runs.read_config(run).settings), str(run.config))
    device = choose_device(config.device, config.precision)
    data = open_data(config.data_config(), device.name)
    return _train(run, config, data, plan(config, data, device), device)


def _train(run: Run, config: TrainConfig, data: Data, planned: Planned, device: Device) -> Run:
    """The phases that are still to do: the family, then the baseline, then the record of both."""
    clear_asides(run.root)
    reached = peek_phase(run.checkpoint)
    peers = peer_records(planned.family, planned.plans)
    say(f"training in {run.root} on {device.name}, {'bf16' if device.bf16 else 'fp32'}")
    print_family(peers, planned.scored, config)
    if config.method == "prune-finetune":
        if reached != "family" and config.baseline_from is None:
            _baseline_phase(run, config, data, planned, device, resume=reached == "baseline")
        planned = cut_trained(planned, run.network(BASELINE), config, data.record, device)
        state = _train_phase(run, "family", cut_peers(planned), config.finetuning(), data, device, reached == "family")
        state.seconds += read_spec(run.network(BASELINE)).about.seconds or 0.0
        _save_peers(run, planned.family, config, data, peers, state, device)
    else:
        if reached != "baseline":
            state = _train_phase(run, "family", planned.family, config, data, device, reached == "family")
            _save_peers(run, planned.family, config, data, peers, state, device)
        if config.baseline and config.baseline_from is None:
            _baseline_phase(run, config, data, planned, device, resume=reached == "baseline")
    _finish(run, config, data, planned, peers)
    return run


def _baseline_phase(run: Run, config: TrainConfig, data: Data, planned: Planned, device: Device, resume: bool) -> None:
    """Train the unpruned network alone, and save it."""
    alone = family_of_one(planned.full)
    state = _train_phase(run, "baseline", alone, config, data, device, resume)
    _save_baseline(run, alone, config, data, planned, state, device)


def _as_long_as_a_family(config: TrainConfig, planned: Planned, data: Data, device: Device) -> TrainConfig:
    """`config` with the epochs of fine-tuning that make all training take as long as a `wml` family's."""
    seconds = measure_steps(config, planned, data, device)
    epochs = seconds.epochs(config.epochs)
    say(
        f"a step takes {seconds.family:.3g} s for a wml family, {seconds.unpruned:.3g} s unpruned, {seconds.cut:.3g} s "
        f"for the cut networks together; {epochs} epochs of fine-tuning make all training take as long as the family's"
    )
    return dataclasses.replace(config, finetune_epochs=epochs)


def _train_phase(
    run: Run, phase: Phase, family: PeerFamily, config: TrainConfig, data: Data, device: Device, resume: bool
) -> TrainState:
    """Train `family` to the end of its epochs and put its best weights back into it."""
    from torch.utils.tensorboard import SummaryWriter

    family.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(family, config)
    state = TrainState(phase, peer_weights=[1 / family.peers] * family.peers)
    if resume:
        state = load_state(run.checkpoint, family, optimizer)
        say(f"resuming the {phase} after epoch {state.epoch}")
    runs.keep_epochs(run, phase, state.epoch)
    method = config.method if phase == "family" else "independent"
    with SummaryWriter(run.tensorboard / phase, purge_step=state.epoch + 1) as writer:

        def on_epoch(epoch: Epoch) -> None:
            runs.append_epoch(run, phase, epoch)
            _to_tensorboard(writer, epoch)
            top1 = " ".join(f"{value:5.2f}" for value in epoch.top1)
            ensemble = f"  ensemble {epoch.ensemble_top1:5.2f}" if family.peers > 1 else ""
            say(
                f"{phase} {epoch.epoch:>3}/{config.epochs}  loss {epoch.train_loss:.3f}  "
                f"held-out top-1 {top1}{ensemble}  {epoch.images_per_s:,.0f} images/s"
            )
            save_state(run.checkpoint, state, family, optimizer)

        fit(family, optimizer, data, config, method, state, device, on_epoch)
    family.load_state_dict(state.best)
    return state


def _to_tensorboard(writer: Any, epoch: Epoch) -> None:
    for name in ("train_loss", "ensemble_top1", "average_ensemble_top1", "images_per_s", "lr"):
        writer.add_scalar(name, getattr(epoch, name), epoch.epoch)
    for index, (top1, weight) in enumerate(zip(epoch.top1, epoch.peer_weights, strict=True)):
        writer.add_scalar(f"top1/peer{index + 1}", top1, epoch.epoch)
        writer.add_scalar(f"peer_weight/peer{index + 1}", weight, epoch.epoch)


def _save_peers(
    run: Run,
    family: PeerFamily,
    config: TrainConfig,
    data: Data,
    peers: list[dict[str, Any]],
    state: TrainState,
    device: Device,
) -> None:
    """Report on the test set once, and write every peer as a network of its own."""
    weights = state.best_peer_weights
    if len(weights) < family.peers:  # `prune-finetune` trains its uncut peers with the baseline
        weights = [1 / family.peers] * family.peers
    omega_P = torch.tensor(weights, device=device.name)
    top1, (ensemble_top1, average_top1) = evaluate(family, data.test_batches(evaluation_batch(data)), omega_P, device)
    together = Ensembled(
        ensemble_top1=ensemble_top1, average_ensemble_top1=average_top1, peer_weights=weights,
        best_epoch=state.best_epoch, seconds=round(state.seconds, 1),
    )  # fmt: skip
    with new_directory(run.root / "peers") as aside:
        for record, accuracy in zip(peers, top1, strict=True):
            directory = aside / str(record["peer"])
            directory.mkdir()
            about = dataclasses.replace(_about(config, data), **record, top1=accuracy, family=together)
            network, arch = family.peer(record["peer"]), config.arch
            if config.method == "self-distillation" and record["peer"] < family.peers:
                arch = exit_name(arch, record["peer"])
            save_network(network, _spec(network, arch, data, about), directory)


def _save_baseline(
    run: Run, alone: PeerFamily, config: TrainConfig, data: Data, planned: Planned, state: TrainState, device: Device
) -> None:
    weight_P = torch.ones(1, device=device.name)
    (top1,), _ = evaluate(alone, data.test_batches(evaluation_batch(data)), weight_P, device)
    graph = planned.scored.graph
    about = dataclasses.replace(
        _about(config, data), peer=BASELINE, ratio=0.0, achieved_ratio=0.0, params=graph.params, macs=graph.macs,
        top1=top1, best_epoch=state.best_epoch, seconds=round(state.seconds, 1),
    )  # fmt: skip
    with new_directory(run.network(BASELINE)) as aside:
        save_network(alone.peer(1), _spec(alone.peer(1), config.arch, data, about), aside)


def _finish(run: Run, config: TrainConfig, data: Data, planned: Planned, peers: list[dict[str, Any]]) -> None:
    """Write `family.json`, the sign that the run is finished, and say what came out."""
    abouts = [read_spec(run.network(record["peer"])).about for record in peers]
    together = abouts[0].family
    assert together is not None
    graph = planned.scored.graph
    baseline = _baseline_record(read_spec(run.network(BASELINE)).about) if config.baseline else None
    family = Family(
        arch=config.arch, method=config.method, share=config.sharing, ratio_of=config.ratio_of, divisor=config.divisor,
        trunk_ratio=config.trunk_ratio, epochs=config.epochs, data=data.record,
        full=Cost(params=graph.params, macs=graph.macs), tree=planned.family.branches,
        peers=[Peer(**own, top1=about.top1 or 0.0) for own, about in zip(peers, abouts, strict=True)],
        **vars(together), baseline=baseline, notes=family_notes(peers, config),
    )  # fmt: skip
    records.write(run.family, family)
    shown = ", ".join(f"{peer.top1:.2f}" for peer in family.peers)
    say(
        f"test top-1 of peers 1 to {len(family.peers)}: {shown}; ensemble {family.ensemble_top1:.2f}"
        + (f"; baseline {baseline.top1:.2f}" if baseline else "")
    )
    say(f"wrote {run.root}")


def _baseline_record(about: About) -> Baseline:
    """What `family.json` says of the baseline."""
    return Baseline(**{field.name: getattr(about, field.name) for field in dataclasses.fields(Baseline)})


def _about(config: TrainConfig, data: Data) -> About:
    return About(
        data=config.data, method=config.method, ratio_of=config.ratio_of, seed=config.seed, epochs=config.epochs,
        train_images=data.record.train, test_images=data.test_count(), commit=runs.commit(),
    )  # fmt: skip


def _spec(network: nn.Module, arch: str, data: Data, about: About) -> NetworkSpec:
    record = data.record
    return NetworkSpec(
        arch=arch, class_names=record.class_names, input_shape=record.input_shape, mean=record.mean,
        std=record.std, widths=read_widths(network), about=about,
    )  # fmt: skip


def _matching_baseline(config: TrainConfig, name: Path, data: Data) -> tuple[nn.Module, NetworkSpec]:
    """Another run's baseline; refused unless it was trained on the same data, with the same network and settings."""
    source = runs.find_run(name)
    if not source.network(BASELINE).is_dir():
        raise InputError(f"{source.root} has no baseline (yet); name a finished run that trained one")
    spec, settings = read_spec(source.network(BASELINE)), runs.read_config(source).settings
    mine, theirs = ({key: getattr(each, key) for key in names_of(*OF_A_BASELINE)} for each in (config, settings))
    mine |= {"input_shape": data.record.input_shape, "mean": data.record.mean}
    theirs |= {"input_shape": spec.input_shape, "mean": spec.mean}
    differing = [f"{key} {theirs[key]} there, {value} here" for key, value in mine.items() if theirs[key] != value]
    if differing:
        raise InputError(f"the baseline of {source.root} is no match for this run: {'; '.join(differing)}")
    return load_network(source.network(BASELINE)), spec
