"""Records in files: what is written is read again, and what cannot be is refused in one line that lists all faults."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made import (
    TIME,
    made_bench,
    made_epoch,
    made_family,
    made_framing,
    made_latency,
    made_record,
    made_row,
    made_settings,
    made_speedup,
)

from wmlc import files, records
from wmlc.errors import InputError
from wmlc.records import (
    About,
    Epoch,
    Family,
    FileAbout,
    Manifest,
    NetworkSpec,
    PlanRecord,
    Preprocess,
    Progress,
    Provenance,
    Scenario,
    ShippedAccuracy,
    ShippedLatency,
    ShippedNetwork,
    Tensor,
    Trial,
    WarmUp,
)
from wmlc.run import Run, append_epoch, keep_epochs, read_epochs

SHA = "0" * 64
PROVENANCE = {"time": TIME, "commit": None, "versions": {"python": "3.12"}}


def spec() -> NetworkSpec:
    return NetworkSpec(
        arch="resnet20", class_names=["cat", "a \u00fcber-dog", "\U0001f426"], input_shape=(3, 8, 8), mean=[0.5, 0.4, 0.3],
        std=[0.25] * 3, widths={"stem.0": {"out_channels": 8, "weight": [8, 3, 3, 3]}}, framing=made_framing(8),
        about=About(peer=1, ratio=0.5, top1=91.5),
    )  # fmt: skip


def progress() -> Progress:
    return Progress(
        phase="family", peer_weights=[0.25, 0.75], epoch=3, step=120, seconds=1.5, best_epoch=2, best_top1=-1,
        best_peer_weights=[],
    )  # fmt: skip


def row(**changes: Any) -> records.Row:
    """A row of bench.json in which every part was measured."""
    server = Scenario(valid=True, rate_per_s=90.0, trials=[Trial(rate_per_s=90.0, p99_ms=2.0, n=64, held=True)])
    full = made_row(1, 1.5, (1.1, 1.3, 1.4), scenarios={"server": server},
                    warm_up=WarmUp(calls=9, seconds=0.5, settled=True, median_ms=1.5))  # fmt: skip
    return replace(full, **changes)


def plan() -> PlanRecord:
    network = FileAbout(
        architecture="resnet20", data="cifar10", method="wml", peer=2, ratio=0.5, achieved_ratio=0.51,
        ratio_of="params", top1=90.1, commit=None, class_names=["cat", "dog"], input_shape=(3, 32, 32),
        mean=[0.5] * 3, std=[0.25] * 3, framing=made_framing(32), with_preprocess=False, precision="fp32", params=1000,
        macs=10_000, opset=18,
    )  # fmt: skip
    return PlanRecord(
        **PROVENANCE, tensorrt="10.3", cuda=None, driver=None, gpu="a GPU", compute_capability="8.0",
        batch_range=(1, 8, 32), version_compatible=False, hardware_compatible=False, precision="fp16", target=None,
        onnx_sha256=SHA, plan_sha256=SHA, plan_bytes=9, build_seconds=3.5, network=network,
    )  # fmt: skip


def manifest() -> Manifest:
    latency = ShippedLatency(
        ms=made_latency(2.0), batch=1, engine="ort", provider=None, machine="a CPU", threads=1,
        speedup=made_speedup(1.1, 1.3, 1.4), throughput_per_s=500.0, time=TIME, of_sha256=SHA,
    )  # fmt: skip
    return Manifest(
        model="resnet20_p05", version=1, file="model.onnx", sha256=SHA, file_bytes=9, license="MIT", server="triton",
        input=Tensor(name="images", dtype="float32", shape=[-1, 3, 32, 32], layout="NCHW"),
        output=Tensor(name="logits", dtype="float32", shape=[-1, 2], meaning="scores"),
        preprocess=Preprocess(inside=False, formula="(pixels / 255 - mean) / std", scale=255, mean=[0.5] * 3,
                              std=[0.25] * 3, size=(32, 32), channels="RGB", framing=made_framing(32)),
        labels=["cat", "dog"], max_batch=8, architecture="resnet20", precision="fp32", target=None,
        network=ShippedNetwork(peer=1, ratio=0.5, achieved_ratio=0.51, ratio_of="params", method="wml",
                               data="cifar10", seed=0, params=1000, macs=10_000),
        accuracy=ShippedAccuracy(top1=90.0, top1_drop=-0.25, test_images=10_000, engine="ort"), latency=latency,
        run="runs/one", trained_at_commit=None, shipped=Provenance(**PROVENANCE),
    )  # fmt: skip


MADE: dict[str, Callable[[], Any]] = {
    "family": made_family,
    "run": lambda: made_record(made_settings(data_root="/data", clip=1.0)),
    "epoch": lambda: made_epoch(1, [85.0, 90.0]),
    "progress": progress,
    "spec": spec,
    "bench": lambda: made_bench([row(), made_row()]),
    "manifest": manifest,
    "plan": plan,
}


def refusal(text: str | bytes, path: Path, kind: type[Any] = Epoch) -> str:
    """The line that refuses a file of these contents, without its path before and the remedy after."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as caught:
        records.read(path, kind, "record", "make it again")
    said = str(caught.value)
    assert said.startswith(f"{path} is ") and said.endswith("; make it again") and "\n" not in said, said
    return said.removeprefix(f"{path} is ").removeprefix("not a readable record: ").removesuffix("; make it again")


