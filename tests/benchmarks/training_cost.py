"""What a step of a family costs beside its peers' plain steps, in one process, by turns.

    cost  = (family step + one ω update / cadence) / Σ_k (plain step of a network of peer k's size)
    share = (one ω update / cadence) / (family step + one ω update / cadence)

Run it on an idle machine: `make bench-training`. Prints a table and writes JSON with --json.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from wmlc.bench.engines.machine import read_environment
from wmlc.compress.config import settle
from wmlc.compress.learn.family import PeerFamily, build_family
from wmlc.compress.learn.methods import METHODS
from wmlc.compress.learn.place import Device, choose_device
from wmlc.compress.learn.reweigh import peer_weight_gradient
from wmlc.compress.learn.train import objective
from wmlc.compress.widths.choose import Asked, choose_widths, score_channels
from wmlc.compress.widths.proof import read_channels
from wmlc.compress.widths.saliency import parameter_saliency
from wmlc.compress.widths.tree import sharing_tree
from wmlc.models.zoo import build_network
from wmlc.run import provenance
from wmlc.settings import TrainConfig

CLASSES = 10
RATIOS = {4: (0.7, 0.5, 0.3, 0.0), 8: (0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)}


def make_family(arch: str, ratios: tuple[float, ...], shape: tuple[int, int, int], share: str = "tree") -> PeerFamily:
    """The family under the default divisor, from seed 0, on the CPU."""
    torch.manual_seed(0)
    full = build_network(arch, CLASSES, shape)
    stages, images = list(dict(full.named_children())), 32 if shape[1] <= 64 else 4
    scores = parameter_saliency(full, torch.randn(images, *shape), torch.randint(CLASSES, (images,)), "snip")
    scored = score_channels(read_channels(full, shape), scores, "snip", stages)
    widths = choose_widths(scored, Asked(ratios, share, "params", TrainConfig.divisor))
    tree = sharing_tree(len(ratios), stages, share)
    family = build_family(full, scored.graph.groups, widths, tree, mean_joins=METHODS["wml"].join == "mean")
    return family.to(memory_format=torch.channels_last).train()


def steps_of(
    family: PeerFamily, shape: tuple[int, int, int], batch: int, config: TrainConfig, device: Device
) -> dict[str, Callable[[], None]]:
    """A full training step of the family, of each peer alone, and one ω update; each leaves no trace but weights."""
    on = {"device": device.name}
    family.to(device.name)
    images = torch.randn(batch, *shape, **on).to(memory_format=torch.channels_last)
    labels, weight_P = torch.randint(CLASSES, (batch,), **on), torch.full((family.peers,), 1 / family.peers, **on)
    loss_of = objective(family, config, device)

    def sgd(network: torch.nn.Module) -> torch.optim.SGD:
        return torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)

    def plain(network: Callable[[torch.Tensor], torch.Tensor], optimizer: torch.optim.SGD) -> None:
        with device.autocast():
            logits = network(images)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    def together(optimizer: torch.optim.SGD) -> None:
        loss = loss_of(images, labels, weight_P, None, None)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def reweigh() -> None:
        gradients = {name: p.grad for name, p in family.named_parameters() if p.grad is not None}
        peer_weight_gradient(
            family, (images, labels), (images, labels), weight_P, gradients, alpha=config.alpha or 0.0,
            temperature=config.temperature or 1.0, inner_lr=1e-3, device=device,
        )  # fmt: skip

    optimizer = sgd(family)
    steps: dict[str, Callable[[], None]] = {"family": lambda: together(optimizer), "reweigh": reweigh}
    for peer in range(1, family.peers + 1):
        alone = copy.deepcopy(family.peer(peer)).train()
        network = torch.compile(alone) if config.compile else alone
        steps[f"peer {peer} alone"] = functools.partial(plain, network, sgd(alone))
    return steps


def time_steps(steps: dict[str, Callable[[], None]], rounds: int, device: Device) -> dict[str, np.ndarray]:
    """Milliseconds [rounds] of each step, all run once a round in an order drawn anew; on a GPU until it has ended."""
    draw, times = random.Random(0), {name: np.empty(rounds) for name in steps}
    wait = torch.cuda.synchronize if device.name == "cuda" else lambda: None
    for round_ in range(-2, rounds):  # two rounds of warm-up; the family's step comes before the first ω update
        for name in draw.sample(list(steps), len(steps)) if round_ > -2 else steps:
            wait()
            start = time.perf_counter()
            steps[name]()
            wait()
            if round_ >= 0:
                times[name][round_] = 1e3 * (time.perf_counter() - start)
    return times


def main() -> None:
    """Measure four and eight peers and print what the numbers say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet20")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--peers", default="4,8")
    parser.add_argument("--share", default="tree", help="as of wmlc train")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--precision", default="auto", help="auto, fp32 or bf16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config, device = settle({"compile": arguments.compile}), choose_device(arguments.device, arguments.precision)
    what = torch.cuda.get_device_name() if device.name == "cuda" else read_environment({"torch": "cpu"}, [1]).cpu
    record: dict[str, Any] = {
        **vars(provenance()), "settings": {**vars(arguments), "json": None}, "device": what, "bf16": device.bf16
    }  # fmt: skip
    shape = (3, arguments.image_size, arguments.image_size)
    for peers in map(int, arguments.peers.split(",")):
        steps = steps_of(
            make_family(arguments.arch, RATIOS[peers], shape, arguments.share), shape, arguments.batch, config, device
        )
        times = time_steps(steps, arguments.rounds, device)
        median = {name: float(np.median(ms)) for name, ms in times.items()}
        for name, ms in times.items():
            low, high = np.percentile(ms, [25, 75])
            print(f"{peers} peers  {name:<14} {median[name]:8.1f} ms  (quartiles {low:.1f} to {high:.1f}, n {len(ms)})")
        update = median["reweigh"] / config.reweigh_every
        alone = sum(ms for name, ms in median.items() if name.endswith("alone"))
        cost, share = (median["family"] + update) / alone, update / (median["family"] + update)
        record[f"{peers} peers"] = {"median_ms": median, "cost": cost, "reweigh_share": share}
        print(
            f"{peers} peers  cost {cost:.3f} of the sum of plain steps ({alone:.0f} ms); "
            f"ω updates every {config.reweigh_every} steps: {share:.1%} of training time\n"
        )
    if {"4 peers", "8 peers"} <= record.keys():
        print(
            "ω updates' share with 8 peers over 4: "
            f"{record['8 peers']['reweigh_share'] / record['4 peers']['reweigh_share']:.2f}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
