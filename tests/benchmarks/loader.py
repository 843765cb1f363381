"""How many images a second the loader gives, beside torchvision's own pipeline and what a training step asks for.

    python tests/benchmarks/loader.py cifar10-png:32:resnet20 flowers:96:resnet18 imagenette-224:224:mobilenet_v2

Each argument: an image folder, the side that pictures are brought to, and a network that would be trained on them. By
turns, an epoch or --seconds each, three rounds; --json writes them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2

from wmlc.data import DataConfig, open_data
from wmlc.models.zoo import build_network

BATCH = 64


def ours(root: Path, side: int, workers: int) -> Callable[[], Iterator[Any]]:
    """Epochs of wmlc's own, normalised."""
    small = side <= 64
    data = open_data(
        DataConfig(name="imagefolder", root=root, workers=workers, normalise="half", image_size=None if small else side)
    )
    epochs = itertools.count()
    _ = data.record
    return lambda: data.train_batches(BATCH, next(epochs))


def theirs(root: Path, side: int, workers: int) -> Callable[[], Iterator[Any]]:
    """Epochs of torchvision's ImageFolder and transforms, as its references train with them."""
    cut = (
        [v2.RandomCrop(side, padding=4)] if side <= 64 else [v2.RandomResizedCrop(side, antialias=True)]
    )  # fmt: skip
    transform = v2.Compose([
        v2.PILToTensor(), *cut, v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5] * 3, [0.5] * 3),
    ])  # fmt: skip
    folder = datasets.ImageFolder(str(root / "train"), transform)
    loader: Any = DataLoader(
        folder, BATCH, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=workers > 0
    )
    return lambda: iter(loader)


def images_a_second(epoch: Callable[[], Iterator[Any]], seconds: float) -> float:
    """Over an epoch, or so many seconds of one; the first batch is not counted."""
    batches = epoch()
    next(batches)
    start, count = time.perf_counter(), 0
    for images, _ in batches:
        count += len(images)
        if time.perf_counter() - start > seconds:
            break
    return count / (time.perf_counter() - start)


def step_rate(arch: str, side: int, seconds: float) -> float:
    """Images a second of a training step alone, on what is at hand."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = build_network(arch, 10, (3, side, side)).to(device).to(memory_format=torch.channels_last).train()
    images = torch.randn(BATCH, 3, side, side, device=device).to(memory_format=torch.channels_last)
    labels, optimizer = (
        torch.zeros(BATCH, dtype=torch.int64, device=device),
        torch.optim.SGD(network.parameters(), 1e-3),
    )
    done = torch.cuda.synchronize if device == "cuda" else lambda: None
    count, start = 0, 0.0
    while count < 2 or time.perf_counter() - start < seconds:
        if count == 1:
            done()
            start = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
        count += 1
    done()
    return (count - 1) * BATCH / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="DIR:SIDE:NETWORK")
    parser.add_argument("--workers", default="0,2")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for each in asked.sets:
        root, side, arch = each.split(":", 2)
        need = step_rate(arch, int(side), asked.seconds)
        for workers in map(int, asked.workers.split(",")):
            pipes = {
                "wmlc": ours(Path(root), int(side), workers),
                "torchvision": theirs(Path(root), int(side), workers),
            }
            rates: dict[str, list[float]] = {name: [] for name in pipes}
            for _ in range(asked.rounds):
                for name, epoch in pipes.items():
                    rates[name].append(images_a_second(epoch, asked.seconds))
            own, other = (median(rates[name]) for name in ("wmlc", "torchvision"))
            found.append({"set": Path(root).name, "side": int(side), "workers": workers, "step": need, **rates})
            print(
                f"{Path(root).name}, {side} pixels, {workers} workers: wmlc {own:,.0f} images/s, torchvision {other:,.0f} "
                f"({own / other:.1f} times); a step of {arch} takes {need:,.0f}",
                flush=True,
            )
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
