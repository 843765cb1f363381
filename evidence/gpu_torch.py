"""Networks timed in torch alone, for evidence/gpu.py: eager, compiled, or replayed from a CUDA graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import wmlc

TURNS = 20  # of each network by turns with the whole one


def by_turns(
    places: Sequence[Path], device: str, side: int, batches: Sequence[int], kind: str, precision: str
) -> Iterator[tuple[str, Any]]:  # fmt: skip
    """Networks at `places`, the whole one first, images [B, 3, side, side] on the device: medians of `TURNS` turns.

    In float32 throughout where the precision is fp32, and not in TF32, as torch's convolutions are by default.
    """
    torch.backends.cudnn.allow_tf32 = False  # matrix products have it off anyway
    kind_of_number, rows = torch.float16 if precision == "fp16" else torch.float32, list[dict[str, Any]]()
    for batch in batches:
        images = torch.randn(batch, 3, side, side, device=device, dtype=kind_of_number)
        images = images.to(memory_format=torch.channels_last)
        calls = []
        try:
            for place in places:
                network = wmlc.load(place).to(device, kind_of_number, memory_format=torch.channels_last)
                calls.append(ready(network, images, kind))
            ms = np.array([[timed(call, device) for call in calls] for _ in range(TURNS)])
        except Exception as error:
            yield f"torch {kind}, {precision}, batch {batch}", {"failed": str(error)[:300]}
            continue
        for peer, own in enumerate(ms.T):
            speedup = None if peer == 0 else float(np.median(ms[:, 0] / own))
            rows.append({"peer": peer, "batch": batch, "p50": float(np.median(own)), "speedup": speedup})
        yield f"torch {kind}, {precision}", rows
    torch.backends.cudnn.allow_tf32 = True


@torch.inference_mode()
def ready(network: torch.nn.Module, images: torch.Tensor, kind: str) -> Callable[[], Any]:
    """A call of `network` that has been made before: eager, compiled, or replayed from a CUDA graph."""
    forward = torch.compile(network, fullgraph=True) if kind == "compiled" else network
    for _ in range(3):
        forward(images)
    if kind != "CUDA graph":
        return lambda: forward(images)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward(images)
    kept = network, images  # whose memory the graph reads

    def replay() -> Any:
        return graph.replay() or kept

    return replay


@torch.inference_mode()
def timed(call: Callable[[], Any], device: str, calls: int = 10) -> float:
    """Milliseconds of a call, over ten that follow one another."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start) / calls
