"""The parts of a report's page: which words, charts and tables each question about the runs is answered with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from wmlc.bench.profile import NO_FASTER
from wmlc.report import charts, series, tables
from wmlc.report.summary import Cell, Report, all_cells, cell_words, network_of
from wmlc.report.terminal import grouped_notes


@dataclass(frozen=True)
class Figure:
    """A chart of the page, in one or several versions that a drop-down chooses from."""

    key: str  # its name in the page, and of the file that it is saved as
    title: str
    choices: Mapping[str, charts.Spec]
    caption: str = ""
    wide: bool = False  # keeps its width on a phone and scrolls there


@dataclass(frozen=True)
class Section:
    """A part of the page: words, charts, and HTML that is escaped already."""

    key: str
    title: str
    words: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    html: str = ""


def all_sections(reports: Sequence[Report]) -> list[Section]:
    """The page from top to bottom."""
    return [
        accuracy_section(reports),
        training_section(reports),
        weights_section(reports),
        widths_section(reports),
        layers_section(reports),
        scenarios_section(reports),
        table_section(reports),
        environment_section(reports),
    ]


def accuracy_section(reports: Sequence[Report]) -> Section:
    """Top-1 over latency, over parameters and over MACs."""
    by, domain = _told_apart(reports)
    timed = {}
    for cell in _cells(reports):
        if points := series.latency_points(reports, cell):
            timed[cell_words(cell)] = charts.accuracy_chart(points, "p50", "p50 latency, ms", domain, by)
    words = [
        f"{report.name} was not benched yet; 'wmlc bench --run {report.root}' measures latency and speed-up."
        for report in reports
        if report.bench is None
    ]
    words += [
        f"The bench of {report.name} left top-1 unmeasured; 'wmlc bench --run {report.root}' measures it."
        for report in reports
        if report.rows and all(row.get("top1") is None for row in report.rows)
    ]
    machines = {(e.get("cpu"), e.get("gpu")) for report in reports if (e := (report.bench or {}).get("environment"))}
    if len(machines) > 1:
        words.append("These runs were benched on different machines, so their latencies do not compare.")
    precisions = {row.get("precision") for report in reports for row in report.rows}
    hollow = " Full points are fp32, pale ones fp16, hollow ones int8." if len(precisions) > 1 else ""
    front = "The dotted line is the Pareto front: no network above and left of it."
    numbers = " b is a run's baseline, 1 its smallest peer." if len(reports) > 1 else ""
    bars = (
        "Bars span the 95 % intervals: of p50, and of top-1 by the number of test images."
        if _has_intervals(reports)
        else "This bench has no intervals of p50."
    )
    size = series.size_points(reports)
    figures = [
        Figure("accuracy-over-latency", "Accuracy over latency", timed, f"{front} {bars}{hollow}{numbers}"),
        *(
            Figure(
                f"accuracy-over-{title.lower()}",
                f"Accuracy over {title}",
                {"": charts.accuracy_chart(size, cost, title, domain, by)},
                front + numbers,
            )
            for cost, title in (("params", "parameters"), ("macs", "MACs"))
            if size
        ),
    ]
    return Section("accuracy", "Accuracy", words, [figure for figure in figures if figure.choices])


def _told_apart(reports: Sequence[Report]) -> tuple[str, list[str]]:
    """What colours stand for, and all that they may stand for: networks of one run, or several runs."""
    return ("run", [r.name for r in reports]) if len(reports) > 1 else ("network", reports[0].networks)


def _cells(reports: Iterable[Report]) -> list[Cell]:
    return all_cells(row for report in reports for row in report.rows)


def _has_intervals(reports: Iterable[Report]) -> bool:
    return any(row.get("p50_interval") for report in reports for row in report.rows)


def _run_key(reports: Sequence[Report], index: int) -> str:
    return f"-{index + 1}" if len(reports) > 1 else ""


def _run_title(reports: Sequence[Report], index: int) -> str:
    return f"{reports[index].name}: " if len(reports) > 1 else ""


def training_section(reports: Sequence[Report]) -> Section:
    """Held-out top-1 and training loss over the epochs."""
    words, figures = [], []
    for index, report in enumerate(reports):
        key, name = _run_key(reports, index), _run_title(reports, index)
        if top1 := series.top1_lines(report):
            chart = charts.line_chart(top1, report.networks, "held-out top-1, %", ".2f")
            figures.append(Figure(f"top1-curves{key}", f"{name}Top-1 while training", {"": chart}))
            loss = charts.line_chart(series.loss_lines(report), [*report.networks, "family"], "training loss", ".3f")
            figures.append(Figure(f"loss-curves{key}", f"{name}Training loss", {"": loss}))
        else:
            words.append(f"{report.name} has no {report.root / 'metrics.jsonl'}, which 'wmlc train' writes.")
        if report.family.get("baseline") and not report.baseline_epochs:
            words.append(f"{report.name}: the baseline has no curve here, as it was trained in another run.")
    words.insert(0, "Top-1 on the held-out images that the epoch is chosen on, not on the test set.")
    return Section("training", "Training curves", words, figures)


def weights_section(reports: Sequence[Report]) -> Section:
    """The trace of the peer weights."""
    words = ["How much each peer's teaching counts; all weights sum to 1."]
    figures = []
    for index, report in enumerate(reports):
        lines = series.weight_lines(report)
        if not lines:
            words.append(f"{report.name} has no {report.root / 'metrics.jsonl'}, which 'wmlc train' writes.")
            continue
        if len({value for line in lines.values() for _, value in line}) == 1:
            words.append(
                f"{report.name}: its weights are equal throughout ({report.family.get('method', 'one peer')})."
            )
        chart = charts.line_chart(lines, report.networks, "ω", ".4f", level=1 / len(lines))
        key, name = _run_key(reports, index), _run_title(reports, index)
        figures.append(
            Figure(f"peer-weights{key}", f"{name}Peer weights ω", {"": chart}, "The dotted line is equal weights.")
        )
    return Section("weights", "Peer weights", words, figures)


def widths_section(reports: Sequence[Report]) -> Section:
    """Channels a stage as bars for each network."""
    words, figures = [], []
    for index, report in enumerate(reports):
        if bars := series.width_bars(report):
            caption = "Mean over a stage's layers; the line spans its narrowest to its widest."
            caption += " b is the baseline." * (bars[0]["who"] == "baseline")
            key, name = _run_key(reports, index), _run_title(reports, index)
            chart = charts.widths_chart(bars, report.networks)
            figures.append(Figure(f"widths{key}", f"{name}Channels a stage", {"": chart}, caption))
        else:
            words.append(f"{report.name} records no channels a stage; a newer 'wmlc train' does.")
    return Section("widths", "Widths", words, figures)


def layers_section(reports: Sequence[Report]) -> Section:
    """Time a layer, the baseline beside a peer."""
    words, figures = [], []
    for index, report in enumerate(reports):
        choices = {}
        for label, baseline, peer in series.profile_pairs(report):
            rows = series.layer_rows(baseline, peer)
            choices[label] = charts.profile_chart(rows, peer["name"], report.networks, network_of(peer))
        if not choices:
            lone = " of a baseline to set one beside" if (report.bench or {}).get("profiles") else ""
            words.append(
                f"{report.name} has no layer profile{lone}; 'wmlc bench --run {report.root} --profile' makes one."
            )
            continue
        caption = (
            f"▲ has fewer MACs and got no faster (took over {NO_FASTER:.0%} of the time), △ was not cut. "
            "Channels, MACs an image and FLOPs a byte are the baseline's | the peer's where they differ. "
            "Times are the engine's own profiler's."
        )
        key, name = _run_key(reports, index), _run_title(reports, index)
        figures.append(Figure(f"layers{key}", f"{name}Time a layer", choices, caption, wide=True))
    return Section("layers", "Layers", words, figures)


def scenarios_section(reports: Sequence[Report]) -> Section:
    """What a server and an offline job would see."""
    by, domain = _told_apart(reports)
    kinds = (
        ("server", "rate_per_s", "Server: highest rate within the bound on p99", "queries/s"),
        ("offline", "samples_per_s", "Offline: all samples at once", "samples/s"),
    )
    figures = []
    for scenario, key, title, unit in kinds:
        choices = {}
        for cell in _cells(reports):
            bars = series.scenario_bars(reports, cell, scenario, key)
            if any(bar["value"] is not None for bar in bars):
                choices[cell_words(cell)] = charts.bar_chart(bars, domain, by, unit)
        if choices:
            figures.append(Figure(f"{scenario}-rate", title, choices))
    rows = tables.all_rows(reports)
    html = tables.scenario_table(rows, len(reports) > 1)
    words = ["A star marks a number that rests on too few queries."] if "*</td>" in html else []
    if not html:
        words = ["No scenario was run; 'wmlc bench --scenario offline,server --latency-bound 20' runs two of them."]
    return Section("scenarios", "Scenarios", words, figures, html)


def table_section(reports: Sequence[Report]) -> Section:
    """Every row, and the notes of the benches."""
    html = tables.row_table(tables.all_rows(reports), len(reports) > 1)
    notes = "".join(f"<li>{escape(note)}</li>" for report in reports for note in all_notes(report, len(reports) > 1))
    words = ["Click a heading to sort; – was not measured, and the notes below say why."]
    return Section("table", "Table", words, html=html + (f'<ul class="notes">{notes}</ul>' if notes else ""))


def all_notes(report: Report, several: bool) -> list[str]:
    """Each note of the bench and of the training once, after the rows that it is about."""
    lines = [
        *report.family.get("notes", []), *((report.bench or {}).get("notes") or []), *grouped_notes(report.rows),
    ]  # fmt: skip
    return [f"{report.name}: {line}" if several else line for line in lines]


def environment_section(reports: Sequence[Report]) -> Section:
    """Where the numbers come from: commands, machines, versions, settings."""
    return Section("environment", "Environment and commands", html="".join(map(_environment_html, reports)))


def _environment_html(report: Report) -> str:
    bench = report.bench or {}
    unknown = "not recorded"
    commands = {"trained with": report.config.get("command") or unknown}
    commands["benched with"] = bench.get("command") or (unknown if bench else "not benched")
    lines = "".join(f"<dt>{key}</dt><dd><code>{escape(str(text))}</code></dd>" for key, text in commands.items())
    trained = {key: value for key, value in report.config.items() if key not in ("settings", "command")}
    blocks = {
        "Machine and versions of the bench": bench.get("environment") or {},
        "Machine and versions of the training": trained,
        "Settings of the bench": bench.get("settings") or {},
        "Settings of the training": report.config.get("settings") or {},
        "Data": report.family.get("data") or {},
    }
    details = "".join(
        f"<details{' open' * (index < 2)}><summary>{title}</summary><dl>{_facts(facts)}</dl></details>"
        for index, (title, facts) in enumerate(blocks.items())
        if facts
    )
    return f"<h3>{escape(report.name)}</h3><dl>{lines}</dl>{details}"


def _facts(facts: Mapping[str, Any]) -> str:
    """A definition list's lines; a list or a mapping as words."""
    return "".join(
        f"<dt>{escape(str(key).replace('_', ' '))}</dt><dd>{escape(_fact(value))}</dd>" for key, value in facts.items()
    )


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_fact(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_fact, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)
