"""How a run begins: its directory and its data, how a start wants their pixels, and how right it is on them."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wmlc import records
from wmlc import run as runs
from wmlc.arch import is_foreign, needs_caller
from wmlc.compress.config import PRETRAINED, untaught, with_absolute_paths
from wmlc.compress.latency import ratios_of
from wmlc.compress.learn.place import Device, draws_kept
from wmlc.compress.learn.train import evaluation_batch
from wmlc.compress.prepare import Made, Prepared, settle_teacher
from wmlc.compress.rate import check_trials
from wmlc.console import note, say
from wmlc.data import Data, data_of, open_parts
from wmlc.data.decode import Layout
from wmlc.data.normalisation import answers_already, as_text, start_accuracy, start_words
from wmlc.errors import InputError
from wmlc.files import new_directory, recover_directory, refuse_existing
from wmlc.models.answer import answer_of, answers_as, code_to_bring_back
from wmlc.models.checkpoint import load_network, read_spec, save_network, tensors_digest
from wmlc.models.foreign import why_not_captured
from wmlc.models.pixels import Pixels
from wmlc.models.pretrained import makes_the_same
from wmlc.models.start import start_pixels
from wmlc.ranks import Ranks, launch
from wmlc.records import DeviceRecord, NetworkSpec, RateTrial, RunRecord
from wmlc.run import BASELINE, Run, data_config
from wmlc.settings import LATENCY, OF_A_BASELINE, TRAINED_ON, TrainConfig, names_of


def open_for_start(config: TrainConfig, device: Device) -> tuple[TrainConfig, Data]:
    """A run's data, and `config` with the normalisation, size, interpolation and crop that its start wants.

    What was asked for stays as it is. Raises `InputError` as `open_data` does.
    """
    parts = open_parts(data_config(config))
    pixels = start_pixels(config.start, config.arch) if config.start is not None else None
    if pixels is not None and len(pixels.mean) == parts.layout.channels:
        config = _as_wanted(config, pixels, parts.layout)
        parts = parts.under(data_config(config))
    return config, data_of(parts, device.name)


def _as_wanted(config: TrainConfig, pixels: Pixels, layout: Layout) -> TrainConfig:
    own: dict[str, Any] = {}
    if config.normalise is None:
        own["normalise"] = as_text(pixels.mean, pixels.std)
    if not layout.small:
        own |= _own_framing(pixels, config)
    return replace(config, **own)


def _own_framing(pixels: Pixels, config: TrainConfig) -> dict[str, Any]:
    """Of large images what the start's own are like, unless that was asked for."""
    own: dict[str, Any] = {"interpolation": pixels.interpolation, "crop": pixels.crop}
    if pixels.size is not None and pixels.size[0] == pixels.size[1]:
        own["image_size"] = pixels.size[0]
    return {key: value for key, value in own.items() if value is not None and getattr(config, key) is None}


def check_epochs(config: TrainConfig, prepared: Prepared) -> None:
    """Raise `InputError` for no epochs where there is something to learn."""
    if config.epochs == 0 and not prepared.trained:
        raise InputError(
            "epochs 0 trains nothing, and the head for these classes is new; train it for an epoch or more"
        )


def print_start(config: TrainConfig, data: Data | None, device: Device, made: Made) -> None:
    """Say what became of a start, and how right it is on the held-out images under the usual normalisations.

    Of somebody's own network also whether it can be exported afterwards; for a latency it is exported anyway.
    """
    fitted, staged = made.fitted, made.staged
    if staged is not None and staged.note:
        note(staged.note)
    own = needs_caller(config.arch) and config.ratio_of != LATENCY
    if own and made.whole and data and (why := why_not_captured(made.whole, data.record.input_shape)):
        note(
            f"torch cannot capture {config.arch} as a graph ({why}), so no ONNX file can be made of its peers; "
            "wmlc.load takes them all the same"
        )
    for words in fitted.words if fitted is not None else ():
        say(words)
    if data is None:
        return
    network, training = made.network, made.network.training
    network.eval()

    def logits_of(images: Tensor) -> Tensor:
        with device.in_float32().autocast():
            return network(images).float()

    if made.trained:
        line, warning = start_words(start_accuracy(logits_of, data, evaluation_batch(data)), data)
        say(line)
        if warning:
            note(warning)
    elif fitted is None and needs_caller(config.arch):
        with contextlib.suppress(Exception):  # whatever its code raises, a step of training will tell
            tell_trained(config, answers_already(logits_of, data, evaluation_batch(data)), data, device)
    network.train(training)


