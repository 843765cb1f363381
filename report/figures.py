"""A figure's numbers as a picture that stands alone: white, about 700 pixels wide, with its legend and what n was."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any

from wmlc.report.charts import FEW_EPOCHS, Spec, around, epoch_ticks, widened
from wmlc.report.palette import DASHES, GREY, LIGHT, PAGE_SHAPES
from wmlc.report.runs import TrainedRun
from wmlc.stats import Spread

WIDTH, HEIGHT = 620, 300  # pixels of the plot alone
PANEL_WIDTH, PANEL_HEIGHT, PANELS_A_ROW = 300, 190, 2
LETTERS = 118  # of the small print that fit into a line
LETTER, SYMBOL = 6, 44  # pixels of a legend's letter, and of its mark with the gaps around
PNG_SCALE = 2
SIZES = ("ratio", "macs")  # over which methods have points in one place; a latency that was measured stays where it is
APART = 0.011  # of the width: how far these are drawn from each other
BASELINE_SHAPE, METHOD_SHAPES = PAGE_SHAPES[0], PAGE_SHAPES[1:-1]
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"


@dataclass(frozen=True)
class MeanPoint:
    """A point of a line: a mean of one or several runs."""

    x: float
    y: Spread
    peer: int | None = None  # whose it is, where a line has a point a peer


@dataclass(frozen=True)
class Line:
    """What has one colour."""

    configuration: str
    name: str
    points: list[MeanPoint]
    panel: str = ""  # in which it stands, of a figure with panels; else its configuration's
    told: str = ""  # in the legend, beside its name
    baseline: bool = False

    @property
    def words(self) -> str:
        """Its name in the legend."""
        return f"{self.name} ({self.told})" if self.told else self.name


@dataclass(frozen=True)
class Level:
    """A line across the plot: the top-1 of baselines."""

    name: str
    y: Spread

    @property
    def words(self) -> str:
        """baseline 76.74 ± 0.21."""
        return f"{self.name} {self.y.mean:.2f}" + ("" if self.y.sd is None else f" ± {self.y.sd:.2f}")


@dataclass(frozen=True)
class Figure:
    """One figure as numbers. Without lines it can't be drawn; `left_out` tells why: a reason, and whom it concerns."""

    title: str
    x: str
    y: str
    lines: list[Line]
    runs: list[TrainedRun]  # that are drawn
    left_out: dict[str, list[str]] = field(default_factory=dict)
    levels: list[Level] = field(default_factory=list)
    over: str = "epochs"  # what x is: epochs, ratio, macs, latency or eta
    panels: bool = False  # one a configuration, or as its lines say
    remarks: list[str] = field(default_factory=list)  # in the small print

    @property
    def side_by_side(self) -> bool:
        """Whether points would lie on those of another line, so that they are drawn a little apart."""
        return self.over in SIZES and any(step for _, step in _steps(self).values())


def render(spec: Spec) -> tuple[bytes, bytes]:
    """The picture as SVG and as PNG; nothing is fetched."""
    import vl_convert

    png = vl_convert.vegalite_to_png(spec, scale=PNG_SCALE, config=_config(), allowed_base_urls=[])
    return render_svg(spec), png


def render_svg(spec: Spec) -> bytes:
    """The picture as SVG alone."""
    import vl_convert

    return vl_convert.vegalite_to_svg(spec, config=_config(), allowed_base_urls=[]).encode("utf-8")


