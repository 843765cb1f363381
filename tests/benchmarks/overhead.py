"""What the bench's own loop adds to a bare loop around ONNX Runtime: `python tests/benchmarks/overhead.py FILE.onnx`.

Both loops run in one process on one session, by turns, over the same images.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np

from wmlc.bench.engines.ort_engine import OrtEngine
from wmlc.bench.intervals import Speedup, paired_ratio
from wmlc.bench.measure import time_calls
from wmlc.errors import InputError

BURST_S = 0.005  # short, so that most bursts escape whatever else the machine does


def measure_overhead(path: Path, seconds: float, seed: int = 0) -> Speedup:
    """Our loop's wall time over the bare loop's: 1.01 is 1 % of overhead. Batch 1, one thread, CPU."""
    engine = OrtEngine(path, threads=1, device="cpu")
    session: Any = engine._session
    name, (_, channels, height, width) = session.get_inputs()[0].name, session.get_inputs()[0].shape
    images_NCHW = np.random.default_rng(seed).standard_normal((1, channels, height, width), dtype=np.float32)

    def ours(calls: int) -> None:
        time_calls(engine, images_NCHW, calls)

    def bare(calls: int) -> None:
        for _ in range(calls):
            start = time.perf_counter()
            session.run(None, {name: images_NCHW})
            _ = time.perf_counter() - start

    calls = max(10, round(BURST_S / min(_wall_s(bare, 100) / 100 for _ in range(5))))
    walls: dict[Callable[[int], None], list[float]] = {ours: [], bare: []}
    draw, start = np.random.default_rng(seed), time.perf_counter()
    while time.perf_counter() - start < seconds or len(walls[ours]) < 10:
        for loop in (ours, bare) if draw.random() < 0.5 else (bare, ours):
            loop(1)
            walls[loop].append(_wall_s(loop, calls))
    engine.close()
    return paired_ratio([np.array(walls[ours])], [np.array(walls[bare])], seed)


def _wall_s(loop: Callable[[int], None], calls: int) -> float:
    start = time.perf_counter()
    loop(calls)
    return time.perf_counter() - start


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--seconds", default=10.0, show_default=True, help="How long to measure.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def main(file: Path, seconds: float, as_json: bool) -> None:
    """The overhead of the bench's loop over a bare one around FILE, in percent with its 95 % interval."""
    try:
        ratio = measure_overhead(file, seconds)
    except InputError as error:
        raise click.ClickException(str(error)) from error
    percent = {key: 100 * (value - 1) for key, value in asdict(ratio).items() if key not in ("n", "launches")}
    if as_json:
        click.echo(json.dumps({"overhead_percent": percent, "rounds": ratio.n}))
    else:
        click.echo(
            f"the bench's loop takes {percent['median']:+.2f} % [{percent['low']:+.2f}, {percent['high']:+.2f}] "
            f"of a bare loop's time on top, over {ratio.n} rounds"
        )


if __name__ == "__main__":
    main()
