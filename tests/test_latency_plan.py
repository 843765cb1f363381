"""Peers for a latency: chosen, measured, corrected, by a clock whose truth is known. No engine; takes 9 s."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from resizables import AT, FakeClock, chain, graph_like

from wmlc.compress.describe import print_plan
from wmlc.compress.latency import (
    CORRECTIONS,
    as_planned,
    plan_for_latency,
    priced,
    ratios_of,
    units_of,
)
from wmlc.compress.trials import LEAST, Trials, Tried
from wmlc.compress.widths.choose import Asked, OutOfReachError, Scored, choose_widths, counts_of_peers
from wmlc.errors import InputError
from wmlc.records import LatencyPlan, WholeTime
from wmlc.settings import LATENCY

NETWORK = chain([tuple(range(4, 33, 4))] * 4)
STAGES = list(NETWORK.layers)
Truth = Callable[[np.ndarray, float], float]


def layer_ms(place: int, into: int, out: int) -> float:
    """Milliseconds of a layer, some per product of its channels; the first layers are the dearest."""
    return 0.01 + 2e-4 * (5 - place) * into * out


def as_the_table(counts_G: np.ndarray, ms: float) -> float:
    return ms


def slower(counts_G: np.ndarray, ms: float) -> float:
    """Fusion and memory make 1.2 times as much of it."""
    return 1.2 * ms


def quicker_when_narrow(counts_G: np.ndarray, ms: float) -> float:
    """Down to 0.75 times of what the table says, the more of it fits the cache."""
    return ms * (0.7 + 0.3 * counts_G.mean() / 32)


def slower_when_narrow(counts_G: np.ndarray, ms: float) -> float:
    return ms * (1.3 - 0.3 * counts_G.mean() / 32)


def scored_by(clock: FakeClock) -> Scored:
    graph = graph_like(NETWORK)
    ranks = [torch.arange(group.units) for group in graph.groups]
    return priced(Scored(graph, np.ones(len(graph.layers)), ranks, STAGES), NETWORK, clock.table(NETWORK))


def asked(peers: int = 2, share: str = "none", ratios: tuple[float, ...] = ()) -> Asked:
    return Asked(ratios or tuple(0.9 - 0.1 * k for k in range(peers)), share, LATENCY, divisor=4)


def planned(clock: FakeClock, shares: tuple[float, ...], share: str = "none") -> LatencyPlan:
    """For these shares of the whole network's milliseconds, as budgets."""
    full_ms = clock.true_ms(NETWORK, NETWORK.full)
    budgets = [own * full_ms for own in shares]
    return plan_for_latency(scored_by(clock), asked(len(shares), share), NETWORK, clock, budgets)


def test_widths_follow_the_layers_importance_unless_budgets_are_uniform() -> None:
    """A group whose layer matters fifty times as much keeps more in the same milliseconds."""
    clock, one = FakeClock(layer_ms, as_the_table), asked(1, ratios=(0.5,))
    even = scored_by(clock)
    makers = np.flatnonzero(even.graph.rows[:, 0])
    weighed = replace(even, layer_importance=np.where(np.isin(np.arange(len(NETWORK.layers)), makers), 50.0, 1.0))
    uniform, (as_even,), (as_weighed,) = (
        counts_of_peers(weighed, replace(one, uniform=True)), counts_of_peers(even, one), counts_of_peers(weighed, one)
    )  # fmt: skip
    assert uniform[0].tolist() == as_even.tolist()
    assert as_weighed[0] > as_even[0] and as_weighed[1:].sum() < as_even[1:].sum()


@pytest.mark.parametrize("truth", [as_the_table, slower, quicker_when_narrow, slower_when_narrow])
@pytest.mark.parametrize("share", ["none", "tree", "layer0"])
def test_a_plan_comes_within_its_budgets(truth: Truth, share: str) -> None:
    clock = FakeClock(layer_ms, truth)
    shares = (0.35, 0.5, 0.7) if share == "none" else (0.6, 0.7, 0.8)
    plan = planned(clock, shares, share)
    full_ms = clock.true_ms(NETWORK, NETWORK.full)
    assert plan.full_ms == full_ms and plan.at == AT
    for own, asked_share in zip(plan.peers, shares, strict=True):
        assert own.budget_ms == pytest.approx(asked_share * full_ms)
        counts_G = np.array([own.counts[name] for name in NETWORK.groups])
        assert own.ms == clock.true_ms(NETWORK, counts_G), "what was measured of those very widths"
        least = LEAST if share == "none" else 0.85  # of a tree fewer groups are a peer's own to choose
        assert least * own.budget_ms <= own.ms <= own.budget_ms
        assert own.low < own.ms < own.high and own.predicted_ms > 0
    assert [own.peer for own in plan.peers] == [1, 2, 3]
    assert 1 + 1 <= len(clock.timed) <= 1 + (1 + CORRECTIONS) + 1


