"""Does a bench say the same twice? Ten in a row, and how often an interval covers the ratio pooled over all of them.

python tests/benchmarks/repeat.py runs/NAME --benches 10 --json FILE      (on an otherwise idle machine)

Our imports are inside, as the engines' processes import this file anew.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from wmlc.records import Bench, Row


def main() -> None:
    """Bench, pool, count, print."""
    from wmlc.bench.config import BenchConfig
    from wmlc.bench.session import bench_run
    from wmlc.export.for_bench import bench_forms
    from wmlc.run import find_run, open_run_data

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--benches", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=BenchConfig.seconds)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    run = find_run(arguments.run)
    data = open_run_data(run)
    benches: list[Bench] = []
    with tempfile.TemporaryDirectory() as directory:
        for number in range(arguments.benches):
            config = BenchConfig(batches=(arguments.batch,), seconds=arguments.seconds, seed=number, accuracy=False)
            files = bench_forms(run, data, config.precisions, None, plans=False, batches=config.batches)
            benches.append(bench_run(run, config, files, data, Path(directory) / f"{number}.json"))
    print("\n| network | pooled speed-up | medians, lowest to highest | mean half-width | intervals that cover it |")
    print("| --- | --- | --- | --- | --- |")
    found = [summary([bench.rows[place] for bench in benches]) for place in range(1, len(benches[0].rows))]
    for row in found:
        print(
            f"| {row['name']} | {row['pooled']:.4f} | {row['medians'][0]:.3f} to {row['medians'][-1]:.3f} | "
            f"{100 * row['half_width']:.2f} % | {row['covering']} of {row['benches']} |"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


def summary(rows: list[Row]) -> dict[str, Any]:
    """One network's speed-up over all benches; pooled: the geometric mean of their medians."""
    speedups = [row.speedup for row in rows if row.speedup]
    pooled = float(np.exp(np.mean([np.log(s.median) for s in speedups])))
    return {
        "name": rows[0].name,
        "benches": len(rows),
        "pooled": pooled,
        "medians": sorted(s.median for s in speedups),
        "half_width": float(np.mean([(s.high - s.low) / 2 / s.median for s in speedups])),
        "covering": sum(s.low <= pooled <= s.high for s in speedups),
        "intervals": [[s.low, s.high] for s in speedups],
    }


if __name__ == "__main__":
    main()
