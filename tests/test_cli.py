"""The command line: every mistake is one line and exit code 1, a missed gate 3, a wrong command line 2."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from made_files import write_run
from PIL import Image

import wmlc
from wmlc.__main__ import start
from wmlc.cli import main
from wmlc.errors import Stopped
from wmlc.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of two peers and the baseline that nobody trained; tests leave it as it is."""
    return write_run(tmp_path_factory.mktemp("made") / "run")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def assert_one_line(result: Result, code: int = 1) -> str:
    """The error's text; it is the last and only line of its kind, and no traceback came with it."""
    assert result.exit_code == code, result.output
    errors = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and result.output.splitlines()[-1] == errors[0], result.output
    assert "Traceback" not in result.output
    return errors[0].removeprefix("Error: ")


@pytest.mark.parametrize("command", [[], ["train"], ["extract"], ["bench"], ["ship"], ["list"]])
def test_help_teaches(command: list[str]) -> None:
    result = invoke(*command, "--help")
    assert result.exit_code == 0 and "Usage: " in result.output


def test_version() -> None:
    assert wmlc.__version__ in invoke("--version").output


def test_a_ctrl_c_while_the_command_line_is_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted:
        def __getattr__(self, name: str) -> Any:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "wmlc.cli", Interrupted())
    with pytest.raises(SystemExit) as ended:
        start()
    assert ended.value.code == Stopped.exit_code and capsys.readouterr().err == "Error: stopped\n"


RESUME_ALONE = "--resume takes all settings from the run; pass only --out with it, and --arch for code of yours"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "epochs 0 cuts a trained network and trains nothing; pass --start with it, or epochs from 1"),
        (["--epochs", "-1"], "epochs must be at least 0, got -1"),
        (["--epochs", "x"], "Invalid value for '--epochs': 'x' is not a valid integer."),
        (["--arch", "resnet19"], "unknown architecture 'resnet19'; choose one of resnet20, resnet32, resnet56, "
         "resnet18, resnet34, resnet50, resnet101, mobilenet_v2, or torchvision:NAME, timm:NAME, FILE.py:FACTORY "
         "('wmlc list --networks TEXT' finds some)"),
        (["--data", "mnist"], "there is no data set 'mnist'; choose one of digits, cifar10, cifar100, imagefolder, imagenet, hf, wds"),
        (["--ratios", "0.5,a"], "--ratios must be numbers with commas between them, like 0.7,0.5,0.3,0; got '0.5,a'"),
        (["--ratios", "70,50"], "ratios must be 1 to 8 numbers from 0 up to, not including, 1, got [70.0, 50.0]; did you mean 0.7,0.5?"),
        (["--arch", "net.py"], "net.py is a file; name the function or class in it that makes the network: net.py:FACTORY"),
        (["--ratios", "1.0,0"], "ratios must be 1 to 8 numbers from 0 up to, not including, 1, got [1.0, 0.0]"),
        (["--ratios", ",".join(["0.5"] * 9)], f"ratios must be 1 to 8 numbers from 0 up to, not including, 1, got {[0.5] * 9}"),
        (["--share", "stage9"], "unknown --share 'stage9' for this network; choose one of tree, none, stem, stage1, stage2, stage3, branches"),
        (["--method", "dm"], "method must be one of wml, wml-p, dml, one, cl, self-distillation, independent, kd, prune-finetune, got 'dm'"),
        (["--method", "kd"], "kd learns from a trained network; pass --start with it"),
        (["--saliency", "l1"], "saliency must be one of snip, synflow, grasp, got 'l1'"),
        (["--lr", "0"], "lr must be above 0, got 0"),
        (["--lr", "nan"], "lr must be a finite number, got nan"),
        (["--alpha", "2"], "alpha must be from 0 to 1, got 2"),
        (["--held-out", "0.9"], "held_out must be above 0 and at most 0.5, got 0.9"),
        (["--divisor", "0"], "divisor must be at least 1, got 0"),
        (["--trunk-ratio", "0.95"], "trunk_ratio must be from 0 to 0.9, got 0.95"),
        (["--data", "imagefolder"], "imagefolder needs --data-root DIR, a folder with train/ and val/ or test/"),
        (["no-such-recipe"], "no recipe 'no-such-recipe'; give a YAML file or a recipe's name ('wmlc train --list' shows them all)"),
        (["--baseline", "no-such-run"], "no run at no-such-run or runs/no-such-run; 'wmlc list' shows the runs, 'wmlc train' makes one"),
        (["--lr", "inf"], "lr must be a finite number, got inf"),
        (["--seed", str(2**32)], f"seed must be below {2**32}, got {2**32}"),
        (["--trunk-ratio", "0.3", "--share", "none"],
         "trunk_ratio cuts shared stages, and nothing is shared here; leave it out, or share"),
        (["--batch-size", "2000"], "a batch of 2000 is more than the 1294 images trained on; pass --batch-size 1294 or less"),
        (["--no-baseline", "--baseline", "x"], "--baseline and --no-baseline exclude each other; pass one of them"),
        (["--resume", "--dry-run"], RESUME_ALONE),
        (["--out", "."], ". exists already; choose another --out, pass --resume to go on with it, or --force to start it over"),
        (["--resume", "--epochs", "3"], RESUME_ALONE),
    ],
)  # fmt: skip
def test_a_wrong_training_option_is_one_line(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert assert_one_line(invoke("train", *options)) == message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words", [["train", "--out", ""], ["extract", "--peer", "1", "--out", ""], ["report", "--out", ""],
              ["choose", "--run", "", "--max-macs", "1e6"]],
)  # fmt: skip
def test_a_path_without_a_name_is_not_where_one_is(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = assert_one_line(invoke(*words))
    assert said == f"Invalid value for '{words[words.index('') - 1]}': it is empty; name a file or a directory"
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_command_line_is_usage() -> None:
    assert invoke("train", "--no-such-option").exit_code == 2
    assert invoke("extract", "--peer", "1").exit_code == 2


def test_data_folders_with_a_fault_are_one_line(tmp_path: Path) -> None:
    options = ["train", "--data", "imagefolder", "--data-root", tmp_path / "set", "--out", tmp_path / "run"]
    assert str(tmp_path / "set") in assert_one_line(invoke(*options))
    for part in ("train", "test"):
        folder = tmp_path / "set" / part / "only"
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "0.png")
    assert "class" in assert_one_line(invoke(*options))
    for part in ("train", "test"):
        folder = tmp_path / "set" / part / "second"
        folder.mkdir()
        (folder / "0.png").write_bytes(b"not an image")
    assert "0.png" in assert_one_line(invoke(*options))
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_not_overwritten(run: Run) -> None:
    before = run.family.read_bytes()
    message = assert_one_line(invoke("train", "--epochs", "1", "--out", run.root))
    assert message.endswith(
        "exists already; choose another --out, pass --resume to go on with it, or --force to start it over"
    )
    assert run.family.read_bytes() == before


