"""Two processes on gloo that train together, against one; started by test_ranks.py. Takes 35 s."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import on_two
from torch import nn
from torch.autograd import forward_ad
from torch.distributed import TCPStore
from training import SMALL, train, weights

from wmlc.compress import phase
from wmlc.compress.command import Wanted
from wmlc.compress.command import train as train_command
from wmlc.compress.config import settle
from wmlc.compress.learn import train as learning
from wmlc.compress.learn.family import family_of_one
from wmlc.compress.learn.methods import Forward, Taught, train_loss
from wmlc.compress.learn.place import Device
from wmlc.compress.learn.reweigh import peer_weight_gradient, source_gradient
from wmlc.compress.learn.sync_norm import synced
from wmlc.compress.learn.teaching import alike
from wmlc.compress.prepare import Prepared, prepare, trained_peers
from wmlc.compress.session import resume_run, start_run
from wmlc.data import Data, open_data
from wmlc.errors import InputError
from wmlc.ranks import SOLO, Ranks, joined, launch, launched
from wmlc.run import Run, data_config, read_config, read_epochs, read_family
from wmlc.settings import TrainConfig

TINY = {**SMALL, "ratios": (0.5, 0.0), "baseline": False, "reweigh_every": 1, "lr": 1e-3, "precision": "fp32"}
# At a rate of 0.05 an untrained network this deep makes 1e-3 of float32's rounding in as few steps, also of one process
# beside itself in float64; the gradients themselves are held in float64 below.


def together(root: Path, **settings: Any) -> None:
    """A run of two processes, in this one of them."""
    with joined() as ranks:
        start_run(settle({**TINY, **settings}), root, force=False, ranks=ranks)


def assert_near(one: Run, other: Run) -> None:
    """The same networks but for rounding, and the same accuracies."""
    first, second = read_family(one), read_family(other)
    assert first.peer_weights == pytest.approx(second.peer_weights, abs=1e-5)
    for peer in first.peers:
        ours, theirs = weights(one.network(peer.peer)), weights(other.network(peer.peer))
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(
                tensor, theirs[name], atol=1e-5, rtol=0, msg=lambda words, name=name: f"{name}: {words}"
            )
    tops = [[*(peer.top1 for peer in own.peers), own.ensemble_top1] for own in (first, second)]
    assert tops[0] == pytest.approx(tops[1])


def test_two_processes_give_the_weights_of_one(tmp_path: Path) -> None:
    """With every image's statistics in every batch norm; ω too."""
    settings = {"epochs": 1, "sync_bn": True, "train_images": 150}  # two steps, and ω after each
    alone = train(tmp_path / "alone", **{**TINY, **settings})
    assert on_two(lambda _: together(tmp_path / "two", **settings)) == [None, None]
    assert_near(Run(tmp_path / "two"), alone)
    assert read_config(Run(tmp_path / "two")).processes == 2
    ours, theirs = (read_epochs(run, "family")[0] for run in (Run(tmp_path / "two"), alone))
    assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-5) and ours.training_macs == theirs.training_macs


def on_both(work: Callable[[Ranks], dict[str, torch.Tensor]], rel: float) -> None:
    """`work` gives two processes the numbers that it gives one."""

    def joined_work(_: int) -> dict[str, np.ndarray]:  # what a pipe takes by value
        with joined() as ranks:
            return {name: own.numpy() for name, own in work(ranks).items()}

    alone = work(SOLO)
    for own in on_two(joined_work):
        assert own.keys() == alone.keys()
        for name, wanted in alone.items():
            np.testing.assert_allclose(own[name], wanted, rtol=rel, atol=rel * float(wanted.abs().max()), err_msg=name)


@functools.cache  # before processes are forked, which all have it then
def prepared_with(start: Path | None = None) -> tuple[TrainConfig, Data, Prepared]:
    config = settle(TINY if start is None else {**TINY, "start": str(start), "ratios": (0.5, 0.3)})
    data = open_data(data_config(config))
    return config, data, prepare(config, data, Device("cpu", bf16=False))


