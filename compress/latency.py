"""Peers for a latency: widths chosen from a table of this machine's, measured as whole networks, and corrected."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol

import numpy as np

from wmlc.compress.trials import AIM, BESIDE, Trials, Tried
from wmlc.compress.widths.choose import Asked, OutOfReachError, Planned, Scored, counts_of_peers, too_slow
from wmlc.compress.widths.graph import ChannelGraph
from wmlc.compress.widths.prices import Timed
from wmlc.console import digits, note
from wmlc.errors import InputError
from wmlc.latency_model import LatencyModel
from wmlc.models.resizable import Resizable
from wmlc.records import EngineAt, LatencyPlan, LatencyTable, PeerLatency, WholeTime
from wmlc.settings import LATENCY, TrainConfig

CORRECTIONS = 3  # of what fusion and memory make of a sum of layers
CANDIDATES = 3  # plans that a correction measures
GIFTS = (0.01, 0.02, 0.03)  # of what a peer aims at, that it may give for one that shares its stages


class Clock(Protocol):
    """What measures networks in the engine that will serve them."""

    @property
    def at(self) -> EngineAt:
        """What its milliseconds belong to."""

    def table(self, network: Resizable) -> LatencyTable:
        """The latency table of a network."""

    def time(self, network: Resizable, counts: Sequence[np.ndarray]) -> list[WholeTime]:
        """The latency of whole networks of these counts [G]."""


Clocks = Callable[[TrainConfig], AbstractContextManager[Clock]]  # that which settings ask for


class NotPaidOutError(InputError):
    """No widths within the latency of a `peer` keep as many MACs as it shall."""

    def __init__(self, words: str, peer: int) -> None:
        super().__init__(words)
        self.peer = peer


def priced(scored: Scored, network: Resizable, table: LatencyTable) -> Scored:
    """`scored` with what widths cost by the table."""
    return replace(scored, priced=Timed(scored.graph, network.levels, LatencyModel(table)))


def plan_for_latency(
    scored: Scored, asked: Asked, network: Resizable, clock: Clock, budgets_ms: Sequence[float],
    paid_out: float = 0.0, whole: int = 0,
) -> LatencyPlan:  # fmt: skip
    """Widths for the `budgets_ms` of all peers or, without any, for the shares of the whole network's in `asked`.

    Chosen by the table of what `scored` is priced by, then measured as whole networks, and what was off is corrected,
    at most three times. With `paid_out` each peer keeps at least so many times its budget's share of the milliseconds
    in MACs. Args: how many peers beside those that are asked for stay `whole`, and share nothing. Raises `InputError`
    for a latency that needs no cut, `OutOfReachError` for one that no cut comes down to, and `NotPaidOutError`.
    """
    (full,) = clock.time(network, [network.full])
    budgets_ms = list(budgets_ms) or [(1 - ratio) * full.ms for ratio in asked.ratios]
    for peer, budget_ms in enumerate(budgets_ms, 1):
        if budget_ms > full.ms:
            raise InputError(
                f"peer {peer} may take {budget_ms:.3g} ms, and the whole network takes {full.ms:.3g} ms here: nothing "
                "has to be cut; allow less than that"
            )
    shares = [budget_ms / full.ms for budget_ms in budgets_ms]
    asked = replace(asked, least_macs=tuple(paid_out * share if share < 1 else 0.0 for share in shares))
    chosen, alone = list[Tried](), list[float | None]()
    if budgets_ms:
        by_macs = _cut_by_macs(scored, asked, [1 - share for share in shares])
        untried = Trials(budgets_ms, full.ms, asked.least_macs, asked.share == "none", [])
        chosen = _trials(scored, asked, network, clock, untried, by_macs).best()
        alone = [own.ms for own in clock.time(network, by_macs)] if by_macs else [None] * len(shares)
    uncut = Tried(full.ms, network.full, full.ms, full.ms, 1.0, full)
    budgets_ms, chosen, alone = budgets_ms + [full.ms] * whole, chosen + [uncut] * whole, alone + [full.ms] * whole
    return LatencyPlan(
        at=clock.at, full_ms=full.ms,
        peers=[
            PeerLatency(
                peer=peer, budget_ms=budget_ms, predicted_ms=own.predicted_ms, ms=own.took.ms, low=own.took.low,
                high=own.took.high, macs_cut_ms=cut_ms,
                counts={name: int(count) for name, count in zip(network.groups, own.counts_G, strict=True)},
            )
            for peer, (budget_ms, own, cut_ms) in enumerate(zip(budgets_ms, chosen, alone, strict=True), 1)
        ],
        sensitivity=scored.sensitivities,
    )  # fmt: skip


def _trials(
    scored: Scored, asked: Asked, network: Resizable, clock: Clock, trials: Trials, beside: Sequence[np.ndarray]
) -> Trials:
    """Plans by what the table says, measured, and then by what was off, until all peers are near their budgets.

    Args: `trials` without any plan yet; the units of others to measure with them, as launches take longer than
    networks.
    """
    assert scored.priced is not None
    for _ in range(1 + CORRECTIONS):
        plans = _candidates(scored, asked, trials, _files_in(clock.at))
        if not plans:
            break
        took = iter(clock.time(network, [*(counts_G for _, counts in plans for counts_G in counts), *beside]))
        measured = list[list[Tried]]()
        for aims_ms, counts in plans:
            costs = [scored.priced.cost(counts_G) for counts_G in counts]
            guesses = [trials.predicted_ms(*own) for own in enumerate(costs)]
            macs = [float(scored.graph.macs_left(counts_G)) for counts_G in counts]
            measured.append(
                [Tried(*own, next(took)) for own in zip(aims_ms, counts, costs, guesses, macs, strict=True)]
            )
        trials = replace(trials, plans=[*trials.plans, *measured])
        _tell(trials)
        if trials.are_near():
            break
    return trials


def _tell(trials: Trials) -> None:
    """How near the best plan is so far."""
    took = [f"{digits(own.took.ms)} of {digits(ms)}" for own, ms in zip(trials.best(), trials.budgets_ms, strict=True)]
    note(f"plans timed as whole networks: {len(trials.plans)}; ms of budget, the best so far: {', '.join(took)}")


def _candidates(
    scored: Scored, asked: Asked, trials: Trials, precision: str
) -> list[tuple[list[float], list[np.ndarray]]]:
    """The next plans to measure, none of which was: what the table shall say at most, and the units, of all peers.

    At first one. Raises `OutOfReachError` or `NotPaidOutError` where the likeliest is out of reach, and nothing is
    known that would do.
    """
    found = list[tuple[list[float], list[np.ndarray]]]()
    for beside in BESIDE:
        aims_ms = trials.next_aims_ms(beside)
        try:
            counts = _counts_within(scored, asked, trials, aims_ms, precision)
        except (OutOfReachError, NotPaidOutError):
            if not beside and not trials.are_within():
                raise
            continue
        if not trials.know(counts):
            found.append((aims_ms, counts))
        if len(found) == (CANDIDATES if trials.plans else 1):
            break
    return found


def _files_in(at: EngineAt) -> str:
    """The precision of what an engine opens; "" of torch's, which take a network as it is trained."""
    return "" if at.engine.startswith("torch") else at.precision


