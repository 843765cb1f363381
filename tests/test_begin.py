"""What a run begins with: its start stays where it is and what it was, and a baseline of another run. Takes 5 s."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
from training import a_run_record, stopping, train, weights

from wmlc import records
from wmlc import run as runs
from wmlc.compress import begin, session
from wmlc.compress.config import settle
from wmlc.compress.session import resume_run, start_run
from wmlc.errors import InputError, Stopped
from wmlc.models.checkpoint import read_spec
from wmlc.records import DeviceRecord
from wmlc.run import Run, open_run_data


def test_a_start_that_the_new_run_would_replace_is_refused(run: Run, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(run.root, old)
    config = replace(runs.read_config(run).settings, start=str(old / "baseline"))
    with pytest.raises(InputError, match=r"--start .*baseline lies in .*old, which the new run would replace; choose"):
        start_run(config, old, force=True)
    assert (old / "baseline").is_dir()


def test_a_run_goes_on_from_the_start_that_it_began_with(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = tmp_path / "start"
    shutil.copytree(run.network(0), start)
    with stopping(session, "train_phase"), pytest.raises(Stopped):
        train(tmp_path / "run", start=str(start), ratios=(0.5,), epochs=1, share="none")
    former = weights(start)
    other = {name: own + 1 if own.is_floating_point() else own for name, own in former.items()}
    safetensors.torch.save_file(other, start / "weights.safetensors")
    with pytest.raises(InputError, match=r"the weights of .*start are not those that .*run began with, so it cannot"):
        resume_run(Run(tmp_path / "run"))
    safetensors.torch.save_file(former, start / "weights.safetensors")
    record = runs.read_config(Run(tmp_path / "run"))
    records.write(Run(tmp_path / "run").config, replace(record, images="others"))
    with pytest.raises(
        InputError, match=r"the training images are not those that .*run began with, by their names and"
    ):
        resume_run(Run(tmp_path / "run"))
    records.write(Run(tmp_path / "run").config, replace(record, device=DeviceRecord(name="cuda", bf16=True)))
    assert runs.read_family(resume_run(Run(tmp_path / "run"))).finished
    assert "the run began on cuda in bf16 and goes on on cpu in " in capsys.readouterr().err


def test_what_peers_learned_to_weigh_stays_beside_an_uncut_one(run: Run, tmp_path: Path) -> None:
    """Which is the start, that nothing is learned of: it has its share, and the others theirs of the rest."""
    start, ratios = str(run.network(0)), (0.6, 0.4, 0.0)
    own = train(tmp_path / "run", start=start, ratios=ratios, epochs=1, share="none", reweigh_every=1, weight_lr=1.0)
    learned = runs.read_epochs(own, "family")[0].peer_weights
    assert len(learned) == 2 and learned[0] != learned[1]
    assert runs.read_family(own).peer_weights == pytest.approx([2 / 3 * learned[0], 2 / 3 * learned[1], 1 / 3])


def test_a_trial_of_a_rate_that_breaks_off_for_another_reason_says_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is not taken for a rate that is too high."""

    def broken(*_: object) -> None:
        raise InputError("cat.png is no picture")

    monkeypatch.setattr("wmlc.compress.rate.fit", broken)
    with pytest.raises(InputError, match=r"^cat\.png is no picture$"):
        train(tmp_path / "run", start=str(run.network(0)), lr_auto=True, ratios=(0.5, 0.0), epochs=20)


def test_rates_that_runs_found_for_themselves_make_no_other_baseline(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = runs.read_config(run).settings
    data = open_run_data(run, None)
    for auto in (True, False):
        other = replace(mine, lr_auto=auto, lr=0.3, steps=7)
        monkeypatch.setattr(begin.runs, "read_config", lambda source, other=other: a_run_record(other))
        config = replace(mine, lr_auto=auto)
        if auto:
            assert begin._matching_baseline(config, run.root, data, None)
        else:
            with pytest.raises(InputError, match=r"is no match for this run: steps 7 there, None here; lr 0\.3 there"):
                begin._matching_baseline(config, run.root, data, None)


def test_a_baseline_is_of_the_same_images_classes_and_start(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, data = runs.read_config(run).settings, open_run_data(run, None)
    theirs = replace(a_run_record(mine), images="others", start_weights="1")
    monkeypatch.setattr(begin.runs, "read_config", lambda source: theirs)
    monkeypatch.setattr(begin, "read_spec", lambda _: replace(read_spec(run.network(0)), class_names=["a", "b"]))
    with pytest.raises(InputError) as caught:
        begin._matching_baseline(mine, run.root, data, "2")
    assert str(caught.value).endswith(
        "is no match for this run: the classes are others; the training images, by names and labels, are others; "
        "the start's weights are others"
    )


def test_what_a_batch_leaves_out_of_an_epoch_is_told(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    mine, data = runs.read_config(run).settings, open_run_data(run, None)
    images = data.record.train
    begin.check_length(replace(mine, batch_size=images // 2), data)
    assert capsys.readouterr().err == ""
    begin.check_length(replace(mine, batch_size=images // 2 + 10), data)
    left_out = images - images // 2 - 10
    said = capsys.readouterr().err
    assert f"{left_out} of {images} training images are more than whole batches of {images // 2 + 10} and" in said
    assert f"--batch-size {images // 2} leaves out {images % 2}" in said
    with pytest.raises(InputError, match=f"more than the {images} images trained on"):
        begin.check_length(replace(mine, batch_size=images + 1), data)
    with pytest.raises(
        InputError, match="which is half of a run of 60 steps, and this one has 2; pass a rate, or more"
    ):
        begin.check_length(replace(mine, lr_auto=True, steps=2), data)


def test_a_command_for_a_run_of_ones_own_code_names_it(tmp_path: Path) -> None:
    own = Run(tmp_path)
    for arch, words in (("net.py:make", " --arch net.py:make"), ("timm:resnet10t", ""), ("resnet20", "")):
        records.write(own.config, a_run_record(settle({"arch": arch})))
        assert runs.own_code(own) == words
    own.config.unlink()
    assert runs.own_code(own) == ""
    with pytest.raises(InputError, match="is not finished; finish the run with 'wmlc train --resume --out "):
        runs.read_family(own)
