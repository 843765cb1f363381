"""Why a smaller network is not as much faster as it is smaller: where the time was lost, by two profiles."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wmlc.bench.profile import _level, _losses, _place, left_layout, merge, where_lost
from wmlc.layer_pairs import compare, joined_by
from wmlc.records import LayerTime, Profile


def profile(name: str, *rows: tuple[str, str, int, float]) -> Profile:
    """A profile by hand: (layer, operator, MACs, ms)."""
    layers = [
        LayerTime(layer=layer, op=op, ms=ms, channels=(macs, macs) if macs else None, macs=macs, bytes=None, intensity=None)
        for layer, op, macs, ms in rows
    ]  # fmt: skip
    return Profile(
        engine="ort", threads=1, batch=1, peer=0, precision="fp32", name=name,
        profiled_ms=sum(layer.ms for layer in layers), p50_ms=None, layers=layers,
    )  # fmt: skip


BASE = profile(
    "baseline", ("stage1.0.conv1", "Conv", 100, 1.0), ("stage2.0.conv1", "Conv", 100, 1.0),
    ("stage3.0.conv1", "Conv", 100, 1.0), ("other: Add", "Add", 0, 0.3),
)  # fmt: skip
PEER = profile(
    "peer1", ("stage1.0.conv1", "Conv", 100, 1.0), ("stage2.0.conv1", "Conv", 50, 0.6),
    ("stage3.0.conv1", "Conv", 30, 1.2), ("other: Add", "Add", 0, 0.27),
)  # fmt: skip


def test_the_stage_where_it_was_lost_is_named() -> None:
    """Lost: 0.1 in stage2, 0.9 in stage3, 0.27 - 0.3 x 0.6 = 0.09 without MACs, nothing by cutting unevenly."""
    assert where_lost(BASE, PEER, 3.3 / 3.07, 300 / 180) == (
        "1.07 times as fast where its MACs are 1.67 times fewer (0.64 paid out); lost: 83 % in stage3, 9 % in "
        "stage2, 8 % in operators without MACs (Add); no faster: stage3.0.conv1"
    )


def test_the_parts_add_up_to_what_was_lost() -> None:
    """T_peer - R T_baseline, whatever the layers: 3.07 - 0.6 x 3.3."""
    assert sum(_losses(compare(BASE, PEER), 0.6).values()) == pytest.approx(3.07 - 0.6 * 3.3)


def test_cutting_where_it_costs_little_is_a_loss_too() -> None:
    """Each layer as fast as its MACs, and yet: what was cut took a tenth of the time."""
    base = profile("baseline", ("a.conv", "Conv", 100, 9.0), ("b.conv", "Conv", 100, 1.0))
    peer = profile("peer1", ("a.conv", "Conv", 100, 9.0), ("b.conv", "Conv", 10, 0.1))
    assert where_lost(base, peer, 10 / 9.1, 200 / 110) == (
        "1.10 times as fast where its MACs are 1.82 times fewer (0.60 paid out); lost: 100 % by cutting where a "
        "MAC takes less time than elsewhere"
    )


@pytest.mark.parametrize(("speedup", "ratio"), [(1.5, 1.5 / 0.9), (1.0, 1.0), (2.0, 1.0), (None, 2.0), (1.0, None)])
def test_no_line_where_it_was_paid_out_or_not_measured(speedup: float | None, ratio: float | None) -> None:
    assert where_lost(BASE, PEER, speedup, ratio) is None


def test_odd_numbers_get_honest_words() -> None:
    idle = profile("baseline", ("a.conv", "Conv", 100, 0.0))
    assert (where_lost(idle, replace(idle, name="peer1"), 1.0, 2.0) or "").endswith(
        "; not in the layers, whose times went from 0 to 0 ms: outside of them, or the machine was busy"
    )
    quick = profile("peer1", *((row.layer, row.op, row.macs // 2, row.ms / 2) for row in BASE.layers))
    assert "; not in the layers, whose times went from 3.3 to 1.65 ms: outside of them" in (
        where_lost(BASE, quick, 1.5, 2.0) or ""
    )
    strange = profile("elsewhere", ("x", "Gemm", 10, 1.0))
    assert (where_lost(BASE, strange, 1.0, 2.0) or "").endswith(
        "; its layers are not those of baseline, so where it was lost is not known"
    )
    slower = profile("peer1", *((row.layer, row.op, row.macs, 1.5) for row in BASE.layers))
    assert "not firm, as layers that are the same took 1.50 times as long in its profile" in (
        where_lost(BASE, slower, 0.6, 1.0) or ""
    )


def test_many_layers_that_got_no_faster_are_counted() -> None:
    base = profile("baseline", *((f"s.{i}", "Conv", 100, 1.0) for i in range(8)))
    peer = profile("peer1", *((f"s.{i}", "Conv", 50, 1.0 + i / 100) for i in range(8)))
    assert (where_lost(base, peer, 0.97, 2.0) or "").endswith("no faster: s.7, s.6, s.5, s.4, s.3 and 3 more")


def test_layers_are_joined_by_name_else_by_position_else_not() -> None:
    moved = profile("peer1", *((f"renamed{i}", row.op, row.macs, row.ms) for i, row in enumerate(PEER.layers[:3])))
    assert [joined_by(BASE, other) for other in (PEER, moved, profile("x", ("y", "Gemm", 1, 1.0)))] == ["name", "position", None]  # fmt: skip
    by_name, by_place = compare(BASE, PEER), compare(BASE, moved)
    assert [(pair.base, pair.peer and pair.peer.ms) for pair in by_place[:3]] == [
        (pair.base, pair.peer and pair.peer.ms) for pair in by_name[:3]
    ]
    assert by_place[3].base == BASE.layers[3] and by_place[3].peer is by_place[3].times_faster is None
    assert [(p.shared, p.no_faster) for p in by_name] == [(True, False), (False, False), (False, True), (False, False)]
    apart = compare(BASE, profile("x", ("y", "Gemm", 1, 1.0)))
    assert apart[-1].base is None and apart[-1].known.ms == 1.0 and len(apart) == 5


def test_convolutions_outside_of_the_blocked_layout_are_named() -> None:
    assert left_layout(BASE) is None
    told = [replace(layer, blocked=layer.layer == "stage1.0.conv1") for layer in BASE.layers[:3]]
    assert left_layout(replace(BASE, layers=[replace(layer, blocked=True) for layer in told])) is None
    moved = LayerTime(layer="other: ReorderInput", op="ReorderInput", ms=0.25, channels=None, macs=0, bytes=None,
                      intensity=None)  # fmt: skip
    assert left_layout(replace(BASE, layers=[*told, moved])) == (
        "outside of ONNX Runtime's blocked layout, which their channels do not fit: stage2.0.conv1, stage3.0.conv1; "
        "reordering takes 0.25 of 3.3 ms"
    )


def test_profiles_of_one_network_are_merged_by_their_medians() -> None:
    rounds = [profile("peer1", ("a", "Conv", 1, ms), ("other: Add", "Add", 0, 2 * ms)).layers for ms in (1.0, 5.0, 2.0)]
    assert [layer.ms for layer in merge(rounds)] == [2.0, 4.0]
    assert merge(rounds[:1]) == rounds[0]


def test_where_a_wrapper_holds_all_the_place_is_one_level_deeper() -> None:
    within = replace(BASE, layers=[replace(layer, layer=f"net.{layer.layer}") for layer in BASE.layers])
    deeper = [layer.layer for layer in within.layers if layer.macs]
    assert _level(deeper) == 2 and _level([layer.layer for layer in BASE.layers if layer.macs]) == 1
    assert _level([]) == _level(["fc"]) == _level(["net.fc"]) == 1
    assert (
        _place("net.stage1.0.conv1", 2) == "net.stage1"
        and _place("/net/net.stage1/net.stage1.0/conv1", 2) == "net.stage1"
    )
    assert _place("/layer1/layer1.0/conv1/Conv") == "layer1"
    peer = replace(PEER, layers=[replace(layer, layer=f"net.{layer.layer}") for layer in PEER.layers])
    said, plain = (where_lost(*each, 3.3 / 3.07, 300 / 180) or "" for each in ((within, peer), (BASE, PEER)))
    assert said.replace("net.", "") == plain and " % in net.stage3" in said
