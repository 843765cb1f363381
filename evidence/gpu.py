#!/usr/bin/env python3
"""What only a GPU can show, in parts that each leave a JSON, and the section of docs/results.md that they make.

    evidence/gpu.sh                             # all of it in at most 9 minutes, each part in a process of its own
    evidence/gpu.py OUT steps latency section   # some parts
    evidence/gpu.py OUT --dry                   # all parts at toy size on a CPU, to see that they run

Nothing is fetched. A part that something is missing for writes what, and the others go on. `train` needs CIFAR-10 as an
image folder (DATA=DIR, with cifar10-png/ or the like in it).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from wmlc.cli import main as wmlc

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "benchmarks"))
import training_cost

PRECISIONS = {
    "fp32": ["--precision", "fp32"], "bf16": ["--precision", "bf16"],
    "bf16, compiled": ["--precision", "bf16", "--compile"],
}  # fmt: skip
METHODS = ("wml", "kd", "prune-finetune")
ENGINES = {"torch": "torch", "torch-compile": "torch", "ort": "onnxruntime", "trt": "tensorrt"}  # and what they need


@dataclass(frozen=True)
class Scale:
    """How much of everything, so that it fits."""

    device: str
    steps: tuple[tuple[str, int, int, int], ...]  # network, side, batch, rounds
    start: tuple[str, int, int]  # network, epochs of the start, epochs of each method
    latency: tuple[str, int, tuple[int, ...], float]  # network, side, batches, seconds a network


REAL = Scale(
    "cuda", (("resnet18", 32, 512, 20), ("resnet50", 224, 128, 8)), ("resnet18", 12, 6), ("resnet50", 224, (1, 32), 1.0)
)
DRY = Scale("cpu", (("resnet20", 8, 4, 1),), ("resnet20", 1, 1), ("resnet20", 16, (1,), 0.01))


class Missing(Exception):
    """What a part cannot do without."""


def tests(scale: Scale, out: Path) -> dict[str, Any]:
    """The tests that need a GPU."""
    if importlib.util.find_spec("pytest") is None:
        raise Missing("pytest")
    if scale is DRY:
        return {"said": "not run at toy size"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = done.stdout.strip().splitlines() or [done.stderr[-300:]]
    return {"said": lines[-1], "rc": done.returncode}


def steps(scale: Scale, out: Path) -> dict[str, Any]:
    """A training step: plain networks, a family of four with ω, separate networks; by precision."""
    found: dict[str, Any] = {}
    precisions = PRECISIONS if scale is REAL else {"fp32": PRECISIONS["fp32"]}
    for arch, side, batch, rounds in scale.steps:
        for name, options in precisions.items():
            file = out / "step.json"
            words = [
                "--arch", arch, "--image-size", str(side), "--batch", str(batch), "--rounds", str(rounds),
                "--peers", "4", "--device", scale.device, "--json", str(file), *options,
            ]  # fmt: skip
            called(training_cost.main, words)
            found[f"{arch}, {side} pixels, batch {batch}, {name}"] = json.loads(file.read_text())["4 peers"]
            file.unlink()
    return found


def train(scale: Scale, out: Path) -> dict[str, Any]:
    """A family on CIFAR-10 by three methods, from one and the same start, as long as wml."""
    arch, start_epochs, epochs = scale.start
    data = ["--data", "digits", "--train-images", "80", "--batch-size", "32"]
    if scale is REAL:
        root = Path(os.environ.get("DATA", "")) / "cifar10-png"
        if not root.is_dir():
            raise Missing(f"DATA=DIR with cifar10-png/ in it; {root} is not there")
        data = ["--data", "imagefolder", "--data-root", str(root), "--batch-size", "128"]
    base = ["train", "--arch", arch, *data, "--device", scale.device, "--force"]
    run_wmlc([
        *base, "--method", "independent", "--ratios", "0", "--no-baseline", "--epochs", str(start_epochs),
        "--out", str(out / "start"),
    ])  # fmt: skip
    found: dict[str, Any] = {}
    for method in METHODS if scale is REAL else METHODS[:1]:
        run = out / method
        longer = ["--as-long-as", "wml"] if method == "kd" else []
        run_wmlc([
            *base, "--method", method, *longer, "--start", str(out / "start" / "peers" / "1"), "--ratios", "0.7,0.5",
            "--ratio-of", "macs", "--epochs", str(epochs), "--lr", "0.05", "--out", str(run),
        ])  # fmt: skip
        family = json.loads((run / "family.json").read_text())
        found[method] = {
            "top1": [peer["top1"] for peer in family["peers"]], "start": family["baseline"]["top1"],
            "macs": [peer["macs"] for peer in family["peers"]], "seconds": family["seconds"],
            "training_macs": family["training_macs"],
        }  # fmt: skip
    return found


def latency(scale: Scale, out: Path) -> dict[str, Any]:
    """A network and its peers in each engine that is here; of random weights, so that accuracy says nothing."""
    arch, side, batches, seconds = scale.latency
    images, run = out / "noise", out / "latency"
    draw = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("a", "b"):
            (images / part / name).mkdir(parents=True, exist_ok=True)
            for number in range(8):
                pixels = draw.integers(0, 256, (side, side, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(images / part / name / f"{number}.png")
    run_wmlc([
        "train", "--arch", arch, "--data", "imagefolder", "--data-root", str(images), "--image-size", str(side),
        "--batch-size", "4", "--steps", "1", "--workers", "0", "--device", scale.device, "--out", str(run), "--force",
        "--ratio-of", "macs", "--ratios", "0.7,0.5,0.3" if scale is REAL else "0.5", "--share", "none",
    ])  # fmt: skip
    there = {name: importlib.util.find_spec(package) is not None for name, package in ENGINES.items()}
    if importlib.util.find_spec("onnxscript") is None:  # nothing can be exported
        there = {name: own and ENGINES[name] == "torch" for name, own in there.items()}
    found: dict[str, Any] = {"missing": [name for name, own in there.items() if not own]}
    for engine in [name for name, own in there.items() if own] if scale is REAL else ["torch"]:
        for precision in ("fp32", "fp16") if scale is REAL and engine in ("ort", "trt") else ("fp32",):
            file = out / "bench.json"
            try:
                run_wmlc([
                    "bench", "--run", str(run), "--engine", engine, "--precision", precision, "--device", scale.device,
                    "--batch", ",".join(map(str, batches)), "--seconds", str(seconds), "--launches",
                    "4" if scale is REAL else "2", "--no-accuracy", "--out", str(file), "--force",
                ])  # fmt: skip
            except Exception as error:  # one engine fails, the next is asked
                found[f"{engine}, {precision}"] = {"failed": str(error)[:300]}
                continue
            rows = json.loads(file.read_text())["rows"]
            found[f"{engine}, {precision}"] = [
                {key: row.get(key) for key in ("peer", "batch", "latency_ms", "speedup", "macs", "notes")}
                for row in rows
            ]
            file.unlink()
    return found


PARTS: dict[str, Callable[[Scale, Path], dict[str, Any]]] = {
    "tests": tests, "steps": steps, "train": train, "latency": latency
}  # fmt: skip


def called(command: Callable[[], Any], words: Sequence[str]) -> None:
    """A script's `main` with these words."""
    before, sys.argv = sys.argv, [command.__module__, *words]
    try:
        command()
    finally:
        sys.argv = before


