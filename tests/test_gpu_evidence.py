"""evidence/gpu.py at toy size on a CPU: every part runs, leaves its JSON, and the section is made. Takes 20 s."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from measured import InProcess

from wmlc.bench import cells

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
    monkeypatch.setattr(cells, "Worker", InProcess)
    monkeypatch.setattr(sys, "argv", ["gpu.py", str(tmp_path / "out"), "--dry"])
    assert gpu.main() == 0
    found = {name: json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in gpu.PARTS}
    assert not [own for own in found.values() if "missing part" in own], found
    (step,) = found["steps"].values()
    assert set(step["median_ms"]) == {"family", "reweigh", *(f"peer {peer} alone" for peer in range(1, 5))}
    assert set(found["train"]) == {"wml"}
    assert [row["peer"] for row in found["latency"]["torch, fp32"]] == [0, 1]
    text = (tmp_path / "out" / "section.md").read_text()
    assert "| `wml` |" in text and "| torch, fp32 | 1 | whole |" in text and "not measured" not in text


def test_what_is_missing_is_said(gpu: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "machine.json").write_text('{"device": "a GPU", "torch": "2.9", "date": "2026-11-26"}')
    (tmp_path / "tests.json").write_text('{"said": "3 passed", "rc": 0}')
    (tmp_path / "train.json").write_text('{"missing part": "DATA=DIR"}')
    (tmp_path / "latency.json").write_text('{"missing": ["trt"], "ort, fp32": {"failed": "no CUDA"}}')
    text = gpu.section(tmp_path)
    for words in ("GPU tests: 3 passed", "`train`: not measured (DATA=DIR)", "`steps`: not measured (it did not run)",
                  "- ort, fp32: no CUDA", "not importable there: trt"):  # fmt: skip
        assert words in text
