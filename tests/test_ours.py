"""What wmlc may overwrite, clear and share: what has its mark; and two at once, a full disk, and the network it leaves alone."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from made import made_run, made_settings
from made_files import write_run

from wmlc import records
from wmlc.cli import main
from wmlc.errors import InputError
from wmlc.export import publish
from wmlc.export.config import ExportConfig
from wmlc.export.extract import images_to_check
from wmlc.export.layouts import check_labels
from wmlc.export.precision import to_int8
from wmlc.export.to_onnx import export_onnx, wrong_logits
from wmlc.files import locked, new_directory, new_file, recover_directory, write_json
from wmlc.models.checkpoint import load_network, read_spec
from wmlc.run import Run, is_run, open_run_data

MODEL = "resnet20_digits_p07"
NOBODY = 2**22 + 1  # no process has a number as high


def invoke(*words: Any) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished and benched run, made by hand."""
    return write_run(tmp_path_factory.mktemp("made") / "run")


def ship(run: Run, to: str, out: Path, *more: Any) -> Result:
    return invoke("ship", "--run", run.root, "--peer", 1, "--to", to, "--out", out, *more)


def hold(path: Path, what: str) -> subprocess.Popen[bytes]:
    """Another process that holds the lock, once this returns, until it is killed."""
    program = (
        "import sys, time; from pathlib import Path; from wmlc.files import locked\n"
        "with locked(Path(sys.argv[1]), sys.argv[2]):\n print(flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", program, str(path), what], stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline()
    return other


def test_of_two_at_once_one_wins_and_a_kill_releases(tmp_path: Path, made: Run) -> None:
    run, out = made_run(tmp_path / "run", made_settings(), None), tmp_path / "models"
    for path, words, what in (
        (run.root, ["train", "--resume", "--out", run.root], "the run"),
        (run.root, ["train", "--out", run.root, "--force"], "the run"),
        (out, ["ship", "--run", made.root, "--peer", 1, "--to", "mlserver", "--out", out], "the repository"),
    ):
        other = hold(path, what)
        try:
            told = invoke(*words)
        finally:
            other.kill()
            other.wait()
            assert other.stdout is not None
            other.stdout.close()
        busy = f"Error: {what} {path} is being written by another wmlc; wait until it is done, or stop it\n"
        assert (told.exit_code, told.output) == (1, busy)
        again = tmp_path / "x" / ".." / path.name
        held = pytest.raises(InputError, match="is being written by another wmlc")
        with locked(path, what), held, locked(again, what):
            raise AssertionError("two held it")
    assert not list(tmp_path.glob(".*")), "nothing stays, not even what the killed one left"
    with locked(tmp_path / "a" / "b" / "c", "the run"):
        pass
    assert not (tmp_path / "a").exists()


def test_what_others_called_like_our_leftovers_stays(tmp_path: Path) -> None:
    theirs = [tmp_path / name for name in ("x.former", ".x.2025", ".x.2025.bak")]
    ours = [tmp_path / f".x.{NOBODY}.wmlc", tmp_path / f".x.y.{NOBODY}.wmlc", tmp_path / f".x.{os.getppid()}.wmlc"]
    for path in (*theirs, *ours):
        (path / "inside").mkdir(parents=True)
    for _ in range(2):
        with new_directory(tmp_path / "x") as aside:
            (aside / "file").write_text("new")
        recover_directory(tmp_path / "x")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"x", *(path.name for path in theirs), *(path.name for path in ours[1:])}


def test_force_replaces_a_run_of_ours_and_nothing_else(tmp_path: Path) -> None:
    foreign = tmp_path / "bert"
    foreign.mkdir()
    assert is_run(made_run(tmp_path / "run", made_settings(), None).root)
    for config in ({"architectures": ["BertModel"]}, {"schema_version": 1, "settings": {}}, []):
        (foreign / "config.json").write_text(json.dumps(config))
        told = invoke("train", "digits", "--out", foreign, "--force")
        assert told.output == f"Error: {foreign} is a directory that wmlc did not make; choose another --out\n"
        assert json.loads((foreign / "config.json").read_text()) == config