def gradients(ranks: Ranks) -> dict[str, torch.Tensor]:
    """Of a step, of the mean over processes: by the parameters and by ω; and the running statistics."""
    config, data, prepared = prepared_with()
    device, family = Device("cpu", bf16=False, ranks=ranks), copy.deepcopy(prepared.family).double().train()
    train_batch, held_out = (
        next(iter(data.shared(ranks).train_batches(64, 0))),
        data.shared(ranks).held_out_batch(64, 0),
    )
    weight_P = torch.tensor([0.4, 0.6], dtype=torch.float64)
    (images, labels), (others, their_labels) = train_batch, held_out
    with synced(family, ranks):
        logits_PBC, outputs = family.walk(images.double())
        train_loss(Forward(family, logits_PBC, outputs, labels, weight_P), config).backward()
        found = {name: own.grad for name, own in family.named_parameters() if own.grad is not None}
        ranks.mean_(list(found.values()))
        found["ω"] = peer_weight_gradient(
            family, (images.double(), labels), (others.double(), their_labels), weight_P, dict(found), alpha=0.1,
            temperature=1.0, inner_lr=0.05, device=device,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        by_step = torch.randn(64, 10, generator=generator, dtype=torch.float64)  # a teacher's answers
        found["sources"], found["ω by sources"] = source_gradient(
            family, (images.double(), labels), ranks.own(by_step), (others.double(), their_labels), weight_P,
            {name: own.grad for name, own in family.named_parameters() if own.grad is not None},
            temperature=2.0, inner_lr=0.05, device=device,
        )  # fmt: skip
        found |= {name: own for name, own in family.named_buffers() if own.is_floating_point()}
    return found


def test_gradients_of_two_processes_are_those_of_one_in_float64() -> None:
    on_both(gradients, rel=1e-8)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch loads its own rules for a JVP by the old torch.jit
def test_so_are_those_of_a_norm_without_a_gain_and_of_a_plain_mean_over_batches() -> None:
    """And their tangents; of numbers far from zero, where a difference of squares would leave nothing in float32."""
    whole = torch.randn(8, 3, 5, generator=torch.Generator().manual_seed(0)) + 1e4

    def normed(ranks: Ranks) -> dict[str, torch.Tensor]:
        norm = nn.BatchNorm1d(3, affine=False, momentum=None)
        own = ranks.own(whole).requires_grad_()
        with synced(norm, ranks):
            y = norm(own)
            (y * own.detach().sin()).sum().backward()
            with forward_ad.dual_level():
                dual = norm(forward_ad.make_dual(own.detach(), own.detach().cos()))
                tangent = forward_ad.unpack_dual(dual).tangent
        assert own.grad is not None and tangent is not None and norm.running_var is not None
        sums = {"y": y.detach().square(), "by x": own.grad.square(), "tangent": tangent.square()}
        return {"variance": norm.running_var} | {name: ranks.sum_(each.sum()) for name, each in sums.items()}

    on_both(normed, rel=1e-4)


def test_so_are_those_of_a_family_that_a_start_teaches(tmp_path: Path) -> None:
    """By its answers, by the other peers and by the channels that they kept; the losses themselves are in float32."""
    start = train(tmp_path / "start", **{**TINY, "method": "independent", "ratios": (0.0,), "epochs": 1})
    config, data, prepared = prepared_with(start.network(1))

    def taught(ranks: Ranks) -> dict[str, torch.Tensor]:
        family = copy.deepcopy(trained_peers(prepared.family, config)).double().train()
        teacher = family_of_one(copy.deepcopy(prepared.full))
        images, labels = next(iter(data.shared(ranks).train_batches(64, 0)))
        with torch.no_grad():
            answer, outputs = teacher.double().eval().walk(images.double())
        with synced(family, ranks):
            logits_PBC, own_outputs = family.walk(images.double())
            forward = Forward(
                family, logits_PBC, own_outputs, labels, torch.full((2,), 0.5), alike(2, True, 0.5),
                Taught(answer[0], outputs), ranks,
            )  # fmt: skip
            train_loss(forward, config).backward()
        found = {name: own.grad for name, own in family.named_parameters() if own.grad is not None}
        ranks.mean_(list(found.values()))
        return found

    on_both(taught, rel=1e-5)


def stopping_after(epoch: int, work: Callable[[], Any], how: Callable[[], Any]) -> Any:
    """`work`, with `how` called in the place of what would follow the checkpoint of that epoch."""
    save = phase.save_state

    def save_and_stop(directory: Path, state: Any, *rest: Any) -> None:
        save(directory, state, *rest)
        if state.epoch == epoch:
            how()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phase, "save_state", save_and_stop)
        return work()


def interrupt() -> None:
    raise KeyboardInterrupt


def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    settings = {"epochs": 3, "sync_bn": True, "train_images": 150, "reweigh_every": 2}  # two steps an epoch
    root = tmp_path / "run"
    whole = train(tmp_path / "whole", **{**TINY, **settings})
    first = on_two(lambda _: stopping_after(1, lambda: together(root, **settings), interrupt))
    assert "stopped; go on with" in first[0] and "another process of this run has ended" in first[1]
    with pytest.raises(InputError, match="stopped; go on with"):
        stopping_after(2, lambda: resume_run(Run(root)), interrupt)

    def go_on(_: int) -> None:
        with joined() as ranks:
            resume_run(Run(root), ranks)

    assert on_two(go_on) == [None, None]
    assert_near(Run(root), whole)
    assert [epoch.epoch for epoch in read_epochs(Run(root), "family")] == [1, 2, 3]


