"""A training run from beginning to end: prepare the family, train it, save it, train the baseline, finish."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from wmlc import run as runs
from wmlc.arch import needs_caller
from wmlc.compress import begin
from wmlc.compress.command import Wanted
from wmlc.compress.config import settle, trained_ratios, untaught
from wmlc.compress.describe import (
    PeerFacts,
    compare_shares,
    family_notes,
    peer_facts,
    print_prepared,
    print_share_choices,
    print_targets,
    targets,
)
from wmlc.compress.finetune import as_long_as, cut_trained, of_peers, tell_cost
from wmlc.compress.latency import Clock, Clocks
from wmlc.compress.learn.family import family_of_one
from wmlc.compress.learn.methods import METHODS
from wmlc.compress.learn.place import Device, choose_device, device_of_run
from wmlc.compress.learn.state import TrainState, read_progress
from wmlc.compress.learn.train import reweighs
from wmlc.compress.phase import train_phase
from wmlc.compress.prepare import Prepared, prepare, trained_peers
from wmlc.compress.rate import find_rate
from wmlc.compress.save import save_baseline, save_family, save_peers
from wmlc.compress.worth import Images, budget_of
from wmlc.console import LongWork, long_work, note, say, say_exactly
from wmlc.data import Data, open_data
from wmlc.data.noise import stand_in
from wmlc.errors import InputError, Stopped
from wmlc.files import clear_asides, locked
from wmlc.forms import file_name_of
from wmlc.models.checkpoint import read_spec
from wmlc.models.factory import factory_of_caller, named_by_caller
from wmlc.ranks import SOLO, Ranks, launch
from wmlc.records import RateTrial
from wmlc.run import BASELINE, Run, data_config
from wmlc.settings import LATENCY, SENSITIVITY, TRAINED_ON, TrainConfig


def train_as_asked(
    config: TrainConfig | None, asked: Mapping[str, Any], wanted: Wanted, command: str, clocks: Clocks | None,
    ranks: Ranks,
) -> None:  # fmt: skip
    """Start a run of `config`, go on with one where it is None, or only show its family; see `command.train`."""
    if config is None:
        if "arch" in asked:
            named_by_caller(asked["arch"])
        resume_run(ranks.of_first(lambda: runs.find_run(wanted.out)), ranks)
        return
    for words in _without_effect(asked, config, ranks):
        note(words)
    if needs_caller(config.arch):
        named_by_caller(config.arch)
    if wanted.dry_run:
        if ranks.first:
            dry_run(config, wanted.as_json, clocks)
        return
    root = wanted.out or runs.RUNS / f"{file_name_of(config.arch)}-{config.data}-{config.method}"
    if root.is_file():
        raise InputError(f"{root} is a file; choose a directory for --out")
    if ranks.of_first(lambda: _begun_by_this_launch(root)):
        resume_run(Run(root), ranks)
    else:
        start_run(config, root, wanted.force, command, clocks, ranks)


def _without_effect(asked: Mapping[str, Any], config: TrainConfig, ranks: Ranks) -> list[str]:
    """What was asked for in so many words, and changes nothing in this run."""
    learned = reweighs(config, len(trained_ratios(config)), config.teacher == "frozen")
    idle = [f"--{name.replace('_', '-')}" for name in ("weight_lr", "reweigh_every") if name in asked and not learned]
    said = [f"{' and '.join(idle)} without effect: {config.method} learns no weights here"] if idle else []
    if "saliency" in asked and config.start is not None:
        said.append("--saliency without effect: a start's channels go by --rank, and how many by --budget")
    if asked.get("blocks") == "drop" and budget_of(config) != SENSITIVITY:
        said.append(f"--blocks drop without effect: budget {budget_of(config)} keeps all")
    if asked.get("warmup_epochs") and config.schedule == "one-cycle":
        said.append("--warmup-epochs without effect: one-cycle has a warm-up of its own")
    elif asked.get("warmup_epochs") and config.start is not None and METHODS[config.method].cuts_trained:
        said.append("--warmup-epochs without effect: fine-tuning has no warm-up")
    if asked.get("sync_bn") and ranks.count == 1:
        said.append("--sync-bn without effect: there is one process")
    return said


def _begun_by_this_launch(root: Path) -> bool:
    """Whether torchrun has started this very run before, and starts it again as a process died (--max-restarts)."""
    return launch() is not None and runs.is_run(root) and runs.read_config(Run(root)).launch == launch()


def dry_run(config: TrainConfig, as_json: bool, clocks: Clocks | None) -> None:
    """Print the family that `config` would train, and what the other sharing trees would do to it.

    Without the data on disk noise takes the images' place, in CIFAR's and ImageNet's shapes, and a note says so.
    """
    device = choose_device(config.device, config.precision)
    images: Images
    data: Data | None = None
    try:
        config, data = begin.open_for_start(config, device)
        images = data
    except InputError as error:
        noise = stand_in(data_config(config), device.name)
        if noise is None:
            raise
        note(f"{error}; noise stands in for it here, so a saliency that looks at images may cut other layers")
        images = noise
    with _clock(config, clocks) as clock:
        if data is not None:
            begin.check_length(config, data)
        prepared = prepare(
            config, images, device, clock, tell=None if as_json else partial(begin.print_start, config, data, device)
        )
    config = begin.as_prepared(config, prepared)
    peers, choices = peer_facts(prepared), compare_shares(prepared.scored, config)
    if as_json:
        record = {
            "peers": [asdict(facts) for facts in peers],
            "smallest_peer_by_share": [asdict(choice) for choice in choices],
            "targets": [asdict(target) for target in targets(peers)],
            "notes": family_notes(peers, config),
        }
        if prepared.plan is not None:
            record["latency"] = asdict(prepared.plan)
        elif prepared.scored.sensitivities:
            record["sensitivity"] = [asdict(own) for own in prepared.scored.sensitivities]
        say_exactly(json.dumps(record, indent=2))
        return
    print_prepared(prepared, peers, config)
    if choices:
        print_share_choices(choices, config)
    print_targets(peers, prepared.full)


def _clock(config: TrainConfig, clocks: Clocks | None) -> AbstractContextManager[Clock | None]:
    """What measures the latency that `config` asks for; None where it asks for none."""
    return clocks(config) if clocks is not None and config.ratio_of == LATENCY else contextlib.nullcontext()


def start_run(
    config: TrainConfig, root: Path, force: bool, command: str = "", clocks: Clocks | None = None,
    ranks: Ranks = SOLO,
) -> Run:  # fmt: skip
    """Train a new run in `root`; where that exists, only with `force` and if it is a run.

    Args: the `command` that the record shall name; what measures latencies, where one is asked for; the processes that
    train together. Two runs are never trained in one directory.
    """
    with locked(root, "the run") if ranks.first else contextlib.nullcontext():
        return _start(config, root, force, command, clocks, ranks)


def _start(config: TrainConfig, root: Path, force: bool, command: str, clocks: Clocks | None, ranks: Ranks) -> Run:
    run = Run(root)
    ranks.of_first(lambda: begin.check_free(root, force, config))
    device = device_of_run(config, ranks)
    config, data = ranks.of_each(lambda: begin.open_for_start(config, device))
    begin.together(data, ranks)
    with _clock(config, clocks if ranks.first else None) as clock:
        begin.check_length(config, data.shared(ranks), ranks.count)
        prepared = prepare(
            config, data, device, clock, tell=partial(begin.print_start, config, data, device) if ranks.first else None
        )
    began_with = begin.start_weights(prepared)
    ranks.agree({"the start": began_with}, "give all processes the same --start")
    begin.check_epochs(config, prepared)
    config = begin.as_prepared(config, prepared)
    # what can be refused is refused now, before the directory is made or an old run given up
    ranks.of_first(data.check_test)
    data = data.shared(ranks)
    config, trials = as_long_as(config, prepared, data, device), list[RateTrial]()
    if config.lr_auto:
        config, trials = find_rate(config, prepared, data, device)
    ranks.of_first(lambda: begin.make_run(run, config, command, trials, prepared, data, device, began_with))
    return _train_stoppable(run, config, data, prepared, device)


def resume_run(run: Run, ranks: Ranks = SOLO) -> Run:
    """Go on with a run from its last complete checkpoint; says so if it is finished.

    Args: the processes that train together, however many there were before.
    """
    with locked(run.root, "the run") if ranks.first else contextlib.nullcontext():
        return _resume(run, ranks)


def _resume(run: Run, ranks: Ranks) -> Run:
    if ranks.of_first(lambda: _is_finished(run)):
        say(f"{run.root} is finished")
        return run
    record = ranks.of_first(lambda: runs.read_config(run))
    config = settle(vars(record.settings), str(run.config))
    if needs_caller(config.arch):
        factory_of_caller(config.arch, run.root)  # refused now where nobody named it
    device = device_of_run(config, ranks)
    data = ranks.of_each(lambda: open_data(data_config(config), device.name))
    begin.together(data, ranks)
    prepared = prepare(config, data, device, record.latency, record.sensitivity)
    ranks.of_each(lambda: begin.same_beginning(prepared, data, record, run.root))
    if ranks.first:
        begin.tell_other_arithmetic(device, record)
    return _train_stoppable(run, config, data.shared(ranks), prepared, device)


def _is_finished(run: Run) -> bool:
    try:
        runs.read_family(run)
    except InputError:  # a damaged family.json is written anew
        return False
    return True


def _train_stoppable(run: Run, config: TrainConfig, data: Data, prepared: Prepared, device: Device) -> Run:
    """`_train`; Ctrl-C says how to go on."""
    try:
        return _train(run, config, data, prepared, device)
    except KeyboardInterrupt:
        raise Stopped(f"stopped; go on with 'wmlc train --resume --out {run.root}{runs.own_code(run)}'") from None


def _train(run: Run, config: TrainConfig, data: Data, prepared: Prepared, device: Device) -> Run:
    """What is still to do of a run: the family, then the baseline (the other way round for a method that cuts it)."""
    ranks = device.ranks
    if ranks.first:
        clear_asides(run.root)
    progress = ranks.of_first(lambda: read_progress(run.checkpoint))
    reached = progress and progress.phase
    method, trains_baseline = METHODS[config.method], config.baseline and config.baseline_from in (None, TRAINED_ON)
    as_it_stands = prepared.trained and config.baseline_from != TRAINED_ON  # the start is the baseline
    cuts_trained = method.cuts_trained and not prepared.trained  # the baseline comes first
    if reached == "baseline" and not trains_baseline:
        raise InputError(
            f"{run.checkpoint} is of a baseline, and this run trains none; delete it to train from the start"
        )
    peers = peer_facts(prepared)
    doing = "training" if of_peers(config).epochs else "cutting, and training nothing,"
    say(f"{doing} in {run.root} on {device.name}, {'bf16' if device.bf16 else 'fp32'}")
    print_prepared(prepared, peers, config)
    trains_family = cuts_trained or reached != "baseline"
    trains_baseline = trains_baseline and not (cuts_trained and reached == "family")

    def train_family(prepared: Prepared, work: LongWork) -> TrainState:
        family, own = trained_peers(prepared.family, config), of_peers(config)
        return train_phase(run, "family", family, prepared, own, data, device, reached == "family", work)

    def train_baseline(work: LongWork) -> None:
        alone = family_of_one(prepared.full)
        if as_it_stands:
            state = TrainState("baseline", [1.0])
        else:
            state = train_phase(run, "baseline", alone, prepared, control, data, device, reached == "baseline", work)
        save_baseline(run, alone, prepared, config, data, state, device)

    # the unpruned network is trained for the epochs that were asked for
    control = untaught(config)
    fitted = trained_peers(prepared.family, config), of_peers(config)
    alone_too = trains_baseline and not as_it_stands
    parts = [fitted] * trains_family + [(family_of_one(prepared.full), control)] * alone_too
    with long_work(tell_cost(parts, prepared, config, data)) as work:
        if cuts_trained:
            if trains_baseline:
                train_baseline(work)
            cut = cut_trained(prepared, run.network(BASELINE), config, data, device)
            state = train_family(cut, work)
            unpruned = ranks.of_first(lambda: read_spec(run.network(BASELINE)).about)
            state.seconds += unpruned.seconds or 0.0
            state.training_macs += unpruned.training_macs or 0.0
            save_peers(run, cut, config, data, peers, state, device)
        else:
            if trains_baseline and as_it_stands:  # other runs of a sweep wait for it
                train_baseline(work)
            if trains_family:
                state = train_family(prepared, work)
                save_peers(run, prepared, config, data, peers, state, device)
            if trains_baseline and not as_it_stands:
                train_baseline(work)
    if ranks.first:
        _finish(run, config, data, prepared, peers)
    return run


def _finish(run: Run, config: TrainConfig, data: Data, prepared: Prepared, peers: list[PeerFacts]) -> None:
    """Write the family's record, and say how good its peers are."""
    family = save_family(run, config, data, prepared, peers)
    shown = ", ".join(f"{peer.top1:.2f}" for peer in family.peers)
    top1 = f"peer 1: {shown}"
    if len(family.peers) > 1:
        top1 = f"peers 1 to {len(family.peers)}: {shown}; ensemble {family.ensemble_top1:.2f}"
    say(f"test top-1 of {top1}" + (f"; baseline {family.baseline.top1:.2f}" if family.baseline else ""))
    say(f"wrote {run.root}")
