#!/usr/bin/env python3
"""Whether latency tables predict, budgets are met and savings paid out: the tables of docs/results.md, section 11.

    evidence/latency.py OUT                                    # all networks, 15 to 20 minutes each on two idle cores
    evidence/latency.py OUT resnet18 --engine ort --precision int8
    evidence/latency.py OUT --show                             # what OUT has, as tables

For each network, of random weights: the table is made; whole networks at random widths of its levels are timed and held
against what the table says; budgets of shares of the whole network's latency are planned for, all at once, and the
networks that were chosen are timed again, in processes of their own, so that no lucky launch has chosen itself. What is
measured is kept in OUT, and nothing is measured twice. The machine must do nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np

from wmlc.bench.latency.config import LatencyConfig

# Engines' processes import this file anew, so that torch and what needs it are imported where they are used.

NETWORKS = {"resnet20": (32, 10), "resnet18": (224, 1000), "mobilenet_v2": (224, 1000)}  # side, classes
RANDOM = 40  # width choices
SHARES = (0.8, 0.7, 0.6, 0.5, 0.4, 0.35, 0.3)  # of the whole network's latency: budgets


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(NETWORKS))
    parser.add_argument("--engine", default="ort")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--random", type=int, default=RANDOM, help="networks that the table is held against; 0: budgets"
    )
    parser.add_argument("--show", action="store_true", help="measure nothing")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    config = LatencyConfig(engine=asked.engine, precision=asked.precision, threads=asked.threads)
    for name in () if asked.show else asked.names:
        held = "" if asked.random == RANDOM else f"-{asked.random}-random"
        file = asked.out / f"{name}-{config.engine}-{config.precision}-{config.threads}{held}.json"
        if not file.exists():
            file.write_text(
                json.dumps(measured(name, config, asked.out / "tables", asked.random), indent=1), encoding="utf-8"
            )
    for file in sorted(asked.out.glob("*.json")):
        show(file.stem, json.loads(file.read_text(encoding="utf-8")))
    return 0


def measured(name: str, config: LatencyConfig, tables: Path, random: int) -> dict[str, object]:
    """All that is measured of a network."""
    from wmlc.bench.latency.files import Writers
    from wmlc.bench.latency.session import EngineClock
    from wmlc.compress.latency import plan_for_latency, priced, units_of
    from wmlc.compress.standalone import network_named
    from wmlc.compress.widths.choose import Asked, OutOfReachError, Scored
    from wmlc.export.for_latency import onnx_writer
    from wmlc.export.to_tensorrt import plan_for
    from wmlc.latency_model import LatencyModel

    side, classes = NETWORKS[name]
    network = network_named(name, "", side, classes, 8)
    sizes, graph = network.sizes, network.graph
    writers = Writers(onnx_writer(config.precision, config.int8_target), plan_for)
    with EngineClock(config, writers, tables) as clock:
        table = clock.table(sizes)
        model = LatencyModel(table)
        draw = np.random.default_rng(1)
        counts = [np.array([own[draw.integers(len(own))] for own in sizes.levels]) for _ in range(random)]
        errors = [
            model.total(sizes.layers, sizes.channels(own)) / took.ms - 1
            for own, took in zip(counts, clock.time(sizes, counts), strict=True)
        ]
        scored = priced(Scored(graph, np.ones(len(graph.layers)), [], network.stages), sizes, table)
        shares, refused = sorted(SHARES), []
        while True:
            asked = Asked(tuple(1 - share for share in shares), "none", "latency", 8)
            try:
                plan = plan_for_latency(scored, asked, sizes, clock, ())
                break
            except OutOfReachError as error:
                refused.append(str(error))
                shares = shares[1:]
    again = tables / "again"
    shutil.copytree(clock.file_of(sizes).parent, again / clock.file_of(sizes).parent.name, dirs_exist_ok=True)
    with EngineClock(config, writers, again) as clock:
        clock.forget(sizes)
        chosen = [units_of(own, graph) for own in plan.peers]
        full, *took = clock.time(sizes, [sizes.full, *chosen])
    budgets = [
        {
            "budget_ms": own.budget_ms, "predicted_ms": own.predicted_ms, "planned_ms": own.ms, "ms": now.ms,
            "low": now.low, "high": now.high, "macs_cut_ms": own.macs_cut_ms,
            "macs": float(graph.macs_left(counts_G)), "speedup": full.ms / now.ms,
        }
        for own, counts_G, now in zip(plan.peers, chosen, took, strict=True)
    ]  # fmt: skip
    return {
        "at": vars(clock.at), "table_s": table.seconds, "planned_full_ms": plan.full_ms, "full_ms": full.ms,
        "errors": errors, "budgets": budgets, "refused": refused,
    }  # fmt: skip


def show(name: str, found: dict[str, object]) -> None:
    """What was measured of a network, as lines of a table."""
    errors = np.abs(np.array(found["errors"]))
    print(f"{name}: whole {found['full_ms']:.3g} ms, table in {found['table_s']:.0f} s")
    if len(errors):
        middle, worst = np.median(errors), errors.max()
        print(f"  predicted over measured of {len(errors)}: off by {middle:.1%} (median), {worst:.1%} (worst)")
    for words in found.get("refused", ()):
        print(f"  refused: {words}")
    for own in found["budgets"]:
        paid_out = own["speedup"] * own["macs"]
        print(
            f"  budget {own['budget_ms']:.3g}  predicted {own['predicted_ms']:.3g}  planned {own['planned_ms']:.3g}  "
            f"again {own['ms']:.3g} [{own['low']:.3g}, {own['high']:.3g}]  {own['ms'] / own['budget_ms'] - 1:+.1%}  "
            f"MACs {own['macs']:.3f}  speed-up {own['speedup']:.2f}  paid out {paid_out:.2f}  "
            f"cut by MACs {own['macs_cut_ms'] or 0:.3g}"
        )


if __name__ == "__main__":
    sys.exit(main())
