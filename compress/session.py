"""A whole training run: plan the family, train it, train the baseline, and write the run directory."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

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
from wmlc.compress.family import PeerFamily
from wmlc.compress.finetune import measure_steps
from wmlc.compress.planning import Images, Planned, cut_peers, cut_trained, family_of_one, plan
from wmlc.compress.state import TrainState, load_state, peek_phase, save_state
from wmlc.compress.train import Device, check_compiler, choose_device, evaluate, evaluation_batch, fit, make_optimizer
from wmlc.console import note, say
from wmlc.data import Data, open_data
from wmlc.errors import InputError
from wmlc.files import clear_asides, new_directory, refuse_existing, write_json
from wmlc.models.checkpoint import NetworkSpec, load_network, read_spec, save_network
from wmlc.models.exits import exit_name
from wmlc.models.widths import read_widths
from wmlc.noise import stand_in
from wmlc.run import BASELINE, BASELINE_SETTINGS, Run


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
    records, choices = peer_records(planned.family, planned.plans), share_records(planned.scored, config)
    if as_json:
        notes = family_notes(records, config)
        say(
            json.dumps(
                {
                    "peers": records,
                    "smallest_peer_by_share": choices,
                    "targets": target_records(records),
                    "notes": notes,
                },
                indent=2,
            )
        )
        return
    print_family(records, planned.scored, config)
    if choices:
        print_share_choices(choices, config)
    print_targets(records, planned.full)


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
    settings = asdict(config)
    if config.data_root is not None:  # the run must find its data from any working directory
        settings["data_root"] = str(Path(config.data_root).expanduser().resolve())
    record = {"command": command, "settings": settings, "device": asdict(device), "threads": torch.get_num_threads()}
    with new_directory(root) as aside:
        write_json(aside / run.config.name, {**record, **runs.provenance()})
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
    config = config_from(runs.read_settings(run), str(run.config))
    device = choose_device(config.device, config.precision)
    data = open_data(config.data_config(), device.name)
    return _train(run, config, data, plan(config, data, device), device)


def _train(run: Run, config: TrainConfig, data: Data, planned: Planned, device: Device) -> Run:
    """The phases that are still to do: the family, then the baseline, then the record of both."""
    clear_asides(run.root)
    reached = peek_phase(run.checkpoint)
    records = peer_records(planned.family, planned.plans)
    say(f"training in {run.root} on {device.name}, {'bf16' if device.bf16 else 'fp32'}")
    print_family(records, planned.scored, config)
    if config.method == "prune-finetune":
        if reached != "family" and config.baseline_from is None:
            _baseline_phase(run, config, data, planned, device, resume=reached == "baseline")
        planned = cut_trained(planned, run.network(BASELINE), config, data.record, device)
        state = _train_phase(run, "family", cut_peers(planned), config.finetuning(), data, device, reached == "family")
        state.seconds += read_spec(run.network(BASELINE)).about["seconds"]
        _save_peers(run, planned.family, config, data, records, state, device)
    else:
        if reached != "baseline":
            state = _train_phase(run, "family", planned.family, config, data, device, reached == "family")
            _save_peers(run, planned.family, config, data, records, state, device)
        if config.baseline and config.baseline_from is None:
            _baseline_phase(run, config, data, planned, device, resume=reached == "baseline")
    _finish(run, config, data, planned, records)
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
    run: Run, phase: str, family: PeerFamily, config: TrainConfig, data: Data, device: Device, resume: bool
) -> TrainState:
    """Train `family` to the end of its epochs and put its best weights back into it."""
    from torch.utils.tensorboard import SummaryWriter

    family.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(family, config)
    state = TrainState(phase, peer_weights=[1 / family.peers] * family.peers)
    if resume:
        state = load_state(run.checkpoint, family, optimizer)
        say(f"resuming the {phase} after epoch {state.epoch}")
    runs.keep_lines(run.metrics(phase), state.epoch)
    method = config.method if phase == "family" else "independent"
    with SummaryWriter(run.tensorboard / phase, purge_step=state.epoch + 1) as writer:

        def on_epoch(record: dict[str, Any]) -> None:
            runs.append_line(run.metrics(phase), record)
            _to_tensorboard(writer, record)
            top1 = " ".join(f"{value:5.2f}" for value in record["top1"])
            ensemble = f"  ensemble {record['ensemble_top1']:5.2f}" if family.peers > 1 else ""
            say(
                f"{phase} {record['epoch']:>3}/{config.epochs}  loss {record['train_loss']:.3f}  "
                f"held-out top-1 {top1}{ensemble}  {record['images_per_s']:,.0f} images/s"
            )
            save_state(run.checkpoint, state, family, optimizer)

        fit(family, optimizer, data, config, method, state, device, on_epoch)
    family.load_state_dict(state.best)
    return state


def _to_tensorboard(writer: Any, record: dict[str, Any]) -> None:
    epoch = record["epoch"]
    for name in ("train_loss", "ensemble_top1", "average_ensemble_top1", "images_per_s", "lr"):
        writer.add_scalar(name, record[name], epoch)
    for index, (top1, weight) in enumerate(zip(record["top1"], record["peer_weights"], strict=True)):
        writer.add_scalar(f"top1/peer{index + 1}", top1, epoch)
        writer.add_scalar(f"peer_weight/peer{index + 1}", weight, epoch)


def _save_peers(
    run: Run,
    family: PeerFamily,
    config: TrainConfig,
    data: Data,
    records: list[dict[str, Any]],
    state: TrainState,
    device: Device,
) -> None:
    """Report on the test set once, and write every peer as a network of its own."""
    weights = state.best_peer_weights
    if len(weights) < family.peers:  # `prune-finetune` trains its uncut peers with the baseline
        weights = [1 / family.peers] * family.peers
    omega_P = torch.tensor(weights, device=device.name)
    top1, (ensemble_top1, average_top1) = evaluate(family, data.test_batches(evaluation_batch(data)), omega_P, device)
    family_about = {
        "ensemble_top1": ensemble_top1, "average_ensemble_top1": average_top1,
        "peer_weights": weights, "best_epoch": state.best_epoch, "seconds": round(state.seconds, 1),
    }  # fmt: skip
    with new_directory(run.root / "peers") as aside:
        for record, accuracy in zip(records, top1, strict=True):
            directory = aside / str(record["peer"])
            directory.mkdir()
            about = {**_about(config, data), **record, "top1": accuracy, "family": family_about}
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
    about = {
        **_about(config, data), "peer": BASELINE, "ratio": 0.0, "achieved_ratio": 0.0, "params": graph.params,
        "macs": graph.macs, "top1": top1, "best_epoch": state.best_epoch, "seconds": round(state.seconds, 1),
    }  # fmt: skip
    with new_directory(run.network(BASELINE)) as aside:
        save_network(alone.peer(1), _spec(alone.peer(1), config.arch, data, about), aside)


def _finish(run: Run, config: TrainConfig, data: Data, planned: Planned, records: list[dict[str, Any]]) -> None:
    """Write `family.json`, the sign that the run is finished, and say what came out."""
    abouts = [read_spec(run.network(record["peer"])).about for record in records]
    graph = planned.scored.graph
    baseline = read_spec(run.network(BASELINE)).about if config.baseline else None
    record = {
        "arch": config.arch, "method": config.method, "share": config.sharing, "ratio_of": config.ratio_of,
        "divisor": config.divisor, "trunk_ratio": config.trunk_ratio, "epochs": config.epochs,
        "data": asdict(data.record), "full": {"params": graph.params, "macs": graph.macs},
        "tree": [dataclasses.asdict(branch) for branch in planned.family.branches],
        "peers": [{**own, "top1": about["top1"]} for own, about in zip(records, abouts, strict=True)],
        **abouts[0]["family"], "baseline": baseline, "notes": family_notes(records, config), "finished": True,
    }  # fmt: skip
    write_json(run.family, record)
    shown = ", ".join(f"{own['top1']:.2f}" for own in record["peers"])
    say(
        f"test top-1 of peers 1 to {len(records)}: {shown}; ensemble {record['ensemble_top1']:.2f}"
        + (f"; baseline {baseline['top1']:.2f}" if baseline else "")
    )
    say(f"wrote {run.root}")


def _about(config: TrainConfig, data: Data) -> dict[str, Any]:
    return {
        "data": config.data, "method": config.method, "ratio_of": config.ratio_of, "seed": config.seed,
        "epochs": config.epochs, "train_images": data.record.train, "test_images": data.test_count(),
        "commit": runs.commit(),
    }  # fmt: skip


def _spec(network: nn.Module, arch: str, data: Data, about: dict[str, Any]) -> NetworkSpec:
    record = data.record
    return NetworkSpec(
        arch=arch, class_names=record.class_names, input_shape=list(record.input_shape), mean=record.mean,
        std=record.std, widths=read_widths(network), about=about,
    )  # fmt: skip


def _matching_baseline(config: TrainConfig, name: Path, data: Data) -> tuple[nn.Module, NetworkSpec]:
    """Another run's baseline; refused unless it was trained on the same data, with the same network and settings."""
    source = runs.find_run(name)
    if not source.network(BASELINE).is_dir():
        raise InputError(f"{source.root} has no baseline (yet); name a finished run that trained one")
    spec, theirs = read_spec(source.network(BASELINE)), runs.read_settings(source)
    mine = {key: getattr(config, key) for key in BASELINE_SETTINGS}
    mine |= {"input_shape": list(data.record.input_shape), "mean": data.record.mean}
    theirs |= {"input_shape": spec.input_shape, "mean": spec.mean}
    differing = [
        f"{key} {theirs.get(key)} there, {value} here" for key, value in mine.items() if theirs.get(key) != value
    ]
    if differing:
        raise InputError(f"the baseline of {source.root} is no match for this run: {'; '.join(differing)}")
    return load_network(source.network(BASELINE)), spec
