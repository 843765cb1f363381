"""The section of docs/results.md that the parts of evidence/gpu.py make, from the JSON that each leaves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

GOALS = {"cost": ("a family over separate networks", 0.5), "reweigh_share": ("ω's share of a step", 0.05)}  # at most


def section(out: Path, parts: Sequence[str]) -> str:
    """What the `parts` found, as Markdown."""
    machines = json.loads((out / "machines.json").read_text()) if (out / "machines.json").exists() else {}
    where = {part: f"{own['device']}, torch {own['torch']}, {own['date']}" for part, own in machines.items()}
    alike = len({*where.values()}) == 1
    lines = [f"On {next(iter(where.values()))}, `evidence/gpu.sh`.", ""] if alike else ["`evidence/gpu.sh`:", ""]
    lines += [] if alike else [f"- `{part}`: on {own}" for part, own in where.items()]
    read = {name: json.loads((out / f"{name}.json").read_text()) for name in parts if (out / f"{name}.json").exists()}
    for name in parts:
        own = read.get(name)
        if own is None or "missing part" in own:
            what = "broke off" if own and len(own) > 1 else "not measured"
            lines += [f"- `{name}`: {what} ({own['missing part'] if own else 'it did not run'})"]
    if "tests" in read and "said" in read["tests"]:
        lines += [f"- GPU tests: {read['tests']['said']}", *(f"  - {one}" for one in read["tests"].get("failed", []))]
    own = _good(read, "steps") | {name: cell for name, cell in _good(read, "compiled").items() if "cost" in cell}
    if own:
        heads = [
            "a training step", "largest alone, ms", "four separate, ms", "family of four, ms",
            "with ω, of the separate ones", "ω of a step",
        ]  # fmt: skip
        lines += ["", *_head(heads)]
        for what, cell in own.items():
            ms = cell["median_ms"]
            separate = sum(own_ms for name, own_ms in ms.items() if name.endswith("alone"))
            lines.append(
                f"| {what} | {ms['peer 4 alone']:.1f} | {separate:.1f} | {ms['family']:.1f} | {cell['cost']:.2f} "
                f"| {cell['reweigh_share']:.1%} |"
            )
        lines += [
            "",
            "- fp32: convolutions in TF32, as torch has it by default",
            *(_goal(own, name, *goal) for name, goal in GOALS.items()),
        ]
    if own := _good(read, "train"):
        epochs = next((cell["epochs"] for cell in own.values()), 0)
        lines += ["", f"CIFAR-10, at the MACs of `wml` for {epochs} epochs:", ""]
        lines += _head(["from one start", "peers, top-1", "start", "s"])
        for method, cell in own.items():
            tops = ", ".join(f"{top1:.2f}" for top1 in cell["top1"])
            lines.append(f"| `{method}` | {tops} | {cell['start']:.2f} | {cell['seconds']:.0f} |")
    compiled = {name: rows for name, rows in _good(read, "compiled").items() if name.startswith("torch")}
    if own := _good(read, "latency") | _good(read, "engines") | compiled:
        lines += ["", *_head(["engine", "batch", "peer", "p50, ms", "speed-up"])]
        for engine, rows in own.items():
            for row in rows if isinstance(rows, list) and engine != "missing" else []:
                lines.append(
                    f"| {engine} | {row['batch']} | {row['peer'] or 'whole'} | {_number(row['p50'], 3)} "
                    f"| {_number(row['speedup'], 2)} |"
                )
        lines += [f"- {engine}: {rows['failed']}" for engine, rows in own.items() if isinstance(rows, dict)]
        if missing := own.get("missing"):
            lines += [f"- not importable there: {', '.join(missing)}"]
    if own := {engine: plan for engine, plan in _good(read, "planned").items() if engine != "said"}:
        heads = ["widths by milliseconds", "asked, ms", "predicted", "measured [95 %]", "speed-up", "by MACs alone"]
        lines += ["", *_head(heads)]
        for engine, plan in own.items():
            for peer in plan.get("peers", []):
                lines.append(
                    f"| {engine} | {peer['budget_ms']:.3f} | {peer['predicted_ms']:.3f} | {peer['ms']:.3f} "
                    f"[{peer['low']:.3f}, {peer['high']:.3f}] | {plan['full_ms'] / peer['ms']:.2f} "
                    f"| {_number(peer['macs_cut_ms'], 3)} |"
                )
        lines += [f"- {engine}: {plan['failed']}" for engine, plan in own.items() if "failed" in plan]
    return "\n".join(lines) + "\n"


def _head(columns: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(columns)} |", f"| --- |{' --: |' * (len(columns) - 1)}"]


def _good(read: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in read.get(name, {}).items() if key != "missing part"}


def _goal(own: dict[str, Any], name: str, what: str, most: float) -> str:
    missed = [cell for cell, its in own.items() if its[name] > most]
    return f"- goal, {what} at most {most:g}: {'missed by ' + '; '.join(missed) if missed else 'met by all'}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
