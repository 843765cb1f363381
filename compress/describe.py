"""A prepared family as records and as tables: what each peer keeps, and what sharing does to it."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from wmlc.compress.config import sharing, trained_ratios
from wmlc.compress.latency import units_of
from wmlc.compress.learn.methods import METHODS
from wmlc.compress.prepare import Prepared, asked_of
from wmlc.compress.widths import tree
from wmlc.compress.widths.budget import P_UP
from wmlc.compress.widths.choose import Asked, OutOfReachError, Scored, choose_widths
from wmlc.compress.widths.graph import ChannelGraph
from wmlc.compress.worth import budget_of, rank_of
from wmlc.console import UNKNOWN, digits, say
from wmlc.errors import some_of
from wmlc.models.stages import own_names
from wmlc.records import Epoch, LatencyPlan, Phase, Sensitivity, lost_without
from wmlc.run import peer_name
from wmlc.settings import LATENCY, SENSITIVITY, TrainConfig
from wmlc.table import Table

# Multiples of channels that each target's kernels work in; other widths run too, on padding.
SUITED = (("fp32 on AVX2 CPUs", 8), ("fp16 on GPUs", 8), ("fp32 on AVX-512 CPUs", 16), ("int8 on CPUs and GPUs", 32))
MOST_NAMED = 3  # layers or groups that a line names


@dataclass(frozen=True, kw_only=True)
class PeerFacts:
    """What is known of a peer before its first step; with its top-1 that is a `records.Peer`."""

    peer: int
    ratio: float  # as asked
    achieved_ratio: float
    params: int
    macs: int
    left_out: list[str]  # residual blocks
    stage_channels: dict[str, list[int]]  # each convolution's, by stage
    shared_with: dict[str, list[int]]  # stage → the peers that share it, this one among them


@dataclass(frozen=True)
class Target:
    """Which hardware a peer's widths suit, `multiple` being the largest number that divides all of them."""

    peer: int
    multiple: int
    suits: list[str]


@dataclass(frozen=True)
class ShareChoice:
    """What one `--share` would make of the smallest peer; None where its ratio is out of reach."""

    share: str
    macs: int | None = None
    of_full: float | None = None  # of its MACs
    params: int | None = None


def peer_facts(prepared: Prepared) -> list[PeerFacts]:
    """Of each peer: ratio asked and got, costs, blocks left out, channels a stage, what is shared."""
    family, named = prepared.family, own_names(prepared.made.staged)
    return [
        PeerFacts(
            peer=peer, ratio=own.ratio, achieved_ratio=own.achieved_ratio, params=own.params, macs=own.macs,
            left_out=list(map(named, own.left_out)),
            stage_channels={
                name: _channels(stage, linear=name != "head") for name, stage in family.peer(peer).named_children()
            },
            shared_with={b.stage: list(b.peers) for b in family.branches if peer in b.peers and len(b.peers) > 1},
        )
        for peer, own in enumerate(prepared.widths, 1)
    ]  # fmt: skip


def print_prepared(prepared: Prepared, peers: list[PeerFacts], config: TrainConfig) -> None:
    """What a run shows before its first step: its plan for a latency, its family, its stages."""
    print_plan(prepared.plan, prepared.scored.graph)
    print_family(peers, prepared.scored, config)
    print_stages(prepared)


