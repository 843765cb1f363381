"""Whole runs from a trained start: who teaches, who is trained, and that a run that was stopped ends the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from torch import Tensor
from training import SMALL, assert_same_weights, train, weights

from wmlc.cli import main
from wmlc.compress import phase, session
from wmlc.compress.begin import open_for_start
from wmlc.compress.config import settle
from wmlc.compress.learn.extras import kept_channels
from wmlc.compress.learn.family import PeerFamily, family_of_one
from wmlc.compress.learn.losses import channel_distance
from wmlc.compress.learn.methods import FEATURE_TERMS, Forward
from wmlc.compress.learn.place import Device
from wmlc.compress.learn.teacher import Teacher, losses_of_those_who_teach
from wmlc.compress.learn.teaching import by_loss, from_teacher
from wmlc.compress.prepare import prepare
from wmlc.data import Data
from wmlc.errors import InputError
from wmlc.models.checkpoint import read_spec
from wmlc.models.zoo import build_network
from wmlc.run import BASELINE, Run, read_config, read_epochs, read_family

CPU = Device("cpu", bf16=False)
STEPS = 260 * 9 // 10 // SMALL["batch_size"]  # an epoch


def from_start(start: Run, root: Path, **settings: Any) -> Run:
    return train(root, **{"start": str(start.root), "ratios": (0.5, 0.0), "epochs": 1, **settings})


def stopped_and_resumed(root: Path, start: Callable[[], Any]) -> Run:
    """A run that is stopped after its first epoch's checkpoint, and then resumed."""
    save = phase.save_state

    def save_and_stop(*args: Any) -> None:
        save(*args)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="stopped; go on with"):
        patch.setattr(phase, "save_state", save_and_stop)
        start()
    return session.resume_run(Run(root))


def without_clock(run: Run) -> list[Any]:
    return [replace(epoch, seconds=0.0, images_per_s=0.0) for epoch in read_epochs(run, "family")]


