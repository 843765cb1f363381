"""Where a network's time goes, layer by layer, and why a smaller one is not as much faster as it is smaller.

Works on the profiles that `bench.json` keeps, so that nothing here needs an engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from wmlc.errors import some_of
from wmlc.layer_pairs import LayerPair, compare, joined_by
from wmlc.records import LayerTime, Profile

PAID_OUT = 0.8  # of the MAC ratio, as speed-up; below it, `where_lost` speaks
APART = 0.1  # of the time of layers that are the same, between two profiles, that needs a word
LEAST_SHARE = 0.05  # of what was lost, to be named
REORDERS = ("ReorderInput", "ReorderOutput")  # into ONNX Runtime's blocked layout and back
MOST_PLACES, MOST_LAYERS = 3, 5  # named in one line


def merge(rounds: Sequence[Sequence[LayerTime]]) -> list[LayerTime]:
    """One list of layer times of several of the same network: the median time of each layer.

    Profile the networks by turns and merge each one's, so that what slows the machine for a while slows them all.
    """
    times: dict[str, list[float]] = {}
    for layers in rounds:
        for layer in layers:
            times.setdefault(layer.layer, []).append(layer.ms)
    known = {layer.layer: layer for layers in rounds for layer in layers}
    return [replace(known[name], ms=median(ms)) for name, ms in times.items()]


def where_lost(baseline: Profile, peer: Profile, speedup_median: float | None, mac_ratio: float | None) -> str | None:
    """One line on a peer whose speed-up is under 0.8 of its MAC ratio; None for any other.

    A layer that kept the share r_l = MACs_peer / MACs_baseline should take r_l of the baseline's time, and what has no
    MACs the share R of the whole network: lost_l = t_peer − r_l t_baseline. The third part of

        T_peer − R T_baseline = Σ_layers lost_l + Σ_others lost_o + Σ_layers (r_l − R) t_baseline

    is what is lost by cutting where a MAC costs less time than elsewhere, every layer as fast as it should be. Shares
    are of the sum of all that was lost: what was won elsewhere is not set against it. Where the profile itself shows
    nothing of the loss, the line says so instead.
    """
    if not speedup_median or not mac_ratio or speedup_median >= PAID_OUT * mac_ratio:
        return None
    said = (
        f"{speedup_median:.2f} times as fast where its MACs are {mac_ratio:.2f} times fewer "
        f"({speedup_median / mac_ratio:.2f} paid out)"
    )
    if joined_by(baseline, peer) is None:
        return f"{said}; its layers are not those of {baseline.name}, so where it was lost is not known"
    pairs = compare(baseline, peer)
    base_ms, peer_ms = (sum(layer.ms for layer in profile.layers) for profile in (baseline, peer))
    if base_ms >= PAID_OUT * mac_ratio * peer_ms:
        return (
            f"{said}; not in the layers, whose times went from {base_ms:.3g} to {peer_ms:.3g} ms: outside of them, or "
            "the machine was busy"
        )
    lost_ms = {place: ms for place, ms in _losses(pairs, 1 / mac_ratio).items() if ms > 0}
    whole = sum(lost_ms.values())
    worst = sorted(lost_ms, key=lambda place: -lost_ms[place])[:MOST_PLACES]
    shown = [place for place in worst if place == worst[0] or lost_ms[place] >= LEAST_SHARE * whole]
    said += "; lost: " + ", ".join(f"{100 * lost_ms[place] / whole:.0f} % {place}" for place in shown)
    if slow := sorted((pair for pair in pairs if pair.no_faster), key=_lost_ms, reverse=True):
        said += f"; no faster: {some_of([pair.known.layer for pair in slow], MOST_LAYERS)}"
    return said + _apart_words(pairs)


def left_layout(profile: Profile) -> str | None:
    """One line on the convolutions of a network that ONNX Runtime's blocked layout does not take; None: on none."""
    left = [layer.layer for layer in profile.layers if layer.blocked is False]
    if not left:
        return None
    reordering_ms = sum(layer.ms for layer in profile.layers if layer.op in REORDERS)
    return (
        f"outside of ONNX Runtime's blocked layout, which their channels do not fit: {some_of(left, MOST_LAYERS)}; "
        f"reordering takes {reordering_ms:.3g} of {profile.profiled_ms:.3g} ms"
    )


def _lost_ms(pair: LayerPair) -> float:
    """The peer's time less as much of the baseline's as the layer kept of its MACs."""
    return _ms(pair.peer) - _ms(pair.base) * _macs(pair.peer) / _macs(pair.base)


def _ms(layer: LayerTime | None) -> float:
    return layer.ms if layer else 0.0


def _macs(layer: LayerTime | None) -> int:
    return layer.macs if layer else 0


def _apart_words(pairs: Sequence[LayerPair]) -> str:
    """A warning where the machine was not as fast in both profiles, by the times of layers that are the same."""
    same = [(p.base, p.peer) for p in pairs if p.base and p.peer and p.shared and p.base.channels == p.peer.channels]
    base_ms, peer_ms = sum(base.ms for base, _ in same), sum(peer.ms for _, peer in same)
    if not base_ms or abs(peer_ms / base_ms - 1) <= APART:
        return ""
    return (
        f"; not firm, as layers that are the same took {peer_ms / base_ms:.2f} times as long in its profile: "
        "close other programs and profile again"
    )


def _losses(pairs: Sequence[LayerPair], kept: float) -> dict[str, float]:
    """Place, in words → milliseconds lost there, negative where won; `kept` is R, the peer's share of all MACs."""
    lost: dict[str, float] = {}
    without: dict[str, float] = {}
    unevenly, level = 0.0, _level([pair.known.layer for pair in pairs if pair.known.macs])
    for pair in pairs:
        place = f"in {_place(pair.known.layer, level)}"
        if _macs(pair.base):
            unevenly += (_macs(pair.peer) / _macs(pair.base) - kept) * _ms(pair.base)
            lost[place] = lost.get(place, 0.0) + _lost_ms(pair)
        elif _macs(pair.peer):  # a layer of the peer's own
            lost[place] = lost.get(place, 0.0) + _ms(pair.peer)
        else:
            without[pair.known.op] = _ms(pair.peer) - kept * _ms(pair.base)
    most = sorted((op for op in without if without[op] > 0), key=lambda op: -without[op])[:MOST_PLACES]
    lost[f"in operators without MACs ({', '.join(most)})"] = sum(without.values())
    lost["by cutting where a MAC takes less time than elsewhere"] = unevenly
    return lost


def _place(layer: str, level: int = 1) -> str:
    """stage1 of "stage1.0.conv1", layer1 of "/layer1/layer1.0/conv1/Conv"; at level 2 stage1.0, and layer1.0."""
    first, *rest = layer.strip("/").split("/")
    while rest and rest[0].startswith(f"{first}."):  # an exporter repeats what is above
        first, *rest = rest
    return ".".join(".".join([first, *rest]).split(".")[:level])


def _level(layers: Sequence[str]) -> int:
    """The first level at which these layers lie in several modules: deeper than 1 where a wrapper holds all of them."""
    deepest = max((_place(layer, len(layer)).count(".") for layer in layers), default=1)
    return next((level for level in range(1, deepest + 1) if len({_place(each, level) for each in layers}) > 1), 1)
