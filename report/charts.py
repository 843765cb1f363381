"""Charts as Vega-Lite specifications: plain dicts. Colours by name only, as the page sets them for light and dark."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from wmlc.report.palette import ALARM, DASHES, GREY
from wmlc.report.series import GroupBar, LayerRow, Lines, Point, ScenarioBar, WidthBar
from wmlc.stats import pareto_front

Spec = dict[str, Any]

FEW_EPOCHS = 40  # up to here every epoch gets a mark on its line
LETTER, HALF_A_PAGE = 6, 340  # pixels: of a letter, and of a plot beside another one
FLAT_MARGIN = 0.02  # of the value: what an axis shows on each side of the only one that there is
FEW_TICKS = 10  # up to here every epoch gets its number on the axis
FILLS = {"fp16": 0.4, "int8": 0.0}  # how full a point is, other than fp32's: precision without colour
COLUMNS = {"speed": 10, "channels": 82, "macs": 202, "intensity": 302}  # pixels right of the layers' bars


def widened(scale: Spec, values: Iterable[float | None]) -> Spec:
    """`scale` with a domain around the only value that there is, as Vega rounds the tick of a domain without width."""
    ends = around([value for value in values if value is not None])
    return scale if ends is None else {**scale, "domain": ends}


def around(values: Sequence[float]) -> list[float] | None:
    """The ends of a domain around `values` that are all equal; None where they span one."""
    if not values or max(values) - min(values) > 1e-9 * max(map(abs, values)):
        return None
    margin = FLAT_MARGIN * (abs(values[0]) or 1.0)
    return [values[0] - margin, values[0] + margin]


def accuracy_chart(points: Sequence[Point], cost: str, title: str, domain: Sequence[str], by: str) -> Spec:
    """Top-1 over `cost` ("p50", "params" or "macs"), with intervals where there are any, and each data's Pareto front.

    Args: `by` names what colour and shape stand for, "network" or "run", and `domain` lists all of these.
    """
    scale = {"zero": False, "padding": 16}
    costs = [
        end for point in points for end in (vars(point)[cost], *((point.low, point.high) if cost == "p50" else ()))
    ]
    tops = [end for point in points for end in (point.top1, point.top1_low, point.top1_high)]
    x: Spec = {"field": cost, "type": "quantitative", "title": title, "scale": widened(scale, costs)}
    if cost != "p50":
        x["axis"] = {"format": "~s"}
    y = {"field": "top1", "type": "quantitative", "title": "top-1, %", "scale": widened(scale, tops)}
    who = _who(by, domain, [vars(point)[by] for point in points], least=1 if by == "run" else 2)
    hollow = [{"test": f"datum.precision === '{name}'", "value": fill} for name, fill in FILLS.items()]
    fronts: list[Spec] = [
        {
            "data": {"values": [{cost: vars(point)[cost], "top1": point.top1} for point in front]},
            "mark": {"type": "line", "interpolate": "step-after", "strokeDash": [3, 3], "strokeWidth": 1.5},
            "encoding": {"x": x, "y": y, "color": {"value": GREY}},
        }
        for front in _fronts(points, cost)
    ]
    layers: list[Spec] = [
        {
            "mark": {"type": "point", "size": 110, "strokeWidth": 2, "opacity": 1},
            "encoding": {
                "x": x,
                "y": y,
                "shape": who,
                "stroke": who,
                "fill": who,
                "fillOpacity": {"condition": hollow, "value": 1},
                "tooltip": _point_tips(by),
            },
        },
    ]
    if cost == "p50" and any(point.low is not None for point in points):
        ends = {"x": {**x, "field": "low"}, "x2": {"field": "high"}, "y": y, "stroke": who}
        layers.insert(0, {"mark": {"type": "rule", "strokeWidth": 2}, "encoding": ends})
    if any(point.top1_low is not None for point in points):
        ends = {"x": x, "y": {**y, "field": "top1_low"}, "y2": {"field": "top1_high"}, "stroke": who}
        layers.insert(0, {"mark": {"type": "rule", "strokeWidth": 1}, "encoding": ends})
    if by == "run":
        words = {"x": x, "y": y, "text": {"field": "number"}}
        layers.append({"mark": {"type": "text", "dy": -13, "fontSize": 11}, "encoding": words})
    return {**_frame(330), "data": {"values": [vars(point) for point in points]}, "layer": [*fronts, *layers]}


def _fronts(points: Sequence[Point], cost: str) -> list[list[Point]]:
    """The Pareto front of each data set: a top-1 does not compare with one on other images."""
    return [
        list(pareto_front([p for p in points if p.data == data], lambda p: vars(p)[cost], lambda p: p.top1))
        for data in dict.fromkeys(point.data for point in points)
    ]


def line_chart(lines: Lines, domain: Sequence[str], title: str, form: str, level: float | None = None) -> Spec:
    """A line a name over the epochs; hovering tells all values of the nearest epoch, in d3's format `form`.

    Args: a dotted line at `level`, if given.
    """
    names = list(lines)
    values: list[Spec] = [{"epoch": epoch, "who": who, "value": value} for who in names for epoch, value in lines[who]]
    wide: dict[int, dict[str, float]] = {}
    for index, who in enumerate(names):
        for epoch, value in lines[who]:
            wide.setdefault(epoch, {"epoch": epoch})[f"n{index}"] = value
    x = _epochs(wide)
    colour = _who("who", domain, names)
    if colour["legend"]:
        colour["legend"] |= {"symbolType": "stroke", "symbolSize": 300, "symbolStrokeWidth": 2}
    dashes = {**colour, "scale": {**colour["scale"], "range": [DASHES[i % len(DASHES)] for i in range(len(domain))]}}
    few = {"point": {"size": 24, "filled": True}} if len(wide) <= FEW_EPOCHS else {}
    scale = widened({"zero": False, "padding": 8}, [*(row["value"] for row in values), level])
    drawn = {
        "data": {"values": values},
        "mark": {"type": "line", "strokeWidth": 2, **few},
        "encoding": {
            "x": x,
            "y": {"field": "value", "type": "quantitative", "title": title, "scale": scale},
            "color": colour,
            "strokeDash": dashes,
        },
    }
    nearest = {"type": "point", "fields": ["epoch"], "nearest": True, "on": "pointerover", "clear": "pointerout"}
    pointer = {
        "data": {"values": list(wide.values())},
        "params": [{"name": "hover", "select": nearest}],
        "mark": {"type": "rule", "strokeWidth": 1},
        "encoding": {
            "x": x,
            "color": {"value": GREY},
            "opacity": {"condition": {"param": "hover", "empty": False, "value": 0.9}, "value": 0},
            "tooltip": [_tip("epoch", "epoch", "d"), *(_tip(f"n{i}", name, form) for i, name in enumerate(names))],
        },
    }
    dotted = {"type": "rule", "strokeDash": [3, 3], "color": GREY}
    levels = [] if level is None else [{"data": {"values": [{}]}, "mark": dotted, "encoding": {"y": {"datum": level}}}]
    return {**_frame(270), "layer": [*levels, drawn, pointer]}


def widths_chart(bars: Sequence[WidthBar], domain: Sequence[str]) -> Spec:
    """Bars a stage and network: mean channels of the stage's layers, a rule from the narrowest to the widest."""
    present = list(dict.fromkeys(bar.who for bar in bars))
    axis = {"labelAngle": 0, "labelPadding": 20, "ticks": False}
    stages = list(dict.fromkeys(bar.stage for bar in bars))
    mean = {"field": "mean", "type": "quantitative", "title": "channels a layer"}
    tips = [_tip("who", "network"), _tip("stage", "stage"), _tip("layers", "channels, layer by layer")]
    layers = [
        {"mark": "bar", "encoding": {"y": mean, "color": _who("who", domain, present), "tooltip": tips}},
        {
            "mark": {"type": "rule", "strokeWidth": 1.5},
            "encoding": {"y": {"field": "least", "type": "quantitative"}, "y2": {"field": "most"}},
        },
        {
            "mark": {"type": "text", "dy": 10, "fontSize": 10},
            "encoding": {"y": {"datum": 0}, "text": {"field": "number"}},
        },
    ]
    shared = {
        "x": {"field": "stage", "type": "nominal", "sort": stages, "title": None, "axis": axis},
        "xOffset": {"field": "who", "type": "nominal", "sort": present, "scale": {"paddingInner": 0.08}},
    }
    return {**_frame(290), "data": {"values": [vars(bar) for bar in bars]}, "encoding": shared, "layer": layers}