def test_what_is_timed_is_the_whole_network_the_peers_and_a_cut_of_macs() -> None:
    clock = FakeClock(layer_ms, as_the_table)
    plan = planned(clock, (0.4, 0.7))
    whole, first, by_macs = clock.timed
    assert whole == [tuple(NETWORK.full.tolist())]
    peers = [tuple(own.counts[name] for name in NETWORK.groups) for own in plan.peers]
    assert first == [*peers, *by_macs], "in the same launches, and only looked up afterwards"
    macs_ms = [clock.true_ms(NETWORK, np.array(own)) for own in by_macs]
    assert [own.macs_cut_ms for own in plan.peers] == macs_ms
    graph = graph_like(NETWORK)
    for counts_G, own in zip(by_macs, plan.peers, strict=True):
        left = float(graph.size(np.array(counts_G), "macs")) / graph.macs
        assert left == pytest.approx(own.budget_ms / plan.full_ms, abs=0.05), "as large a share of the MACs"


def test_a_table_that_is_right_needs_no_correction_and_one_that_is_off_by_a_factor_one() -> None:
    for truth, tries in ((as_the_table, 1), (slower, 2)):
        clock = FakeClock(layer_ms, truth)
        plan = planned(clock, (0.4, 0.7))
        assert len(clock.timed) == 1 + tries + 1
        for own in plan.peers:
            assert own.predicted_ms == pytest.approx(own.ms), "what was learnt of the first is in the second"


def test_a_budget_above_the_whole_network_is_refused() -> None:
    clock = FakeClock(layer_ms, slower)
    with pytest.raises(InputError) as refused:
        planned(clock, (0.5, 1.1))
    full_ms = clock.true_ms(NETWORK, NETWORK.full)
    assert str(refused.value) == (
        f"peer 2 may take {1.1 * full_ms:.3g} ms, and the whole network takes {full_ms:.3g} ms here: nothing has to be "
        "cut; allow less than that"
    )


@pytest.mark.parametrize("paid_out", [1.1, 1.2])
def test_savings_are_paid_out_where_that_is_asked_for(paid_out: float) -> None:
    """Also by what was measured, as a budget is met by other widths than the table says."""
    clock, graph = FakeClock(layer_ms, slower_when_narrow), graph_like(NETWORK)
    full_ms = clock.true_ms(NETWORK, NETWORK.full)
    for least in (0.0, paid_out):
        plan = plan_for_latency(scored_by(clock), asked(2), NETWORK, clock, [0.4 * full_ms, 0.7 * full_ms], least)
        macs = [float(graph.size(units_of(own, graph), "macs")) / graph.macs for own in plan.peers]
        paid = [share * full_ms / own.ms for share, own in zip(macs, plan.peers, strict=True)]
        assert (min(paid) >= paid_out) == bool(least), paid
        assert all(LEAST * own.budget_ms <= own.ms <= own.budget_ms for own in plan.peers)


def test_savings_that_no_widths_pay_out_are_refused_and_what_would_do_is_named() -> None:
    clock = FakeClock(layer_ms, as_the_table)
    full_ms = clock.true_ms(NETWORK, NETWORK.full)
    with pytest.raises(InputError) as refused:
        plan_for_latency(scored_by(clock), asked(2), NETWORK, clock, [0.4 * full_ms, 0.7 * full_ms], 1.5)
    assert str(refused.value) == (
        "peer 2 cannot pay out 1.5: within 70.0% of the milliseconds it keeps 98.1% of the MACs at the most that were "
        "found; ask for --paid-out 1.4, or for another latency"
    )
    assert plan_for_latency(scored_by(clock), asked(2), NETWORK, clock, [0.4 * full_ms, 0.7 * full_ms], 1.4).peers