def print_plan(plan: LatencyPlan | None, graph: ChannelGraph) -> None:
    """What each peer may take, is predicted to and does, and what a cut of MACs alone would have given."""
    if plan is None:
        return
    rows = []
    for own in plan.peers:
        macs, speedup = graph.macs_left(units_of(own, graph)), plan.full_ms / own.ms
        rows.append([
            str(own.peer), digits(own.budget_ms), digits(own.predicted_ms),
            f"{digits(own.ms)} [{digits(own.low)}, {digits(own.high)}]", f"{speedup:.2f}", f"{macs:.3f}",
            f"{speedup * macs:.2f}", digits(own.macs_cut_ms),
        ])  # fmt: skip
    say(f"milliseconds in {plan.at.words}: the whole network takes {digits(plan.full_ms)}")
    titles = ["peer", "budget", "predicted", "measured", "speed-up", "MACs of full", "paid out", "cut by MACs"]
    Table(titles, rows).show()
    say("paid out: speed-up over the saving of MACs")
    say("cut by MACs: what a uniform cut takes that leaves the budget's share of the MACs, measured too")
    for own in plan.peers:
        if own.ms > own.budget_ms:
            say(f"note: peer {own.peer} takes {own.ms / own.budget_ms - 1:.1%} more than its budget")


def print_family(peers: list[PeerFacts], scored: Scored, config: TrainConfig) -> None:
    """The family as a table, with a note wherever a peer is not what was asked for."""
    stages = [name for name in scored.stages if name != "head"]
    rows = [
        [
            str(p.peer), f"{p.ratio:.1%}", f"{p.achieved_ratio:.1%}", f"{p.params:,}", f"{p.macs / 1e6:,.2f} M",
            f"{p.macs / scored.graph.macs:.3f}", *(_channels_of_stage(p, name) for name in stages),
        ]
        for p in peers
    ]  # fmt: skip
    cuts = "" if METHODS[config.method].exits else f", rank {rank_of(config)}, budget {budget_of(config)}"
    say(
        f"{config.arch}, {config.method}: ratios of {config.ratio_of}, channels in multiples of {config.divisor}, "
        f"--share {sharing(config)}" + f", --trunk-ratio {config.trunk_ratio:g}" * bool(config.trunk_ratio) + cuts
    )
    Table(["peer", "asked", "got", "params", "MACs", "of full", *stages], rows).show()
    if stages:
        say("channels a stage (* shared): narrowest-widest layer")
    blocks = len(scored.graph.blocks)
    for peer in peers:
        if peer.left_out:
            names = ", ".join(peer.left_out)
            say(f"peer {peer.peer} is without {len(peer.left_out)} of {blocks} residual blocks: {names}")
    print_sensitivities(scored.sensitivities, scored.graph.named)
    for note in family_notes(peers, config):
        say(f"note: {note}")


def print_sensitivities(sensitivities: Sequence[Sensitivity], named: Callable[[str], str] = str) -> None:
    """Whose channels, and which blocks, matter most and least to a start's answers, if that was measured.

    Args: what a layer is `named` in the network itself.
    """
    _print_extremes("by about half of a group's channels", {named(own.group): own.by_half for own in sensitivities})
    _print_extremes("without a residual block", {named(own): lost for own, lost in lost_without(sensitivities).items()})