def sensitivity_chart(bars: Sequence[GroupBar]) -> Spec:
    """A bar a channel group: what the answers lose by about half of it; at its end, what the peers keep.

    A diamond: what they lose without its residual block.
    """
    order, most = [bar.group for bar in bars], max(max(bar.nats, bar.without or 0.0) for bar in bars)
    y = {"field": "group", "type": "nominal", "sort": order, "title": None, "axis": {"ticks": False, "labelLimit": 190}}
    words = min(0.6, (9 + LETTER * max(len(bar.kept) for bar in bars)) / HALF_A_PAGE)  # the part that they take
    scale = {"domainMax": most / (1 - words) or 1}
    x = {"field": "nats", "type": "quantitative", "title": "nats an image", "scale": scale}
    tips = [_tip("group", "channel group"), _tip("nats", "nats", ".3f"), _tip("kept", "kept by the peers")]
    end = {"calculate": "max(datum.nats, datum.without || 0)", "as": "end"}
    layers: list[Spec] = [
        {"mark": {"type": "bar", "height": {"band": 0.7}}, "encoding": {"x": x, "tooltip": tips}},
        {
            "transform": [end],
            "mark": {"type": "text", "align": "left", "dx": 9, "fontSize": 11},
            "encoding": {"x": {**x, "field": "end"}, "text": {"field": "kept"}},
        },
    ]
    if any(bar.without is not None for bar in bars):
        layers.append(
            {
                "transform": [{"filter": "isValid(datum.without)"}],
                "mark": {"type": "point", "shape": "diamond", "filled": True, "size": 60, "color": ALARM},
                "encoding": {
                    "x": {**x, "field": "without"},
                    "tooltip": [_tip("group", "block of"), _tip("without", "nats without it", ".3f")],
                },
            }
        )
    data = {"values": [vars(bar) for bar in bars]}
    return {**_frame(20 * len(bars)), "data": data, "encoding": {"y": y}, "layer": layers}


