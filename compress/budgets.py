"""Settings that ask for what is measured: milliseconds instead of ratios, and budgets by sensitivity. Free of torch."""

from __future__ import annotations

import dataclasses
import math

from wmlc.compress.learn.methods import Method
from wmlc.compress.widths.tree import MAX_PEERS
from wmlc.errors import InputError
from wmlc.settings import ENGINE_SETTINGS, LATENCY, SENSITIVITY, TrainConfig


def with_budgets(config: TrainConfig, method: Method) -> TrainConfig:
    """`config` with a ratio for each latency that peers may have, the smallest first; what they are is told later."""
    _check_sensitivity(config)
    if config.ratio_of != LATENCY and not config.max_latency_ms:
        if idle := [name for name in ENGINE_SETTINGS if getattr(config, name) != getattr(TrainConfig, name)]:
            meant = "; images a step are batch_size" if "batch" in idle else ""
            raise InputError(
                f"{', '.join(idle)}: of the engine that a latency is measured in, and no latency is asked for; leave "
                f"it out, or give max_latency_ms or ratio_of latency{meant}"
            )
        if config.paid_out is not None:
            raise InputError(
                "paid_out holds milliseconds against MACs, and no latency is asked for; leave it out, or give "
                "max_latency_ms or ratio_of latency"
            )
        return config
    if method.exits:
        raise InputError(f"{config.method} has an exit at each stage and cuts nothing; leave out latencies")
    if config.trunk_ratio:
        raise InputError("trunk_ratio is a share of params or MACs; leave it out where a latency is asked for")
    if not config.max_latency_ms:
        return config
    budgets = tuple(sorted(config.max_latency_ms))
    if len(budgets) > MAX_PEERS or not budgets[0] > 0 or not math.isfinite(budgets[-1]):
        got = list(config.max_latency_ms)
        raise InputError(f"max_latency_ms must be 1 to {MAX_PEERS} numbers of milliseconds above 0, got {got}")
    ratios = config.ratios
    if len(ratios) != len(budgets) or not all(ratios):
        ratios = tuple(1 - (place + 1) / (len(budgets) + 1) for place in range(len(budgets)))
    return dataclasses.replace(config, max_latency_ms=budgets, ratio_of=LATENCY, ratios=ratios)


def _check_sensitivity(config: TrainConfig) -> None:
    """Raise `InputError` where sensitivity is asked for, and cannot be measured."""
    if config.budget != SENSITIVITY:
        return
    if not config.start:
        raise InputError("budget sensitivity is by what the answers of a start lose; give a start, or another budget")
    if config.trunk_ratio:
        raise InputError("trunk_ratio is cut before anything is measured; leave it out, or choose another budget")