def test_entries_of_others_stay_in_a_servers_configuration(tmp_path: Path, made: Run) -> None:
    out = tmp_path / "models"
    out.mkdir()
    theirs = {"config": {"name": "theirs", "base_path": "/models/theirs", "nireq": 4}}
    gone = {"config": {"name": "gone", "base_path": "/models/gone"}}  # as we write it, of a model that is no more
    like_ours = {"config": {"name": "like-ours", "base_path": "/models/like-ours"}}
    (out / "like-ours" / "1").mkdir(parents=True)
    there = {"monitoring": {"metrics": {"enable": True}}, "model_config_list": [theirs, gone, like_ours]}
    (out / "config.json").write_text(json.dumps(there))
    assert ship(made, "ovms", out).exit_code == 0
    as_benched = {"INFERENCE_PRECISION_HINT": "f32"}
    mine = {"config": {"name": MODEL, "base_path": f"/models/{MODEL}", "plugin_config": as_benched}}
    assert json.loads((out / "config.json").read_text()) == {
        **there, "model_config_list": [theirs, like_ours, mine],
    }  # fmt: skip
    changed = {"config": {**mine["config"], "nireq": 2}}
    (out / "config.json").write_text(json.dumps({"model_config_list": [changed]}))
    assert ship(made, "ovms", out).exit_code == 0, "version 2"
    assert json.loads((out / "config.json").read_text()) == {"model_config_list": [changed]}
    elsewhere = {"config": {"name": MODEL, "base_path": "/elsewhere"}}
    for content, why in (
        ("{", r"is no model list of OpenVINO Model Server (Expecting"),
        ('{"architectures": []}', "is no model list of OpenVINO Model Server (it has no model_config_list of named"),
        ('{"model_config_list": [5]}', "is no model list of OpenVINO Model Server (it has no model_config_list of"),
        (json.dumps({"model_config_list": [elsewhere]}), f"has a model {MODEL} at /elsewhere already; move it away"),
    ):
        (out / "config.json").write_text(content)
        told = ship(made, "ovms", out)
        assert told.exit_code == 1 and why in told.output and told.output.count("\n") == 1
        assert (out / "config.json").read_text() == content and not (out / MODEL / "3").exists()


def test_a_model_and_a_service_of_others_are_not_overwritten(tmp_path: Path, made: Run) -> None:
    out = tmp_path / "models"
    (out / MODEL).mkdir(parents=True)
    (out / MODEL / "config.pbtxt").write_text("mine")
    told = ship(made, "mlserver", out)
    assert (
        told.exit_code == 1 and f"{MODEL} was not shipped by wmlc, which would overwrite it; ship into" in told.output
    )
    shutil.rmtree(out / MODEL)
    pytest.importorskip("tritonclient.grpc.model_config_pb2")
    assert ship(made, "kserve", out).exit_code == 0 and ship(made, "kserve", out).exit_code == 0
    service = out / "inference-service.yaml"
    service.write_text(service.read_text().split("\n", 1)[1])  # its first line says whose it is
    told = ship(made, "kserve", out)
    assert told.exit_code == 1 and "does not begin with '# Written by wmlc ship" in told.output


def test_what_a_killed_ship_left_goes_with_the_next(tmp_path: Path, made: Run) -> None:
    out, left = tmp_path / "models", tmp_path / ".models.ship-abc.wmlc"
    for path in (left, tmp_path / ".models.abc", tmp_path / ".other.ship-abc.wmlc"):
        (path / MODEL).mkdir(parents=True)
    assert ship(made, "mlserver", out).exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [".models.abc", ".other.ship-abc.wmlc", "models"]
    assert [path.name for path in publish.models_in(out)] == [MODEL]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("cat\nblack", "holds '\\n', which no line of labels.txt can"),
        ("cat\x1b[31m", "holds '\\x1b', which no line"),
        ("caf\udce9", "holds '\\udce9', which no line"),
        ("a\u2028b", "holds '\\u2028', which no line"),
        (" ", "is empty"),
    ],
)
def test_a_label_is_one_line(name: str, why: str) -> None:
    check_labels(["plain", "café", "a b"])
    with pytest.raises(InputError) as caught:
        check_labels(["plain", name])
    assert why in str(caught.value) and str(caught.value).isascii() and str(caught.value).isprintable()


def test_a_full_disk_is_told_by_the_files_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    said = f"cannot write {tmp_path / 'x.json'}: No space left on device; free some space, or choose another place"
    with pytest.raises(InputError) as caught:
        write_json(tmp_path / "x.json", {})
    assert str(caught.value) == said and not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="elsewhere"), new_file(tmp_path / "y"):  # another file's, by its own name
        (tmp_path / "elsewhere").read_text()


def test_a_quantizer_that_fails_is_one_line(tmp_path: Path, made: Run) -> None:
    (tmp_path / "cut.onnx").write_bytes(
        (made.onnx / "family-peer1.onnx").read_bytes()[:500]
    )  # as a full disk leaves it
    with pytest.raises(InputError, match=r"^cut\.onnx could not be quantized to int8 \(.*bytes are free in .*TMPDIR"):
        to_int8(tmp_path / "cut.onnx", tmp_path / "q.onnx", np.zeros((1, 1, 8, 8), np.float32), target="cpu",
                calibrator="minmax")  # fmt: skip


