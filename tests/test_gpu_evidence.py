"""evidence/gpu.py at toy size on a CPU: every part runs, leaves its JSON, and the section is made. Takes 20 s."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from measured import engines_in_process

SCRIPT = Path(__file__).resolve().parents[1] / "evidence" / "gpu.py"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    assert spec is not None and spec.loader is not None
    monkeypatch.setattr(sys, "path", list(sys.path))  # which the script adds to
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu", module)
    spec.loader.exec_module(module)
    return module


def test_all_parts_run_at_toy_size(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines_in_process(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["gpu.py", str(tmp_path / "out"), "--dry"])
    assert gpu.main() == 0
    found = {name: json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in gpu.PARTS}
    assert not [own for own in found.values() if "missing part" in own], found
    (step,) = found["steps"].values()
    assert set(step["median_ms"]) == {"family", "reweigh", *(f"peer {peer} alone" for peer in range(1, 5))}
    assert set(found["train"]) == {"wml", "kd", "prune-finetune"}
    for part, engine in (("latency", "torch eager, fp32"), ("engines", "ort, fp32")):
        assert [row["peer"] for row in found[part][engine]] == [0, 1]
    text = (tmp_path / "out" / "section.md").read_text()
    assert "| `wml` |" in text and "| torch eager, fp32 | 1 | whole |" in text and "not measured" not in text
    assert re.search(r"- goal, a family over separate networks at most 0\.5: (missed by|met by all)", text)


def test_what_is_missing_is_said(gpu: ModuleType, tmp_path: Path) -> None:
    there = {"device": "a GPU", "torch": "2.9", "date": "2026-11-26"}
    machines = {"tests": there, "planned": there | {"date": "2026-11-28"}}
    (tmp_path / "machines.json").write_text(json.dumps(machines))
    (tmp_path / "tests.json").write_text('{"said": "3 passed", "rc": 0}')
    (tmp_path / "train.json").write_text('{"missing part": "DATA=DIR"}')
    (tmp_path / "engines.json").write_text('{"missing": ["trt"], "ort, fp32": {"failed": "no CUDA"}}')
    (tmp_path / "compiled.json").write_text('{"torch compiled, fp16": {"failed": "no Triton"}}')
    peer = {"budget_ms": 1.0, "predicted_ms": 0.95, "ms": 0.98, "low": 0.9, "high": 1.1, "macs_cut_ms": None}
    plans = {
        "ort, fp16, batch 32": {"full_ms": 1.96, "peers": [peer]},
        "torch, fp32, batch 32": {"failed": "too narrow"},
    }
    (tmp_path / "planned.json").write_text(json.dumps(plans))
    text = gpu.gpu_section.section(tmp_path, list(gpu.PARTS))
    for words in ("- `planned`: on a GPU, torch 2.9, 2026-11-28", "GPU tests: 3 passed", "`train`: not measured (DATA=DIR)", "`steps`: not measured (it did not run)",
                  "- ort, fp32: no CUDA", "- torch, fp32, batch 32: too narrow",
                  "| ort, fp16, batch 32 | 1.000 | 0.950 | 0.980 [0.900, 1.100] | 2.00 | - |", "- torch compiled, fp16: no Triton", "not importable there: trt"):  # fmt: skip
        assert words in text


def test_what_a_part_found_before_it_broke_off_is_kept(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def latency(scale: Any, out: Path) -> Iterator[tuple[str, Any]]:
        yield "torch eager, fp32", [{"peer": 1, "batch": 1, "p50": 2.0, "speedup": 1.5}]
        so_far = json.loads((out / "latency.json").read_text())  # before the next is measured
        assert "torch eager, fp32" in so_far and so_far["missing part"] == "it was ended before it was done"
        raise RuntimeError("out of memory")

    monkeypatch.setitem(gpu.PARTS, "latency", latency)
    monkeypatch.setattr(sys, "argv", ["gpu.py", str(tmp_path), "latency", "section", "--dry"])
    assert gpu.main() == 0
    text = (tmp_path / "section.md").read_text()
    assert "- `latency`: broke off (RuntimeError: out of memory)" in text
    assert "| torch eager, fp32 | 1 | 1 | 2.000 | 1.50 |" in text


def test_the_command_runs_the_parts_one_after_another_each_within_its_time(tmp_path: Path) -> None:
    """With a Python that only notes what it is asked; `latency` never ends."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ntest "$3" != latency || exec sleep 60\n')
    python.chmod(0o755)
    script = tmp_path / "evidence" / "gpu.sh"
    script.parent.mkdir()
    script.write_text(SCRIPT.with_suffix(".sh").read_text())
    limits = "tests:9 latency:0.2 engines:9"
    done = subprocess.run(
        ["bash", str(script)], env=os.environ | {"OUT": str(tmp_path / "out"), "PYTHON": str(python), "DRY": "1", "LIMITS": limits},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    asked = [line.split() for line in (tmp_path / "asked").read_text().splitlines()]
    assert [own[2] for own in asked] == ["tests", "latency", "engines", "section"]
    assert {own[3] for own in asked} == {"--dry"}
    assert "evidence/gpu.sh: latency ended early" in done.stdout