def profile_chart(layers: Sequence[LayerRow], name: str, domain: Sequence[str], who: str) -> Spec:
    """Two bars a layer, the baseline's time and that of the network called `name`, with numbers beside them.

    Args: `layers` as of `series.layer_rows`; `who` is the network of `domain` whose colour the second bar takes.
    """
    folded = [
        {"fold": ["baseline_ms", "peer_ms"], "as": ["side", "ms"]},
        {"filter": "isValid(datum.ms)"},
        {"calculate": f"datum.side === 'peer_ms' ? {json.dumps(who)} : 'baseline'", "as": "who"},
        {"calculate": f"datum.side === 'peer_ms' ? {json.dumps(name)} : 'baseline'", "as": "name"},
    ]
    order = [layer.layer for layer in layers]
    alike = f"datum.side === 'peer_ms' && datum.who === 'baseline' && {json.dumps(who == 'baseline')}"  # in int8, say
    y = {
        "field": "layer",
        "type": "nominal",
        "sort": order,
        "title": None,
        "axis": {"ticks": False, "labelLimit": 190},
        "scale": {"paddingInner": 0.25},
    }
    tips = [
        _tip("layer", "layer"), _tip("op", "operator"), _tip("name", "network"), _tip("ms", "ms", ".4f"),
        _tip("speed", "times as fast"), _tip("channels", "channels, baseline | peer"),
        _tip("macs", "MACs, baseline | peer"), _tip("intensity", "FLOPs a byte, baseline | peer"),
    ]  # fmt: skip
    drawn = {
        "transform": folded,
        "mark": "bar",
        "encoding": {
            "y": y,
            "yOffset": {"field": "side", "type": "nominal", "sort": ["baseline_ms", "peer_ms"]},
            "fillOpacity": {"condition": {"test": alike, "value": 0.45}, "value": 1},
            "x": {"field": "ms", "type": "quantitative", "title": "ms an inference"},
            "color": _who("who", domain, ["baseline", who]),
            "tooltip": tips,
        },
    }
    columns = [_column(y, key, dx) for key, dx in COLUMNS.items()]
    heads = {"speed": "speed", "channels": "channels", "macs": "MACs", "intensity": "FLOPs/byte"}
    titles = [
        {
            "data": {"values": [{}]},
            "mark": {"type": "text", "align": "left", "dx": COLUMNS[key], "fontSize": 11, "fontWeight": "bold"},
            "encoding": {"x": {"value": "width"}, "y": {"value": -8}, "text": {"value": title}},
        }
        for key, title in heads.items()
    ]
    return {
        **_frame(24 * len(layers)),
        "data": {"values": [vars(layer) for layer in layers]},
        "layer": [drawn, *columns, *titles],
    }