def test_logits_are_judged_by_their_own_size() -> None:
    expected = np.random.default_rng(0).standard_normal((7, 10)).astype(np.float32)
    for scale in (1e-6, 1.0, 1e6):
        assert wrong_logits((expected * (1 + 1e-5)) * scale, expected * scale) is None
        assert "allowed is 0.001 of that" in (wrong_logits((expected + 0.01) * scale, expected * scale) or "")
    assert "are nan from torch's" in (wrong_logits(np.full((1, 2), np.nan), np.ones((1, 2))) or "")
    close, other = np.array([[10.0, 10.001]]), np.array([[10.001, 10.0]])
    assert wrong_logits(other, close) == "ONNX Runtime gives another class than torch for 1 of 1 images"
    assert wrong_logits(np.array([[10.0, 10.0]]), np.array([[10.0, 10.00005]])) is None, "which have no order"


def test_weights_that_are_no_numbers_are_named(tmp_path: Path, made: Run) -> None:
    network = load_network(made.network(1))
    for name in ("stem.conv.weight", "head.fc.bias"):
        network.state_dict()[name].fill_(float("nan"))
    pixels = torch.zeros((7, 8, 8, 1), dtype=torch.uint8)
    with pytest.raises(
        InputError, match=r"2 of the network's \d+ tensors hold NaN or infinity \(stem\.conv\.weight, he"
    ):
        export_onnx(network, read_spec(made.network(1)), tmp_path / "p.onnx", pixels)
    assert not list(tmp_path.iterdir())


def test_few_images_are_enough_and_none_will_do(made: Run, capsys: pytest.CaptureFixture[str]) -> None:
    class Four:
        def train_count(self) -> int:
            return 4

        def train_pixels(self, count: int) -> torch.Tensor:
            assert count <= 4
            return torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)

    family = records.read(made.family, records.Family, "family", "")
    few = Run(made.root.with_name("few"))
    few.root.mkdir(exist_ok=True)
    records.write(few.family, records.Family(**{**vars(family), "data": records.DataRecord(**{
        **vars(family.data), "train": 4})}))  # fmt: skip
    four: Any = Four()
    assert images_to_check(few, four).flatten().tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert images_to_check(few, None).shape == (7, 32, 32, 3)
    assert "noise" in capsys.readouterr().err
    assert ExportConfig().data_root is None


def test_a_moved_data_set_must_be_the_same(tmp_path: Path) -> None:
    from image_folders import make_folder
    from made import made_family

    settings = made_settings(data="imagefolder", data_root=str(tmp_path / "gone"))
    run = made_run(tmp_path / "run", settings, made_family(settings=settings))
    with pytest.raises(InputError, match=r"gone is not a folder; --data-root must be"):
        open_run_data(run)
    assert open_run_data(run, str(make_folder(tmp_path / "moved", size=(32, 32)))).test_count() == 6
    with pytest.raises(
        InputError, match=r"other is not the data set of .*run: its input_shape is \(3, 8, 8\), the run's"
    ):
        open_run_data(run, str(make_folder(tmp_path / "other")))
    (tmp_path / "moved" / "train" / "cat").rename(tmp_path / "moved" / "train" / "cow")
    (tmp_path / "moved" / "test" / "cat").rename(tmp_path / "moved" / "test" / "cow")
    with pytest.raises(InputError, match=r"its class_names is \['cow', 'dog'\], the run's \['cat', 'dog'\]; name that"):
        open_run_data(run, str(tmp_path / "moved"))


def test_no_command_opens_a_connection(tmp_path: Path, made: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*where: Any) -> Any:
        raise AssertionError(f"a connection to {where[1:]}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    commands: list[list[Any]] = [
        ["list"],
        ["train", "--list"],
        ["extract", "--run", made.root, "--peer", 1, "--out", tmp_path / "peer"],
        ["choose", "--run", made.root, "--min-top1", 1],
        ["report", made.root, "--out", tmp_path / "r.html"],
        ["compare", made.root],
        ["ship", "--run", made.root, "--peer", 1, "--to", "mlserver", "--out", tmp_path / "models"],
    ]
    for words in commands:
        told = invoke(*words)
        assert told.exit_code == 0, told.output


def test_onnx_runtime_leaves_the_users_cache_alone(tmp_path: Path) -> None:
    program = "import os, wmlc, onnxruntime; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    here = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    here |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    run: Callable[..., Any] = subprocess.run
    told = run([sys.executable, "-c", program], env=here, capture_output=True, text=True, timeout=120)
    assert (told.stdout, list(tmp_path.iterdir())) == ("1\n", [])
    program = "import os, wmlc; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    told = run(
        [sys.executable, "-c", program], env=here | {"ORT_DISABLE_TELEMETRY": "0"}, capture_output=True, text=True
    )
    assert told.stdout == "0\n", "the user's choice"