def run_wmlc(words: Sequence[str]) -> None:
    print("$ wmlc", *words, flush=True)
    wmlc.main(list(words), prog_name="wmlc", standalone_mode=False)


def section(out: Path) -> str:
    """What the parts found, as Markdown."""
    machine = json.loads((out / "machine.json").read_text())
    lines = [f"On {machine['device']}, torch {machine['torch']}, {machine['date']}, `evidence/gpu.sh`.", ""]
    read = {name: json.loads((out / f"{name}.json").read_text()) for name in PARTS if (out / f"{name}.json").exists()}
    for name in PARTS:
        own = read.get(name)
        if own is None or "missing part" in own:
            lines += [f"- `{name}`: not measured ({own['missing part'] if own else 'it did not run'})"]
    if "tests" in read and "said" in read["tests"]:
        lines += [f"- GPU tests: {read['tests']['said']}"]
    if own := _good(read, "steps"):
        heads = ["a training step", "largest alone, ms", "family of four, ms", "of the separate ones", "ω"]
        lines += ["", *_head(heads)]
        for what, cell in own.items():
            ms = cell["median_ms"]
            plain, together = f"{ms['peer 4 alone']:.1f}", f"{ms['family']:.1f}"
            lines.append(f"| {what} | {plain} | {together} | {cell['cost']:.2f} | {cell['reweigh_share']:.1%} |")
    if own := _good(read, "train"):
        lines += ["", *_head(["from one start", "peers, top-1", "start", "s"])]
        for method, cell in own.items():
            tops = ", ".join(f"{top1:.2f}" for top1 in cell["top1"])
            lines.append(f"| `{method}` | {tops} | {cell['start']:.2f} | {cell['seconds']:.0f} |")
    if own := _good(read, "latency"):
        lines += ["", *_head(["engine", "batch", "peer", "p50, ms", "speed-up"])]
        for engine, rows in own.items():
            for row in rows if isinstance(rows, list) and engine != "missing" else []:
                lines.append(
                    f"| {engine} | {row['batch']} | {row['peer'] or 'whole'} | {_p50(row)} | {_speedup(row)} |"
                )
        lines += [f"- {engine}: {rows['failed']}" for engine, rows in own.items() if isinstance(rows, dict)]
        if own["missing"]:
            lines += [f"- not importable there: {', '.join(own['missing'])}"]
    return "\n".join(lines) + "\n"


def _head(columns: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(columns)} |", f"| --- |{' --: |' * (len(columns) - 1)}"]


def _good(read: dict[str, Any], name: str) -> dict[str, Any] | None:
    own = read.get(name)
    return own if own and "missing part" not in own else None


def _p50(row: dict[str, Any]) -> str:
    return f"{row['latency_ms']['p50']:.3f}" if row["latency_ms"] else "-"


def _speedup(row: dict[str, Any]) -> str:
    return f"{row['speedup']['median']:.2f}" if row["speedup"] else "-"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}, section; all by default")
    parser.add_argument("--dry", action="store_true", help="at toy size on a CPU")
    asked = parser.parse_args()
    scale = DRY if asked.dry else REAL
    if scale is REAL and not torch.cuda.is_available():
        sys.exit("evidence/gpu.py: torch sees no GPU here; --dry walks all parts on a CPU")
    asked.out.mkdir(parents=True, exist_ok=True)
    machine = {
        "device": torch.cuda.get_device_name() if scale is REAL else "a CPU, at toy size", "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    (asked.out / "machine.json").write_text(json.dumps(machine))
    for name in asked.parts or [*PARTS, "section"]:
        if name == "section":
            text = section(asked.out)
            (asked.out / "section.md").write_text(text)
            print(text)
            continue
        start = time.monotonic()
        try:
            found = PARTS[name](scale, asked.out)
        except Missing as error:
            found = {"missing part": str(error)}
        except Exception as error:  # a part that breaks is told, and the others go on
            found = {"missing part": f"{type(error).__name__}: {error}"[:500]}
        (asked.out / f"{name}.json").write_text(json.dumps(found, indent=1))
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