def _counts_within(
    scored: Scored, asked: Asked, trials: Trials, aims_ms: Sequence[float], precision: str
) -> list[np.ndarray]:
    """The units of peers of which the table says at most these aims, or the fastest, where those are within budgets.

    Where a stage that peers share, cut for the largest of them, leaves a smaller one out of reach, the larger ones give
    of their time what their budgets do not miss. Where a correction leaves a peer nothing that pays out, it stays as it
    was. Raises `OutOfReachError` in milliseconds of budgets, of which aims are a little less, and `NotPaidOutError`.
    """
    budgets_ms, table_full_ms = trials.budgets_ms, scored.size(scored.graph.full, LATENCY)
    asked_ms = [
        table_full_ms if budget_ms == trials.full_ms else own_ms
        for budget_ms, own_ms in zip(budgets_ms, aims_ms, strict=True)
    ]
    ratios = [max(0.0, 1 - own_ms / table_full_ms) for own_ms in asked_ms]
    gifts = [] if asked.share == "none" else list(GIFTS)
    refused: tuple[OutOfReachError, Asked, float] | None = None  # first, what was asked then, and how low it went
    for _ in range((1 + len(ratios)) * (1 + len(GIFTS))):
        like = replace(asked, ratios=tuple(ratios))
        try:
            counts = counts_of_peers(scored, like, advise=False)
            _check_paid_out(scored.graph, counts, trials)
            return counts
        except NotPaidOutError as error:
            former = 1 - trials.best()[error.peer - 1].aim_ms / table_full_ms if trials.plans else None
            if former is None or ratios[error.peer - 1] == former:
                raise
            ratios[error.peer - 1] = former  # a little over its budget, if nothing else pays out
            continue
        except OutOfReachError as error:
            last, index = error, error.peer - 1
        least_ms = (1 - last.reach) * table_full_ms * AIM * budgets_ms[index] / aims_ms[index]
        if least_ms <= budgets_ms[index]:
            ratios[index] = last.reach
            continue
        refused = refused or (last, like, least_ms)
        if not gifts:
            break
        left = 1 - gifts.pop(0)
        ratios = [
            max(ratio, 1 - left * own_ms / table_full_ms) if larger > index and own_ms < table_full_ms else ratio
            for larger, (ratio, own_ms) in enumerate(zip(ratios, asked_ms, strict=True))
        ]
    if refused is None:
        raise last
    first, like, least_ms = refused
    by = "what was measured" if trials.plans else "the table"
    words = too_slow(scored, like, first.peer, budgets_ms[first.peer - 1], least_ms, precision=precision, by=by)
    raise OutOfReachError(words, first.peer, first.reach)