def epoch(**changes: Any) -> str:
    """A line of metrics.jsonl with these values in place of its own."""
    return json.dumps(json.loads(records.text(made_epoch(1, [85.0, 90.0]))) | changes)


@pytest.mark.parametrize("name", MADE)
def test_what_is_written_is_read_again(name: str, tmp_path: Path) -> None:
    record = MADE[name]()
    records.write(tmp_path / "record.json", record)
    assert records.read(tmp_path / "record.json", type(record), "record", "") == record
    written = json.loads((tmp_path / "record.json").read_text())
    assert next(iter(written)) == "schema_version" and written["schema_version"] == 2
    assert written == json.loads(records.text(record))


@pytest.mark.parametrize("name", MADE)
def test_a_missing_and_an_unknown_field_of_any_record_are_one_line(name: str, tmp_path: Path) -> None:
    record = MADE[name]()
    fields = json.loads(records.text(record))
    lost = next(key for key, value in fields.items() if key not in ("schema_version", "settings", "about"))
    del fields[lost]
    said = refusal(json.dumps(fields | {"surplus": 1}), tmp_path / "record.json", type(record))
    assert sorted(said.split("; ")) == sorted([f"{lost} is missing", "surplus is unknown"])


@pytest.mark.parametrize("name", MADE)
def test_a_record_of_another_schema_is_refused_in_words(name: str, tmp_path: Path) -> None:
    record = MADE[name]()
    fields = json.loads(records.text(record))
    for version, shown in ((1, "1"), (3, "3"), ("2", '"2"'), (None, "null"), (True, "true"), ([], "[]")):
        said = refusal(json.dumps(fields | {"schema_version": version}), tmp_path / "record.json", type(record))
        assert said == f"no record of this wmlc: its schema_version is {shown}, this one reads 2"
    del fields["schema_version"]
    said = refusal(json.dumps(fields), tmp_path / "record.json", type(record))
    assert said == "no record of this wmlc: its schema_version is missing, this one reads 2"


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"epoch": 1.5}, "epoch must be a whole number, got 1.5"),
        ({"epoch": "1"}, 'epoch must be a whole number, got "1"'),
        ({"epoch": True}, "epoch must be a whole number, got true"),
        ({"epoch": None}, "epoch must be a whole number, got null"),
        ({"epoch": 0}, "epoch must be at least 1, got 0"),
        ({"epoch": 10**30}, f"epoch must be at most 2,147,483,648, got {10**30}"),
        ({"seconds": "x" * 99}, f'seconds must be a number, got "{"x" * 58}…'),
        ({"seconds": -0.5}, "seconds must be at least 0, got -0.5"),
        ({"lr": float("nan")}, "lr must be a finite number, got NaN"),
        ({"lr": float("-inf")}, "lr must be a finite number, got -Infinity"),
        ({"train_loss": {}}, "train_loss must be a number, got {}"),
        ({"top1": 90}, "top1 must be a list, got 90"),
        ({"top1": []}, "top1 must be a list of at least 1, got []"),
        ({"top1": [90, 101]}, "top1[1] must be at most 100, got 101"),
        ({"peer_weights": [0.5, [0.5]]}, "peer_weights[1] must be a number, got [0.5]"),
        ({"l\x7f\u009b": 1}, "l\\x7f\\x9b is unknown"),
        ({"x" * 99: 1}, f"{'x' * 59}… is unknown"),
        ({"epoch": [], "lr": "0.1", "extra": 0},
         'epoch must be a whole number, got []; lr must be a number, got "0.1"; extra is unknown'),
        ({str(index): 0 for index in range(14)}, "; ".join(f"{index} is unknown" for index in range(12)) + "; and 2 more"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_said_in_words(changes: dict[str, Any], fault: str, tmp_path: Path) -> None:
    if "\x7f" in next(iter(changes)):
        fault = "a text in it has a control character"
    assert refusal(epoch(**changes), tmp_path / "metrics.jsonl") == fault


@pytest.mark.parametrize(
    ("kind", "changes", "fault"),
    [
        (NetworkSpec, {"input_shape": [3, 32]}, "input_shape[2] is missing"),
        (NetworkSpec, {"input_shape": [3, 8, 8, 8]}, "input_shape must be a list of at most 3, got [3, 8, 8, 8]"),
        (NetworkSpec, {"widths": [16]}, "widths must be an object, got [16]"),
        (NetworkSpec, {"widths": {"stem.0": [16, 3, 1]}}, "widths.stem.0 must be an object, got [16, 3, 1]"),
        (NetworkSpec, {"widths": {"a": {"k": 0}}}, "widths.a.k must be at least 1, got 0"),
        (NetworkSpec, {"widths": {"a": {"k": "8"}}}, 'widths.a.k must be a whole number, got "8"'),
        (NetworkSpec, {"widths": {"a": {"k": [8, 0]}}}, "widths.a.k[1] must be at least 1, got 0"),
        (NetworkSpec, {"class_names": [1]}, "class_names[0] must be text, got 1"),
        (NetworkSpec, {"std": [0, 1, 1]}, "std[0] must be above 0, got 0"),
        (NetworkSpec, {"about": 3}, "about must be an object, got 3"),
        (Progress, {"phase": "x"}, 'phase must be "family" or "baseline", got "x"'),
        (Family, {"finished": False}, "finished must be true, got false"),
        (Family, {"arch": "\x1b[31mred"}, "a text in it has a control character"),
        (Family, {"baseline": []}, "baseline must be an object, got []"),
        (Family, {"full": {"params": 1}}, "full.macs is missing"),
    ],
)  # fmt: skip
def test_a_fault_in_a_part_is_named_by_its_place(
    kind: type[Any], changes: dict[str, Any], fault: str, tmp_path: Path
) -> None:
    whole = {NetworkSpec: spec, Progress: progress, Family: made_family}[kind]()
    assert refusal(json.dumps(json.loads(records.text(whole)) | changes), tmp_path / "record.json", kind) == fault


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "it is empty"),
        (" \n ", "it is empty"),
        ("{", "damaged or truncated JSON (EOF while parsing an object at line 1 column 1)"),
        ("name: value", "damaged or truncated JSON (expected ident at line 1 column 2)"),
        ("[]", "it must be an object, got []"),
        ("1", "it must be an object, got 1"),
        ("null", "it must be an object, got null"),
        (epoch().replace('"lr": 0.1', '"lr": 1e999'), "lr must be a finite number, got Infinity"),
        (epoch().replace('"epoch": 1', '"epoch": ' + "9" * 6000), "damaged or truncated JSON (number out of range"),
        ('{"a":' * 100_000, "damaged or truncated JSON (recursion limit exceeded"),
        ("[" * 100_000, "damaged or truncated JSON (recursion limit exceeded"),
        (epoch(arch="\ud800"), "damaged or truncated JSON (unexpected end of hex escape"),
        (b"\xff\xfe{\x00}\x00", "not a readable record (it is no UTF-8: invalid start byte)"),
        ("[" + "1," * records.serial.MOST_VALUES + "1]", "it has 500,001 values, at most 500,000 are allowed"),
    ],
)  # fmt: skip
def test_what_is_no_json_object_is_one_line(text: str | bytes, fault: str, tmp_path: Path) -> None:
    assert refusal(text, tmp_path / "record.json").startswith(fault)