def _column(y: Spec, key: str, dx: int) -> Spec:
    """A column of words at the right of the bars."""
    encoding: Spec = {"y": y, "x": {"value": "width"}, "text": {"field": key, "type": "nominal"}}
    if key == "speed":
        alarm = {"test": "datum.no_faster", "value": ALARM}
        encoding["color"] = {"condition": alarm}
    return {
        "mark": {"type": "text", "align": "left", "dx": dx, "fontSize": 11},
        "encoding": encoding,
    }


def bar_chart(bars: Sequence[ScenarioBar], domain: Sequence[str], by: str, title: str) -> Spec:
    """A bar a network with its value written at the end; without a value, the words alone."""
    names = [f"{bar.run}: {bar.label}" if by == "run" else bar.label for bar in bars]
    values = [
        {**vars(bar), "name": name, "by": bar.run if by == "run" else bar.who}
        for bar, name in zip(bars, names, strict=True)
    ]
    y = {"field": "name", "type": "nominal", "sort": names, "title": None, "axis": {"ticks": False, "labelLimit": 160}}
    most = max((bar.value or 0 for bar in bars), default=0)
    x = {
        "field": "value",
        "type": "quantitative",
        "title": title,
        "scale": {"domainMax": 1.15 * most or 1},
        "axis": {"format": "~s"},
    }
    tips = [_tip("name", "network"), _tip("text", title)]
    color = {**_who("by", domain, []), "legend": None}
    layers: list[Spec] = [
        {"mark": {"type": "bar", "height": {"band": 0.7}}, "encoding": {"x": x, "color": color, "tooltip": tips}},
        {
            "transform": [{"calculate": "datum.value === null ? 0 : datum.value", "as": "end"}],
            "mark": {"type": "text", "align": "left", "dx": 5},
            "encoding": {"x": {**x, "field": "end"}, "text": {"field": "text"}},
        },
    ]
    return {**_frame(26 * len(values)), "data": {"values": values}, "encoding": {"y": y}, "layer": layers}


def _frame(height: int) -> Spec:
    """As wide as the page allows."""
    return {"width": "container", "height": height}


def _who(field: str, domain: Sequence[str], present: Sequence[str], least: int = 2) -> Spec:
    """The colour (or shape, or dash) of `field`: the same for a name in every chart, told if `least` are present."""
    shown = [name for name in domain if name in set(present)]
    legend = {"title": None, "values": shown} if len(shown) >= least else None
    return {"field": field, "type": "nominal", "scale": {"domain": list(domain)}, "legend": legend}


def epoch_ticks(epochs: Iterable[float]) -> Spec:
    """An axis with whole epochs only; Vega puts ticks between few of them whatever `tickMinStep` says."""
    own = sorted(set(epochs))
    return {"format": "d", **({"values": own} if len(own) <= FEW_TICKS else {"tickMinStep": 1})}


def _epochs(epochs: Iterable[int]) -> Spec:
    return {
        "field": "epoch",
        "type": "quantitative",
        "title": "epoch",
        "axis": epoch_ticks(epochs),
        "scale": {"nice": False, "zero": False, "padding": 8},
    }


def _point_tips(by: str) -> list[Spec]:
    titles = {
        "run": "run", "label": "network", "top1_text": "top-1", "p50_text": "p50 [95 %]",
        "speedup_text": "speed-up [95 %]", "pruned_text": "pruned", "params_text": "parameters", "macs_text": "MACs",
    }  # fmt: skip
    return [_tip(field, title) for field, title in titles.items() if field != "run" or by == "run"]


def _tip(field: str, title: str, form: str | None = None) -> Spec:
    """A line of a tooltip: words as they are, or a number in d3's format `form`."""
    kind = {"type": "nominal"} if form is None else {"type": "quantitative", "format": form}
    return {"field": field, "title": title, **kind}
