"""Two profiles side by side: which layers find each other, and what is said of a pair."""

from __future__ import annotations

from made import made_layer, made_profile

from wmlc.layer_pairs import LayerPair, compare, joined_by

BASE = made_profile(0, [made_layer("a", 1.0, 100), made_layer("b", 2.0, 100), made_layer("other: Add", 0.3, 0, None)])


def test_layers_are_joined_by_name_else_by_position_else_not() -> None:
    cut = made_profile(1, [made_layer("b", 1.0, 50), made_layer("c", 0.5, 10)])
    assert joined_by(BASE, cut) == "name"
    pairs = compare(BASE, cut)
    assert [(pair.base and pair.base.layer, pair.peer and pair.peer.layer) for pair in pairs] == [
        ("a", None), ("b", "b"), ("other: Add", None), (None, "c"),
    ]  # fmt: skip
    foreign = made_profile(
        1, [made_layer("x", 1.0, 60), made_layer("y", 1.0, 50), made_layer("other: Add", 0.1, 0, None)]
    )
    assert joined_by(BASE, foreign) == "position"
    assert [pair.peer and pair.peer.layer for pair in compare(BASE, foreign)] == ["x", "y", "other: Add"]
    strange = made_profile(1, [made_layer("x", 1.0, 60, op="Gemm")])
    assert joined_by(BASE, strange) is None
    assert [pair.known.layer for pair in compare(BASE, strange)] == ["a", "b", "other: Add", "x"]


def test_a_pair_tells_whether_cutting_made_it_faster() -> None:
    whole = made_layer("a", 1.0, 100)
    assert LayerPair(whole, made_layer("a", 0.5, 50)).times_faster == 2.0
    assert not LayerPair(whole, made_layer("a", 0.94, 50)).no_faster
    assert LayerPair(whole, made_layer("a", 0.96, 50)).no_faster
    same = LayerPair(whole, made_layer("a", 1.2, 100))
    assert same.shared and not same.no_faster
    lone = LayerPair(None, whole)
    assert (lone.times_faster, lone.shared, lone.no_faster, lone.known) == (None, False, False, whole)
    assert LayerPair(whole, made_layer("a", 0.0, 100)).times_faster is None


def test_a_value_is_told_once_where_both_have_it() -> None:
    pair = LayerPair(made_layer("a", 1.0, 100), made_layer("a", 1.0, 50))
    assert pair.told(lambda layer: layer.macs, str, "-") == ["100", "50"]
    assert pair.told(lambda layer: layer.ms, str, "-") == ["1.0"]
    assert LayerPair(None, pair.peer).told(lambda layer: layer.macs, str, "-") == ["-", "50"]