def test_a_peer_that_pays_out_but_over_its_budget_stays_where_nothing_else_does() -> None:
    clock, graph = FakeClock(layer_ms, slower_when_narrow), graph_like(NETWORK)
    full_ms = clock.true_ms(NETWORK, NETWORK.full)
    (over,) = plan_for_latency(scored_by(clock), asked(1), NETWORK, clock, [0.7 * full_ms], 1.4).peers
    assert float(graph.size(units_of(over, graph), "macs")) / graph.macs >= 1.4 * 0.7
    assert 1 < over.ms / over.budget_ms < 1.02


def least_of(clock: FakeClock) -> float:
    """How low a peer gets that shares nothing, by the table."""
    scored = scored_by(clock)
    assert scored.priced is not None
    with pytest.raises(OutOfReachError) as refused:
        choose_widths(scored, asked(1, ratios=(0.99,)), advise=False)
    return (1 - refused.value.reach) * scored.priced.cost(scored.graph.full)


def test_out_of_reach_says_how_low_it_goes_and_what_would_do() -> None:
    clock = FakeClock(layer_ms, as_the_table)
    full_ms, least_ms = clock.true_ms(NETWORK, NETWORK.full), least_of(clock)
    with pytest.raises(OutOfReachError) as refused:
        planned(clock, (0.5 * least_ms / full_ms, 0.9))
    assert str(refused.value) == (
        f"peer 1 cannot come down to {0.5 * least_ms:.3g} ms under --share none: it takes {least_ms:.3g} ms at the least, "
        "by the table (no layer may lose more than 90%); allow more; other arithmetic "
        "(--latency-precision int8) may do, measured apart"
    )


def test_another_share_is_named_where_that_would_do() -> None:
    clock = FakeClock(layer_ms, as_the_table)
    with pytest.raises(OutOfReachError) as refused:
        planned(clock, (0.3, 0.95), share="layer2")
    said = str(refused.value)
    assert said.startswith("peer 1 cannot come down to ") and "under --share layer2: it takes " in said
    assert "allow more, or pass " in said and "--share none" in said
    assert "\n" not in said
    assert planned(clock, (0.3, 0.95), share="none").peers, "and it does"


@pytest.mark.parametrize("divisor, precision, ways", [
    (1, "fp32", "; other arithmetic (--latency-precision int8) may do, measured apart"),
    (8, "int8", "; narrower widths (--divisor 4) may do, measured apart"),
    (4, "int8", "allow more"),  # an eighth of 32 channels is what it comes down to already
    (1, "int8", "allow more"),
])  # fmt: skip
def test_what_is_in_force_already_is_not_advised(divisor: int, precision: str, ways: str) -> None:
    clock = FakeClock(layer_ms, as_the_table, replace(AT, precision=precision))
    with pytest.raises(OutOfReachError) as refused:
        plan_for_latency(scored_by(clock), replace(asked(1), divisor=divisor), NETWORK, clock, [0.06])
    assert str(refused.value).endswith(ways)


def test_out_of_reach_counts_in_measured_milliseconds() -> None:
    """After the first try it is known that networks take 1.2 times as long; what is said is what was measured."""
    clock = FakeClock(layer_ms, slower)
    least_ms = least_of(clock)  # by the table; 1.2 times that in truth
    with pytest.raises(OutOfReachError) as refused:
        plan_for_latency(scored_by(clock), asked(1), NETWORK, clock, [1.1 * least_ms])
    assert f"to {1.1 * least_ms:.3g} ms" in str(refused.value)
    assert f"it takes {1.2 * least_ms:.3g} ms at the least, by what was measured" in str(refused.value)


def test_a_budget_just_above_the_least_is_met() -> None:
    """Though a little less than that is aimed for, and not reached."""
    clock = FakeClock(layer_ms, as_the_table)
    least_ms = least_of(clock)
    (own,) = plan_for_latency(scored_by(clock), asked(1), NETWORK, clock, [1.005 * least_ms]).peers
    assert own.ms == pytest.approx(least_ms) and own.ms <= own.budget_ms


