"""A planned family as records and as a table: what each peer keeps, and what sharing does to it."""

from __future__ import annotations

import contextlib
import itertools
import math
from typing import Any

from torch import nn

from wmlc.compress.config import METHODS, TrainConfig
from wmlc.compress.learn.family import PeerFamily
from wmlc.compress.widths.budget import P_UP
from wmlc.compress.widths.plan import OutOfReachError, PeerPlan, Scored, plan_family
from wmlc.compress.widths.tree import share_choices
from wmlc.console import UNKNOWN, print_table, say

# Multiples of channels that each target's kernels work in; other widths run too, on padding.
SUITED = (("fp32 on AVX2 CPUs", 8), ("fp16 on GPUs", 8), ("fp32 on AVX-512 CPUs", 16), ("int8 on CPUs and GPUs", 32))


def peer_records(family: PeerFamily, plans: list[PeerPlan]) -> list[dict[str, Any]]:
    """One record a peer for `family.json`: ratio asked and got, costs, channels a stage, what is shared."""
    records = []
    for index, plan in enumerate(plans):
        network = family.peer(index + 1)
        shared = {b.stage: list(b.peers) for b in family.branches if index + 1 in b.peers and len(b.peers) > 1}
        records.append(
            {
                "peer": index + 1,
                "ratio": plan.ratio,
                "achieved_ratio": plan.achieved_ratio,
                "params": plan.params,
                "macs": plan.macs,
                "stage_channels": {name: _channels(stage) for name, stage in network.named_children()},
                "shared_with": shared,
            }
        )
    return records


def print_family(records: list[dict[str, Any]], scored: Scored, config: TrainConfig) -> None:
    """The family as a table, with a note wherever a peer is not what was asked for."""
    graph = scored.graph
    stages = [name for name in scored.stages if name != "head"]
    rows = [
        [
            str(r["peer"]), f"{r['ratio']:.1%}", f"{r['achieved_ratio']:.1%}", f"{r['params']:,}",
            f"{r['macs'] / 1e6:,.2f} M", f"{r['macs'] / graph.macs:.3f}",
            *(_stage_cell(r, name) for name in stages),
        ]
        for r in records
    ]  # fmt: skip
    header = ["peer", "asked", "got", "params", "MACs", "of full", *stages]
    say(
        f"{config.arch}, {config.method}: ratios of {config.ratio_of}, channels in multiples of {config.divisor}, "
        f"--share {config.sharing}" + (f", --trunk-ratio {config.trunk_ratio:g}" if config.trunk_ratio else "")
    )
    print_table("", header, rows)
    say("channels a stage (* shared): narrowest-widest layer")
    for note in family_notes(records, config):
        say(f"note: {note}")


def family_notes(records: list[dict[str, Any]], config: TrainConfig) -> list[str]:
    """What a user should know before training: peers far from their ratio, peers that came out alike."""
    notes = [
        f"peer {r['peer']} was asked to lose {r['ratio']:.1%} of its {config.ratio_of} and loses "
        f"{r['achieved_ratio']:.1%}: --divisor {config.divisor} allows no nearer width; a smaller divisor would"
        for r in records
        if config.divisor > 1
        and abs(gap := r["ratio"] - r["achieved_ratio"]) > 0.02
        and (gap > 0 or not config.trunk_ratio)
    ]
    notes += [
        f"peer {r['peer']} was asked to lose {r['ratio']:.1%} of its {config.ratio_of} and can lose only "
        f"{r['achieved_ratio']:.1%}: no layer may lose more than {P_UP:.0%} of its parameters"
        for r in records
        if config.divisor == 1 and r["ratio"] - r["achieved_ratio"] > 0.01
    ]
    notes += [
        f"peer {r['peer']} loses {r['achieved_ratio']:.1%} where {r['ratio']:.1%} was asked, "
        "because --trunk-ratio alone takes that much"
        for r in records
        if config.trunk_ratio and r["achieved_ratio"] - r["ratio"] > 0.02
    ]
    for first, second in itertools.pairwise(records):
        if first["stage_channels"] == second["stage_channels"] and first["params"] == second["params"]:
            notes.append(
                f"peers {first['peer']} and {second['peer']} have the same widths; they differ in their initial weights"
            )
    return notes


def target_records(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Which targets each peer's widths suit: the largest number that divides all of them, against `SUITED`."""
    return [
        {"peer": r["peer"], "multiple": multiple, "suits": [name for name, wanted in SUITED if multiple % wanted == 0]}
        for r in records
        if (multiple := math.gcd(*itertools.chain.from_iterable(r["stage_channels"].values())))
    ]


def print_targets(records: list[dict[str, Any]], full: nn.Module) -> None:
    """`target_records` in words, peers that suit the same together, and what would suit the rest."""
    alike: dict[int, list[str]] = {}
    for record in target_records(records):
        alike.setdefault(record["multiple"], []).append(str(record["peer"]))
    for multiple, peers in alike.items():
        suits = [name for name, wanted in SUITED if multiple % wanted == 0]
        say(
            f"peer{'s' * (len(peers) > 1)} {', '.join(peers)}: widths are multiples of {multiple}, "
            f"which suits {', '.join(suits) or 'no kernel well'}"
        )
    own = math.gcd(*_channels(full))
    better = [f"{name} wants {wanted}" for name, wanted in SUITED if any(multiple % wanted for multiple in alike)]
    reach = f"; the full network's own are multiples of {own}" if any(own % wanted for _, wanted in SUITED) else ""
    if better:
        say(f"{', '.join(better)} (--divisor){reach}. Every peer exports to fp32, fp16 and int8 at any width")


def share_records(scored: Scored, config: TrainConfig) -> list[dict[str, Any]]:
    """What each `--share` would make of the smallest peer, under the same ratios; null where out of reach.

    Empty for a method that says itself what is shared.
    """
    records: list[dict[str, Any]] = []
    if METHODS[config.method].fixed_shape:
        return records
    for share in share_choices(scored.stages):
        record: dict[str, Any] = {"share": share, "macs": None, "of_full": None, "params": None}
        with contextlib.suppress(OutOfReachError):
            smallest, *_ = plan_family(
                scored, list(config.ratios), share, config.ratio_of, config.divisor, config.trunk_ratio, advise=False
            )
            record |= {"macs": smallest.macs, "of_full": smallest.macs / scored.graph.macs, "params": smallest.params}
        records.append(record)
    return records


def print_share_choices(records: list[dict[str, Any]], config: TrainConfig) -> None:
    """`share_records` as a table."""
    rows = []
    for record in records:
        cells = ["out of reach", "", ""]
        if record["macs"] is not None:
            cells = [f"{record['macs'] / 1e6:,.2f} M", f"{record['of_full']:.3f}", f"{record['params']:,}"]
        rows.append([record["share"] + (" (chosen)" if record["share"] == config.sharing else ""), *cells])
    print_table("the smallest peer under each --share", ["--share", "MACs", "of full", "params"], rows)


def _channels(stage: nn.Module) -> list[int]:
    return [m.out_channels for m in stage.modules() if isinstance(m, nn.Conv2d)]


def _stage_cell(record: dict[str, Any], stage: str) -> str:
    if stage not in record["stage_channels"]:  # an exit before it
        return UNKNOWN
    return _span(record["stage_channels"][stage]) + ("*" if stage in record["shared_with"] else "")


def _span(channels: list[int]) -> str:
    low, high = min(channels), max(channels)
    return str(low) if low == high else f"{low}-{high}"
