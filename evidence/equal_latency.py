#!/usr/bin/env python3
"""Widths by latency, by MACs and uniform, at the same measured latency: docs/results.md, section 11.

    evidence/equal_latency.py OUT plan NAME -- --arch … --start … --data …   # on an idle machine: a cut of each kind
    evidence/equal_latency.py OUT train NAME --epochs 2 --seeds 0,1,2        # each kind, trained alike
    evidence/equal_latency.py OUT show

`plan` has `wmlc train` choose widths for a share of the start's milliseconds (--ratio, the share that goes), and finds
the ratios of MACs at which a uniform cut, and one by `--budget taylor`, take as long when measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

# Engines' processes import this file anew, so that torch and what needs it are imported where they are used.

KINDS = {"uniform": {"budget": "uniform"}, "macs": {"budget": "taylor"}}
NEAR, TRIES = 0.02, 6  # of the latency that is wanted


def plan(out: Path, name: str, ratio: float, words: list[str]) -> None:
    """Write OUT/NAME.json: the options of each kind, and what the cut networks take."""
    from wmlc.arch import needs_caller
    from wmlc.bench.latency.config import LatencyConfig
    from wmlc.bench.latency.files import Writers
    from wmlc.bench.latency.session import EngineClock
    from wmlc.compress.begin import open_for_start
    from wmlc.compress.config import settle
    from wmlc.compress.latency import units_of
    from wmlc.compress.learn.place import choose_device
    from wmlc.compress.prepare import prepare, resizable_of
    from wmlc.export.for_latency import onnx_writer
    from wmlc.export.to_tensorrt import plan_for
    from wmlc.models.factory import named_by_caller
    from wmlc.settings import ENGINE_SETTINGS

    given = {words[at][2:].replace("-", "_"): words[at + 1] for at in range(0, len(words), 2)}
    engine: dict[str, Any] = {name: given.pop(name) for name in list(given) if name in ENGINE_SETTINGS}
    engine.pop("latency_tables", None)  # OUT has them
    start_words, engine_words = (
        [word for name, value in some.items() for word in (f"--{name.replace('_', '-')}", value)]
        for some in (given, engine)
    )
    engine |= {name: int(engine[name]) for name in ("threads", "batch") if name in engine}
    own = {key: int(value) if key in ("batch_size", "workers", "divisor") else value for key, value in given.items()}
    asked = {"ratio_of": "latency", "ratios": (ratio,), "epochs": 1, "seed": 0, **own}
    config = settle(asked | engine)
    if needs_caller(config.arch):
        named_by_caller(config.arch)
    device = choose_device("cpu", "fp32")
    config, data = open_for_start(config, device)
    clock_config = LatencyConfig(
        engine=config.engine, precision=config.latency_precision, threads=config.threads, batch=config.batch,
        device=config.latency_device,
    )  # fmt: skip
    writers = Writers(onnx_writer(clock_config.precision, clock_config.int8_target), plan_for)
    with EngineClock(clock_config, writers, out / "tables") as clock:
        prepared = prepare(config, data, device, clock)
        assert prepared.plan is not None
        graph, record = prepared.scored.graph, data.record
        network = resizable_of(prepared.made, graph, config, record.input_shape, len(record.class_names))
        chosen = units_of(prepared.plan.peers[0], graph)
        (took,) = clock.time(network, [chosen])
        found = {
            "start": start_words, "full_ms": prepared.plan.full_ms, "at": vars(clock.at),
            "latency": {
                "options": [
                    "--ratio-of", "latency", "--ratios", f"{ratio:g}", "--latency-tables", str(out / "tables"),
                    *engine_words,
                ],
                "ms": took.ms, "low": took.low, "high": took.high, "macs": graph.macs_left(chosen),
            },
        }  # fmt: skip
        for kind, budget in KINDS.items():
            at = 1 - found["latency"]["macs"]
            best = None
            for _ in range(TRIES):
                cut = settle({**asked, "ratio_of": "macs", "ratios": (round(at, 4),), **budget})
                widths = prepare(open_for_start(cut, device)[0], data, device).widths[0]
                counts_G = np.array([len(widths.kept[group.root]) for group in graph.groups])
                (own_time,) = clock.time(network, [counts_G])
                off = own_time.ms / took.ms - 1
                if best is None or abs(off) < abs(best["ms"] / took.ms - 1):
                    best = {
                        "options": ["--ratio-of", "macs", "--ratios", f"{at:.4f}", "--budget", budget["budget"]],
                        "ms": own_time.ms, "low": own_time.low, "high": own_time.high,
                        "macs": graph.macs_left(counts_G),
                    }  # fmt: skip
                print(f"{kind}: {at:.1%} of the MACs gone take {own_time.ms:.4g} ms, {off:+.1%}", flush=True)
                if abs(off) <= NEAR:
                    break
                at = min(0.95, max(0.05, 1 - (1 - at) / (1 + off)))
            found[kind] = best
    found["plan"] = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:8]
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(found, indent=1))


def train(out: Path, name: str, epochs: int, seeds: list[int], options: list[str]) -> None:
    """Train what was planned; a run of this plan, of as many epochs, that is there is not trained again."""
    found, words = _planned(out / f"{name}.json"), [word.strip("-").replace("/", "_") for word in options]
    for seed in seeds:
        for kind in ("latency", *KINDS):
            run = out / "runs" / f"{name}-{kind}-{found['plan']}-{'-'.join([str(epochs), *words])}-{seed}"
            if not (run / "family.json").exists():
                subprocess.run(
                    [
                        sys.executable, "-m", "wmlc", "train", *found["start"], *found[kind]["options"],
                        "--epochs", str(epochs), "--seed", str(seed), *options, "--out", str(run), "--force",
                    ],
                    check=True,
                )  # fmt: skip


def _planned(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    if "plan" not in found:
        sys.exit(f"{file} was planned by an earlier version; plan again, into another OUT")
    return found


def show(out: Path) -> None:
    """A row a kind."""
    for file in sorted(out.glob("*.json")):
        found = _planned(file)
        print(f"{file.stem}: whole {found['full_ms']:.3g} ms")
        for kind in ("latency", *KINDS):
            own, tops = found[kind], dict[str, list[float]]()
            for run in sorted((out / "runs").glob(f"{file.stem}-{kind}-{found['plan']}-*/family.json")):
                how = run.parent.name.rpartition("-")[0].partition(f"{found['plan']}-")[2]
                tops.setdefault(how, []).append(json.loads(run.read_text())["peers"][0]["top1"])
            print(f"  {kind:<8} {own['ms']:.4g} ms [{own['low']:.4g}, {own['high']:.4g}]  MACs {own['macs']:.3f}")
            for how, each in tops.items():
                spread = f" ± {stdev(each):.2f}" if len(each) > 1 else ""
                print(f"    epochs {how}: {mean(each):.2f}{spread} ({', '.join(f'{top:.2f}' for top in each)})")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("do", choices=["plan", "train", "show"])
    parser.add_argument("name", nargs="?", default="")
    parser.add_argument("--ratio", type=float, default=0.5, help="the share of the milliseconds that goes")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", default="0,1,2")
    words = sys.argv[1:]
    own, rest = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    asked = parser.parse_args(own)
    out = asked.out.resolve()
    if asked.do == "plan":
        plan(out, asked.name, asked.ratio, rest)
    elif asked.do == "train":
        train(out, asked.name, asked.epochs, [int(seed) for seed in asked.seeds.split(",")], rest)
    else:
        show(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