def _print_extremes(how: str, nats: Mapping[str, float]) -> None:
    if not nats:
        return
    ranked = [f"{name} {lost:.2g}" for name, lost in sorted(nats.items(), key=lambda own: own[1])]
    count = max(1, min(MOST_NAMED, len(ranked) // 2))
    most, least = ", ".join(ranked[: -count - 1 : -1]), ", ".join(ranked[:count])
    say(f"nats that the start's answers lose {how}: most {most}; least {least}")


def print_stages(prepared: Prepared) -> None:
    """Where a network that is not built of stages was cut into them, and what is left whole, by its own names."""
    staged, graph = prepared.made.staged, prepared.scored.graph
    if staged is not None and len(staged.ends) > 1:
        say(
            "stages end with "
            + ", ".join(f"{stage} {module or 'its last step'}" for stage, module in staged.ends.items())
        )
    for note in left_whole_notes(prepared):
        say(f"note: {note}")
    if staged is not None:
        whole = sum(len(left.layers) for left in graph.left_whole)
        said = f"channels: {len(graph.groups)} groups, each proven exact before it is cut; {whole} layers left whole"
        say(said + f"; {len(graph.blocks)} residual blocks can be left out" * bool(graph.blocks))


def left_whole_notes(prepared: Prepared) -> list[str]:
    """A line for each reason why layers are left whole."""
    named = own_names(prepared.made.staged)
    layers: dict[str, list[str]] = {}
    for left in prepared.scored.graph.left_whole:
        layers.setdefault(re.sub(r"\d+", "N", left.why), []).append(named(left.layers[0]) or "the network itself")
    reasons = {re.sub(r"\d+", "N", left.why): left.why for left in reversed(prepared.scored.graph.left_whole)}
    return [
        f"left whole: the channels of {some_of(names, MOST_NAMED)} ({reasons[alike]})"
        for alike, names in layers.items()
    ]


def family_notes(peers: list[PeerFacts], config: TrainConfig) -> list[str]:
    """What a user should know before training: peers far from their ratio, peers that came out alike."""
    coarse = f"--divisor {config.divisor} allows no nearer width; a smaller divisor would"
    if budget_of(config) == SENSITIVITY:
        coarse = "widths in eighths of a layer's come no nearer, or lose more answers; --budget uniform may come nearer"
    told = config.ratio_of == LATENCY  # by the plan's own table
    notes = [
        f"peer {p.peer} was asked to lose {p.ratio:.1%} of its {config.ratio_of} and loses "
        f"{p.achieved_ratio:.1%}: {coarse}"
        for p in peers
        if not told
        and config.divisor > 1
        and abs(gap := p.ratio - p.achieved_ratio) > 0.02
        and (gap > 0 or not config.trunk_ratio)
    ]
    notes += [
        f"peer {p.peer} was asked to lose {p.ratio:.1%} of its {config.ratio_of} and can lose only "
        f"{p.achieved_ratio:.1%}: no layer may lose more than {P_UP:.0%} of its parameters"
        for p in peers
        if not told and config.divisor == 1 and p.ratio - p.achieved_ratio > 0.01
    ]
    notes += [
        f"peer {p.peer} loses {p.achieved_ratio:.1%} where {p.ratio:.1%} was asked, "
        "because --trunk-ratio alone takes that much"
        for p in peers
        if config.trunk_ratio and p.achieved_ratio - p.ratio > 0.02
    ]
    alike = "they begin with the same weights" if config.start else "they differ in their initial weights"
    return notes + [
        f"peers {one.peer} and {other.peer} have the same widths; {alike}"
        for one, other in itertools.pairwise(peers)
        if one.stage_channels == other.stage_channels and one.params == other.params
    ]


def print_epoch_header(phase: Phase, peers: int, epochs: int) -> None:
    """What the columns are that `print_epoch` fills."""
    accuracies = [*map(peer_name, range(1, peers + 1)), "ensemble"] if peers > 1 else ["top-1"]
    columns = f"peer1 … {accuracies[-1]}" if peers > 1 else accuracies[-1]
    say(f"loss: of training{', mean over peers' * (peers > 1)}; {columns}: held-out images, %; left: of the whole run")
    say(_epoch_line(phase, "epoch", epochs, "loss", accuracies, "images/s", "left"), "bold")


def print_epoch(phase: Phase, epoch: Epoch, epochs: int, left: str) -> None:
    """An epoch as a line; the loss is the mean over peers, and so the same whatever their number.

    Args: of so many `epochs`; the time `left` until the run's end.
    """
    values = [*epoch.top1, epoch.ensemble_top1] if len(epoch.top1) > 1 else epoch.top1
    say(
        _epoch_line(
            phase, f"{epoch.epoch}/{epochs}", epochs, f"{epoch.mean_loss:.3f}", [f"{value:.2f}" for value in values],
            f"{epoch.images_per_s:,.0f}", left,
        )
    )  # fmt: skip


def _epoch_line(
    phase: Phase, epoch: str, epochs: int, loss: str, top1: Sequence[str], images_per_s: str, left: str
) -> str:
    own = "".join(f"  {text:>6}" for text in top1[:-1])
    start = f"{phase:<8} {epoch:>{max(5, 2 * len(str(epochs)) + 1)}}  {loss:>6}{own}"
    return f"{start}  {top1[-1]:>{8 if own else 6}}  {images_per_s:>8}  {left:>8}"


def targets(peers: list[PeerFacts]) -> list[Target]:
    """Which targets each peer's widths suit."""
    return [
        Target(p.peer, multiple, _suited(multiple))
        for p in peers
        if (multiple := math.gcd(*itertools.chain.from_iterable(p.stage_channels.values())))
    ]


def print_targets(peers: list[PeerFacts], full: nn.Module) -> None:
    """`targets` in words, peers that suit the same together, and what would suit the rest."""
    alike: dict[int, list[str]] = {}
    for target in targets(peers):
        alike.setdefault(target.multiple, []).append(str(target.peer))
    for multiple, numbers in alike.items():
        say(
            f"peer{'s' * (len(numbers) > 1)} {', '.join(numbers)}: widths are multiples of {multiple}, "
            f"which suits {', '.join(_suited(multiple)) or 'no kernel well'}"
        )
    own = math.gcd(*_channels(full))
    better = [f"{name} wants {wanted}" for name, wanted in SUITED if any(multiple % wanted for multiple in alike)]
    reach = f"; the full network's own are multiples of {own}" if any(own % wanted for _, wanted in SUITED) else ""
    if better:
        say(f"{', '.join(better)} (--divisor){reach}. Every peer exports to fp32, fp16 and int8 at any width")


def compare_shares(scored: Scored, config: TrainConfig) -> list[ShareChoice]:
    """What each `--share` would make of the smallest peer, under the same ratios.

    Empty for a method that says itself what is shared, and for one peer alone.
    """
    ratios = trained_ratios(config)
    if METHODS[config.method].fixed_shape or len(ratios) < 2:
        return []
    asked = replace(asked_of(config), ratios=ratios)
    return [_share_choice(scored, replace(asked, share=share)) for share in tree.share_choices(scored.stages)]


def _share_choice(scored: Scored, asked: Asked) -> ShareChoice:
    try:
        smallest, *_ = choose_widths(scored, asked, advise=False)
    except OutOfReachError:
        return ShareChoice(asked.share)
    return ShareChoice(asked.share, smallest.macs, smallest.macs / scored.graph.macs, smallest.params)


def print_share_choices(choices: list[ShareChoice], config: TrainConfig) -> None:
    """`compare_shares` as a table."""
    rows = [
        [
            choice.share + (" (chosen)" if choice.share == sharing(config) else ""),
            "out of reach" if choice.macs is None else f"{choice.macs / 1e6:,.2f} M",
            "" if choice.of_full is None else f"{choice.of_full:.3f}",
            "" if choice.params is None else f"{choice.params:,}",
        ]
        for choice in choices
    ]
    Table(["--share", "MACs", "of full", "params"], rows, "the smallest peer under each --share").show()


def _suited(multiple: int) -> list[str]:
    return [name for name, wanted in SUITED if multiple % wanted == 0]


def _channels(stage: nn.Module, linear: bool = False) -> list[int]:
    """Of each convolution; where there is none, of each `linear` layer too."""
    convolutions = [module.out_channels for module in stage.modules() if isinstance(module, nn.Conv2d)]
    layers = stage.modules() if linear and not convolutions else ()
    return convolutions or [module.out_features for module in layers if isinstance(module, nn.Linear)]


def _channels_of_stage(peer: PeerFacts, stage: str) -> str:
    if stage not in peer.stage_channels:  # an exit before it
        return UNKNOWN
    channels = peer.stage_channels[stage]
    if not channels:  # nothing but pooling, or norms
        return UNKNOWN
    low, high = min(channels), max(channels)
    return (str(low) if low == high else f"{low}-{high}") + ("*" if stage in peer.shared_with else "")
