"""All that a training run depends on; defaults live only here. Free of torch, so that `--help` is quick."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
from dataclasses import dataclass
from typing import Any

from wmlc import settings
from wmlc.compress.widths.tree import MAX_PEERS
from wmlc.data import DataConfig
from wmlc.errors import InputError
from wmlc.run import data_config

FAMILY_RATIOS = (0.7, 0.5, 0.3, 0.0)


@dataclass(frozen=True, kw_only=True)
class Method:
    """What a method's own paper sets: the default shape of its family and the constants of its loss."""

    ratios: tuple[float, ...] = FAMILY_RATIOS
    share: str = "tree"
    alpha: float | None = None  # weight of the teaching against the labels; None: the loss has none
    temperature: float | None = None  # None: nothing is softened, as nobody teaches
    feature_weight: float | None = None  # of a feature term that belongs to the method
    join: str = "mean"  # of its peers' gradients, what a shared stage gets
    fixed_shape: bool = False  # the method itself says what is shared


METHODS = {
    "wml": Method(alpha=0.1, temperature=1.0),  # weighted mutual learning
    "wml-p": Method(alpha=0.1, temperature=1.0),  # the same with fixed, equal weights
    "dml": Method(share="none", temperature=1.0),  # deep mutual learning
    "one": Method(ratios=(0.0,) * 4, share="branches", temperature=3.0, join="sum"),  # on-the-fly native ensemble
    "cl": Method(ratios=(0.0,) * 4, alpha=0.5, temperature=2.0),  # collaborative learning
    "self-distillation": Method(  # the exits of one network
        ratios=(), share="exits", alpha=0.1, temperature=3.0, feature_weight=1e-4, join="sum", fixed_shape=True
    ),
    "independent": Method(share="none"),
    "prune-finetune": Method(share="none", fixed_shape=True),  # train, cut by magnitude, fine-tune
}

FEATURE_WEIGHTS = {"none": None, "hints": 100.0, "attention": 1000.0}  # of mean squares

