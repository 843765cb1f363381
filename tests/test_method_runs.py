"""Whole runs of the methods that the paper compares with: exits, and what is cut from a trained network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training import SMALL, assert_same_weights, stopping, train, weights

import wmlc
from wmlc.compress import session
from wmlc.compress.config import settle
from wmlc.compress.learn.family import build_exits
from wmlc.compress.learn.place import Device
from wmlc.compress.prepare import prepare
from wmlc.data import open_data
from wmlc.errors import InputError
from wmlc.models.cost import total_cost
from wmlc.models.ensemble import Ensemble
from wmlc.models.zoo import build_network
from wmlc.ranks import SOLO, Ranks
from wmlc.run import Run, data_config, read_config, read_epochs, read_family


@pytest.mark.parametrize("method", ["one", "cl", "dml"])
def test_a_run_of_each_method_trains_and_loads(tmp_path: Path, method: str) -> None:
    run = train(tmp_path / "run", method=method, ratios=(0.5, 0.0), epochs=1, baseline=False)
    family = read_family(run)
    assert family.method == method and len(family.peers) == 2
    assert family.peer_weights == [0.5, 0.5]
    for peer in (1, 2):
        logits = wmlc.load(run.network(peer))(torch.zeros(1, 1, 8, 8))
        assert logits.shape == (1, 10)
    assert not any("gate" in name for name in weights(run.network(1)))


@pytest.mark.parametrize("arch", ["resnet20", "mobilenet_v2"])
def test_exits_are_networks_of_the_zoo(arch: str) -> None:
    shape = (3, 16, 16)
    full = build_network(arch, 10, shape)
    family = build_exits(full, shape).eval()
    images = torch.randn(2, *shape)
    costs = []
    for peer in range(1, family.peers):
        own = build_network(f"{arch}-exit{peer}", 10, shape).eval()
        own.load_state_dict(family.peer(peer).state_dict())
        torch.testing.assert_close(own(images), family(images)[peer - 1])
        costs.append(total_cost(own, shape).macs)
    costs.append(total_cost(full, shape).macs)
    assert costs == sorted(costs)
    torch.testing.assert_close(full.eval()(images), family(images)[-1])


def test_an_exit_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        build_network("resnet20-exit4", 10, (3, 32, 32))
    assert str(caught.value) == "an exit must be from 1 to 3 for this network, got 4"


@pytest.fixture(scope="module")
def exits(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tmp_path_factory.mktemp("exits") / "run", method="self-distillation")


def test_exits_load_by_their_own_names(exits: Run) -> None:
    stages = [[name for name, _ in wmlc.load(exits.network(peer)).named_children()] for peer in (1, 2, 3)]
    assert stages == [["stem", *[f"stage{k}" for k in range(1, peer + 1)], "head"] for peer in (1, 2, 3)]
    ratios = [peer.ratio for peer in read_family(exits).peers]
    assert ratios[2] == 0 and ratios == sorted(ratios, reverse=True)


def test_an_exit_exports_like_any_peer(exits: Run, tmp_path: Path) -> None:
    import onnxruntime

    from wmlc.export.config import ExportConfig
    from wmlc.export.extract import extract

    list(extract(exits, "1", tmp_path / "exit.onnx", ExportConfig(), force=False))
    images = torch.randn(3, 1, 8, 8)
    (logits,) = onnxruntime.InferenceSession(tmp_path / "exit.onnx").run(None, {"input": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), wmlc.load(exits.network(1))(images), rtol=1e-4, atol=1e-4)


def test_exits_make_an_ensemble_that_runs_what_they_share_once(exits: Run) -> None:
    networks = [wmlc.load(exits.network(peer)) for peer in (1, 2, 3)]
    together, images = Ensemble(networks, [0.2, 0.3, 0.5]).eval(), torch.randn(2, 1, 8, 8)
    expected = sum(w * network(images) for w, network in zip((0.2, 0.3, 0.5), networks, strict=True))
    torch.testing.assert_close(together(images), expected)
    assert len(together.branches) == len({"stem", "stage1", "stage2", "stage3"}) + 3


def test_the_baseline_does_not_depend_on_the_method(exits: Run, tmp_path: Path) -> None:
    other = train(tmp_path / "run", method="independent", ratios=(0.0,))
    assert_same_weights(exits.network(0), other.network(0))


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("finetuned") / "run"
    return train(root, method="prune-finetune", ratios=(0.5, 0.3, 0.0), finetune_epochs=1)


def test_an_uncut_peer_of_prune_finetune_is_the_baseline(finetuned: Run) -> None:
    assert_same_weights(finetuned.network(3), finetuned.network(0))


def test_prune_finetune_trains_unpruned_then_the_cut_networks(finetuned: Run) -> None:
    assert len(read_epochs(finetuned, "baseline")) == 2
    (tuned,) = read_epochs(finetuned, "family")
    assert len(tuned.top1) == 2  # the cut ones
    family = read_family(finetuned)
    assert family.baseline is not None and family.seconds >= family.baseline.seconds
    assert [round(peer.achieved_ratio, 1) for peer in family.peers] == [0.5, 0.3, 0.0]
    assert read_config(finetuned).settings.finetune_lr == pytest.approx(SMALL["lr"] / 10)


def test_prune_finetune_takes_another_runs_baseline(exits: Run, tmp_path: Path) -> None:
    run = train(
        tmp_path / "run", method="prune-finetune", ratios=(0.5, 0.0), finetune_epochs=1, baseline_from=str(exits.root)
    )
    assert_same_weights(run.network(2), exits.network(0))
    assert not run.metrics("baseline").exists()
    trained, kept = weights(exits.network(0)), weights(run.network(1))
    assert kept["head.fc.weight"].shape[1] < trained["head.fc.weight"].shape[1]


def test_prune_finetune_takes_batch_norm_anew_as_its_networks_have_fewer_channels(exits: Run, tmp_path: Path) -> None:
    run = train(
        tmp_path / "run", method="prune-finetune", ratios=(0.5, 0.0), finetune_epochs=0, baseline_from=str(exits.root)
    )
    whole, cut = (
        {name: {*value.tolist()} for name, value in weights(run.network(peer)).items() if "running_mean" in name}
        for peer in (0, 1)
    )
    assert whole.keys() == cut.keys()
    assert not any(whole[name] & cut[name] for name in whole)


def test_prune_finetune_goes_on_after_a_kill_between_its_halves(finetuned: Run, tmp_path: Path) -> None:
    with stopping(session, "cut_trained"), pytest.raises(InputError, match="stopped; go on with"):
        train(tmp_path / "run", method="prune-finetune", ratios=(0.5, 0.3, 0.0), finetune_epochs=1)
    run = session.resume_run(Run(tmp_path / "run"))
    for peer in (0, 1, 2, 3):
        assert_same_weights(run.network(peer), finetuned.network(peer))


def test_prune_finetune_chooses_its_steps_by_what_they_cost(tmp_path: Path) -> None:
    run = train(tmp_path / "run", method="prune-finetune", ratios=(0.5, 0.0), epochs=1)
    settings, (unpruned,) = read_config(run).settings, read_epochs(run, "baseline")
    assert (settings.as_long_as, settings.finetune_epochs) == ("wml", None) and settings.steps is not None
    an_epoch, cut, full = 260 * 9 // 10 // 64, read_family(run).peers[0].macs, read_family(run).full.macs
    config = settle({**SMALL, "ratios": (0.5, 0.0)})
    wml = prepare(config, open_data(data_config(config)), Device("cpu", bf16=False)).family
    left = 3 * 64 * an_epoch * (total_cost(wml, (1, 8, 8)).macs - full)
    assert abs(left - 3 * 64 * settings.steps * cut) <= 3 * 64 * cut / 2
    assert sum(epoch.training_macs for epoch in read_epochs(run, "family")) == 3 * 64 * settings.steps * cut
    assert unpruned.training_macs == 3 * 64 * an_epoch * full  # for the epochs that were asked for
    assert len(read_epochs(run, "family")) == -(-settings.steps // an_epoch)


def test_what_changes_nothing_in_this_run_is_said() -> None:
    asked = {"method": "independent", "weight_lr": 0.5, "reweigh_every": 5, "sync_bn": True}
    assert session._without_effect(asked, settle(asked), SOLO) == [
        "--weight-lr and --reweigh-every without effect: independent learns no weights here",
        "--sync-bn without effect: there is one process",
    ]
    asked["method"] = "wml"
    assert session._without_effect(asked, settle(asked), Ranks(0, 2)) == []
    asked = {"saliency": "snip", "warmup_epochs": 2.0, "schedule": "one-cycle", "start": "net.pt"}
    assert session._without_effect(asked, settle(asked), SOLO) == [
        "--saliency without effect: a start's channels go by --rank, and how many by --budget",
        "--warmup-epochs without effect: one-cycle has a warm-up of its own",
    ]
    assert session._without_effect({**asked, "schedule": "step"}, settle({"schedule": "step"}), SOLO) == []
    asked = {"blocks": "drop", "start": "net.pt"}
    assert session._without_effect(asked, settle(asked), SOLO) == []
    asked["budget"] = "taylor"
    said = ["--blocks drop without effect: budget taylor keeps all"]
    assert session._without_effect(asked, settle(asked), SOLO) == said
    assert session._without_effect({}, settle({"method": "independent"}), SOLO) == []