def tell_trained(config: TrainConfig, top1: float | None, data: Data, device: Device) -> None:
    """A note where a network that no start was named for is a trained one, or all of it but its head is.

    Args: its `top1` on held-out images, where that is better than chance; without one its factory is called twice more,
    to see whether it makes the same weights.
    """
    record = data.record
    if top1 is not None:
        note(
            f"{config.arch} already answers {top1:.1f} % of {record.held_out:,} held-out images; pass --start "
            "pretrained to start from its weights"
        )
        return
    with draws_kept(device.name):
        alike = makes_the_same(config.arch, record.input_shape, config.arch_args, len(record.class_names))
    if alike:
        note(
            f"{config.arch} makes the same weights each time, its head's aside, and without --start they count as "
            "random; where they are trained, pass --start pretrained"
        )


def check_length(config: TrainConfig, data: Data, processes: int = 1) -> None:
    """Raise `InputError` where there are too few images for a batch, or steps for `--lr auto`.

    A note says how many images each epoch leaves out, where that is more than one in ten.
    """
    size, images = config.batch_size, data.record.train
    left_out = images - data.train_steps(size) * size
    check_trials(config, data)
    if config.epochs and left_out > images / 10:
        sizes = [own for own in range(size // 2 + 1, size + 1) if own % processes == 0]
        fits = min(sizes, key=lambda own: (images % own, -own))
        note(
            f"{left_out} of {images:,} training images are more than whole batches of {size} and left out, others each "
            f"epoch; --batch-size {fits} leaves out {images % fits}"
        )


def check_free(root: Path, force: bool, config: TrainConfig) -> None:
    """Raise `InputError` where a new run cannot be in `root`, or what it begins with would go for it."""
    for option, name in (("--start", config.start), ("--baseline", config.baseline_from)):
        if name is not None and Path(name).exists() and Path(name).resolve().is_relative_to(root.resolve()):
            raise InputError(f"{option} {name} lies in {root}, which the new run would replace; choose another --out")
    if not root.exists():
        recover_directory(root)  # a kill between the renames of --force
    if root.exists() and not force:
        raise InputError(
            f"{root} exists already; choose another --out, pass --resume to go on with it, or --force to start it over"
        )
    refuse_existing(root, force, runs.is_run)


def together(data: Data, ranks: Ranks) -> None:
    """Raise `InputError` in all processes where one cannot read its images, or has others."""
    if ranks.count == 1:
        return
    record = ranks.of_each(lambda: data.record)
    counts = {
        "the number of training images": record.train, "the number of held-out images": record.held_out,
        "the number of test images": ranks.of_each(data.test_count), "the list of classes": record.class_names,
        "the hash of the training images' names and labels": ranks.of_each(data.train_digest)[:12],
    }  # fmt: skip
    ranks.agree(counts, "give all processes the same images")


def as_prepared(config: TrainConfig, prepared: Prepared) -> TrainConfig:
    """`config` with the ratios that latencies came to, and as its start allows; a note where that cannot teach."""
    if prepared.plan is not None:
        config = replace(config, ratios=ratios_of(prepared.plan))
    settled = settle_teacher(config, prepared.made)
    if config.teacher == "frozen" != settled.teacher:
        note("the head for these classes is new, so the start teaches nothing")
    elif config.feature_loss != settled.feature_loss:
        note("the network is one stage, so peers are not held against its channels (--feature-loss none)")
    return settled


def start_weights(prepared: Prepared) -> str | None:
    """A hash of the weights that a run starts from; None of random ones."""
    return None if prepared.made.fitted is None else tensors_digest(prepared.full.state_dict().values())


def same_beginning(prepared: Prepared, data: Data, record: RunRecord, root: Path) -> None:
    """Raise `InputError` where a run that goes on would do so from another start, or on other images.

    Which are held out hangs on how many there are, and those that have been trained on cannot be.
    """
    if record.images not in (None, data.train_digest()):
        raise InputError(
            f"the training images are not those that {root} began with, by their names and labels, so it cannot go on; "
            "put them back, or train anew (--force)"
        )
    if record.start_weights not in (None, start_weights(prepared)):
        raise InputError(
            f"the weights of {_start_of(record.settings)} are not those that {root} began with, so it cannot go on; "
            "put them back, or train anew (--force)"
        )
    arch, shape = record.settings.arch, data.record.input_shape
    if record.start_answer is not None and not answers_as(record.start_answer, prepared.full, shape):
        raise InputError(
            f"{record.settings.start} gives other answers than when {root} began, so it cannot go on: "
            f"{code_to_bring_back(arch)}, or train anew (--force)"
        )


def _start_of(settings: TrainConfig) -> str:
    """A run's start, in words: where a factory of the caller's makes it, that."""
    return settings.arch if settings.start == PRETRAINED and needs_caller(settings.arch) else str(settings.start)


def tell_other_arithmetic(device: Device, record: RunRecord) -> None:
    """A note where a run that goes on does so on another kind of device than it began on, or in other floats."""
    began, now = (f"{each.name} in {'bf16' if each.bf16 else 'fp32'}" for each in (record.device, device))
    if began != now:
        note(f"the run began on {began} and goes on on {now}; --device and --precision of a new run say which")


def make_run(
    run: Run, config: TrainConfig, command: str, trials: list[RateTrial], prepared: Prepared, data: Data,
    device: Device, began_with: str | None,
) -> None:  # fmt: skip
    """Make the run's directory, with its record and the baseline that comes from another run.

    Args: the hash of the weights that it `began_with` (`start_weights`).
    """
    settings = with_absolute_paths(config)
    other = config.baseline_from if config.baseline_from != TRAINED_ON else None
    taken_from = began_with if prepared.trained else None
    baseline = None if other is None else _matching_baseline(settings, Path(other), data, taken_from)
    of_others = began_with is not None and is_foreign(config.arch)
    answer = answer_of(prepared.full, data.record.input_shape) if of_others else None
    record = RunRecord(
        command=command, settings=settings, rate_trials=trials, latency=prepared.plan,
        sensitivity=[] if prepared.plan else prepared.scored.sensitivities,
        device=DeviceRecord(name=device.name, bf16=device.bf16), threads=torch.get_num_threads(),
        processes=device.ranks.count, launch=launch(), start_weights=began_with,
        start_answer=answer,
        images=data.train_digest(),
        **vars(runs.provenance()),
    )  # fmt: skip
    with new_directory(run.root) as aside:
        records.write(aside / run.config.name, record)
        if baseline is not None:
            network, spec = baseline
            (aside / "baseline").mkdir()
            save_network(network, spec, aside / "baseline")


def _matching_baseline(
    config: TrainConfig, name: Path, data: Data, start_weights: str | None
) -> tuple[nn.Module, NetworkSpec]:
    """Another run's baseline; refused unless it was trained on the same data, with the same network and settings.

    Args: the hash of the start's weights, where the start is the baseline as it stands.
    """
    source = runs.find_run(name)
    if not source.network(BASELINE).is_dir():
        raise InputError(f"{source.root} has no baseline (yet); name a finished run that trained one")
    spec, source_record = read_spec(source.network(BASELINE)), runs.read_config(source)
    settings = source_record.settings
    trained = untaught(config), untaught(settings)
    mine, theirs = ({key: getattr(each, key) for key in names_of(*OF_A_BASELINE)} for each in trained)
    record = data.record  # a normalisation can be asked for in several ways, and framing follows the files
    mine |= {"input_shape": record.input_shape, "mean": record.mean, "std": record.std, "framing": record.framing}
    theirs |= {"input_shape": spec.input_shape, "mean": spec.mean, "std": spec.std, "framing": spec.framing}
    found = ["lr", "finetune_lr", "steps"] if config.lr_auto and settings.lr_auto else []  # by each run for itself
    for key in ("normalise", "interpolation", "crop", *found):
        for each in (mine, theirs):
            each.pop(key, None)
    differing = [f"{key} {theirs[key]} there, {value} here" for key, value in mine.items() if theirs[key] != value]
    alike = {
        "the classes": (spec.class_names, record.class_names),
        "the training images, by names and labels,": (source_record.images, data.train_digest()),
        "the start's weights": (source_record.start_weights, start_weights),
    }
    differing += [
        f"{what} are others" for what, (there, here) in alike.items() if None not in (there, here) and there != here
    ]
    if differing:
        raise InputError(f"the baseline of {source.root} is no match for this run: {'; '.join(differing)}")
    return load_network(source.network(BASELINE)), spec