def test_shares_of_the_whole_network_are_budgets_too() -> None:
    clock = FakeClock(layer_ms, quicker_when_narrow)
    full_ms = clock.true_ms(NETWORK, NETWORK.full)
    plan = plan_for_latency(scored_by(clock), asked(ratios=(0.6, 0.3, 0.0)), NETWORK, clock, [])
    assert [own.budget_ms for own in plan.peers] == pytest.approx([0.4 * full_ms, 0.7 * full_ms, full_ms])
    assert all(LEAST * own.budget_ms <= own.ms <= own.budget_ms for own in plan.peers)
    assert list(plan.peers[2].counts.values()) == NETWORK.full.tolist() and plan.peers[2].ms == full_ms
    assert ratios_of(plan) == (0.6, 0.3, 0.0)


def test_under_a_tree_shared_stages_are_the_same_for_all() -> None:
    clock = FakeClock(layer_ms, as_the_table)
    plan = planned(clock, (0.6, 0.8), share="layer1")
    one, other = plan.peers
    assert one.counts["group0"] == other.counts["group0"] and one.counts["group1"] == other.counts["group1"]
    assert one.counts != other.counts and one.ms < other.ms


def test_an_uncut_peer_leaves_shared_stages_whole() -> None:
    clock = FakeClock(layer_ms, as_the_table)
    plan = plan_for_latency(scored_by(clock), asked(share="layer0", ratios=(0.4, 0.0)), NETWORK, clock, [])
    assert plan.peers[0].counts["group0"] == 32 > plan.peers[0].counts["group1"]


def test_planned_widths_are_what_peers_get() -> None:
    """Without prices, as where a run goes on; an uncut peer that is asked for alone stays uncut."""
    clock = FakeClock(layer_ms, slower)
    plan = plan_for_latency(scored_by(clock), asked(ratios=(0.6, 0.3, 0.0)), NETWORK, clock, [])
    again = as_planned(replace(scored_by(clock), priced=None), asked(ratios=(0.6, 0.3, 0.0)), plan)
    widths = choose_widths(again, asked(ratios=(0.6, 0.3, 0.0)))
    for own, peer in zip(widths, plan.peers, strict=True):
        assert {name: len(kept) for name, kept in own.kept.items()} == peer.counts
        assert own.achieved_ratio == pytest.approx(1 - peer.ms / plan.full_ms)
    assert len(choose_widths(again, asked(ratios=(0.6, 0.3)))) == 2
    (uncut,) = choose_widths(again, asked(ratios=(0.0,)))
    assert uncut.achieved_ratio == 0 and all(len(kept) == 32 for kept in uncut.kept.values())


def test_a_plan_is_printed_with_what_misses_its_budget(capsys: pytest.CaptureFixture[str]) -> None:
    clock = FakeClock(layer_ms, as_the_table)
    plan = planned(clock, (0.4, 0.7))
    print_plan(None, graph_like(NETWORK))
    assert capsys.readouterr().out == ""
    missed = replace(plan.peers[0], budget_ms=plan.peers[0].ms / 1.1)
    print_plan(replace(plan, peers=[missed, plan.peers[1]]), graph_like(NETWORK))
    shown = " ".join(capsys.readouterr().out.split())
    assert "milliseconds in ort 1.2, fp32, 1 thread, batch 1: the whole network takes " in shown
    assert "note: peer 1 takes 10.0% more than its budget" in shown and "peer 2 takes" not in shown
    assert f"{plan.full_ms / plan.peers[1].ms:.2f}" in shown


def test_widths_within_a_budget_come_before_nearer_ones_that_are_over_it() -> None:
    def took(*ms: float) -> list[Tried]:
        return [
            Tried(
                own,
                np.array([8]),
                own,
                own,
                0.5,
                WholeTime(counts=[8], ms=own, low=own, high=own, full_ms=9, launches=6),
            )
            for own in ms
        ]

    tries = [took(4.6, 2.1), took(5.01, 2.02), took(4.7, 2.5)]
    assert [own.took.ms for own in Trials([5, 2], 9, [0, 0], True, tries).best()] == [4.7, 2.02]
    assert [own.took.ms for own in Trials([5, 2], 9, [0, 0], False, tries).best()] == [5.01, 2.02], (
        "together: the least over"
    )
