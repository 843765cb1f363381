"""Settling what was given: names, types and bounds, and a method's own values where none were given."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from wmlc.compress.config import AT_LEAST, CHOICES, settle, sharing, trained_ratios
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
        ({"method": "kd"}, "kd learns from a trained network; pass --start with it"),
        ({"teacher": "frozen"}, "teacher of wml can be none, got 'frozen'; it is what a trained start does, so pass --start with it"),
        ({"method": "dml", "start": "x", "teacher": "frozen"}, "teacher of dml can be trained, none, got 'frozen'"),
        ({"method": "independent", "start": "x", "teacher": "trained"}, "teacher of independent can be none, got 'trained'"),
        ({"method": "kd", "start": "x", "teacher": "none"}, "teacher of kd can be frozen, got 'none'"),
        ({"method": "one", "start": "x", "ratios": (0.5, 0.0), "teacher": "none"}, "teacher of one can be trained, got 'none'"),
        ({"start": "x", "ratios": (0.5,), "teacher": "trained"}, "teacher trained is the peer of ratio 0; add 0 to ratios, or pass --teacher frozen"),
        ({"start": "x", "weigh": "peers", "teacher": "frozen"}, "a frozen teacher is a source, and wml shall weigh peers; pass --weigh sources"),
        ({"method": "kd", "start": "x", "weigh": "peers"}, "a frozen teacher is a source, and kd shall weigh peers; pass --weigh sources"),
        ({"method": "dml", "weigh": "sources"}, "dml has no weights of sources; leave out weigh, or choose one of wml, wml-p, kd"),
        ({"reuse_teacher": 2}, "reuse_teacher keeps what a frozen teacher says; pass --teacher frozen with it"),
        ({"start": "x", "reuse_teacher": 2, "feature_loss": "channels"}, "reuse_teacher keeps logits alone, and feature_loss looks at stages; leave out one of them"),
        ({"ratios": [0.5], "feature_loss": "hints"}, "feature_loss lets another's stages teach, and there is one peer; pass two ratios or more"),
        ({"feature_loss": "channels"}, "feature_loss channels holds peers against a frozen start; pass --teacher frozen"),
        ({"as_long_as": "wml"}, "as_long_as wml is the method itself; leave it out, or name another one"),
        ({"method": "prune-finetune", "steps": 3, "finetune_epochs": 2}, "steps and finetune_epochs say each how long to train; pass one of them"),
        ({"method": "prune-finetune", "as_long_as": "wml", "finetune_epochs": 2}, "as_long_as and finetune_epochs say each how long to train; pass one of them"),
        ({"as_long_as": "wlm"}, f"as_long_as must be one of {', '.join(METHODS)}, got 'wlm'"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"start": "x", "epochs": 0, "steps": 3}, "epochs 0 trains nothing, and steps 3 does; leave out one of them"),
    ],
)  # fmt: skip
def test_settings_that_a_method_has_no_use_for_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        settle(settings)
    assert str(caught.value) == message


OF_WML = ("teacher", "weigh", "feature_loss", "alpha", "temperature", "reweigh_every", "weight_lr", "warmup_epochs")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("none", "peers", "none", 0.1, 1.0, 50, 0.1, 1.0)),
        ({"start": "x"}, ("frozen", "sources", "channels", 0.5, 2.0, 20, 0.4, 0.0)),
        ({"start": "x", "weigh": "peers"}, ("trained", "peers", "none", 0.1, 1.0, 50, 0.1, 0.0)),
        ({"start": "x", "reuse_teacher": 1}, ("frozen", "sources", "none", 0.5, 2.0, 20, 0.4, 0.0)),
        ({"start": "x", "teacher": "trained"}, ("trained", "sources", "none", 0.5, 2.0, 20, 0.4, 0.0)),
        ({"start": "x", "alpha": 0.2, "temperature": 3.0, "warmup_epochs": 2.0, "reweigh_every": 7, "weight_lr": 0.3},
         ("frozen", "sources", "channels", 0.2, 3.0, 7, 0.3, 2.0)),
    ],
)  # fmt: skip
def test_what_wml_does_from_a_start_and_from_random_weights(given: dict[str, Any], expected: tuple[Any, ...]) -> None:
    config = settle(given)
    assert tuple(getattr(config, name) for name in OF_WML) == expected
    assert sharing(config) == ("none" if "start" in given else "tree")


def test_what_others_do_from_a_start() -> None:
    kd = settle({"method": "kd", "start": "x"})
    assert (kd.teacher, kd.weigh, kd.feature_loss, kd.alpha, kd.temperature) == ("frozen", "sources", "none", 0.5, 2.0)
    assert settle({"method": "one", "start": "x", "ratios": (0.5, 0.0)}).teacher == "trained"
    assert settle({"method": "dml", "start": "x"}).teacher == "none"
    tuned, anew = (settle({"method": "prune-finetune", "lr": 0.05, **given}) for given in ({"start": "x"}, {}))
    assert (tuned.finetune_lr, anew.finetune_lr) == (0.05, 0.005)
    assert (tuned.as_long_as, tuned.finetune_epochs, tuned.steps) == ("wml", None, None)
    assert settle({"method": "prune-finetune", "finetune_epochs": 3}).as_long_as is None
    assert settle({"method": "prune-finetune", "steps": 3}).as_long_as is None


def test_which_peers_are_trained() -> None:
    ratios = (0.5, 0.0)
    for given, trained in (
        ({}, ratios), ({"start": "x"}, (0.5,)), ({"start": "x", "teacher": "trained"}, ratios),
        ({"start": "x", "method": "independent"}, (0.5,)), ({"method": "prune-finetune"}, (0.5,)),
    ):  # fmt: skip
        assert trained_ratios(settle({**given, "ratios": ratios})) == trained  # type: ignore[dict-item]


@pytest.mark.parametrize("method", METHODS)
def test_settled_settings_settle_to_themselves(method: str) -> None:
    for given in ({"method": method, "start": "x.pth"}, {"method": method}):
        if "start" in given or not METHODS[method].teacher_alone:
            config = settle(given)
            assert settle(vars(config)) == config
