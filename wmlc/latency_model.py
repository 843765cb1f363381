"""How long a network takes at any widths, by a latency table.

L layers, N networks
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from wmlc.records import LatencyTable, Point


class Surface:
    """The milliseconds of a layer over its channels: as measured, and between the points that were measured as well.

    Between them it is the one a + b·in + c·out + d·in·out that fits best (to relative errors), bent to the nearest
    point.
    """

    def __init__(self, points: Sequence[Point]) -> None:
        self._known = {(point.channels_in, point.channels_out): point.ms for point in points}
        self._places_P2 = np.array(list(self._known), dtype=float)
        self._ms_P = np.maximum(np.array(list(self._known.values())), 1e-6)
        terms_P4 = _terms(self._places_P2)
        self._fit_4, *_ = np.linalg.lstsq(terms_P4 / self._ms_P[:, None], np.ones(len(points)), rcond=None)

    def at(self, channels_in: int, channels_out: int) -> float:
        """Milliseconds at these channels."""
        known = self._known.get((channels_in, channels_out))
        if known is None:
            place_2 = np.array([channels_in, channels_out], dtype=float)
            near = int(np.abs(np.log(self._places_P2 / place_2)).sum(1).argmin())
            fitted, there = _terms(np.stack([place_2, self._places_P2[near]])) @ self._fit_4
            bent = self._ms_P[near] * fitted / there if min(fitted, there) > 0 else self._ms_P[near]
            known = self._known[channels_in, channels_out] = float(bent)
        return known


def _terms(places_P2: np.ndarray) -> np.ndarray:
    ins_P, outs_P = places_P2.T
    return np.stack([np.ones_like(ins_P), ins_P, outs_P, ins_P * outs_P], axis=1)


class LatencyModel:
    """What a latency table says of its network at any widths, and without some of its layers.

    An overhead below zero is what the engine's profiler adds to each layer, and goes with the layers.
    """

    def __init__(self, table: LatencyTable) -> None:
        by_layer: dict[str, Surface] = {}
        for own in table.shapes:
            surface = Surface(own.points)
            by_layer |= dict.fromkeys(own.layers, surface)
        self._by_layer: Mapping[str, Surface] = by_layer
        self.overhead_ms, self.scale = max(0.0, table.overhead_ms), table.scale
        self._each_ms = min(0.0, table.overhead_ms) / (table.scale * max(1, len(by_layer)))

    def layer_ms(self, layer: str, channels_in: int, channels_out: int) -> float:
        """The milliseconds of one layer; 0 where the table does not know it, as its time is in the overhead."""
        surface = self._by_layer.get(layer)
        return surface.at(channels_in, channels_out) + self._each_ms if surface else 0.0

    def layers_ms(self, layers: Sequence[str], channels_L2: np.ndarray) -> np.ndarray:
        """The milliseconds of each layer that takes and gives so many channels, [L]."""
        return np.array([self.layer_ms(name, *map(int, own)) for name, own in zip(layers, channels_L2, strict=True)])

    def whole(self, layers_ms: float) -> float:
        """The milliseconds of a network whose layers take so many together."""
        return self.overhead_ms + self.scale * layers_ms

    def total(self, layers: Sequence[str], channels_L2: np.ndarray) -> float:
        """The milliseconds of a network whose layers take and give so many channels."""
        return self.whole(float(self.layers_ms(layers, channels_L2).sum()))
