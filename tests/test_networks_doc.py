"""docs/networks.json, by evidence/networks.py: how far other people's networks came, and the table made from it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT, RECORD = ROOT / "docs" / "networks.md", ROOT / "docs" / "networks.json"
FOUND: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
ROWS: list[dict[str, Any]] = FOUND["rows"]
GOAL, LEAST_GONE = 40, 0.4


def all_the_way() -> list[dict[str, Any]]:
    return [row for row in ROWS if row["verdict"] == "all the way"]


def test_enough_networks_of_both_libraries_were_tried() -> None:
    names = [row["network"] for row in ROWS]
    assert len(names) == len(set(names))
    assert sum(name.startswith("torchvision:") for name in names) >= 20
    assert sum(name.startswith("timm:") for name in names) >= 25
    for family in ("convnextv2", "mobilenetv4", "repvgg", "hrnet", "levit", "edgenext", "deit"):
        assert any(family in name for name in names), family


def test_forty_come_all_the_way() -> None:
    assert len(all_the_way()) >= GOAL


@pytest.mark.parametrize("row", all_the_way(), ids=lambda row: row["network"])
def test_all_the_way_is_all_the_way(row: dict[str, Any]) -> None:
    assert min(row["gone"]) >= LEAST_GONE - 0.005  # whole channels
    assert row["macs_counted"] == pytest.approx(row["macs_planned"], rel=0.02)
    assert [1 - macs / row["macs"] for macs in row["macs_counted"]] == pytest.approx(row["gone"], abs=1e-4)
    assert row["round_trip"] is True
    assert row["onnx"] is True
    assert row["forward_ad_why"] or row["forward_ad"] < 1e-4


def test_none_is_wrong_and_each_that_stopped_says_why() -> None:
    assert not [row["network"] for row in ROWS if row["verdict"] == "wrong"]
    stopped = [row for row in ROWS if row["verdict"] != "all the way"]
    assert all(row["reason"] for row in stopped)
    assert all(row["verdict"] in ("reduced", "refused", "failed") for row in stopped)
    assert all(row["left_why"] for row in ROWS if row["left_whole"])


def test_the_table_is_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "evidence"))
    module = importlib.import_module("network_rows")
    table = module.as_markdown(FOUND, [module.Row(**row) for row in ROWS])
    assert table in DOCUMENT.read_text(encoding="utf-8")
