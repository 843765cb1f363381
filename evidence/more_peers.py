#!/usr/bin/env python3
"""What one more peer costs: families of 2, 4 and 8 from a trained start against a training of each peer alone.

    evidence/more_peers.py --start FILE --data-root DIR     # an image folder; on an idle machine, about 12 minutes

A step of each family by `wml`, and of each of its peers alone by `kd` (the frozen start and the labels) and by the
labels alone: the training MACs by count, and the seconds by turns, the same few steps a round. --json writes it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from statistics import median

import torch

from wmlc.compress.begin import open_for_start
from wmlc.compress.config import settle
from wmlc.compress.finetune import spending_of, teacher_of
from wmlc.compress.learn.place import choose_device
from wmlc.compress.learn.state import TrainState
from wmlc.compress.learn.train import fit, make_optimizer
from wmlc.compress.prepare import prepare, trained_peers

FAMILIES = {
    2: (0.7, 0.4), 4: (0.7, 0.6, 0.5, 0.4), 8: (0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35),
}  # of the MACs that go  # fmt: skip
ALONE = {"kd": "kd", "labels": "prune-finetune"}


class Steps:
    """One family, or one peer alone, that takes a few steps whenever it is asked to."""

    def __init__(self, method: str, ratios: tuple[float, ...], asked: argparse.Namespace) -> None:
        self.config = settle({
            "arch": asked.arch, "start": asked.start, "normalise": asked.normalise, "data": "imagefolder",
            "data_root": asked.data_root, "ratio_of": "macs", "budget": "uniform", "method": method, "ratios": ratios,
            "train_images": 2000, "epochs": 1, "steps": asked.steps, "lr": 0.01, "workers": 0,
        })  # fmt: skip
        self.device = choose_device("cpu", "fp32")
        self.config, self.data = open_for_start(self.config, self.device)
        self.prepared = prepare(self.config, self.data, self.device)
        self.family = trained_peers(self.prepared.family, self.config).to(memory_format=torch.channels_last)
        self.spending = spending_of(self.family, self.prepared, self.config, self.data)
        self.optimizer, self.seconds = make_optimizer(self.family, self.config), list[float]()

    @property
    def macs(self) -> float:
        """Of a step, with a share of what moves the weights."""
        return self.spending.until(1000) / 1000

    def go(self) -> None:
        state = TrainState("family", peer_weights=[1 / self.family.peers] * self.family.peers)
        fit(
            self.family, self.optimizer, self.data, self.config, state, self.device,
            teacher_of(self.prepared, self.config, self.device), self.spending, lambda _: None, lambda *_: None,
        )  # fmt: skip
        self.seconds.append(state.seconds / (self.config.steps or 1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", required=True)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--arch", default="resnet20")
    parser.add_argument("--normalise", default="half")
    parser.add_argument("--steps", type=int, default=20, help="of each a round; the weights move every 20th")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    families = {count: Steps("wml", ratios, asked) for count, ratios in FAMILIES.items()}
    alone = {(kind, ratio): Steps(method, (ratio,), asked) for kind, method in ALONE.items() for ratio in FAMILIES[8]}
    all_of_them, draw = [*families.values(), *alone.values()], random.Random(0)
    for number in range(asked.rounds):
        for one in draw.sample(all_of_them, len(all_of_them)):
            one.go()
        print(f"round {number + 1} of {asked.rounds}", file=sys.stderr, flush=True)
    found = {}
    for count, family in families.items():
        row = {"macs": family.macs, "seconds": median(family.seconds), "n": asked.rounds}
        for kind in ALONE:
            parts = [alone[kind, ratio] for ratio in FAMILIES[count]]
            row[kind] = {"macs": sum(own.macs for own in parts), "seconds": sum(median(own.seconds) for own in parts)}
        found[count] = row
        print(
            f"{count} peers: a step {row['seconds']:.2f} s, {row['macs']:.3g} MACs; of kd for each alone "
            f"{row['macs'] / row['kd']['macs']:.2f} of the MACs, {row['seconds'] / row['kd']['seconds']:.2f} of the "
            f"time; of the labels for each alone {row['macs'] / row['labels']['macs']:.2f}, "
            f"{row['seconds'] / row['labels']['seconds']:.2f}"
        )
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
