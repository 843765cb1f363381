"""A plan belongs to a machine: its record says to which, what differs here is told whole, timings are kept a machine each."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trt_parts import HERE, L4, record_of

from wmlc import records, trt_machine
from wmlc.errors import InputError
from wmlc.export.timings import keep_timings, read_timings, timings_file
from wmlc.plan_record import check_record, is_current, range_for, read_record, record_path
from wmlc.trt_machine import load_tensorrt, require_tensorrt, this_machine


def test_timings_that_cannot_be_kept_cost_a_word_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    keep_timings(tmp_path / "file" / "gpu.timings", b"timings")
    assert capsys.readouterr().err.startswith("timings are not kept for the next build: cannot write")
    assert read_timings(tmp_path / "none.timings") == b""


def test_timings_are_of_one_version_and_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert timings_file(HERE) == tmp_path / "wmlc" / "tensorrt-10.16.1.11-NVIDIA-A10-8.6.timings"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert (
        timings_file(replace(HERE, gpu="GeForce/RTX 5090")).name == "tensorrt-10.16.1.11-GeForce-RTX-5090-8.6.timings"
    )
    assert timings_file(HERE).parent == Path.home() / ".cache" / "wmlc"


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A file called plan with the record of a plan that was built here."""
    plan = tmp_path / "peer.plan"
    plan.write_bytes(b"plan" * 1000)
    records.write(record_path(plan), record_of(plan))
    return plan


def test_a_record_lies_beside_its_plan(recorded: Path) -> None:
    assert record_path(recorded).name == "peer.plan.json"
    assert read_record(recorded).network.peer == 1


def test_a_plan_that_is_not_whole_is_refused(recorded: Path) -> None:
    content = recorded.read_bytes()
    recorded.write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"peer\.plan is truncated: 3,999 of 4,000 bytes; build it again with 'wmlc"):
        read_record(recorded)
    recorded.write_bytes(b"q" + content[1:])
    with pytest.raises(InputError, match=r"is not the plan that peer\.plan\.json describes \(their hashes differ\)"):
        read_record(recorded)
    record_path(recorded).write_text('{"tensorrt": "10"}')
    with pytest.raises(InputError, match=r"is no record of a plan of this wmlc: its schema_version is '?missing"):
        read_record(recorded)
    record_path(recorded).write_text('{"tensorrt": "10", "schema_version": 2}')
    with pytest.raises(InputError, match=r"is not a readable record of a plan: .*batch_range is missing.*; build it"):
        read_record(recorded)
    record_path(recorded).unlink()
    with pytest.raises(InputError, match=r"peer\.plan\.json is missing, so there is no record of a plan here; build"):
        read_record(recorded)
    recorded.unlink()
    with pytest.raises(InputError, match=r"peer\.plan is not a file; build it with 'wmlc extract"):
        read_record(recorded)


COMPATIBLE, PORTABLE = {"version_compatible": True}, {"hardware_compatible": True}


