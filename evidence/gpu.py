#!/usr/bin/env python3
"""What only a GPU can show, in parts that each leave a JSON, and the section of docs/results.md that they make.

    evidence/gpu.sh                             # all of it in at most 9 minutes, each part in a process of its own
    evidence/gpu.py OUT steps latency section   # some parts
    evidence/gpu.py OUT --dry                   # all parts at toy size on a CPU, to see that they run

Nothing is fetched. What is measured is written at once, so that a part that is ended keeps it; a part that something is
missing for writes what, and the others go on. `train` needs CIFAR-10 as an image folder (DATA=DIR with cifar10-png/).
`planned` takes about eight minutes an engine, and is a command of its own: LIMITS=planned:500 evidence/gpu.sh.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from wmlc.cli import main as command
from wmlc.files import write_json

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "benchmarks"))
import gpu_section
import gpu_torch
import training_cost

WAYS = {
    "fp32": ["--precision", "fp32"], "bf16": ["--precision", "bf16"],
    "bf16, sharing to stage2": ["--precision", "bf16", "--share", "stage2"],
}  # fmt: skip
METHODS = ("wml", "kd", "prune-finetune")
ENGINES = {"ort": "onnxruntime", "trt": "tensorrt"}  # and what they need
ENDED = {"missing part": "it was ended before it was done"}  # unless it is done

Cells = Iterator[tuple[str, Any]]  # what a part finds, one after another


@dataclass(frozen=True)
class Scale:
    """How much of everything, so that it fits."""

    device: str
    steps: tuple[tuple[str, int, int, int], ...]  # network, side, batch, rounds
    start: tuple[str, int, float]  # network, epochs of the start, seconds for all methods together
    latency: tuple[str, int, tuple[int, ...], float]  # network, side, batches, seconds a network


PLANNED = ("resnet18", 224, 32, 64)  # network, side, batch, divisor
STEPS = (("resnet18", 32, 512, 20), ("resnet50", 224, 128, 8))
REAL = Scale("cuda", STEPS, ("resnet18", 8, 50.0), ("resnet50", 224, (1, 32), 0.5))
DRY = Scale("cpu", (("resnet20", 8, 4, 1),), ("resnet20", 1, 0.0), ("resnet20", 16, (1,), 0.01))


class Missing(Exception):
    """What a part cannot do without."""


def tests(scale: Scale, out: Path) -> Cells:
    """The tests that need a GPU."""
    if importlib.util.find_spec("pytest") is None:
        raise Missing("pytest")
    if scale is DRY:
        yield "said", "not run at toy size"
        return
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-rfE", "-o", "addopts=", "-m", "gpu", "-p", "no:cacheprovider",
            "--continue-on-collection-errors",  # of tests that want packages which are not here
        ],
        cwd=Path(__file__).resolve().parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = done.stdout.strip().splitlines() or [done.stderr[-300:]]
    yield "rc", done.returncode
    yield "said", lines[-1].strip("= ")
    yield "failed", [line for line in lines if line.startswith(("FAILED", "ERROR"))]


def steps(scale: Scale, out: Path) -> Cells:
    """A training step: plain networks, a family of four with ω, separate networks."""
    for name, options in WAYS.items() if scale is REAL else [("fp32", WAYS["fp32"])]:
        for size in scale.steps:
            yield from one_step(scale, out, size, name, options)


def one_step(scale: Scale, out: Path, size: tuple[str, int, int, int], name: str, options: Sequence[str]) -> Cells:
    """What a step of this network, side, batch takes, in so many rounds."""
    arch, side, batch, rounds = size
    file = out / "step.json"
    words = [
        "--arch", arch, "--image-size", str(side), "--batch", str(batch), "--rounds", str(rounds),
        "--peers", "4", "--device", scale.device, "--json", str(file), *options,
    ]  # fmt: skip
    called(training_cost.main, words)
    yield f"{arch}, {side} pixels, batch {batch}, {name}", json.loads(file.read_text())["4 peers"]
    file.unlink()


def compiled(scale: Scale, out: Path) -> Cells:
    """The step of the first network, and the latency of another and its smallest peer, by torch.compile.

    Seven things to compile, each of which takes about twenty seconds on an H100 with 16 CPU cores.
    """
    if scale is DRY:
        yield "said", "nothing is compiled at toy size"
        return
    yield from in_torch(scale, out, "compiled", "fp16", only=2, batches=scale.latency[2][-1:])
    torch._dynamo.reset()  # it compiles a module's code for no more than eight others
    yield from one_step(scale, out, scale.steps[0], "bf16, compiled", ["--precision", "bf16", "--compile"])


def train(scale: Scale, out: Path) -> Cells:
    """A family on CIFAR-10 by three methods, from one and the same start, as long as wml; for as many epochs as fit."""
    arch, start_epochs, seconds = scale.start
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
    took_s = max(0.1, json.loads((out / "start" / "family.json").read_text())["seconds"])  # told in tenths
    an_epoch = 2.5 * took_s / start_epochs  # of a family, over one of the start: two peers and a teacher
    epochs = max(1, int(seconds / len(METHODS) / an_epoch))
    for method in METHODS:
        run = out / method
        longer = ["--as-long-as", "wml"] if method == "kd" else []
        run_wmlc([
            *base, "--method", method, *longer, "--start", str(out / "start" / "peers" / "1"), "--ratios", "0.7,0.5",
            "--ratio-of", "macs", "--epochs", str(epochs), "--lr", "0.05", "--out", str(run),
        ])  # fmt: skip
        family = json.loads((run / "family.json").read_text())
        yield method, {
            "top1": [peer["top1"] for peer in family["peers"]], "start": family["baseline"]["top1"],
            "macs": [peer["macs"] for peer in family["peers"]], "seconds": family["seconds"],
            "training_macs": family["training_macs"], "epochs": epochs,
        }  # fmt: skip


def latency(scale: Scale, out: Path) -> Cells:
    """A network and its peers in torch alone."""
    precisions = ("fp32", "fp16") if scale is REAL else ("fp32",)
    for kind in ("eager", "CUDA graph") if scale is REAL else ("eager",):
        for precision in precisions:
            yield from in_torch(scale, out, kind, precision)


def engines(scale: Scale, out: Path) -> Cells:
    """The whole network and the smallest of its peers in each engine that is here, by `wmlc bench`.

    No more of them, as each is exported, and a process is started for each, which takes seconds where there is a GPU.
    """
    there = {name: importlib.util.find_spec(package) is not None for name, package in ENGINES.items()}
    if importlib.util.find_spec("onnxscript") is None:  # nothing can be exported
        there = dict.fromkeys(there, False)
    yield "missing", [name for name, own in there.items() if not own]
    run = cut_network(scale, out, "0.7")
    _, _, batches, seconds = scale.latency
    asked = [name for name, own in there.items() if own and (scale is REAL or name == "ort")]
    for precision, engine in itertools.product(("fp32", "fp16") if scale is REAL else ("fp32",), asked):
        file, rows = out / "bench.json", list[dict[str, Any]]()
        for batch in batches:  # a command each, as one that is ended leaves nothing
            try:
                run_wmlc([
                    "bench", "--run", str(run), "--engine", engine, "--precision", precision, "--device", scale.device,
                    "--batch", str(batch), "--seconds", str(seconds), "--launches", "2", "--no-accuracy",
                    "--out", str(file), "--force",
                ], apart=scale is REAL)  # fmt: skip
            except Exception as error:  # one engine fails, the next is asked
                yield f"{engine}, {precision}, batch {batch}", {"failed": str(error)[-300:]}
                continue
            rows += [
                {
                    "peer": row["peer"], "batch": batch, "p50": (row["latency_ms"] or {}).get("p50"),
                    "speedup": (row["speedup"] or {}).get("median"),
                }
                for row in json.loads(file.read_text())["rows"]
            ]  # fmt: skip
            yield f"{engine}, {precision}", rows
            file.unlink()


def planned(scale: Scale, out: Path) -> Cells:
    """Widths by the milliseconds of each engine that is here: what was asked, and what the whole networks take."""
    if scale is DRY:
        yield "said", "nothing is planned at toy size"
        return
    arch, side, batch, divisor = PLANNED
    for engine, precision in (("ort", "fp16"), ("ort", "fp32"), ("torch", "fp32")):
        run = out / f"planned-{engine}-{precision}"
        try:
            run_wmlc([
                *of_noise(scale, out, arch, side), "--ratio-of", "latency", "--ratios", "0.5,0.3", "--share", "none",
                "--divisor", str(divisor), "--engine", engine, "--latency-precision", precision,
                "--latency-device", scale.device, "--batch", str(batch), "--latency-tables", str(out / "tables"),
                "--out", str(run),
            ], apart=True)  # fmt: skip
        except Exception as error:
            yield f"{engine}, {precision}, batch {batch}", {"failed": str(error)[-300:]}
            continue
        plan = json.loads((run / "family.json").read_text())["latency"]
        yield f"{engine}, {precision}, batch {batch}", {
            "full_ms": plan["full_ms"], "peers": [
                {name: own[name] for name in ("budget_ms", "predicted_ms", "ms", "low", "high", "macs_cut_ms")}
                for own in plan["peers"]
            ],
        }  # fmt: skip


def in_torch(
    scale: Scale, out: Path, kind: str, precision: str, only: int | None = None, batches: Sequence[int] = ()
) -> Cells:
    """The whole network and its peers, or the first `only` of these, in torch alone, at all or at these batches."""
    _, side, all_batches, _ = scale.latency
    run = cut_network(scale, out, "0.7,0.5,0.3")
    places = [run / "baseline", *sorted((run / "peers").iterdir())][:only]
    return gpu_torch.by_turns(places, scale.device, side, batches or all_batches, kind, precision)


def cut_network(scale: Scale, out: Path, ratios: str) -> Path:
    """A run of a network and its peers; of random weights, so that accuracy says nothing."""
    arch, side, _, _ = scale.latency
    ratios = ratios if scale is not DRY else "0.5"
    run = out / f"cut-{arch}-{side}-{ratios}"
    if not (run / "family.json").exists():
        run_wmlc([
            *of_noise(scale, out, arch, side), "--out", str(run), "--ratio-of", "macs", "--share", "none",
            "--ratios", ratios, "--budget", "uniform",
        ])  # fmt: skip
    return run


def of_noise(scale: Scale, out: Path, arch: str, side: int) -> list[str]:
    """The words that train a network for one step on images of noise."""
    images = out / f"noise-{side}"
    draw = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("a", "b"):
            (images / part / name).mkdir(parents=True, exist_ok=True)
            for number in range(8):
                pixels = draw.integers(0, 256, (side, side, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(images / part / name / f"{number}.png")
    return [
        "train", "--arch", arch, "--data", "imagefolder", "--data-root", str(images), "--image-size", str(side),
        "--batch-size", "4", "--steps", "1", "--workers", "0", "--device", scale.device, "--force",
    ]  # fmt: skip


PARTS: dict[str, Callable[[Scale, Path], Cells]] = {
    "tests": tests, "steps": steps, "train": train, "latency": latency, "engines": engines,
    "compiled": compiled, "planned": planned,
}  # fmt: skip


def called(script: Callable[[], Any], words: Sequence[str]) -> None:
    """A script's `main` with these words."""
    before, sys.argv = sys.argv, [script.__module__, *words]
    try:
        script()
    finally:
        sys.argv = before


