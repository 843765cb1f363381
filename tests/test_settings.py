"""Settling what was given: names, types and bounds, and a method's own values where none were given."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from wmlc.compress.config import AT_LEAST, CHOICES, settle
from wmlc.compress.learn.methods import METHODS
from wmlc.errors import InputError
from wmlc.settings import TrainConfig


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"epoch": 3}, "test: unknown setting 'epoch'; did you mean epochs?"),
        ({"epochs": "many"}, "test: epochs must be a whole number, got 'many'"),
        ({"ratios": 0.5}, "test: ratios must be a list of numbers, got 0.5"),
        ({"nesterov": 1}, "test: nesterov must be true or false, got 1"),
        ({"seed": True}, "test: seed must be a whole number, got True"),
        ({"arch": None}, "test: arch must be a text, got None"),
        ({"lr": 10**400}, f"lr must be a finite number, got {'1' + '0' * 58}…"),
        ({"ratios": [0.5, 10**400]}, f"ratios must be a finite number, got [0.5, {'1' + '0' * 52}…"),
        ({"epochs": 10**5000}, "epochs must be at most 2147483648, got a number of thousands of digits"),
        ({"method": "x" * 100}, f"method must be one of {', '.join(METHODS)}, got '{'x' * 58}…"),
    ],
)  # fmt: skip
def test_a_setting_with_a_fault_is_refused(record: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        settle(record, "test")
    assert str(caught.value) == message


def test_the_tables_name_settings() -> None:
    assert {*AT_LEAST, *CHOICES} <= {field.name for field in dataclasses.fields(TrainConfig)}


def test_nothing_given_is_the_papers_method() -> None:
    config = settle({})
    assert (config.method, config.ratios, config.alpha, config.temperature) == ("wml", (0.7, 0.5, 0.3, 0.0), 0.1, 1.0)
    assert type(config) is TrainConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "dml", "alpha": 0.2}, "dml has no alpha; leave it out, or choose a method that has: wml, wml-p, cl, self-distillation, kd"),
        ({"method": "self-distillation", "ratios": (0.5, 0.0)}, "self-distillation has an exit at each stage and cuts nothing; leave out ratios, got [0.5, 0.0]"),
        ({"method": "prune-finetune", "share": "tree"}, "prune-finetune says itself what is shared; leave out share, got 'tree'"),
        ({"method": "prune-finetune", "baseline": False}, "prune-finetune cuts the trained baseline; leave out --no-baseline, or baseline: false"),
        ({"method": "prune-finetune", "ratios": (0.0,)}, "prune-finetune needs a ratio above 0 to cut, got [0.0]"),
        ({"method": "wml", "finetune_epochs": 3}, "finetune_epochs and finetune_lr are for prune-finetune, and the method is wml"),
        ({"method": "independent", "feature_loss": "hints"}, "independent teaches nobody; leave out feature_loss, got 'hints'"),
        ({"method": "self-distillation", "feature_loss": "hints"}, "self-distillation has a feature term of its own; leave out feature_loss, got 'hints'"),
        ({"feature_weight": 2.0}, "feature_weight weighs a feature term; pass feature_loss with it, one of hints, attention, channels"),
        ({"method": "cl", "temperature": 0.0}, "temperature must be above 0, got 0"),
    ],
)  # fmt: skip
def test_settings_that_a_method_has_no_use_for_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        settle(settings)
    assert str(caught.value) == message


@pytest.mark.parametrize("method", METHODS)
def test_settled_settings_settle_to_themselves(method: str) -> None:
    for given in ({"method": method, "start": "x.pth"}, {"method": method}):
        if "start" in given or not METHODS[method].teacher_alone:
            config = settle(given)
            assert settle(vars(config)) == config
