"""The settings of a run, checked, with the method's own values where none were given. Free of torch."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wmlc.arch import is_foreign
from wmlc.compress.budgets import with_budgets
from wmlc.compress.learn.methods import FEATURE_TERMS, METHODS, Method, feature_term
from wmlc.compress.setting_types import LONGEST_SHOWN, shown, typed
from wmlc.compress.widths.tree import MAX_PEERS
from wmlc.data.sources import INTERPOLATIONS, kind_and_place
from wmlc.errors import InputError
from wmlc.forms import PRECISIONS
from wmlc.models.arguments import parse_args
from wmlc.run import data_config
from wmlc.settings import AUTO, LATENCY, LR_OF_A_START, SENSITIVITY, TRAINED_ON, TrainConfig, setting

CHOICES = {
    "method": tuple(METHODS),
    "feature_loss": ("none", *FEATURE_TERMS),
    "saliency": ("snip", "synflow", "grasp"),
    "rank": ("magnitude", "taylor", "random"),
    "blocks": ("keep", "drop"),
    "budget": ("snip", "synflow", "grasp", "taylor", "uniform", SENSITIVITY),
    "teacher": ("frozen", "trained", "none"),
    "as_long_as": tuple(METHODS),
    "weigh": ("peers", "sources"),
    "ratio_of": ("params", "macs", LATENCY),
    "join": ("sum", "mean"),
    "schedule": ("cosine", "one-cycle", "step"),
    "device": ("auto", "cpu", "cuda"),
    "precision": ("auto", "fp32", "bf16"),
    "latency_precision": PRECISIONS,
    "latency_device": ("auto", "cpu", "cuda"),
    "interpolation": INTERPOLATIONS,
}
SWEEP_ENGINES = ("local", "ray")

AT_LEAST = {
    "epochs": 0, "batch_size": 2, "divisor": 1, "reweigh_every": 1, "momentum": 0, "weight_decay": 0,
    "warmup_epochs": 0, "alpha": 0, "weight_lr": 0, "seed": 0, "trunk_ratio": 0, "feature_weight": 0,
    "finetune_epochs": 0, "reuse_teacher": 0, "steps": 1, "threads": 1, "batch": 1,
}  # fmt: skip
ABOVE_0 = ("lr", "temperature", "finetune_lr", "clip", "paid_out")
PRETRAINED, IMAGENET = "pretrained", "imagenet"  # a start, and its classes, that are no file
MOST = 2**31  # of a whole number, as records hold it; a seed has a bound of its own


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """How the runs of a grid are carried out."""

    jobs: int = setting(1, "Runs at once on a machine.", metavar="N")
    engine: str = setting(
        "local", "This machine, or the machines and GPUs of a Ray cluster, which must share a file system.",
        metavar="|".join(SWEEP_ENGINES),
    )  # fmt: skip
    address: str | None = setting(None, "Ray's cluster.", metavar="auto|HOST:PORT", shown="a Ray of this machine")

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise InputError(f"--jobs must be at least 1, got {self.jobs}")
        if self.engine not in SWEEP_ENGINES:
            raise InputError(f"--engine must be one of {', '.join(SWEEP_ENGINES)}, got {self.engine!r}")
        if self.address is not None and self.engine != "ray":
            raise InputError("--address is where a Ray cluster is; pass --engine ray with it")


def settle(given: Mapping[str, Any], source: str = "options") -> TrainConfig:
    """The settings of a run from those `given`, by name, in options, a recipe or a `config.json`.

    What is not given is the method's own, or the default. Settled settings settle to themselves. Raises `InputError`,
    which names the `source`, for unknown names and wrong types, and for values that cannot be.
    """
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}
    values: dict[str, Any] = {}
    for key, value in given.items():
        name = str(key).replace("-", "_")
        if name not in fields:
            near = difflib.get_close_matches(name[:LONGEST_SHOWN], fields, n=1)
            hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(fields)}"
            raise InputError(f"{source}: unknown setting {shown(key)}; {hint}")
        if value == AUTO and f"{name}_auto" in fields:
            values[f"{name}_auto"] = True
        else:
            values[name] = typed(name, value, str(fields[name].type), source)
    if "data" in values:
        values["data"], values["data_root"] = kind_and_place(values["data"], values.get("data_root"))
    if values.get("start") is not None:
        values.setdefault("lr", LR_OF_A_START)
    config = TrainConfig(**values)
    _check_choices(config)
    config = _with_the_methods_own(config)
    _check_bounds(config)
    _check_network(config)
    data_config(config)
    return config


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """`config` as a run records it: its data and its start are found from any working directory."""
    given = {name: getattr(config, name) for name in ("data_root", "start", "start_classes")}
    named = (PRETRAINED, IMAGENET, None)  # these are no paths
    paths = {name: Path(value).expanduser().resolve() for name, value in given.items() if value not in named}
    found: dict[str, Any] = {name: str(path) for name, path in paths.items()}
    return dataclasses.replace(config, **found)


def sharing(config: TrainConfig) -> str:
    """The value of `--share` in force."""
    method = METHODS[config.method]
    return config.share or (config.start and method.start_share) or method.share


def trains_uncut(config: TrainConfig) -> bool:
    """Whether a peer of ratio 0 is trained: from a start it is the start itself, unless it shall be trained on."""
    method = METHODS[config.method]
    return method.exits or (not method.cuts_trained and (config.start is None or config.teacher == "trained"))


def trained_ratios(config: TrainConfig) -> tuple[float, ...]:
    """The ratios of the peers that are trained."""
    return tuple(ratio for ratio in config.ratios if ratio > 0 or trains_uncut(config))


def _check_choices(config: TrainConfig) -> None:
    for name, allowed in CHOICES.items():
        if getattr(config, name) not in (*allowed, None):
            raise InputError(f"{name} must be one of {', '.join(allowed)}, got {shown(getattr(config, name))}")
    for name, value in vars(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{name} must be a finite number, got {value}")


def _with_the_methods_own(config: TrainConfig) -> TrainConfig:
    """`config` with the method's values where none were given; what the method has no use for is refused."""
    method = METHODS[config.method]
    if method.exits and config.ratios:
        raise InputError(
            f"{config.method} has an exit at each stage and cuts nothing; leave out ratios, got {list(config.ratios)}"
        )
    for name in ("rank", "budget"):
        if method.exits and getattr(config, name) is not None:
            raise InputError(f"{config.method} has an exit at each stage and cuts nothing; leave out {name}")
    config = with_budgets(config, method)
    ratios = tuple(sorted(config.ratios or method.ratios, reverse=True))  # the smallest peer first
    if len(ratios) > MAX_PEERS or not all(0 <= ratio < 1 for ratio in ratios):
        raise InputError(
            f"ratios must be 1 to {MAX_PEERS} numbers from 0 up to, not including, 1, got {list(config.ratios)}"
            + _as_shares(ratios)
        )
    own: dict[str, Any] = {"ratios": ratios, **_of_a_start(config, method, ratios)}
    for name in ("alpha", "temperature", "join"):
        if getattr(config, name) is None:
            from_start = getattr(method, f"start_{name}", None) if own["weigh"] == "sources" else None
            own[name] = getattr(method, name) if from_start is None else from_start
        elif getattr(method, name) is None:
            having = ", ".join(other for other, its in METHODS.items() if getattr(its, name) is not None)
            raise InputError(f"{config.method} has no {name}; leave it out, or choose a method that has: {having}")
    if method.fixed_shape and config.share not in (None, method.share):
        raise InputError(f"{config.method} says itself what is shared; leave out share, got {config.share!r}")
    if method.fixed_shape and config.join not in (None, method.join):
        raise InputError(f"{config.method} has no choice of join; leave it out, got {config.join!r}")
    own |= _feature_settings(config, method, ratios, own["feature_loss"], own["teacher"])
    own |= _fine_tuning_settings(config, method, ratios)
    _check_lengths(config, method)
    return dataclasses.replace(config, **own)


