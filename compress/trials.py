"""Widths that were tried for latencies: what they took, which are best, and where better ones shall be looked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wmlc.records import WholeTime

AIM = 0.985  # of a budget, so that what is measured next time is within it too
LEAST = 0.95  # of a budget, that a peer takes unless its widths allow no nearer
BESIDE = (0.0, -0.01, 0.01, -0.02, 0.02, -0.03, 0.03)  # the likeliest aim, for whom that has nothing new


@dataclass(frozen=True)
class Tried:
    """Widths of a peer, what the table was to say of them at most and does, and what the whole network took."""

    aim_ms: float
    counts_G: np.ndarray
    table_ms: float
    predicted_ms: float
    macs: float  # of the whole network's
    took: WholeTime


@dataclass(frozen=True)
class Trials:
    """All plans that were measured for peers of these budgets, which share no stage where they are `apart`."""

    budgets_ms: Sequence[float]
    full_ms: float  # what the whole network takes
    least_macs: Sequence[float]  # that each peer shall keep
    apart: bool
    plans: list[list[Tried]]

    def of(self, peer: int) -> list[Tried]:
        """Widths that a peer could have: apart, also what was tried for others, which is worth most in its time too."""
        return [own for plan in self.plans for own in (plan if self.apart else [plan[peer]])]

    def predicted_ms(self, peer: int, table_ms: float) -> float:
        """What a network takes of which the table says `table_ms`, by those that were measured on either side."""
        known = sorted((own.table_ms, own.took.ms / own.table_ms) for own in self.of(peer))
        if not known:
            return table_ms
        at_ms, factors = np.array(known).T
        return table_ms * float(np.interp(table_ms, at_ms, factors))

    def best(self) -> list[Tried]:
        """Of each peer the slowest widths within its budget or, where there are none, those that are least over it.

        Together where peers share stages: the plan whose worst is best.
        """

        def miss(own: Tried, budget_ms: float) -> float:
            over = own.took.ms / budget_ms - 1
            return 1 + over if over > 0 else -over

        if self.apart:
            return [
                min((own for own in self.of(peer) if own.macs >= least), key=lambda own: miss(own, budget_ms))
                for peer, (budget_ms, least) in enumerate(zip(self.budgets_ms, self.least_macs, strict=True))
            ]
        return min(self.plans, key=lambda each: max(map(miss, each, self.budgets_ms)))

    def are_within(self) -> bool:
        """Whether there are widths within the budgets for all peers."""
        return bool(self.plans) and all(map(is_within, self.best(), self.budgets_ms))

    def are_near(self) -> bool:
        """Whether that is so and leaves little of any budget."""
        return bool(self.plans) and all(map(is_near, self.best(), self.budgets_ms))

    def know(self, counts: Sequence[np.ndarray]) -> bool:
        """Whether all these widths of peers were measured."""
        return all(any((own_G == own.counts_G).all() for own in self.of(peer)) for peer, own_G in enumerate(counts))

    def next_aims_ms(self, beside: float) -> list[float]:
        """What the table shall say at most of the next widths of all peers, this far `beside` what is likeliest."""
        if not self.plans:
            return [(1 + beside) * AIM * budget_ms for budget_ms in self.budgets_ms]
        return [
            own.aim_ms if is_near(own, budget_ms) else (1 + beside) * self._likeliest_ms(peer)
            for peer, (own, budget_ms) in enumerate(zip(self.best(), self.budgets_ms, strict=True))
        ]

    def _likeliest_ms(self, peer: int) -> float:
        """Between the widest that were within the budget and the narrowest that were over it, as if time were linear.

        As far off as the ones or the others, where there is only either.
        """
        tried, budget_ms = self.of(peer), self.budgets_ms[peer]
        low_ms = max((own.table_ms for own in tried if is_within(own, budget_ms)), default=0.0)
        over = [own.table_ms for own in tried if own.table_ms > low_ms and not is_within(own, budget_ms)]
        ends = sorted(
            (own.took.ms, own.table_ms) for own in tried if own.table_ms in (low_ms, min(over, default=low_ms))
        )
        took_ms, table_ms = np.array(ends).T
        if low_ms and over:
            return float(np.interp(AIM * budget_ms, took_ms, table_ms))
        return float(AIM * budget_ms * table_ms[0] / took_ms[0])


def is_within(own: Tried, budget_ms: float) -> bool:
    return own.took.ms <= budget_ms


def is_near(own: Tried, budget_ms: float) -> bool:
    """Within a budget, of which little is left."""
    return LEAST * budget_ms <= own.took.ms <= budget_ms
