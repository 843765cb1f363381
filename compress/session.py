"""A training run from beginning to end: prepare the family, train it, save it, train the baseline, finish."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wmlc import records
from wmlc import run as runs
from wmlc.compress.begin import check_epochs, open_for_start, print_start
from wmlc.compress.budgets import LATENCY
from wmlc.compress.config import settle, with_absolute_paths
from wmlc.compress.describe import (
    family_notes,
    peer_facts,
    print_family,
    print_share_choices,
    print_stages,
    print_targets,
    share_choices,
    targets,
)
from wmlc.compress.finetune import as_long_as, cut_trained, of_second_half, planned_macs, untaught
from wmlc.compress.latency import Clock, Clocks, print_plan, ratios_of
from wmlc.compress.learn.methods import ALONE, METHODS
from wmlc.compress.learn.place import Device, check_compiler, choose_device
from wmlc.compress.learn.state import TrainState, read_progress
from wmlc.compress.phase import train_phase
from wmlc.compress.prepare import Images, Prepared, family_of_one, prepare, settle_teacher, trained_peers
from wmlc.compress.rate import find_rate
from wmlc.compress.recipes import choose_config
from wmlc.compress.save import save_baseline, save_family, save_peers
from wmlc.console import LongWork, long_work, note, say, say_exactly
from wmlc.data import Data, open_data
from wmlc.data.noise import stand_in
from wmlc.effort import epochs_of_unpruned
from wmlc.errors import InputError, Stopped
from wmlc.files import clear_asides, locked, new_directory, recover_directory, refuse_existing
from wmlc.forms import file_name_of
from wmlc.models.checkpoint import load_network, read_spec, save_network
from wmlc.models.factory import factory_of_caller, named_by_caller
from wmlc.models.foreign import needs_caller
from wmlc.records import DeviceRecord, NetworkSpec, RateTrial, RunRecord
from wmlc.run import BASELINE, Run, data_config
from wmlc.settings import OF_A_BASELINE, TRAINED_ON, TrainConfig, names_of


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What `wmlc train` shall do with its settings."""

    out: Path | None = None  # the run's directory
    resume: bool = False
    dry_run: bool = False
    force: bool = False  # replace the run that is there
    as_json: bool = False


def train(
    recipe: str | None, asked: Mapping[str, Any], wanted: Wanted, command: str = "", clocks: Clocks | None = None
) -> None:
    """Start a run of the settings `asked` over those of a `recipe`, go on with one, or only show its family.

    Args: the `command` that the record shall name; what measures latencies, where one is asked for.
    """
    if wanted.resume:
        if asked.keys() - {"arch"} or recipe or wanted.force or wanted.dry_run or wanted.as_json:
            raise InputError(
                "--resume takes all settings from the run; pass only --out with it, and --arch for code of yours"
            )
        if "arch" in asked:
            named_by_caller(asked["arch"])
        resume_run(runs.find_run(wanted.out))
        return
    if wanted.as_json and not wanted.dry_run:
        raise InputError("--json goes with --dry-run; a finished run's record is its family.json")
    if {"ratios", "max_latency_ms"} <= asked.keys():
        raise InputError("--ratios and --max-latency-ms say each how small peers shall be; pass one of them")
    config = choose_config(recipe, asked)
    if needs_caller(config.arch):
        named_by_caller(config.arch)
    if wanted.dry_run:
        dry_run(config, wanted.as_json, clocks)
        return
    root = wanted.out or runs.RUNS / f"{file_name_of(config.arch)}-{config.data}-{config.method}"
    start_run(config, root, wanted.force, command, clocks)


def dry_run(config: TrainConfig, as_json: bool = False, clocks: Clocks | None = None) -> None:
    """Print the family that `config` would train, and what the other sharing trees would do to it.

    Without the data on disk noise takes the images' place, in CIFAR's and ImageNet's shapes, and a note says so.
    """
    device = choose_device(config.device, config.precision)
    images: Images
    data: Data | None = None
    try:
        config, data = open_for_start(config, device)
        images = data
    except InputError as error:
        noise = stand_in(data_config(config), device.name)
        if noise is None:
            raise
        note(f"{error}; noise stands in for it here, so a saliency that looks at images may cut other layers")
        images = noise
    with _clock(config, clocks) as clock:
        prepared = prepare(config, images, device, clock)
    config = _as_prepared(config, prepared)
    if not as_json:
        print_start(prepared, data, device)
    peers, choices = peer_facts(prepared.family, prepared.widths), share_choices(prepared.scored, config)
    if as_json:
        record = {
            "peers": [asdict(facts) for facts in peers],
            "smallest_peer_by_share": [asdict(choice) for choice in choices],
            "targets": [asdict(target) for target in targets(peers)],
            "notes": family_notes(peers, config),
        }
        if prepared.plan is not None:
            record["latency"] = asdict(prepared.plan)
        say_exactly(json.dumps(record, indent=2))
        return
    print_plan(prepared.plan, prepared.scored.graph)
    print_family(peers, prepared.scored, config)
    print_stages(prepared)
    if choices:
        print_share_choices(choices, config)
    print_targets(peers, prepared.full)


