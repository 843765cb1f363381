"""What visits to whole networks say of a layer at each pair of its widths, and of networks from their layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from wmlc.bench.intervals import times_interval
from wmlc.bench.latency.untold import layers_told
from wmlc.latency_model import LatencyModel
from wmlc.models.resizable import Resizable
from wmlc.records import LatencyTable, LayerShape, Point, ShapeTimes, Visit

Pair = tuple[int, int]  # channels in, channels out
LEAST_MS = 1e-4  # of what is divided by


def with_points(
    table: LatencyTable, network: Resizable, design_DG: np.ndarray, shape_of: Mapping[str, LayerShape],
    known: Sequence[ShapeTimes] = (),
) -> LatencyTable:  # fmt: skip
    """`table` with what its visits say: the points of each shape, and how a whole network follows from its layers.

    Args: what other networks' tables `known` of the same shapes, which counts where this one has no point.
    """
    channels_DL2 = np.array([network.channels(counts_G) for counts_G in design_DG])
    visits = with_layer_times(table.visits, channels_DL2, [shape_of.get(layer) for layer in table.layers])
    elsewhere: dict[LayerShape, dict[Pair, Point]] = {}
    for other in known:
        elsewhere.setdefault(other.shape, {}).update({_pair(point): point for point in other.points})
    shapes = []
    for shape, layers in _layers_of(table.layers, shape_of).items():
        own = _points(table.layers, visits, layers, channels_DL2)
        found = elsewhere.get(shape, {}) | {_pair(point): point for point in own}
        points = [found[pair] for pair in sorted(found)]
        shapes.append(ShapeTimes(shape=shape, layers=layers, points=points))
    table = replace(table, shapes=shapes)
    return _scaled(table, channels_DL2) if table.visits else table


def widest_interval(table: LatencyTable) -> float:
    """Half the 95 % interval of the table's points over their milliseconds: the mean, each weighed by its time."""
    points = [point for own in table.shapes for point in own.points]
    return sum(point.high - point.low for point in points) / 2 / max(sum(point.ms for point in points), LEAST_MS)


def _pair(point: Point) -> Pair:
    return point.channels_in, point.channels_out


def _layers_of(layers: Sequence[str], shape_of: Mapping[str, LayerShape]) -> dict[LayerShape, list[str]]:
    by_shape: dict[LayerShape, list[str]] = {}
    for layer in layers:
        if layer in shape_of:  # else it has lost its name, and its time is in the overhead
            by_shape.setdefault(shape_of[layer], []).append(layer)
    return by_shape


def with_layer_times(
    visits: Sequence[Visit], channels_DL2: np.ndarray, shape_of_L: Sequence[LayerShape | None]
) -> list[tuple[int, Visit]]:
    """Each visit with its round, and with what its layers took: where the engine does not say, told round by round."""
    rounds: dict[int, list[Visit]] = {}
    for number, visit in numbered(visits):
        rounds.setdefault(number, []).append(visit)
    found = []
    for number, own in rounds.items():
        if untold := [visit for visit in own if not visit.layers]:
            ms_V, designs_V = np.array([visit.ms for visit in untold]), np.array([visit.design for visit in untold])
            layers_DL = layers_told(ms_V, designs_V, channels_DL2, shape_of_L)
            own = [replace(visit, layers=layers_DL[visit.design].tolist()) for visit in own]
        found += [(number, visit) for visit in own]
    return found


def _points(
    known: Sequence[str], visits: Sequence[tuple[int, Visit]], layers: Sequence[str], channels_DL2: np.ndarray
) -> list[Point]:
    """The points of a shape that `layers` have: of each round, which is a launch, the median over its visits.

    Args: all layers, in the order of the visits.
    """
    place = {layer: index for index, layer in enumerate(known)}
    indices = [place[layer] for layer in layers]
    found: dict[Pair, dict[int, list[float]]] = {}
    blocked: dict[Pair, bool | None] = {}
    for round_, visit in visits:
        for index in indices:
            pair = int(channels_DL2[visit.design, index, 0]), int(channels_DL2[visit.design, index, 1])
            found.setdefault(pair, {}).setdefault(round_, []).append(visit.layers[index])
            if blocked.get(pair) is not False:
                blocked[pair] = visit.blocked[index] if visit.blocked else None
    return [_point(pair, rounds, blocked[pair]) for pair, rounds in found.items()]


def _point(pair: Pair, rounds: Mapping[int, Sequence[float]], blocked: bool | None) -> Point:
    launches = [np.array([np.median(own)]) for own in rounds.values()]
    ms = float(np.median(np.concatenate(launches)))
    low, high = times_interval(launches, 0) if len(launches) > 1 else (ms, ms)
    return Point(*pair, ms, low, high, len(launches), blocked)


def numbered(visits: Sequence[Visit]) -> list[tuple[int, Visit]]:
    """Each visit with the round that it was made in: the how manyth of its networks."""
    seen: dict[int, int] = {}
    found = []
    for visit in visits:
        seen[visit.design] = seen.get(visit.design, 0) + 1
        found.append((seen[visit.design], visit))
    return found


def _scaled(table: LatencyTable, channels_DL2: np.ndarray) -> LatencyTable:
    """`table` with the line that whole networks follow from their layers by, nearest to all in relative errors."""
    model = LatencyModel(replace(table, overhead_ms=0.0))
    by_design: dict[int, list[float]] = {}
    for visit in table.visits:
        by_design.setdefault(visit.design, []).append(visit.ms)
    measured_D = np.array([np.median(own) for own in by_design.values()])
    sums_D = np.array([model.layers_ms(table.layers, channels_DL2[design]).sum() for design in by_design])
    terms_D2 = np.stack([np.ones_like(sums_D), sums_D], axis=1) / measured_D[:, None]
    (overhead_ms, scale), *_ = np.linalg.lstsq(terms_D2, np.ones_like(measured_D), rcond=None)
    if len(by_design) < 3 or not scale > 0:
        overhead_ms, scale = 0.0, float(np.median(measured_D / np.maximum(sums_D, LEAST_MS)))
    off_D = np.abs((overhead_ms + scale * sums_D) / measured_D - 1)
    return replace(table, overhead_ms=float(overhead_ms), scale=float(scale), error=float(np.median(off_D)))