def _feature_settings(
    config: TrainConfig, method: Method, ratios: tuple[float, ...], features: str, teacher: str
) -> dict[str, Any]:
    """The weight of the feature term; a term that cannot be is refused. Args: the feature loss and teacher in force."""
    if features in FEATURE_TERMS and (method.temperature is None or method.features):
        why = "teaches nobody" if method.temperature is None else "has a feature term of its own"
        raise InputError(f"{config.method} {why}; leave out feature_loss, got {config.feature_loss!r}")
    if features in FEATURE_TERMS and len(ratios) == 1 and teacher != "frozen":
        raise InputError("feature_loss lets another's stages teach, and there is one peer; pass two ratios or more")
    term = feature_term(method, features)
    if term and term.of_start and teacher != "frozen":
        raise InputError(
            f"feature_loss {config.feature_loss} holds peers against a frozen start; pass --teacher frozen"
        )
    if config.feature_weight is None:
        return {"feature_weight": term and term.weight}
    if term is None:
        having = ", ".join(FEATURE_TERMS)
        raise InputError(f"feature_weight weighs a feature term; pass feature_loss with it, one of {having}")
    return {}


def _fine_tuning_settings(config: TrainConfig, method: Method, ratios: tuple[float, ...]) -> dict[str, Any]:
    """The rate and the length of fine-tuning, for a method that cuts the trained network."""
    own: dict[str, Any] = {}
    if method.cuts_trained:
        if not any(ratios):
            raise InputError(f"{config.method} needs a ratio above 0 to cut, got {list(ratios)}")
        if not config.baseline:
            raise InputError(f"{config.method} cuts the trained baseline; leave out --no-baseline, or baseline: false")
        if config.finetune_lr is None:  # from a trained start that is all the training there is
            own["finetune_lr"] = config.lr if config.start else config.lr / 10
    elif config.finetune_epochs or config.finetune_lr:
        having = " and ".join(name for name, its in METHODS.items() if its.cuts_trained)
        raise InputError(f"finetune_epochs and finetune_lr are for {having}, and the method is {config.method}")
    if method.cuts_trained and config.as_long_as is None and config.finetune_epochs is None and config.steps is None:
        own["as_long_as"] = "wml"
    return own