def test_text_that_only_looks_like_a_control_character_is_text() -> None:
    windows = replace(spec(), class_names=["C:\\u001b", "a\ttab", "two\nlines"])
    assert records.parse(records.text(windows), NetworkSpec, "it", "record", "") == windows


def test_what_is_no_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(path: Path) -> str:
        with pytest.raises(InputError) as caught:
            records.read(path, Epoch, "record", "make it again")
        return str(caught.value).replace(str(path), "IT")

    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "large").write_text(epoch())
    assert said(tmp_path / "none") == "IT is missing, so there is no record here; make it again"
    assert said(tmp_path) == "IT is no regular file, so there is no record in it; make it again"
    assert said(tmp_path / "pipe") == "IT is no regular file, so there is no record in it; make it again"
    assert said(tmp_path / "loop").startswith(("cannot read IT: ", "IT is missing"))
    monkeypatch.setattr(files, "MOST_BYTES", 99)
    assert said(tmp_path / "large").endswith("bytes, a record has at most 99; make it again")


@pytest.mark.parametrize(
    ("made", "fault"),
    [
        (lambda: made_family(ensemble_top1=101.0), "ensemble_top1 must be at most 100, got 101.0"),
        (lambda: made_bench([row(top1_drop=-200.0)]), "rows[0].top1_drop must be at least -100, got -200.0"),
        (lambda: made_bench([row(top1=float("nan"))]), "rows[0].top1 must be a finite number, got NaN"),
        (lambda: made_bench([row(latency_ms=made_latency(-2.0))]), "rows[0].latency_ms.mean must be at least 0, got -2.0"),
        (lambda: replace(spec(), arch=20), "arch must be text, got 20"),
        (lambda: replace(progress(), epoch=2**70), f"epoch must be at most {2**63:,}, got {2**70}"),
    ],
)  # fmt: skip
def test_what_may_not_be_read_is_not_written(made: Callable[[], Any], fault: str, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text("as it was")
    record = made()
    with pytest.raises(InputError) as caught:
        records.write(tmp_path / "record.json", record)
    said = str(caught.value)
    assert said.startswith(f"what was to be written is not a readable {type(record).__name__}: ") and fault in said
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]
    assert (tmp_path / "record.json").read_text() == "as it was"


def test_epochs_are_read_up_to_a_line_that_a_kill_cut_short(tmp_path: Path) -> None:
    run, done = Run(tmp_path), [made_epoch(number, [50.0 + number]) for number in (1, 2, 3)]
    assert read_epochs(run, "family") == []
    for each in done:
        append_epoch(run, "family", each)
    assert read_epochs(run, "family") == done
    lines = run.metrics("family").read_text()
    run.metrics("family").write_text(lines[:-9])
    assert read_epochs(run, "family") == done[:2]
    keep_epochs(run, "family", 1)
    assert read_epochs(run, "family") == done[:1] and read_epochs(run, "baseline") == []
    run.metrics("family").write_text(lines.replace('"epoch": 2', '"epoch": "2"'))
    with pytest.raises(InputError, match=r"metrics.jsonl, line 2 is not a readable record of an epoch: epoch must be"):
        read_epochs(run, "family")