@pytest.mark.parametrize(
    ("built", "here", "said"),
    [
        ({}, {}, None),
        ({}, {"cuda": "12.9"}, None),
        ({}, {"driver": "590.1"}, None),
        ({}, {"driver": None}, None),
        ({}, {"driver": "570.1"}, "driver 580.95.05; here is driver 570.1"),
        ({}, {"tensorrt": "10.16.1.12"}, "TensorRT 10.16.1.11; here is TensorRT 10.16.1.12"),
        ({}, {"gpu": "NVIDIA RTX A4000"}, "NVIDIA A10 (8.6); here is NVIDIA RTX A4000 (8.6)"),
        (COMPATIBLE, {"tensorrt": "10.16.1.12"}, None),
        (COMPATIBLE, {"tensorrt": "11.4.0.106"}, None),
        (COMPATIBLE, {"tensorrt": "10.9.0.34"}, "TensorRT 10.16.1.11; here is TensorRT 10.9.0.34"),
        ({**COMPATIBLE, "tensorrt": "8.6.1"}, {}, None),
        ({**COMPATIBLE, "tensorrt": "8.6.1"}, {"tensorrt": "11.0.0"}, "TensorRT 8.6.1; here is TensorRT 11.0.0"),
        ({**COMPATIBLE, "tensorrt": "11.0.0"}, {}, "TensorRT 11.0.0; here is TensorRT 10.16.1.11"),
        (COMPATIBLE, L4, "NVIDIA A10 (8.6); here is NVIDIA L4 (8.9)"),
        (PORTABLE, L4, None),
        (PORTABLE, {"gpu": "NVIDIA B200", "compute_capability": "10.0"}, None),
        (PORTABLE, {"gpu": "T4", "compute_capability": "7.5"}, "NVIDIA A10 (8.6); here is T4 (7.5)"),
        (PORTABLE, {**L4, "tensorrt": "11.4.0.106"}, "TensorRT 10.16.1.11, NVIDIA A10 (8.6); here are TensorRT 11.4.0.106, NVIDIA L4 (8.9)"),
        (
            {},
            {"tensorrt": "11.4.0.106", **L4, "cuda": "13.0", "driver": "570.1"},
            "TensorRT 10.16.1.11, NVIDIA A10 (8.6), CUDA 13.2, driver 580.95.05; here are TensorRT 11.4.0.106, NVIDIA L4 (8.9), CUDA 13.0, driver 570.1",
        ),
    ],
)  # fmt: skip
def test_a_plan_says_all_that_differs_here(
    recorded: Path, built: dict[str, Any], here: dict[str, Any], said: str | None
) -> None:
    record, machine = record_of(recorded, **built), replace(HERE, **here)
    if said is None:
        check_record(record, machine, "p.plan")
        return
    with pytest.raises(InputError) as caught:
        check_record(record, machine, "p.plan")
    assert str(caught.value) == f"p.plan was built with {said}; build it again with 'wmlc extract … --force'"


def test_a_plan_is_current_if_nothing_has_changed(recorded: Path) -> None:
    assert is_current(recorded, "0" * 64, [8, 1, 32], HERE)
    assert not is_current(recorded, "0" * 64, [1, 8, 32], HERE), "it is tuned for 8"
    assert not is_current(recorded, "1" * 64, [8, 32], HERE)
    assert not is_current(recorded, "0" * 64, [8, 33], HERE)
    assert not is_current(recorded, "0" * 64, [8, 32], replace(HERE, **L4))
    recorded.write_bytes(b"")
    assert not is_current(recorded, "0" * 64, [8, 32], HERE)


def test_a_range_holds_all_batches() -> None:
    assert range_for([1]) == (1, 1, 32)
    assert range_for([8, 1, 64]) == (1, 8, 64)


@pytest.mark.parametrize(
    ("said", "found"), [("580.95.05", "580.95.05"), ("590.1\\n590.1", "590.1"), ("No devices were found", None)]
)
def test_this_machine_is_read_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, found: str | None
) -> None:
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{said}'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(trt_machine, "_PROC_VERSION", tmp_path / "none")
    monkeypatch.setattr(trt_machine, "load_tensorrt", lambda purpose: SimpleNamespace(__version__="10.16.1.11"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA A10")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 6))
    assert this_machine() == replace(HERE, cuda=torch.version.cuda, driver=found)


def test_a_driver_is_read_off_the_kernel_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    version = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\nGCC version:  12.3.0"
    (tmp_path / "version").write_text(version)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(trt_machine, "_PROC_VERSION", tmp_path / "version")
    assert trt_machine._driver() == "580.95.05"
    monkeypatch.setattr(trt_machine, "_PROC_VERSION", tmp_path / "none")
    assert trt_machine._driver() is None


def test_without_the_package_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as caught:
        require_tensorrt("--engine trt", "--engine ort")
    assert str(caught.value) == (
        "--engine trt needs the package tensorrt, which is not installed (pip install 'wmlc[trt]'); install it, or use --engine ort"
    )


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise ImportError('libnvinfer.so.10: cannot open')", r"installed but does not load \(libnvinfer\.so\.10: cannot"),
        ("__version__ = '8.6.1'", r"needs TensorRT 10\.3 or newer, here is 8\.6\.1; upgrade tensorrt"),
    ],
)  # fmt: skip
def test_a_package_that_will_not_do_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, said: str
) -> None:
    (tmp_path / "tensorrt.py").write_text(source)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    try:
        with pytest.raises(InputError, match=said):
            load_tensorrt("--engine trt")
    finally:
        sys.modules.pop("tensorrt", None)