CHOICES = {
    "method": tuple(METHODS),
    "feature_loss": tuple(FEATURE_WEIGHTS),
    "saliency": ("snip", "synflow", "grasp"),
    "ratio_of": ("params", "macs"),
    "join": ("sum", "mean"),
    "schedule": ("cosine", "one-cycle", "step"),
    "device": ("auto", "cpu", "cuda"),
    "precision": ("auto", "fp32", "bf16"),
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig(settings.TrainConfig):
    """The settings of one run, checked, with the method's own values where none were given."""

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in (*allowed, None):
                raise InputError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{field.name} must be a finite number, got {value}")
        self._settle_method()
        at_least = {
            "epochs": 1, "batch_size": 2, "divisor": 1, "reweigh_every": 1, "momentum": 0, "weight_decay": 0,
            "warmup_epochs": 0, "alpha": 0, "weight_lr": 0, "seed": 0, "trunk_ratio": 0, "feature_weight": 0,
            "finetune_epochs": 1,
        }  # fmt: skip
        for name, least in at_least.items():
            if (value := getattr(self, name)) is not None and not value >= least:
                raise InputError(f"{name} must be at least {least}, got {value}")
        if self.alpha is not None and not self.alpha <= 1:
            raise InputError(f"alpha must be from 0 to 1, got {self.alpha:g}")
        for name in ("lr", "temperature", "finetune_lr"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise InputError(f"{name} must be above 0, got {value:g}")
        if not self.momentum < 1:
            raise InputError(f"momentum must be from 0 up to, not including, 1, got {self.momentum:g}")
        if not self.trunk_ratio <= 0.9:
            raise InputError(f"trunk_ratio must be from 0 to 0.9, got {self.trunk_ratio:g}")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"clip must be above 0, got {self.clip:g}")
        if self.nesterov and not self.momentum:
            raise InputError("nesterov needs a momentum above 0, got 0")
        if not self.seed < 2**32:
            raise InputError(f"seed must be below {2**32}, got {self.seed}")
        if self.trunk_ratio and (self.sharing in ("none", "exits") or len(self.ratios) == 1):
            raise InputError("trunk_ratio cuts shared stages, and nothing is shared here; leave it out, or share")
        if self.baseline_from is not None and not self.baseline:
            raise InputError("--baseline and --no-baseline exclude each other; pass one of them")
        self.data_config()

    def _settle_method(self) -> None:
        """Put the method's own values where none were given, and refuse what the method has no use for."""
        own = METHODS[self.method]
        if self.ratios and not own.ratios:
            raise InputError(
                f"{self.method} has an exit at each stage and cuts nothing; leave out ratios, got {list(self.ratios)}"
            )
        ratios = tuple(sorted(self.ratios or own.ratios, reverse=True))  # the smallest peer first
        if len(ratios) > MAX_PEERS or not all(0 <= ratio < 1 for ratio in ratios):
            raise InputError(
                f"ratios must be 1 to {MAX_PEERS} numbers from 0 up to, not including, 1, got {list(self.ratios)}"
            )
        object.__setattr__(self, "ratios", ratios)
        for name in ("alpha", "temperature", "join"):
            if getattr(self, name) is not None and getattr(own, name) is None:
                having = ", ".join(method for method, its in METHODS.items() if getattr(its, name) is not None)
                raise InputError(f"{self.method} has no {name}; leave it out, or choose a method that has: {having}")
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(own, name))
        if own.fixed_shape and self.share not in (None, own.share):
            raise InputError(f"{self.method} says itself what is shared; leave out share, got {self.share!r}")
        if own.fixed_shape and self.join not in (None, own.join):
            raise InputError(f"{self.method} has no choice of join; leave it out, got {self.join!r}")
        if self.feature_loss != "none" and (own.temperature is None or own.feature_weight is not None):
            why = "teaches nobody" if own.temperature is None else "has a feature term of its own"
            raise InputError(f"{self.method} {why}; leave out feature_loss, got {self.feature_loss!r}")
        weight = own.feature_weight if self.feature_loss == "none" else FEATURE_WEIGHTS[self.feature_loss]
        if self.feature_weight is not None and weight is None:
            raise InputError("feature_weight weighs a feature term; pass feature_loss hints or attention with it")
        if self.feature_weight is None:
            object.__setattr__(self, "feature_weight", weight)
        if self.method == "prune-finetune":
            if not any(ratios):
                raise InputError(f"prune-finetune needs a ratio above 0 to cut, got {list(ratios)}")
            if not self.baseline:
                raise InputError(
                    "prune-finetune cuts the trained baseline; leave out --no-baseline, or baseline: false"
                )
            if self.finetune_lr is None:
                object.__setattr__(self, "finetune_lr", self.lr / 10)
        elif self.finetune_epochs or self.finetune_lr:
            raise InputError(f"finetune_epochs and finetune_lr are for prune-finetune, and the method is {self.method}")

    @property
    def sharing(self) -> str:
        """The value of `--share` in force."""
        return self.share or METHODS[self.method].share

    def finetuning(self) -> TrainConfig:
        """The settings of `prune-finetune`'s second half: each cut network alone, at its own rate, without warm-up."""
        assert self.finetune_epochs is not None and self.finetune_lr is not None
        return dataclasses.replace(
            self, method="independent", epochs=self.finetune_epochs, lr=self.finetune_lr, warmup_epochs=0.0,
            finetune_epochs=None, finetune_lr=None,
        )  # fmt: skip

    def data_config(self) -> DataConfig:
        """The part that says which images."""
        return data_config(self)


def config_from(record: dict[str, Any], source: str) -> TrainConfig:
    """The configuration in a recipe or in `config.json`; `InputError` on unknown keys and wrong types."""
    allowed = {field.name: field for field in dataclasses.fields(TrainConfig)}
    values = {}
    for key, value in record.items():
        name = str(key).replace("-", "_")
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, n=1)
            hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(allowed)}"
            raise InputError(f"{source}: unknown setting {key!r}; {hint}")
        values[name] = _typed(name, value, str(allowed[name].type), source)
    return TrainConfig(**values)


def _typed(name: str, value: Any, wanted: str, source: str) -> Any:
    """`value` as the type that the field's annotation `wanted` names."""
    if value is None and "None" in wanted:
        return None
    kind = wanted.split(" | ")[0]
    if kind == "tuple[float, ...]" and isinstance(value, list | tuple) and all(_number(v) for v in value):
        return tuple(float(v) for v in value)
    if kind == "float" and _number(value):
        return float(value)
    if (kind == "int" and type(value) is int) or (kind == "bool" and type(value) is bool):
        return value
    if kind == "str" and isinstance(value, str):
        return value
    words = {"tuple[float, ...]": "a list of numbers", "float": "a number", "int": "a whole number"}
    words |= {"bool": "true or false", "str": "a text"}
    hint = (
        " (YAML reads that as a text; write it with a point, as 1.0e-3)" if kind == "float" and _in_text(value) else ""
    )
    raise InputError(f"{source}: {name} must be {words[kind]}, got {value!r}{hint}")


def _in_text(value: Any) -> bool:
    """Whether it is a number in quotes, or one that YAML 1.1 takes for a text, like 1e-3."""
    with contextlib.suppress(ValueError):
        return isinstance(value, str) and math.isfinite(float(value))
    return False


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
