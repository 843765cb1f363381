"""Is a peer's saving in MACs paid out as speed? Measured speed-up over MAC ratio, for several divisors.

Trains for one epoch on a few random images (widths and speed do not depend on how good the weights are),
through the same commands' code as a user's run, then benches with ONNX Runtime, batch 1 and 8, one thread.

Run it on an idle machine: `make bench-speedup`. Prints a table and writes JSON with --json.

Our imports are inside, as the engines' processes import this file anew.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from wmlc.records import Row

CASES = {"resnet20": 32, "resnet18": 224}


def make_images(root: Path, pixels: int) -> Path:
    """An image folder of random images, two classes."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 24), ("test", 8)):
        for name in ("one", "other"):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                noise = draw.integers(0, 256, (pixels, pixels, 3), dtype=np.uint8)
                Image.fromarray(noise).save(folder / f"{index}.png")
    return root


def measure(arch: str, pixels: int, divisor: int, seconds: float, batches: tuple[int, ...]) -> list[Row]:
    """The bench's rows for one network and divisor."""
    from wmlc.bench.config import BenchConfig
    from wmlc.bench.session import bench_run
    from wmlc.compress.config import settle
    from wmlc.compress.session import start_run
    from wmlc.export.for_bench import bench_forms
    from wmlc.run import open_run_data

    with tempfile.TemporaryDirectory() as directory:
        data_root = make_images(Path(directory) / "images", pixels)
        config = settle({
            "data": "imagefolder", "data_root": str(data_root), "image_size": pixels, "arch": arch, "divisor": divisor,
            "epochs": 1, "batch_size": 16, "held_out": 0.2, "lr": 0.01, "workers": 0,
        })  # fmt: skip
        run = start_run(config, Path(directory) / "run", force=False)
        data = open_run_data(run)
        bench = BenchConfig(batches=batches, seconds=seconds, accuracy=False)
        files = bench_forms(run, data, bench.precisions, None, plans=False, batches=batches)
        return bench_run(run, bench, files, data, run.bench).rows


def main() -> None:
    """Measure every case and print speed-up over MAC ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--divisors", default="1,8,16")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--cases", default="resnet20,resnet18")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found, lines = [], []
    for arch, pixels in ((arch, CASES[arch]) for arch in arguments.cases.split(",")):
        for divisor in map(int, arguments.divisors.split(",")):
            batches = tuple(map(int, arguments.batch.split(",")))
            for row in measure(arch, pixels, divisor, arguments.seconds, batches):
                found.append({"arch": arch, "pixels": pixels, "divisor": divisor, **asdict(row)})
                if not (row.peer and row.speedup and row.latency_ms):
                    continue
                speed = row.speedup
                lines.append(
                    f"| {arch} @ {pixels} | {divisor} | {row.batch} | {row.ratio:g} | {row.latency_ms.p50:.3f} | "
                    f"{row.mac_ratio:.2f} | {speed.median:.2f} [{speed.low:.2f}, {speed.high:.2f}] | "
                    f"{row.paid_out:.2f} |"
                )
    print("\n| network | divisor | batch | ratio | p50 ms | MAC ratio | speed-up [95 %] | paid out |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    print("\n".join(lines))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