def _clock(config: TrainConfig, clocks: Clocks | None) -> AbstractContextManager[Clock | None]:
    """What measures the latency that `config` asks for; None where it asks for none."""
    return clocks(config) if clocks is not None and config.ratio_of == LATENCY else contextlib.nullcontext()


def _as_prepared(config: TrainConfig, prepared: Prepared) -> TrainConfig:
    """`config` with the ratios that latencies came to, and as its start allows; a note where that cannot teach."""
    if prepared.plan is not None:
        config = dataclasses.replace(config, ratios=ratios_of(prepared.plan))
    settled = settle_teacher(config, prepared.made)
    if config.teacher == "frozen" != settled.teacher:
        note("the head for these classes is new, so the start teaches nothing")
    return settled


def start_run(config: TrainConfig, root: Path, force: bool, command: str = "", clocks: Clocks | None = None) -> Run:
    """Train a new run in `root`; where that exists, only with `force` and if it is a run.

    Args: the `command` that the record shall name; what measures latencies, where one is asked for. Two processes never
    train in one directory.
    """
    with locked(root, "the run"):
        return _start(config, root, force, command, clocks)


def _start(config: TrainConfig, root: Path, force: bool, command: str, clocks: Clocks | None) -> Run:
    run = Run(root)
    if not root.exists():
        recover_directory(root)  # a kill between the renames of --force
    if root.exists() and not force:
        raise InputError(
            f"{root} exists already; choose another --out, pass --resume to go on with it, or --force to start it over"
        )
    refuse_existing(root, force, runs.is_run)
    device = choose_device(config.device, config.precision)
    config, data = open_for_start(config, device)
    with _clock(config, clocks) as clock:
        prepared = prepare(config, data, device, clock)
    print_start(prepared, data, device)
    check_epochs(config, prepared)
    config = _as_prepared(config, prepared)
    # what can be refused is refused now, before the directory is made or an old run given up
    data.train_steps(config.batch_size)
    data.check_test()
    if config.compile:
        check_compiler(device)
    config, trials = as_long_as(config, prepared, data, device), list[RateTrial]()
    if config.lr_auto:
        config, trials = find_rate(config, prepared, data, device)
    settings = with_absolute_paths(config)
    other = config.baseline_from if config.baseline_from != TRAINED_ON else None
    baseline = None if other is None else _matching_baseline(settings, Path(other), data)
    record = RunRecord(
        command=command, settings=settings, rate_trials=trials, latency=prepared.plan,
        device=DeviceRecord(name=device.name, bf16=device.bf16), threads=torch.get_num_threads(),
        **vars(runs.provenance()),
    )  # fmt: skip
    with new_directory(root) as aside:
        records.write(aside / run.config.name, record)
        if baseline is not None:
            network, spec = baseline
            (aside / "baseline").mkdir()
            save_network(network, spec, aside / "baseline")
    return _train_stoppable(run, config, data, prepared, device)


def resume_run(run: Run) -> Run:
    """Go on with a run from its last complete checkpoint; says so if it is finished."""
    with locked(run.root, "the run"):
        return _resume(run)


def _resume(run: Run) -> Run:
    with contextlib.suppress(InputError):  # a damaged family.json is written anew
        runs.read_family(run)
        say(f"{run.root} is finished")
        return run
    record = runs.read_config(run)
    config = settle(vars(record.settings), str(run.config))
    if needs_caller(config.arch):
        factory_of_caller(config.arch, run.root)  # refused now where nobody named it
    device = choose_device(config.device, config.precision)
    data = open_data(data_config(config), device.name)
    return _train_stoppable(run, config, data, prepare(config, data, device, record.latency), device)


def _train_stoppable(run: Run, config: TrainConfig, data: Data, prepared: Prepared, device: Device) -> Run:
    """`_train`; Ctrl-C says how to go on."""
    try:
        return _train(run, config, data, prepared, device)
    except KeyboardInterrupt:
        own = f" --arch {config.arch}" if needs_caller(config.arch) else ""
        raise Stopped(f"stopped; go on with 'wmlc train --resume --out {run.root}{own}'") from None