def test_a_process_that_dies_ends_the_run_in_words_and_it_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """As torchrun starts it again: by the same command, in processes of the same parent."""
    root = tmp_path / "run"
    asked = {key: value for key, value in TINY.items()} | {"epochs": 2}

    def dying(rank: int) -> None:
        ended, join = 0, learning._join

        def die(*args: Any) -> None:
            nonlocal ended
            ended += 1
            if rank == 1 and ended == 2:  # at the end of the second epoch
                os._exit(1)
            join(*args)

        learning._join = die  # in this process alone
        train_command("digits", asked, Wanted(out=root))

    said = on_two(dying)
    assert said[1] is None and "rank 0: another process of this run has ended" in said[0]
    assert not (root / "family.json").exists()
    (first,) = read_epochs(Run(root), "family")
    assert on_two(lambda _: train_command("digits", asked, Wanted(out=root))) == [None, None]
    again, second = read_epochs(Run(root), "family")
    assert again == first and second.epoch == 2, "the first epoch is not trained again"
    assert read_family(Run(root)).epochs == 2


def test_one_process_of_torchruns_goes_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch() is None
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    again = launch()
    assert launched() == SOLO and again is not None and again.startswith(f":{os.getppid()}:") and again == launch()


def test_the_baseline_that_rank_0_wrote_is_cut_by_both(tmp_path: Path) -> None:
    """As each process cuts what it has, their weights agree after the epoch only where they had the same."""
    asked = {**TINY, "method": "prune-finetune", "baseline": True, "epochs": 1, "finetune_epochs": 1, "lr": 0.05}
    assert on_two(lambda _: train_command("digits", asked, Wanted(out=tmp_path / "run"))) == [None, None]
    assert read_family(Run(tmp_path / "run")).baseline is not None


def test_processes_that_were_started_otherwise_end_in_words(tmp_path: Path) -> None:
    said = on_two(lambda rank: train_command("digits", {**TINY, "lr": (0.05, 0.1)[rank]}, Wanted(out=tmp_path / "run")))
    assert said == ["lr is 0.1 on rank 1 and 0.05 on rank 0; start all processes with the same command"] * 2
    assert list(tmp_path.iterdir()) == []


def test_gradients_are_matched_by_parameter() -> None:
    """A network that leaves out blocks at random has other ones in each process; what nobody has stays without."""

    def means(rank: int) -> list[list[float] | None]:
        parameters = [nn.Parameter(torch.zeros(size)) for size in (2, 3, 1, 1)]
        for place in ((0, 2), (1, 2))[rank]:
            parameters[place].grad = torch.full_like(parameters[place], 1.0 + rank)
        with joined() as ranks:
            ranks.mean_gradients(parameters)
        return [None if own.grad is None else own.grad.tolist() for own in parameters]

    assert on_two(means) == [[[0.5] * 2, [1.0] * 3, [1.5], None]] * 2


def test_started_again_they_do_not_look_for_the_dead(tmp_path: Path) -> None:
    """In torchrun's store there still stands where the processes were that it had started before."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def sums(rank: int) -> float:
        with joined() as ranks:
            return float(ranks.sum_(torch.tensor([rank + 1.0])))

    assert [on_two(sums, store.port) for _ in range(4)] == [[3.0, 3.0]] * 4


def test_a_process_that_never_comes_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wmlc.ranks.MEETING", timedelta(seconds=0.5))
    _, said = on_two(lambda rank: rank == 0 or together(tmp_path / "run"))
    assert said.startswith("rank 1: the 2 processes did not meet (") and "GLOO_SOCKET_IFNAME" in said


def test_data_that_one_process_lacks_are_named_by_all(tmp_path: Path) -> None:
    def elsewhere(rank: int) -> None:
        (tmp_path / str(rank)).mkdir()
        os.chdir(tmp_path / str(rank))
        if rank == 0:
            for part in ("train", "val"):
                for name in ("a", "b"):
                    (Path("data") / part / name).mkdir(parents=True)
        together(tmp_path / "run", data="imagefolder", data_root="data")

    said = on_two(elsewhere)
    assert said[0] == said[1] and said[0].startswith("rank 1: data is not a folder")


def test_what_does_not_go_into_processes_evenly_is_refused() -> None:
    with pytest.raises(
        InputError, match="a batch of 65 does not go into 2 processes evenly; pass --batch-size 64 or 66"
    ):
        Ranks(0, 2).check_batch(65)
    Ranks(1, 2).check_batch(64)


def test_a_batch_is_divided_evenly_or_not_at_all() -> None:
    places = torch.arange(6)
    assert [Ranks(rank, 2).own_of_batch(places).tolist() for rank in range(2)] == [[0, 2, 4], [1, 3, 5]]
    assert [Ranks(rank, 4).own_of_batch(places).tolist() for rank in range(4)] == [list(range(6))] * 4
    assert sorted(place for rank in range(4) for place in Ranks(rank, 4).own(range(6))) == list(range(6))


def test_without_a_launcher_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    assert launched() == SOLO and SOLO.first and SOLO.of_first(lambda: 3) == 3


def test_a_batch_norm_of_somebody_elses_is_refused() -> None:
    class Own(nn.BatchNorm2d):
        pass

    with (
        pytest.raises(InputError, match="--sync-bn knows torch's own batch norms, and this network has Own"),
        synced(Own(3), Ranks(0, 2)),
    ):
        pass