def test_dry_run_prints_the_family_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("train", "--dry-run")
    assert result.exit_code == 0, result.output
    for word in ("70.0%", "50.0%", "30.0%", "16*", "the smallest peer under each --share", "out of reach"):
        assert word in result.output
    assert list(tmp_path.iterdir()) == []


def test_tables_have_json_beside_them(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    family = json.loads(invoke("train", "--dry-run", "--json").output)
    assert [peer["ratio"] for peer in family["peers"]] == [0.7, 0.5, 0.3, 0.0]
    shares = {choice["share"]: choice["macs"] for choice in family["smallest_peer_by_share"]}
    assert shares["tree"] == family["peers"][0]["macs"] and shares["none"] < shares["tree"] and shares["stage3"] is None
    shutil.copytree(run.root, "runs/mine")
    (listed,) = json.loads(invoke("list", "--json").output)
    assert listed["finished"] and len(listed["peers"]) == 2


def test_a_bench_record_is_not_overwritten(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("keep")
    message = assert_one_line(invoke("bench", "--run", run.root, "--out", tmp_path / "mine.json"))
    assert message.endswith("exists already; choose another --out, or pass --force to replace it")
    assert (tmp_path / "mine.json").read_text() == "keep"


def test_an_unwritable_place_is_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    message = assert_one_line(
        invoke("extract", "--run", run.root, "--peer", "1", "--out", tmp_path / "file" / "p.onnx")
    )
    assert message.startswith(f"cannot write {tmp_path / 'file' / 'p.onnx'}: ")


def test_runs_that_cannot_be_used_are_one_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    extract = ["extract", "--peer", "1", "--out", "p.onnx"]
    assert "there is no run under runs/" in assert_one_line(invoke(*extract))
    assert "no run at lost or runs/lost" in assert_one_line(invoke(*extract, "--run", "lost"))
    shutil.copytree(run.root, "runs/mine")
    Path("runs/mine/family.json").unlink()
    assert "runs/mine is not finished" in assert_one_line(invoke(*extract))
    assert "runs/mine is not finished" in assert_one_line(invoke("bench", "--engine", "ort"))
    assert "not finished: 2 epochs" in invoke("list").output
    Path("runs/mine/family.json").write_text("{")
    assert "family.json is not a readable family record" in assert_one_line(invoke(*extract))
    shutil.copy(run.family, "runs/mine/family.json")
    Path("runs/mine/peers/1/spec.json").write_text('{"arch": "resnet20"')
    assert "spec.json is not a readable network record" in assert_one_line(invoke(*extract))
    assert not Path("p.onnx").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["choose", "--min-top1", "95"], "95"),
        (["ship", "--peer", "1", "--min-top1", "95"], "peer1: top-1 is 90.00, --min-top1 asks for 95"),
    ],
)
def test_a_missed_gate_exits_with_three(command: list[str], message: str, run: Run, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "models"] if command[0] == "ship" else []
    assert message in assert_one_line(invoke(*command, "--run", run.root, *out), code=3)
    assert list(tmp_path.iterdir()) == []
