"""What a run promises: the loop, what it writes, and that a killed run ends as if it had not been."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import wmlc
from wmlc.compress import session
from wmlc.compress.config import TrainConfig, config_from
from wmlc.compress.learn.family import PeerFamily
from wmlc.compress.learn.methods import train_loss
from wmlc.compress.learn.state import TrainState, load_state, save_state
from wmlc.compress.learn.train import choose_device, lr_factor
from wmlc.data import normalise, open_data
from wmlc.errors import InputError
from wmlc.files import new_directory, new_file, recover_directory
from wmlc.run import Run, read_family, read_lines

SMALL = {"train_images": 260, "epochs": 2, "batch_size": 64, "reweigh_every": 2, "warmup_epochs": 0.5, "lr": 0.05}


def train(root: Path, **settings: Any) -> Run:
    return session.start_run(TrainConfig(**{**SMALL, **settings}), root, force=False)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(directory / "weights.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_a_run_writes_what_its_readers_are_promised(run: Run) -> None:
    lines = read_lines(run.metrics("family"))
    assert [line["epoch"] for line in lines] == [1, 2]
    for line in lines:
        assert line.keys() == {
            "epoch", "seconds", "images_per_s", "train_loss", "top1", "ensemble_top1", "average_ensemble_top1", "peer_weights", "lr"
        }  # fmt: skip
        assert len(line["top1"]) == len(line["peer_weights"]) == 2
        assert sum(line["peer_weights"]) == pytest.approx(1)
    assert lines[-1]["peer_weights"] != [0.5, 0.5]  # mirror descent moved them
    assert (run.checkpoint / "state.json").is_file()
    assert list((run.tensorboard / "family").glob("events*")) and list((run.tensorboard / "baseline").glob("events*"))
    family = read_family(run)
    assert family["finished"] and [peer["peer"] for peer in family["peers"]] == [1, 2]
    assert family["peers"][0]["params"] < family["peers"][1]["params"] == family["full"]["params"]


def test_recorded_accuracy_is_that_of_the_saved_networks(run: Run) -> None:
    data = open_data(TrainConfig().data_config())
    family = read_family(run)
    for record, directory in [(p, run.network(p["peer"])) for p in family["peers"]] + [
        (family["baseline"], run.network(0))
    ]:
        network, right, seen = wmlc.load(directory), 0, 0
        record_spec = json.loads((directory / "spec.json").read_text())
        assert record_spec["about"]["top1"] == record["top1"]
        for pixels, labels in data.test_pixels(512):
            with torch.inference_mode():
                images = normalise(pixels, record_spec["mean"], record_spec["std"])
                right += int((network(images).argmax(1) == labels).sum())
            seen += len(labels)
        assert seen == data.test_count()
        assert 100 * right / seen == pytest.approx(record["top1"], abs=100.1 / seen)  # one image may sit on the fence


def test_an_independent_unpruned_peer_is_trained_as_the_baseline_is(tmp_path: Path) -> None:
    run = train(tmp_path / "run", method="independent", ratios=(0.5, 0.0), epochs=1)
    assert_same_weights(run.network(2), run.network(0))


def test_the_ensemble_is_reported_with_the_weights_of_its_epoch(run: Run) -> None:
    family = read_family(run)
    best = read_lines(run.metrics("family"))[family["best_epoch"] - 1]
    assert family["peer_weights"] == best["peer_weights"]


def test_killed_and_resumed_ends_bit_identical(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {**SMALL, "ratios": (0.5, 0.0), "epochs": 4}
    whole, killed = train(tmp_path / "whole", **settings), Run(tmp_path / "killed")
    code = (
        "from pathlib import Path; from wmlc.compress.session import start_run, TrainConfig; "
        f"start_run(TrainConfig(**{settings!r}), Path({str(killed.root)!r}), force=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(read_lines(killed.metrics("family"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
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
        epochs = [
            [
                {k: v for k, v in line.items() if k not in ("seconds", "images_per_s")}
                for line in read_lines(run.metrics(phase))
            ]
            for run in (whole, killed)
        ]
        assert epochs[0] == epochs[1] and len(epochs[0]) == 4


def test_stopped_in_the_baseline_goes_on_in_the_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(tmp_path / "whole", ratios=(0.5, 0.0))

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(session, "_save_baseline", stop)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "stopped", ratios=(0.5, 0.0))
    run = session.resume_run(Run(tmp_path / "stopped"))
    for peer in (0, 1, 2):
        assert_same_weights(whole.network(peer), run.network(peer))


def test_a_failed_checkpoint_write_leaves_the_former_one_good(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 2))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = TrainState("family", [1.0], epoch=4, best=dict(network.state_dict()))
    save_state(tmp_path / "checkpoint", state, network, optimizer)

    class Full(dict):  # type: ignore[type-arg]
        def items(self) -> Any:
            raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="No space left on device"):
        save_state(tmp_path / "checkpoint", TrainState("family", [1.0], epoch=5, best=Full()), network, optimizer)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    fresh = nn.Sequential(nn.Linear(2, 2))
    restored = torch.optim.SGD(fresh.parameters(), lr=0.1, momentum=0.9)
    assert load_state(tmp_path / "checkpoint", fresh, restored).epoch == 4
    for parameter, other in zip(network.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(parameter, other)
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"], restored.state[other]["momentum_buffer"])


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    with new_directory(tmp_path / "checkpoint") as aside:
        (aside / "state.json").write_text("{}")
    (tmp_path / "checkpoint").rename(tmp_path / "checkpoint.former")
    (tmp_path / ".checkpoint.123").mkdir()
    recover_directory(tmp_path / "checkpoint")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_failing_block_leaves_no_file_and_no_directory(tmp_path: Path) -> None:
    for new in (new_file, new_directory):
        with pytest.raises(ZeroDivisionError), new(tmp_path / "out") as aside:
            if new is new_file:
                aside.write_text("half")
            raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(session, "_save_peers", stop)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", epochs=1)
    run = Run(tmp_path / "run")
    model = run.checkpoint / "model.safetensors"
    whole = model.read_bytes()
    model.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged or missing .*; delete the checkpoint"):
        session.resume_run(run)
    model.write_bytes(whole)
    (run.checkpoint / "state.json").write_text('{"phase": "fam')
    with pytest.raises(InputError, match=r"state\.json is not a readable training state"):
        session.resume_run(run)


def test_a_loss_that_is_not_finite_stops_in_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the loss became (nan|inf) in epoch 1, step \d+, at lr .*; lower --lr"):
        train(tmp_path / "run", lr=1e12, warmup_epochs=0.0)


def test_wml_p_keeps_its_weights_uniform(tmp_path: Path) -> None:
    run = train(tmp_path / "run", method="wml-p", epochs=1, baseline=False)
    assert read_family(run)["peer_weights"] == [0.25] * 4
    assert read_family(run)["baseline"] is None and not run.network(0).exists()


def test_a_baseline_from_another_run_must_match(tmp_path: Path, run: Run) -> None:
    settings = {"ratios": (0.7, 0.0), "baseline_from": str(run.root)}
    taken = train(tmp_path / "taken", **settings)
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
            train_loss(nobody, logits_PBC, {}, labels_B, torch.full((4,), 0.25), TrainConfig(alpha=0.0), method),
            logits_PBC,
        )[0]
        for method in ("independent", "wml")
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
    assert read_family(run)["finished"]
    assert isinstance(wmlc.load(run.network(1)), nn.Module)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"epoch": 3}, "test: unknown setting 'epoch'; did you mean epochs?"),
        ({"epochs": "many"}, "test: epochs must be a whole number, got 'many'"),
        ({"ratios": 0.5}, "test: ratios must be a list of numbers, got 0.5"),
        ({"nesterov": 1}, "test: nesterov must be true or false, got 1"),
    ],
)
def test_a_recipe_with_a_fault_is_refused(record: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        config_from(record, "test")
    assert str(caught.value) == message


def test_a_family_is_rebuilt_for_evaluation_in_eval_mode(run: Run) -> None:
    assert not any(isinstance(module, PeerFamily) for module in wmlc.load(run.network(1)).modules())
    assert not wmlc.load(run.network(1)).training