@pytest.fixture(scope="module")
def taught(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """wml from a start, two peers that are trained and the start itself."""
    return from_start(run, tmp_path_factory.mktemp("taught") / "run", ratios=(0.5, 0.3, 0.0), epochs=2)


# --- the frozen start


def test_the_start_and_the_peer_of_ratio_0_are_bit_identical_afterwards(run: Run, taught: Run) -> None:
    start = weights(run.network(BASELINE))
    for peer in (BASELINE, 3):
        after = weights(taught.network(peer))
        assert after.keys() == start.keys()
        assert all(torch.equal(tensor, after[name]) for name, tensor in start.items())  # running statistics among them
    assert read_spec(taught.network(1)).about.start == read_spec(taught.network(BASELINE)).about.start == run.root.name
    family, (first, second) = read_family(taught), read_epochs(taught, "family")
    assert family.baseline is not None and family.peers[2].top1 == family.baseline.top1
    assert len(first.top1) == len(second.top1) == 2


def test_weights_of_sources_are_recorded_learned_and_add_up_to_1(taught: Run) -> None:
    settings = read_config(taught).settings
    assert (settings.teacher, settings.weigh, settings.feature_loss) == ("frozen", "sources", "channels")
    recorded = [epoch.teaching for epoch in read_epochs(taught, "family")]
    assert recorded[0] is not None and recorded[0] != recorded[1]
    for teaching in recorded:
        assert teaching is not None and [len(own) for own in teaching] == [4, 4]
        for peer, own in enumerate(teaching):
            assert sum(own) == pytest.approx(1, abs=1e-6) and min(own) >= 0 and own[2 + peer] == 0


@pytest.fixture(scope="module")
def prepared(run: Run) -> tuple[Any, Data, PeerFamily]:
    """What training starts with: the start as a family of one, the data, and the two peers."""
    config = settle({**SMALL, "start": str(run.root), "ratios": (0.5, 0.3)})
    config, data = open_for_start(config, CPU)
    own = prepare(config, data, CPU)
    return family_of_one(own.full), data, own.family


def plain(network: PeerFamily, features: bool = False) -> Teacher:
    """A teacher that keeps no answers."""
    return Teacher(network, CPU, views=0, features=features, compiled=False)


def test_an_answer_leaves_the_teacher_as_it_is(prepared: Any) -> None:
    network, data, _ = prepared
    images, _ = next(iter(data.train_batches(64, 0)))
    before, teacher = {name: t.clone() for name, t in network.state_dict().items()}, plain(network, features=True)
    network.train()
    taught = teacher.answer(images, 0, 0)
    assert not any(module.training for module in network.modules())
    assert not taught.logits_BC.requires_grad and not any(t.requires_grad for t in taught.outputs.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(taught.logits_BC, network(images)[0])
    assert list(taught.outputs) == [branch.name for branch in network.branches]
    assert not plain(network).answer(images, 0, 0).outputs


def test_an_answer_that_is_kept_is_the_one_that_was_given(prepared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    network, data, _ = prepared
    walked, walk = [], network.walk
    monkeypatch.setattr(network, "walk", lambda images: walked.append(0) or walk(images))
    teacher = Teacher(network, CPU, views=2, features=False, compiled=False)
    given: dict[tuple[int, int], Tensor] = {}
    for epoch in range(5):
        assert teacher.replayed(epoch) == epoch % 2
        for index, (images, _) in enumerate(data.train_batches(64, teacher.replayed(epoch))):
            assert teacher.knows(epoch, index) == (epoch > 1)
            logits_BC = teacher.answer(images, epoch, index).logits_BC
            assert torch.equal(logits_BC, given.setdefault((epoch % 2, index), logits_BC))
    assert len(walked) == len(given) == 2 * STEPS
    assert torch.equal(given[0, 0], network(next(iter(data.train_batches(64, 0)))[0])[0])
    anew = plain(network)
    assert anew.replayed(3) == 3 and not anew.knows(0, 0)


def test_the_channels_of_an_uncut_copy_are_no_distance_from_the_teachers(run: Run) -> None:
    own_settings = {"start": str(run.root), "ratios": (0.5, 0.0), "weigh": "sources", "budget": "uniform"}
    config, data = open_for_start(settle({**SMALL, **own_settings}), CPU)
    own = prepare(config, data, CPU)
    images, labels_B = next(iter(data.train_batches(64, 0)))
    with torch.no_grad():
        logits_PBC, outputs = own.family.eval().walk(images)
    taught = plain(family_of_one(own.full), features=True).answer(images, 0, 0)
    distances: dict[int, list[Tensor]] = {1: [], 2: []}
    for branch in own.family.branches:
        if branch.stage != "head":
            kept = kept_channels(own.family, branch.name)
            assert kept is not None
            distances[branch.peers[0]].append(
                channel_distance(outputs[branch.name], kept(taught.outputs[branch.stage]))
            )
    assert [each.item() for each in distances[2]] == [0.0] * 4
    assert distances[1][0] == 0 and min(distances[1][1:]) > 1e-3  # nothing before the stem was cut
    forward = Forward(own.family, logits_PBC, outputs, labels_B, torch.full((2,), 0.5), None, taught)
    torch.testing.assert_close(FEATURE_TERMS["channels"].loss(forward), torch.stack(distances[1]).sum())


def test_those_who_teach_are_judged_on_held_out_images_in_eval_mode(prepared: Any) -> None:
    network, data, family = prepared
    images, labels_B = data.held_out_batch(64, 0)
    family.train()
    before = {name: tensor.clone() for name, tensor in family.state_dict().items()}
    loss_T = losses_of_those_who_teach(family, plain(network.train()), (images, labels_B), CPU)
    assert all(module.training for module in family.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in family.state_dict().items())
    family.eval()
    network.eval()
    with torch.no_grad():
        logits_TBC = torch.cat([network(images), family(images)])
    expected = [-logits_BC.log_softmax(1)[torch.arange(len(labels_B)), labels_B].mean() for logits_BC in logits_TBC]
    torch.testing.assert_close(loss_T, torch.stack(expected))
    torch.testing.assert_close(losses_of_those_who_teach(family, None, (images, labels_B), CPU), loss_T[1:])
    assert by_loss(loss_T, 2, 0.5).shape == (4, 2)


# --- runs that are stopped


def test_a_run_with_weights_of_sources_ends_bit_identical_after_a_stop(run: Run, taught: Run, tmp_path: Path) -> None:
    resumed = stopped_and_resumed(
        tmp_path / "run", lambda: from_start(run, tmp_path / "run", ratios=(0.5, 0.3, 0.0), epochs=2)
    )
    for peer in (BASELINE, 1, 2, 3):
        assert_same_weights(taught.network(peer), resumed.network(peer))
    assert without_clock(taught) == without_clock(resumed)
    assert replace(read_family(taught), seconds=0.0) == replace(read_family(resumed), seconds=0.0)


@pytest.fixture
def teachers_forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the images of each forward pass of an unpruned network alone."""
    forwards: list[int] = []
    walk = PeerFamily.walk

    def counted(self: PeerFamily, images_BCHW: Tensor) -> Any:
        if self.branches[0].name == "stem":
            forwards.append(len(images_BCHW))
        return walk(self, images_BCHW)

    monkeypatch.setattr(PeerFamily, "walk", counted)
    return forwards


def test_a_reused_teacher_answers_once_and_a_stop_changes_nothing(
    run: Run, tmp_path: Path, teachers_forwards: list[int]
) -> None:
    how = {"method": "kd", "epochs": 2, "baseline": False, "ratios": (0.5,)}
    whole = from_start(run, tmp_path / "whole", reuse_teacher=1, **how)
    assert teachers_forwards == [64] * STEPS  # of the first epoch
    costs = [epoch.training_macs or 0 for epoch in read_epochs(whole, "family")]
    full, cut = read_family(whole).full.macs, read_family(whole).peers[0].macs
    assert costs == [64 * STEPS * (3 * cut + full), 64 * STEPS * 3 * cut]
    assert [epoch.teaching for epoch in read_epochs(whole, "family")] == [from_teacher(1, 0.5).T.tolist()] * 2
    resumed = stopped_and_resumed(
        tmp_path / "resumed", lambda: from_start(run, tmp_path / "resumed", reuse_teacher=1, **how)
    )
    assert_same_weights(whole.network(1), resumed.network(1))
    del teachers_forwards[:]
    anew = from_start(run, tmp_path / "anew", **how)
    assert teachers_forwards == [64] * STEPS * 2
    assert not torch.equal(weights(anew.network(1))["head.fc.weight"], weights(whole.network(1))["head.fc.weight"])


# --- what else a start can do


def test_a_start_that_is_trained_teaches_as_a_peer(run: Run, tmp_path: Path) -> None:
    trained = from_start(run, tmp_path / "run", teacher="trained")
    (epoch,) = read_epochs(trained, "family")
    assert len(epoch.top1) == 2 and epoch.teaching is not None and [len(own) for own in epoch.teaching] == [3, 3]
    start, after = weights(run.network(BASELINE)), weights(trained.network(2))
    assert start.keys() == after.keys() and not torch.equal(start["stem.conv.weight"], after["stem.conv.weight"])
    assert_same_weights(run.network(BASELINE), trained.network(BASELINE))  # which is the start as it stood


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "dml", "ratios": (0.5, 0.3, 0.0), "feature_loss": "hints"},
        {"method": "kd", "feature_loss": "hints"},
        {"method": "wml-p", "share": "tree", "ratios": (0.5, 0.3, 0.0), "feature_loss": "attention"},
    ],
)
def test_an_uncut_peer_that_is_not_trained_stays_the_start(settings: dict[str, Any], run: Run, tmp_path: Path) -> None:
    own = from_start(run, tmp_path / "run", baseline=False, **settings)
    assert_same_weights(own.network(len(read_family(own).peers)), run.network(BASELINE))


@pytest.mark.parametrize(("method", "ratios"), [("self-distillation", ()), ("one", (0.5, 0.0))])
def test_what_an_unpruned_peer_shares_trains_it_too(
    method: str, ratios: tuple[float, ...], run: Run, tmp_path: Path
) -> None:
    own = from_start(run, tmp_path / "run", method=method, ratios=ratios, baseline=False)
    peers = len(read_family(own).peers)
    assert len(read_epochs(own, "family")[0].top1) == peers
    start, after = weights(run.network(BASELINE)), weights(own.network(peers))
    assert start.keys() == after.keys()
    assert all(not torch.equal(start[name], after[name]) for name in start if name.endswith("conv1.weight"))


def test_a_head_for_other_classes_teaches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = tmp_path / "seven.safetensors"
    torch.manual_seed(3)
    safetensors.torch.save_file(build_network("resnet20", 7, (1, 8, 8)).state_dict(), start)
    how = {"start": str(start), "ratios": (0.5, 0.0), "epochs": 2, "baseline": False}

    def begin() -> Run:
        return train(tmp_path / "run", **how)

    run = stopped_and_resumed(tmp_path / "run", begin)
    assert capsys.readouterr().err.count("the head for these classes is new, so the start teaches nothing") == 1
    settings, epochs = read_config(run).settings, read_epochs(run, "family")
    assert (settings.teacher, settings.feature_loss, settings.feature_weight) == ("trained", "none", None)
    assert [len(epoch.top1) for epoch in epochs] == [2, 2]  # the start is a peer, as it has to be trained itself
    with pytest.raises(InputError) as caught:
        train(tmp_path / "kd", method="kd", **how)
    assert str(caught.value) == (
        "kd learns from the start, and its head for these classes is new; train that first (wmlc train with "
        "--ratios 0), and start from its run"
    )
    assert not (tmp_path / "kd").exists()


def test_nothing_but_the_start_is_nothing_to_train(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        from_start(run, tmp_path / "run", ratios=(0.0,))
    assert str(caught.value) == (
        "a peer of ratio 0 is the start itself, and there is no other to train; pass a ratio above 0, or --epochs 0"
    )
    assert not (tmp_path / "run").exists()
    assert_same_weights(from_start(run, tmp_path / "run", ratios=(0.0,), epochs=0).network(1), run.network(BASELINE))


@pytest.mark.parametrize("options", [["--method", "kd"], ["--teacher", "trained"]])
def test_a_dry_run_takes_a_teacher(options: list[str], run: Run) -> None:
    command = ["train", "--data", "digits", "--start", str(run.root), "--ratios", "0.5,0", "--dry-run", *options]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "1     50.0%" in result.output