def figure_spec(figure: Figure, subtitle: Sequence[str]) -> Spec:
    """Vega-Lite's specification of a figure under its title and the sentences of `subtitle`."""
    several = figure.panels and len({_panel(figure, line) for line in figure.lines}) > 1
    width = PANEL_WIDTH if several else WIDTH
    small = [text for sentence in subtitle for text in wrap(sentence, LETTERS)]
    plot = {
        "width": width,
        "height": PANEL_HEIGHT if several else HEIGHT,
        "layer": _layers(figure),
    }
    rows = _rows(figure, width // LETTER)
    whole: Spec = {
        "title": {"text": figure.title, "subtitle": small},
        "data": {"values": rows},
    }
    if not figure.panels:
        return whole | plot
    header = {"title": None, "labelLimit": width, "labelAnchor": "start", "labelExpr": "split(datum.label, '\\n')"}
    panels = list(dict.fromkeys(row["panel"] for row in rows))
    facet = {"field": "panel", "type": "nominal", "sort": panels, "header": header}
    own = {"resolve": {"scale": {"x": "independent"}}} if figure.over == "latency" else {}
    return whole | {"facet": facet, "columns": PANELS_A_ROW, "spec": plot, **own}


def _panel(figure: Figure, line: Line) -> str:
    """The panel that a line is drawn in; "" where the figure has but one."""
    return (line.panel or line.configuration) if figure.panels else ""


def _rows(figure: Figure, letters: int) -> list[dict[str, Any]]:
    """The points with the ends of their spread; a panel's name in lines of so many letters."""
    steps = _steps(figure) if figure.over in SIZES else {}
    flat = _flat(figure) if figure.over in (*SIZES, "latency") else {}
    rows: list[dict[str, Any]] = []
    for line in figure.lines:
        names, step = steps.get(_panel(figure, line), ([], 0.0))
        shift = 0.0 if line.baseline or not step else step * (names.index(line.name) - (len(names) - 1) / 2)
        look: dict[str, Any] = {"panel": "\n".join(wrap(_panel(figure, line), letters)), "line": line.words}
        look |= flat.get(_panel(figure, line), {})
        rows += [look | {"x": p.x + shift, "mean": p.y.mean} | _ends(p.y) for p in line.points]
    return rows


def _flat(figure: Figure) -> dict[str, dict[str, float]]:
    """By panel whose points all have one x, the ends of its axis: Vega rounds the tick of a domain without width."""
    found: dict[str, list[float]] = {}
    for line in figure.lines:
        found.setdefault(_panel(figure, line), []).extend(point.x for point in line.points)
    ends = {panel: around(xs) for panel, xs in found.items()}
    return {panel: {"left": own[0], "right": own[1]} for panel, own in ends.items() if own}


def _steps(figure: Figure) -> dict[str, tuple[list[str], float]]:
    """By panel, its methods and how far apart their points are drawn: not at all where none lies on another's."""
    panels: dict[str, list[Line]] = {}
    for line in figure.lines:
        panels.setdefault(_panel(figure, line), []).append(line)
    found = {}
    for panel, lines in panels.items():
        xs = [point.x for line in lines for point in line.points]
        step = APART * (max(xs) - min(xs))
        methods = [line for line in lines if not line.baseline]
        near = any(
            abs(a.x - b.x) <= step
            for one, other in itertools.combinations(methods, 2)
            for a, b in itertools.product(one.points, other.points)
        )
        found[panel] = ([line.name for line in methods], step if near else 0.0)
    return found


def _ends(y: Spread) -> dict[str, float]:
    return {} if y.mean is None or y.sd is None else {"low": y.mean - y.sd, "high": y.mean + y.sd}


def _layers(figure: Figure) -> list[Spec]:
    """From the back: levels, spread, lines with their marks."""
    names = list(dict.fromkeys(line.words for line in figure.lines))
    grey = {line.words for line in figure.lines if line.baseline}
    xs = sorted({point.x for line in figure.lines for point in line.points})
    x = _x(figure, xs)
    shown = [end for line in figure.lines for p in line.points for end in (p.y.mean, *_ends(p.y).values())]
    scale = widened({"zero": False, "padding": 8}, [*shown, *(level.y.mean for level in figure.levels)])
    y: Spec = {"field": "mean", "type": "quantitative", "title": figure.y, "scale": scale}
    y["axis"] = {"grid": True}  # which a level alone would not have
    columns = max(1, WIDTH // (SYMBOL + LETTER * max(map(len, names))))
    legend: Spec = {"title": None, "columns": columns, "labelLimit": WIDTH, "symbolOpacity": 1}
    if figure.over == "epochs":
        legend |= {"symbolType": "stroke", "symbolSize": 400, "symbolStrokeWidth": 2}
    colour = _told_apart(names, LIGHT.networks, legend, own=dict.fromkeys(grey, LIGHT.baseline))
    ends = {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour}
    spread: Spec = {"transform": [{"filter": "isValid(datum.low)"}], "encoding": ends}
    if figure.over == "epochs":
        few: Spec = {"point": {"size": 24, "filled": True}} if len(xs) <= FEW_EPOCHS else {}
        dash = _told_apart(names, DASHES, legend, turn=True)
        drawn = [
            {**spread, "mark": {"type": "area", "opacity": 0.16}},
            {"mark": {"type": "line", **few}, "encoding": {"x": x, "y": y, "color": colour, "strokeDash": dash}},
        ]
    else:
        shape = _told_apart(names, METHOD_SHAPES, legend, turn=True, own=dict.fromkeys(grey, BASELINE_SHAPE))
        drawn = [
            {**spread, "mark": {"type": "rule", "strokeWidth": 1.5}},
            {
                "mark": {"type": "line", "strokeWidth": 1.5, "opacity": 0.6},
                "encoding": {"x": x, "y": y, "color": colour},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
                "encoding": {"x": x, "y": y, "color": colour, "shape": shape},
            },
        ]
        span: Spec = {"x": {**x, "field": "left"}, "x2": {"field": "right"}, "y": y}
        unseen: Spec = {"type": "rule", "opacity": 0}
        drawn.append({"transform": [{"filter": "isValid(datum.left)"}], "mark": unseen, "encoding": span})
    rule: Spec = {"type": "rule", "strokeDash": [4, 4], "color": GREY}
    rules = [{"data": {"values": [{}]}, "mark": rule, "encoding": {"y": {"datum": lv.y.mean}}} for lv in figure.levels]
    # several would lie on one another: the small print tells them
    words = _level_words(figure.levels[0], figure.over == "macs") if len(figure.levels) == 1 else []
    return [*rules, *drawn, *words]


def _level_words(level: Level, at_left: bool) -> list[Spec]:
    """Words above a level, on a white edge: at the end where the unpruned peers, which score alike, are not."""
    side, x = ("left", 4) if at_left else ("right", "width")
    text: Spec = {"type": "text", "align": side, "dy": -8, "fontSize": 11}
    place = {"x": {"value": x}, "y": {"datum": level.y.mean}, "text": {"field": "text"}}
    edge = {"stroke": LIGHT.page, "strokeWidth": 4, "color": LIGHT.page}
    return [
        {"data": {"values": [{"text": level.words}]}, "mark": text | look, "encoding": place}
        for look in (edge, {"color": LIGHT.quiet})
    ]


def _told_apart(
    names: Sequence[str], looks: Sequence[Any], legend: Spec, turn: bool = False, own: Mapping[str, Any] | None = None
) -> Spec:
    """One of `looks` a name, but for those with one of their `own`.

    They begin anew after the last, with `turn` one further, so that no pair comes twice.
    """
    count, given = len(looks), dict(own or {})
    for i, name in enumerate(name for name in names if name not in (own or {})):
        given[name] = looks[(i + (i // count if turn else 0)) % count]
    scale = {"domain": list(names), "range": [given[name] for name in names]}
    return {"field": "line", "type": "nominal", "scale": scale, "legend": legend}


def _x(figure: Figure, xs: Sequence[float]) -> Spec:
    scale: Spec = {"zero": False, "nice": False, "padding": 12}
    axis = {
        "epochs": epoch_ticks(xs),
        "ratio": {"format": "~g", "tickCount": 8},
        "macs": {"format": "~s", "tickCount": 8},
        "latency": {"format": "~g", "tickCount": 6},
        "eta": {"values": list(xs), "format": "~g", "labelOverlap": True},
    }[figure.over]
    if figure.over == "eta":
        scale |= {"type": "log"}
    return {"field": "x", "type": "quantitative", "title": figure.x, "scale": scale, "axis": axis}


def _config() -> Spec:
    return {
        "background": LIGHT.page,
        "font": FONT,
        "padding": 12,
        "view": {"stroke": None},
        "title": {
            "anchor": "start", "frame": "bounds", "color": LIGHT.ink, "fontSize": 15, "subtitleColor": LIGHT.quiet,
            "subtitleFontSize": 12, "subtitleLineHeight": 16, "subtitlePadding": 5, "offset": 10,
        },
        "axis": {
            "labelColor": LIGHT.quiet, "titleColor": LIGHT.ink,
            "labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": 400,
            "gridColor": LIGHT.grid, "domainColor": LIGHT.grid, "tickColor": LIGHT.grid,
        },
        "axisX": {"grid": False, "labelOverlap": True, "labelSeparation": 6},
        "legend": {
            "orient": "top", "direction": "horizontal", "labelColor": LIGHT.ink, "labelFontSize": 12, "offset": 8,
        },
        "headerFacet": {"labelFontSize": 12, "labelFontWeight": 600, "labelColor": LIGHT.ink},
        "line": {"strokeWidth": 2},
    }  # fmt: skip
