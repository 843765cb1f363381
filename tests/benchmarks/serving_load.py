"""How a shipped repository holds up under load: closed-loop clients on a real Triton, every answer compared.

What this is: Triton's own core (HTTP and gRPC, scheduling, dynamic batching) with a **Python stand-in for its ONNX
Runtime backend** (tests/servers), all on loopback, the clients on the same cores as the server. Wrong answers and errors
are what it can show; its throughput and latency say little about a deployment with the real backend.

Each client sends one image, waits for the answer, compares it with ONNX Runtime's own answer to that image, and
sends the next. Images are random, drawn from a seed. Run it on an idle machine, after `make servers`:

    python tests/benchmarks/serving_load.py --repository models --clients 64 --seconds 60 --json serving.json
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from servers.clients import PROTOCOLS, Answer, ask, ask_together, statistics
from servers.process import Server, missing
from servers.triton import triton

from wmlc.run import provenance

WHAT = "Triton's core with a Python stand-in for its ONNX Runtime backend; clients and server share this machine"
IMAGES = 256
SAME = 1e-4  # absolute and relative, between the server's logits and ONNX Runtime's here; their versions differ
WARM_UP_S = 2.0  # not counted


def newest_file(model: Path) -> Path:
    """The ONNX file of a model's newest version."""
    versions = [path for path in model.iterdir() if path.name.isdecimal()]
    return max(versions, key=lambda path: int(path.name)) / "model.onnx"


def draw_images(session: onnxruntime.InferenceSession, seed: int) -> np.ndarray:
    """Random images of the shape and type that the network takes: normal numbers, or pixels."""
    (wanted,) = session.get_inputs()
    draw, shape = np.random.default_rng(seed), (IMAGES, *wanted.shape[1:])
    if wanted.type == "tensor(uint8)":
        return draw.integers(256, size=shape, dtype=np.uint8)
    return draw.standard_normal(shape, dtype=np.float32)


def answer_alone(session: onnxruntime.InferenceSession, images: np.ndarray) -> np.ndarray:
    """ONNX Runtime's answers [N, C], one image at a time; exits where two are so close that a mix-up would not be seen."""
    expected = np.concatenate([session.run(["logits"], {"input": images[i : i + 1]})[0] for i in range(len(images))])
    for one, other in itertools.combinations(expected, 2):
        if same(one, other):
            sys.exit("two of the images get the same answer from this network, so a mix-up would not be seen")
    return expected


def same(got: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.allclose(got, expected, rtol=SAME, atol=SAME))


def order_until(end: float, seed: int) -> Iterator[int]:
    """Random images until the wall clock says `end`."""
    draw = np.random.default_rng(seed)
    while time.time() < end:
        yield int(draw.integers(IMAGES))


def run_clients(
    server: Server, model: str, images: np.ndarray, expected: np.ndarray, protocol: str, seeds: list[int], end: float
) -> list[Answer]:
    """One process's clients, a thread each, until `end`."""

    def is_right(image: int, version: str, logits: np.ndarray) -> bool:
        return same(logits, expected[image])

    return ask_together(
        [functools.partial(ask, server, protocol, model, images, order_until(end, seed), is_right) for seed in seeds]
    )


def load(
    server: Server, model: str, images: np.ndarray, expected: np.ndarray, settings: argparse.Namespace
) -> dict[str, Any]:
    """Put the clients to work in a few processes, and say what came of it."""
    shares = [list(range(settings.clients))[i :: settings.processes] for i in range(settings.processes)]
    work = functools.partial(run_clients, server, model, images, expected, settings.protocol)
    with multiprocessing.get_context("spawn").Pool(settings.processes) as pool:
        pool.starmap(work, [(seeds, time.time() + WARM_UP_S) for seeds in shares], chunksize=1)
        before, start = statistics(server, model), time.time()
        parts = pool.starmap(work, [(seeds, start + settings.seconds) for seeds in shares], chunksize=1)
        took_s = time.time() - start
    after = statistics(server, model)
    answers = [answer for part in parts for answer in part]
    return summarise(answers, took_s, before, after)


def summarise(answers: list[Answer], took_s: float, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The numbers of one load; latencies are of answered requests."""
    answered = [answer for answer in answers if not answer.error]
    took_ms = np.array([answer.took_ms for answer in answered]) if answered else np.full(1, np.nan)
    executions = after["execution_count"] - before["execution_count"]
    return {
        "requests": len(answers),
        "answered": len(answered),
        "wrong": sum(not answer.right for answer in answered),
        "errors": len(answers) - len(answered),
        "error_kinds": dict(Counter(answer.error for answer in answers if answer.error).most_common(10)),
        "seconds": took_s,
        "throughput_per_s": len(answered) / took_s,
        "latency_ms": {
            **dict(zip(("p50", "p90", "p99"), np.percentile(took_ms, [50, 90, 99]).tolist(), strict=True)),
            "max": float(took_ms.max()),
        },
        "server": {
            "inferences": after["inference_count"] - before["inference_count"],
            "executions": executions,
            "mean_batch": (after["inference_count"] - before["inference_count"]) / executions if executions else None,
        },
    }


def print_summary(model: str, settings: argparse.Namespace, found: dict[str, Any]) -> None:
    latency, server = found["latency_ms"], found["server"]
    print(f"{model}: {settings.clients} clients over {settings.protocol} for {found['seconds']:.1f} s")
    print(f"{WHAT}\n")
    rows = [
        ("answered", f"{found['answered']:,} of {found['requests']:,}"),
        ("wrong", f"{found['wrong']:,}"),
        ("errors", f"{found['errors']:,}"),
        ("throughput", f"{found['throughput_per_s']:,.0f} images/s"),
        ("latency", "  ".join(f"{name} {ms:.1f}" for name, ms in latency.items()) + " ms"),
        ("server", f"{server['inferences']:,} inferences in {server['executions']:,} executions"),
        ("mean batch", "none" if server["mean_batch"] is None else f"{server['mean_batch']:.2f}"),
    ]
    for name, value in rows:
        print(f"{name:<12}{value}")
    for kind, count in found["error_kinds"].items():
        print(f"{count:>8} × {kind}")


def main() -> int:
    """Exit status 0 if every request was answered, and rightly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, required=True, help="what `wmlc ship --to triton` wrote")
    parser.add_argument("--model", help="which of its models (default: the only one)")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--protocol", choices=list(PROTOCOLS), default="grpc")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1), help="that the clients share")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    settings = parser.parse_args()
    if why := missing("triton"):
        parser.error(why)
    models = sorted(path.parent.name for path in settings.repository.glob("*/config.pbtxt"))
    model = settings.model or (models[0] if len(models) == 1 else "")
    if model not in models:
        parser.error(f"--model must be one of {', '.join(models) or 'none: there is no config.pbtxt'}")

    session = onnxruntime.InferenceSession(
        str(newest_file(settings.repository / model)), providers=["CPUExecutionProvider"]
    )
    images = draw_images(session, settings.seed)
    expected = answer_alone(session, images)
    with triton(settings.repository) as server:
        found = load(server, model, images, expected, settings)
    print_summary(model, settings, found)
    if settings.json:
        given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(settings).items()}
        record = {
            **vars(provenance()),
            "cores": os.cpu_count(),
            "what": WHAT,
            "model": model,
            "settings": given,
            **found,
        }
        settings.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0 if found["answered"] and not found["wrong"] and not found["errors"] else 1


if __name__ == "__main__":
    sys.exit(main())