def run_wmlc(words: Sequence[str], apart: bool = False) -> None:
    """Run a command; `apart` in a process of its own, whose own processes are started without this file's imports."""
    print("$ wmlc", *words, flush=True)
    if not apart:
        command.main(list(words), prog_name="wmlc", standalone_mode=False)
        return
    done = subprocess.run([sys.executable, "-m", "wmlc", *words], stderr=subprocess.PIPE, text=True, check=False)
    print(done.stderr, file=sys.stderr, flush=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or f"it ended with {done.returncode}")


def _note_machine(out: Path, part: str, scale: Scale) -> None:
    """Where and when a part was measured, beside the others': they may be of several days."""
    file = out / "machines.json"
    machines = json.loads(file.read_text()) if file.exists() else {}
    machines[part] = {
        "device": torch.cuda.get_device_name() if scale is REAL else "a CPU, at toy size", "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    write_json(file, machines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}, section; all by default")
    parser.add_argument("--dry", action="store_true", help="at toy size on a CPU")
    asked = parser.parse_args()
    scale, parts = DRY if asked.dry else REAL, asked.parts or [*PARTS, "section"]
    if unknown := [name for name in parts if name not in (*PARTS, "section")]:
        sys.exit(f"evidence/gpu.py: {unknown[0]} is no part; there are {', '.join(PARTS)}, section")
    if scale is REAL and parts != ["section"] and not torch.cuda.is_available():
        sys.exit("evidence/gpu.py: torch sees no GPU here; --dry walks all parts on a CPU")
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in parts:
        if name == "section":
            text = gpu_section.section(asked.out, list(PARTS))
            (asked.out / "section.md").write_text(text)
            print(text)
            continue
        start = time.monotonic()
        file, found = asked.out / f"{name}.json", dict[str, Any]()
        write_json(file, ENDED)
        _note_machine(asked.out, name, scale)
        try:
            for key, value in PARTS[name](scale, asked.out):
                found[key] = value
                write_json(file, found | ENDED)  # at once, as the part may be ended
        except Missing as error:
            found["missing part"] = str(error)
        except Exception as error:  # a part that breaks is told, and the others go on
            found["missing part"] = f"{type(error).__name__}: {error}"[:500]
        write_json(file, found)
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
