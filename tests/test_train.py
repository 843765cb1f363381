"""What a run promises: the loop, what it writes, and that a killed run ends as if it had not been."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training import SMALL, assert_same_weights, stopping, train

import wmlc
from wmlc.compress import session
from wmlc.compress.config import settle
from wmlc.compress.learn.family import PeerFamily
from wmlc.compress.learn.methods import Forward, train_loss
from wmlc.compress.learn.place import choose_device
from wmlc.compress.learn.train import lr_factor
from wmlc.data import normalise, open_data
from wmlc.errors import InputError
from wmlc.files import new_directory, new_file, recover_directory
from wmlc.models.checkpoint import read_spec
from wmlc.run import Run, data_config, read_config, read_epochs, read_family


def test_a_run_writes_what_its_readers_are_promised(run: Run) -> None:
    epochs = read_epochs(run, "family")
    assert [epoch.epoch for epoch in epochs] == [1, 2]
    for epoch in epochs:
        assert len(epoch.top1) == len(epoch.peer_weights) == 2
        assert sum(epoch.peer_weights) == pytest.approx(1)
    assert epochs[-1].peer_weights != [0.5, 0.5]  # mirror descent moved them
    assert (run.checkpoint / "state.json").is_file()
    assert list((run.tensorboard / "family").glob("events*")) and list((run.tensorboard / "baseline").glob("events*"))
    family = read_family(run)
    assert [peer.peer for peer in family.peers] == [1, 2]
    assert family.peers[0].params < family.peers[1].params == family.full.params


def test_recorded_accuracy_is_that_of_the_saved_networks(run: Run) -> None:
    data = open_data(data_config(settle({})))
    family = read_family(run)
    assert family.baseline is not None
    for record in (*family.peers, family.baseline):
        directory = run.network(record.peer)
        network, spec, right, seen = wmlc.load(directory), read_spec(directory), 0, 0
        assert spec.about.top1 == record.top1
        for pixels, labels in data.test_pixels(512):
            with torch.inference_mode():
                images = normalise(pixels, spec.mean, spec.std)
                right += int((network(images).argmax(1) == labels).sum())
            seen += len(labels)
        assert seen == data.test_count()
        assert 100 * right / seen == pytest.approx(record.top1, abs=100.1 / seen)  # one image may sit on the fence


def test_an_independent_unpruned_peer_is_trained_as_the_baseline_is(tmp_path: Path) -> None:
    run = train(tmp_path / "run", method="independent", ratios=(0.5, 0.0), epochs=1)
    assert_same_weights(run.network(2), run.network(0))


def test_the_ensemble_is_reported_with_the_weights_of_its_epoch(run: Run) -> None:
    family = read_family(run)
    best = read_epochs(run, "family")[family.best_epoch - 1]
    assert family.peer_weights == best.peer_weights


def test_killed_and_resumed_ends_bit_identical(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {**SMALL, "ratios": (0.5, 0.0), "epochs": 3}
    whole, killed = train(tmp_path / "whole", **settings), Run(tmp_path / "killed")
    code = (
        "from pathlib import Path; from wmlc.compress.config import settle; from wmlc.compress.session import start_run; "
        f"start_run(settle({settings!r}), Path({str(killed.root)!r}), force=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics, deadline = killed.metrics("family"), time.monotonic() + 240
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") > 1) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not killed.family.exists()
    capsys.readouterr()
    session.resume_run(killed)
    assert "resuming the " in capsys.readouterr().out
    for peer in (0, 1, 2):
        assert_same_weights(whole.network(peer), killed.network(peer))
    assert not list(killed.root.glob(".*")), "nothing half-written stays once the run is resumed"
    for phase in ("family", "baseline"):
        first, second = (
            [replace(epoch, seconds=0.0, images_per_s=0.0) for epoch in read_epochs(run, phase)]
            for run in (whole, killed)
        )
        assert first == second and len(first) == 3


def test_stopped_in_the_baseline_goes_on_in_the_baseline(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", ratios=(0.5, 0.0))
    with stopping(session, "save_baseline"), pytest.raises(InputError, match="stopped; go on with"):
        train(tmp_path / "stopped", ratios=(0.5, 0.0))
    run = session.resume_run(Run(tmp_path / "stopped"))
    for peer in (0, 1, 2):
        assert_same_weights(whole.network(peer), run.network(peer))


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    with new_directory(tmp_path / "checkpoint") as aside:
        (aside / "state.json").write_text("{}")
    (tmp_path / "checkpoint").rename(tmp_path / ".checkpoint.former.wmlc")
    (tmp_path / f".checkpoint.{2**22}.wmlc").mkdir()  # no process has a number as high
    recover_directory(tmp_path / "checkpoint")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_failing_block_leaves_no_file_and_no_directory(tmp_path: Path) -> None:
    for new in (new_file, new_directory):
        with pytest.raises(ZeroDivisionError), new(tmp_path / "out") as aside:
            if new is new_file:
                aside.write_text("half")
            raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "wml-p"}, r"the loss became (nan|inf) in epoch 1, step \d+, at lr .*; lower --lr"),
        (
            {"reweigh_every": 1},
            r"the gradient of the peer weights is not finite in epoch 1, step \d+, at lr 1e\+30; lower --lr or raise",
        ),
    ],
)
def test_numbers_that_are_not_finite_stop_in_words(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        train(tmp_path / "run", ratios=(0.5, 0.0), lr=1e30, warmup_epochs=0.0, **settings)


def test_wml_p_keeps_its_weights_uniform(tmp_path: Path) -> None:
    run = train(tmp_path / "run", method="wml-p", epochs=1, baseline=False)
    assert read_family(run).peer_weights == [0.25] * 4
    assert read_family(run).baseline is None and not run.network(0).exists()


def test_a_baseline_from_another_run_must_match(tmp_path: Path, run: Run) -> None:
    settings = {"ratios": (0.7, 0.0), "baseline_from": str(run.root)}
    taken = train(tmp_path / "taken", method="dml", as_long_as="wml", **settings)
    assert read_config(taken).settings.steps is not None, "of the family alone"
    assert_same_weights(taken.network(0), run.network(0))
    with pytest.raises(InputError, match=r"the baseline of .* is no match for this run: epochs 2 there, 1 here"):
        train(tmp_path / "other", **{**settings, "epochs": 1})
    assert not (tmp_path / "other").exists()


def test_nothing_is_written_by_a_run_that_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot lose 90% of its macs"):
        train(tmp_path / "run", ratios=(0.9, 0.0), ratio_of="macs")
    assert list(tmp_path.iterdir()) == []


def test_uniform_weights_give_a_private_stage_its_own_gradient() -> None:
    logits_PBC = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels_B = torch.tensor([0, 1, 4])
    nobody: Any = None  # neither loss looks at the networks
    gradients = [
        torch.autograd.grad(
            train_loss(Forward(nobody, logits_PBC, {}, labels_B, torch.full((4,), 0.25)), settle(own)),
            logits_PBC,
        )[0]
        for own in ({"method": "independent"}, {"method": "wml", "alpha": 0.0})
    ]
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize(
    ("schedule", "done", "factor"),
    [
        ("cosine", 0.5, 0.5), ("cosine", 1.0, 1.0), ("cosine", 5.5, 0.5), ("cosine", 10.0, 0.0),
        ("step", 4.9, 1.0), ("step", 5.0, 0.1), ("step", 7.5, 0.01),
        ("one-cycle", 1.5, 0.5), ("one-cycle", 3.0, 1.0), ("one-cycle", 6.5, 0.5),
    ],
)  # fmt: skip
def test_schedules(schedule: str, done: float, factor: float) -> None:
    assert lr_factor(schedule, done, epochs=10, warmup_epochs=1.0) == pytest.approx(factor)


def test_asking_for_a_gpu_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA GPU")
    with pytest.raises(InputError, match="--device cuda was asked for, but torch sees no CUDA GPU"):
        choose_device("cuda", "auto")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and torch sees none")
def test_a_family_trains_on_a_gpu(tmp_path: Path) -> None:
    run = train(tmp_path / "run", device="cuda", ratios=(0.5, 0.0))
    assert read_family(run).finished
    assert isinstance(wmlc.load(run.network(1)), nn.Module)


def test_a_family_is_rebuilt_for_evaluation_in_eval_mode(run: Run) -> None:
    assert not any(isinstance(module, PeerFamily) for module in wmlc.load(run.network(1)).modules())
    assert not wmlc.load(run.network(1)).training