def _train(run: Run, config: TrainConfig, data: Data, prepared: Prepared, device: Device) -> Run:
    """What is still to do of a run: the family, then the baseline (the other way round for a method that cuts it)."""
    clear_asides(run.root)
    progress = read_progress(run.checkpoint)
    reached = progress and progress.phase
    method, trains_baseline = METHODS[config.method], config.baseline and config.baseline_from in (None, TRAINED_ON)
    as_it_stands = prepared.trained and config.baseline_from != TRAINED_ON  # the start is the baseline
    cuts_trained = method.cuts_trained and not prepared.trained  # the baseline comes first
    if reached == "baseline" and not trains_baseline:
        raise InputError(
            f"{run.checkpoint} is of a baseline, and this run trains none; delete it to train from the start"
        )
    peers = peer_facts(prepared.family, prepared.widths)
    doing = "training" if config.epochs else "cutting, and training nothing,"
    say(f"{doing} in {run.root} on {device.name}, {'bf16' if device.bf16 else 'fp32'}")
    print_plan(prepared.plan, prepared.scored.graph)
    print_family(peers, prepared.scored, config)
    print_stages(prepared)
    trains_family = cuts_trained or reached != "baseline"
    trains_baseline = trains_baseline and not (cuts_trained and reached == "family")

    def train_family(prepared: Prepared, work: LongWork) -> TrainState:
        family, own = trained_peers(prepared.family, config), of_second_half(config) if method.cuts_trained else config
        return train_phase(run, "family", family, prepared, own, method, data, device, reached == "family", work)

    def train_baseline(work: LongWork) -> None:
        alone = family_of_one(prepared.full)
        if as_it_stands:
            state = TrainState("baseline", [1.0])
        else:
            state = train_phase(
                run, "baseline", alone, prepared, control, ALONE, data, device, reached == "baseline", work
            )
        save_baseline(run, alone, prepared, config, data, state, device)

    # the unpruned network is trained for the epochs that were asked for
    control = untaught(dataclasses.replace(config, steps=None) if config.as_long_as else config)
    fitted = trained_peers(prepared.family, config), of_second_half(config) if method.cuts_trained else config
    alone_too = trains_baseline and not as_it_stands
    parts = [fitted] * trains_family + [(family_of_one(prepared.full), control)] * alone_too
    macs = sum(planned_macs(part, prepared, own, data) for part, own in parts if own.epochs)
    if macs:
        cost = epochs_of_unpruned(macs, prepared.scored.graph.macs, data.record.train)
        say(f"cost: {macs:.3g} MACs, as much as {cost:.2f} epochs of the unpruned network")
    with long_work(macs) as work:
        if cuts_trained:
            if trains_baseline:
                train_baseline(work)
            cut = cut_trained(prepared, run.network(BASELINE), config, data, device)
            state, unpruned = train_family(cut, work), read_spec(run.network(BASELINE)).about
            state.seconds += unpruned.seconds or 0.0
            state.training_macs += unpruned.training_macs or 0.0
            save_peers(run, cut, config, data, peers, state, device)
        else:
            if trains_family:
                state = train_family(prepared, work)
                save_peers(run, prepared, config, data, peers, state, device)
            if trains_baseline:
                train_baseline(work)
    family = save_family(run, config, data, prepared, peers)
    shown = ", ".join(f"{peer.top1:.2f}" for peer in family.peers)
    say(
        f"test top-1 of peers 1 to {len(family.peers)}: {shown}; ensemble {family.ensemble_top1:.2f}"
        + (f"; baseline {family.baseline.top1:.2f}" if family.baseline else "")
    )
    say(f"wrote {run.root}")
    return run


def _matching_baseline(config: TrainConfig, name: Path, data: Data) -> tuple[nn.Module, NetworkSpec]:
    """Another run's baseline; refused unless it was trained on the same data, with the same network and settings."""
    source = runs.find_run(name)
    if not source.network(BASELINE).is_dir():
        raise InputError(f"{source.root} has no baseline (yet); name a finished run that trained one")
    spec, settings = read_spec(source.network(BASELINE)), runs.read_config(source).settings
    mine, theirs = ({key: getattr(each, key) for key in names_of(*OF_A_BASELINE)} for each in (config, settings))
    record = data.record  # a normalisation can be asked for in several ways, and framing follows the files
    mine |= {"input_shape": record.input_shape, "mean": record.mean, "std": record.std, "framing": record.framing}
    theirs |= {"input_shape": spec.input_shape, "mean": spec.mean, "std": spec.std, "framing": spec.framing}
    for key in ("normalise", "interpolation", "crop"):
        del mine[key], theirs[key]
    differing = [f"{key} {theirs[key]} there, {value} here" for key, value in mine.items() if theirs[key] != value]
    if differing:
        raise InputError(f"the baseline of {source.root} is no match for this run: {'; '.join(differing)}")
    return load_network(source.network(BASELINE)), spec