def _check_lengths(config: TrainConfig, method: Method) -> None:
    """Raise `InputError` where settings say more than once how long to train, or as long as what cannot be."""
    if config.as_long_as and METHODS[config.as_long_as].exits and not method.exits:
        raise InputError(
            f"as_long_as {config.as_long_as}: it has an exit at each stage, and no peers of these sizes; name another"
        )
    if config.as_long_as == config.method:
        raise InputError(f"as_long_as {config.method} is the method itself; leave it out, or name another one")
    lasting = [name for name in ("steps", "as_long_as", "finetune_epochs") if getattr(config, name) is not None]
    found = config.lr_auto and config.as_long_as is None  # then steps are what its trials left of the epochs
    if config.finetune_epochs is not None and len(lasting) > 1 and not found:
        raise InputError(f"{' and '.join(lasting)} say each how long to train; pass one of them")


def _as_shares(ratios: tuple[float, ...]) -> str:
    """What was meant where ratios are percents."""
    percents = bool(ratios) and all(own == 0 or 1 < own < 100 for own in ratios)
    return f"; did you mean {','.join(f'{own / 100:g}' for own in ratios)}?" if percents else ""


def _of_a_start(config: TrainConfig, method: Method, ratios: tuple[float, ...]) -> dict[str, Any]:
    """What a trained start does in a run, and what is weighed there; refused where it cannot be."""
    start, allowed = config.start is not None, ["none"]
    if start and method.temperature is not None and not method.exits:
        allowed = ["frozen"] * method.sources + ["trained", "none"] * (not method.teacher_alone)
    if start and method.gated and 0 in ratios:  # the gate mixes all peers, and so all are trained
        allowed = ["trained"]
    if method.teacher_alone and not start:
        raise InputError(f"{config.method} learns from a trained network; pass --start with it")
    weigh = config.weigh or ("sources" if method.sources and start else "peers")
    if weigh == "sources" and not method.sources:
        having = ", ".join(other for other, its in METHODS.items() if its.sources)
        raise InputError(f"{config.method} has no weights of sources; leave out weigh, or choose one of {having}")
    if weigh == "peers" and "frozen" in allowed:
        if method.teacher_alone or config.teacher == "frozen":
            raise InputError(
                f"a frozen teacher is a source, and {config.method} shall weigh peers; pass --weigh sources"
            )
        allowed.remove("frozen")
    default = method.teacher if method.teacher in allowed else "trained" if start and 0 in ratios else "none"
    teacher = config.teacher or (default if start else "none")
    if teacher not in allowed:
        with_start = "" if start else "; it is what a trained start does, so pass --start with it"
        raise InputError(f"teacher of {config.method} can be {', '.join(allowed)}, got {teacher!r}{with_start}")
    if teacher == "trained" and 0 not in ratios:
        raise InputError("teacher trained is the peer of ratio 0; add 0 to ratios, or pass --teacher frozen")
    if config.reuse_teacher and teacher != "frozen":
        raise InputError("reuse_teacher keeps what a frozen teacher says; pass --teacher frozen with it")
    features = config.feature_loss or "none"
    if config.feature_loss is None and teacher == "frozen" and not config.reuse_teacher:
        features = method.start_features
    if config.reuse_teacher and features != "none":
        raise InputError("reuse_teacher keeps logits alone, and feature_loss looks at stages; leave out one of them")
    own: dict[str, Any] = {"weigh": weigh, "teacher": teacher, "feature_loss": features}
    if config.warmup_epochs is None:
        own["warmup_epochs"] = 0.0 if start else 1.0
    if config.reweigh_every is None:
        own["reweigh_every"] = 20 if weigh == "sources" else 50
    if config.weight_lr is None:
        own["weight_lr"] = 0.4 if weigh == "sources" else 0.1
    return own


