"""Our single-stream median against a bare loop around ONNX Runtime on the same file, each in processes of their own.

python tests/benchmarks/single_stream.py FILE.onnx --rounds 20      (on an otherwise idle machine)

A round starts three processes one after another, in a shuffled order, all pinned to the same CPU: a bare loop that
knows nothing of wmlc, the bench's own worker, and the worker under LoadGen's single stream.

Our imports are inside, as the engines' processes import this file anew.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

BARE = """
import os, sys, time
import numpy as np, onnxruntime
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {int(sys.argv[3])})
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
value = session.get_inputs()[0]
images = np.random.default_rng(0).standard_normal((1, *value.shape[1:]), dtype=np.float32)
seconds, took = float(sys.argv[2]), []
for timed in (False, True):
    end = time.perf_counter() + (seconds if timed else 0.5)
    while time.perf_counter() < end:
        start = time.perf_counter()
        session.run(None, {value.name: images})
        took.append(time.perf_counter() - start) if timed else None
print(1e3 * float(np.median(took)))
"""


def main() -> None:
    """Run the rounds and print the two ratios."""
    from wmlc.bench.engines import engine_class
    from wmlc.bench.engines.machine import pinned_cpus
    from wmlc.bench.engines.worker import Seat, Worker
    from wmlc.bench.foreign import read_file
    from wmlc.bench.intervals import paired_ratio
    from wmlc.bench.measure import burst_calls
    from wmlc.bench.scenarios import Load
    from wmlc.bench.subjects import file_subjects, first_pixels

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    (subject,) = file_subjects([read_file(arguments.file)], None)
    kind, cpus = engine_class("ort"), pinned_cpus(1)
    seat = Seat(
        opener=kind, path=arguments.file, feed=subject.feed, cpus=cpus, libraries=kind.libraries, batch=subject.batch
    )
    pixels_NHWC = first_pixels(None, subject, 1)[:1]

    def bare() -> float:
        words = [sys.executable, "-c", BARE, str(arguments.file), str(arguments.seconds), str((cpus or [0])[0])]
        return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)

    def ours() -> float:
        with Worker(seat) as worker:
            worker.ready()
            worker.first(pixels_NHWC)
            calls = burst_calls(worker.warm_up(0.5).median_ms)
            bursts, spent_ms = [], 0.0
            while spent_ms < 1e3 * arguments.seconds:
                bursts.append(worker.burst(calls))
                spent_ms += bursts[-1].sum()
        return float(np.median(np.concatenate(bursts)))

    def loadgen() -> float:
        with Worker(seat) as worker:
            worker.ready()
            worker.first(pixels_NHWC)
            worker.warm_up(0.5)
            found = worker.load(Load(scenario="single-stream", seconds=arguments.seconds, cpus=cpus)).p50_ms
            assert found is not None, "LoadGen's test was cut short"
            return found

    ways: dict[str, Callable[[], float]] = {"bare": bare, "ours": ours, "loadgen": loadgen}
    medians: dict[str, list[float]] = {name: [] for name in ways}
    draw = np.random.default_rng(0)
    for _ in range(arguments.rounds):
        for place in draw.permutation(len(ways)):
            name = list(ways)[place]
            medians[name].append(ways[name]())
    found = {}
    for name in ("ours", "loadgen"):
        ratio = paired_ratio([np.array([m]) for m in medians[name]], [np.array([m]) for m in medians["bare"]], 0)
        found[name] = asdict(ratio)
        low, median, high = (100 * (value - 1) for value in (ratio.low, ratio.median, ratio.high))
        print(f"{name} over a bare loop: {median:+.2f} % [{low:+.2f}, {high:+.2f}], {ratio.n} rounds")
    print("median of medians, ms:", {name: round(float(np.median(each)), 4) for name, each in medians.items()})
    if arguments.json:
        arguments.json.write_text(json.dumps({"medians_ms": medians, "ratios": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
