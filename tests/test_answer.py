"""Code of others that was changed after it was trained is told by what the network answers. Takes 3 s."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from made import made_family, made_framing, made_run, made_settings
from torch import Tensor, nn
from training import a_run_record

import wmlc
from wmlc.cli import main
from wmlc.compress import begin
from wmlc.compress.config import settle
from wmlc.errors import InputError
from wmlc.models.answer import answer_of, answers_as, code_to_bring_back
from wmlc.models.checkpoint import load_network, read_spec, save_network
from wmlc.models.factory import load_factory
from wmlc.models.stages import split
from wmlc.models.zoo import build_network
from wmlc.records import NetworkSpec
from wmlc.run import Run
from wmlc.settings import CALLERS_ARCH

SHAPE = (3, 8, 8)
CODE = """from torch import nn
def make(num_classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.{act}(), nn.Conv2d(8, 8, 3), nn.{act}(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Callable[..., Any]]:
    """Write net.py anew, with this activation, and import it as a new process would."""
    path = tmp_path / "net.py"
    monkeypatch.setenv(CALLERS_ARCH, f"{path}:make")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # which goes by the second and the size

    def written(act: str) -> Callable[..., Any]:
        path.write_text(CODE.format(act=act))
        for name in [name for name in sys.modules if name.startswith("_wmlc_net_")]:
            monkeypatch.delitem(sys.modules, name)
        return load_factory(f"{path}:make")

    return written


def saved(network: nn.Module, directory: Path, arch: str) -> Path:
    spec = NetworkSpec(
        arch=arch, class_names=[f"class {k}" for k in range(10)], input_shape=SHAPE, mean=[0.5] * 3, std=[0.5] * 3,
        widths={}, framing=made_framing(8),
    )  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    save_network(network, spec, directory)
    return directory


def test_edited_code_is_refused_where_its_tensors_still_fit(
    tmp_path: Path, code: Callable[[str], Callable[..., Any]]
) -> None:
    torch.manual_seed(0)
    run = made_run(tmp_path / "run", made_settings(), made_family())
    peer = saved(code("ReLU")(10).train(), run.network(1), "net.py:make")

    def extract(out: str) -> Any:
        words = ["extract", "--run", str(run.root), "--peer", "1", "--out", str(tmp_path / out), "--force"]
        return CliRunner().invoke(main, [*words, "--arch", f"{tmp_path / 'net.py'}:make"])

    assert extract("copy").exit_code == 0, "the code is what it was"
    assert read_spec(tmp_path / "copy").answer == pytest.approx(read_spec(peer).answer)
    code("GELU")
    said = (
        " gives other answers than when it was saved: the code of net.py:make does something else than when it was "
        "trained; bring back the code of that time, or train it anew"
    )
    for directory in (peer, tmp_path / "copy"):
        with pytest.raises(InputError) as caught:
            wmlc.load(directory)
        assert str(caught.value) == f"{directory}{said}"
    result = extract("p.onnx")
    assert (result.exit_code, result.output) == (1, f"Error: {peer}{said}\n")
    assert not (tmp_path / "p.onnx").exists()


def test_a_record_of_before_has_no_answer_and_loads(tmp_path: Path, code: Callable[[str], Callable[..., Any]]) -> None:
    peer = saved(code("ReLU")(10), tmp_path / "peer", "net.py:make")
    record = json.loads((peer / "spec.json").read_text())
    assert len(record.pop("answer")) == 8
    (peer / "spec.json").write_text(json.dumps(record))
    assert read_spec(peer).answer is None and wmlc.load(peer, code("GELU"))


def test_another_answer_is_refused_and_whose_code_it_was_is_said(
    tmp_path: Path, code: Callable[[str], Callable[..., Any]]
) -> None:
    peer = saved(code("ReLU")(10), tmp_path / "peer", "net.py:make")
    answer = read_spec(peer).answer
    assert answer is not None
    for other in ([own + 0.5 for own in answer], answer[:1]):
        (peer / "spec.json").write_text(json.dumps(json.loads((peer / "spec.json").read_text()) | {"answer": other}))
        with pytest.raises(InputError, match="gives other answers than when it was saved"):
            load_network(peer)
    assert code_to_bring_back("timm:resnet10t") == (
        "the code of timm:resnet10t does something else than when it was trained; bring back the version of timm of "
        "that time"
    )


def test_a_network_of_ours_needs_no_answer(tmp_path: Path) -> None:
    ours = saved(build_network("resnet20", 10, SHAPE), tmp_path / "ours", "resnet20")
    assert read_spec(ours).answer is None and load_network(ours)


class Counts(nn.Module):
    """Logits 0, 1, 2 …, times what the code does to them."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.scale, self.change = nn.Parameter(torch.ones(1)), change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.scale * torch.arange(10.0).expand(len(x), 10))


def test_an_answer_is_the_first_logits_and_leaves_the_network_as_it_is() -> None:
    network, drawn = Counts(lambda x: x).train(), torch.get_rng_state()
    assert answer_of(network, SHAPE) == list(map(float, range(8)))
    assert network.training and torch.equal(torch.get_rng_state(), drawn)
    small = Counts(lambda x: x[:, :2])
    assert answer_of(small, SHAPE) == [0.0, 1.0]


def raises(x: Tensor) -> Tensor:
    raise RuntimeError("no")


@pytest.mark.parametrize("change", [lambda x: x / 0, lambda x: torch.rand_like(x), raises])
def test_there_is_none_where_it_says_nothing_of_the_code(change: Callable[[Tensor], Tensor]) -> None:
    assert answer_of(Counts(change), SHAPE) is None


@pytest.mark.parametrize(
    ("recorded", "change", "same"),
    [
        ([0.0, 10.0], lambda x: x * 1.019, False),  # of the largest recorded, 10
        ([0.0, 1.0], lambda x: x * 1.019, True),
        ([0.0, 1.0], lambda x: x * 1.021, False),
        ([0.0, 1e-5], lambda x: x * 5e-4, True),  # too small to mean anything
        ([0.0, 1.0], lambda x: x / 0, False),
        ([0.0, 1.0, 2.0], lambda x: x, False),
    ],
)
def test_two_percent_of_the_largest_logit_is_too_far(
    recorded: list[float], change: Callable[[Tensor], Tensor], same: bool
) -> None:
    assert answers_as(recorded, Counts(lambda x: change(x[:, :2])), SHAPE) is same


def test_a_run_does_not_go_on_from_a_start_whose_code_has_changed(
    tmp_path: Path, code: Callable[[str], Callable[..., Any]]
) -> None:
    settings = settle({"arch": "net.py:make", "start": "net.pth"})
    torch.manual_seed(0)
    network = code("ReLU")(10)
    data: Any = SimpleNamespace(record=SimpleNamespace(input_shape=SHAPE), train_digest=lambda: "images")
    record = replace(a_run_record(settings), start_answer=answer_of(network, SHAPE))
    other = code("GELU")(10)
    other.load_state_dict(network.state_dict())
    as_it_was, edited = (prepared_of(own) for own in (network, other))
    begin.same_beginning(as_it_was, data, record, Run(tmp_path).root)
    with pytest.raises(InputError) as caught:
        begin.same_beginning(edited, data, record, Run(tmp_path).root)
    assert str(caught.value) == (
        f"net.pth gives other answers than when {tmp_path} began, so it cannot go on: the code of net.py:make does "
        "something else than when it was trained; bring back the code of that time, or train anew (--force)"
    )


def prepared_of(network: nn.Module) -> Any:
    return SimpleNamespace(full=split(network, torch.zeros(1, *SHAPE)).network, made=SimpleNamespace(fitted=None))