def without_teacher(config: TrainConfig) -> TrainConfig:
    """`config` where the start's head is new: the start teaches nothing, and the peer of ratio 0 is trained."""
    teacher = "trained" if 0 in config.ratios and not METHODS[config.method].cuts_trained else "none"
    features = "none" if config.teacher == "frozen" else config.feature_loss
    weight = config.feature_weight if features == config.feature_loss else None
    return dataclasses.replace(config, teacher=teacher, reuse_teacher=0, feature_loss=features, feature_weight=weight)


def untaught(config: TrainConfig) -> TrainConfig:
    """The settings of the unpruned network alone, which nobody teaches; steps of fine-tuning, or found, are not its."""
    of_family = config.as_long_as or METHODS[config.method].cuts_trained
    return dataclasses.replace(config, teacher="none", steps=None if of_family else config.steps)


def without_channels(config: TrainConfig) -> TrainConfig:
    """`config` where the network is one stage: no peer is held against the channels of its start's."""
    term = FEATURE_TERMS.get(config.feature_loss or "none")
    of_start = term is not None and term.of_start
    return dataclasses.replace(config, feature_loss="none", feature_weight=None) if of_start else config


def _check_bounds(config: TrainConfig) -> None:
    if config.epochs == 0 and config.start is None:
        raise InputError("epochs 0 cuts a trained network and trains nothing; pass --start with it, or epochs from 1")
    if config.epochs == 0 and config.steps is not None and not config.finetune_epochs:
        raise InputError(f"epochs 0 trains nothing, and steps {config.steps} does; leave out one of them")
    for name, least in AT_LEAST.items():
        if (value := getattr(config, name)) is not None and not value >= least:
            raise InputError(f"{name} must be at least {least}, got {shown(value)}")
    if config.alpha is not None and not config.alpha <= 1:
        raise InputError(f"alpha must be from 0 to 1, got {config.alpha:g}")
    for name in ABOVE_0:
        if (value := getattr(config, name)) is not None and not value > 0:
            raise InputError(f"{name} must be above 0, got {value:g}")
    if config.lr_auto and config.start is None:
        raise InputError("lr auto tries rates from a trained start; pass --start with it, or a rate")
    if config.lr_auto and config.finetune_lr not in (None, config.lr):
        raise InputError(f"lr auto finds the rate of fine-tuning; leave out finetune_lr, got {config.finetune_lr:g}")
    if not config.momentum < 1:
        raise InputError(f"momentum must be from 0 up to, not including, 1, got {config.momentum:g}")
    if not config.trunk_ratio <= 0.9:
        raise InputError(f"trunk_ratio must be from 0 to 0.9, got {config.trunk_ratio:g}")
    if config.nesterov and not config.momentum:
        raise InputError("nesterov needs a momentum above 0, got 0")
    if not config.seed < 2**32:
        raise InputError(f"seed must be below {2**32}, got {shown(config.seed)}")
    for name, value in vars(config).items():
        if type(value) is int and name != "seed" and value > MOST:
            raise InputError(f"{name} must be at most {MOST}, got {shown(value)}")
    if config.trunk_ratio and (sharing(config) in ("none", "exits") or len(config.ratios) == 1):
        raise InputError("trunk_ratio cuts shared stages, and nothing is shared here; leave it out, or share")
    if config.baseline_from is not None and not config.baseline:
        raise InputError("--baseline and --no-baseline exclude each other; pass one of them")
    if config.baseline_from == TRAINED_ON and config.start is None:
        raise InputError("--baseline trained trains a start on, as a control; pass --start with it")


def _check_network(config: TrainConfig) -> None:
    """What can be said of a network's name, arguments and start before anything is built or read."""
    if not config.arch.strip() or config.arch.endswith(":") or config.arch.startswith(":"):
        raise InputError(
            f"arch must be a built-in name, torchvision:NAME, timm:NAME, FILE.py:FACTORY or PACKAGE.MODULE:FACTORY, "
            f"got {shown(config.arch)}"
        )
    if config.arch_args and not is_foreign(config.arch):
        raise InputError(f"{config.arch} is built in and takes no arguments; leave out arch_args")
    parse_args(config.arch_args)
    if config.start == "":
        raise InputError("start must be a file, a directory or pretrained, got ''")
    if config.start_classes is not None and config.start is None:
        raise InputError("start_classes names the classes of a start; pass start with it")