def _check_paid_out(graph: ChannelGraph, counts: Sequence[np.ndarray], trials: Trials) -> None:
    """Raise `NotPaidOutError` where a peer keeps fewer MACs than the least."""
    wanted = zip(counts, trials.least_macs, trials.budgets_ms, strict=True)
    for peer, (counts_G, least, budget_ms) in enumerate(wanted, 1):
        if (macs := graph.macs_left(counts_G)) < least:
            share = budget_ms / trials.full_ms
            raise NotPaidOutError(
                f"peer {peer} cannot pay out {least / share:.3g}: within {share:.1%} of the milliseconds it keeps "
                f"{macs:.1%} of the MACs at the most that were found; ask for --paid-out "
                f"{math.floor(100 * macs / share) / 100:g}, or for another latency",
                peer,
            )


def as_planned(scored: Scored, asked: Asked, plan: LatencyPlan) -> Scored:
    """`scored` with the widths of a plan; `InputError` for one that is of other groups."""
    graph, names = scored.graph, {group.root for group in scored.graph.groups}
    fit = [
        own.counts.keys() == names
        and bool((units_of(own, graph) <= graph.full).all())
        and graph.allows(units_of(own, graph))
        for own in plan.peers
    ]
    if not fit or not all(fit):
        raise InputError(
            "the recorded plan for a latency does not fit the network: it was changed, or the network's code is "
            "another now (torchvision's, timm's or yours); train anew"
        )
    counts = [units_of(own, scored.graph) for own in plan.peers]
    achieved = [1 - own.ms / plan.full_ms for own in plan.peers]
    return replace(scored, planned=Planned(asked.share, counts, achieved))


def units_of(planned: PeerLatency, graph: ChannelGraph) -> np.ndarray:
    """The units [G] that a planned peer keeps of all groups."""
    return np.array([planned.counts[group.root] for group in graph.groups], dtype=int)


def ratios_of(plan: LatencyPlan) -> tuple[float, ...]:
    """The share of the whole network's milliseconds that each peer shall lose."""
    return tuple(round(max(0.0, 1 - own.budget_ms / plan.full_ms), 4) for own in plan.peers)


def _cut_by_macs(scored: Scored, asked: Asked, ratios: Sequence[float]) -> list[np.ndarray]:
    """The units of uniform cuts that take as large a share of the MACs; none where there are none."""
    try:
        return counts_of_peers(scored, replace(asked, ratios=tuple(ratios), ratio_of="macs", uniform=True), False)
    except OutOfReachError:
        return []
