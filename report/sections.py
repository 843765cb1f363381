"""The parts of a report's page: which words, charts and tables each question about the runs is answered with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from wmlc.layer_pairs import NO_FASTER, UNBLOCKED
from wmlc.records import Framing
from wmlc.report import budgets, charts, series, tables
from wmlc.report.cells import Cell, all_cells, grouped_notes
from wmlc.report.cost import cost_words
from wmlc.report.runs import TrainedRun, network_names, network_of
from wmlc.table import Table


@dataclass(frozen=True)
class Chart:
    """A chart of the page, in one or several versions that a drop-down chooses from."""

    key: str  # its name in the page, and of the file that it is saved as
    title: str
    choices: Mapping[str, charts.Spec]
    caption: str = ""
    wide: bool = False  # keeps its width on a phone and scrolls there


@dataclass(frozen=True)
class Origin:
    """Where the numbers of one run come from: its commands, and blocks of facts by their titles."""

    run: str
    commands: Mapping[str, str]
    blocks: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    key: str
    title: str
    words: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    table: Table | None = None
    notes: Sequence[str] = ()
    origins: Sequence[Origin] = ()


def all_sections(runs: Sequence[TrainedRun]) -> list[Section]:
    """The page from top to bottom."""
    return [
        accuracy_section(runs),
        *latency_sections(runs),
        training_section(runs),
        weights_section(runs),
        widths_section(runs),
        layers_section(runs),
        scenarios_section(runs),
        table_section(runs),
        Section("environment", "Environment and commands", origins=[origin(run) for run in runs]),
    ]


def accuracy_section(runs: Sequence[TrainedRun]) -> Section:
    """Top-1 over latency, over parameters and over MACs."""
    by, domain = _told_apart(runs)
    timed = {}
    for cell in _cells(runs):
        if points := series.latency_points(runs, cell):
            timed[cell.words] = charts.accuracy_chart(points, "p50", "p50 latency, ms", domain, by)
    words = [
        f"{run.name} was not benched yet; 'wmlc bench {run.named}' measures latency and speed-up."
        for run in runs
        if run.bench is None
    ]
    words += [
        f"The bench of {run.name} left top-1 unmeasured; 'wmlc bench {run.named}' measures it."
        for run in runs
        if run.rows and all(row.top1 is None for row in run.rows)
    ]
    machines = {(run.bench.environment.cpu, run.bench.environment.gpu) for run in runs if run.bench}
    if len(machines) > 1:
        words.append("These runs were benched on different machines, so their latencies do not compare.")
    data = list(dict.fromkeys(run.data_name for run in runs))
    if len(data) > 1:
        words.append(f"These runs are of different data ({', '.join(data)}), so their top-1 does not compare.")
    precisions = {row.precision for run in runs for row in run.rows}
    hollow = " Full points are fp32, pale ones fp16, hollow ones int8." if len(precisions) > 1 else ""
    front = "The dotted line is the Pareto front: no network above and left of it."
    if len(data) > 1:
        front = "A dotted line is the Pareto front of one data set: none of its networks is above and left of it."
    numbers = " b is a run's baseline, 1 its smallest peer." if len(runs) > 1 else ""
    bars = (
        "Bars span the 95 % intervals: of p50, and of top-1 by the number of test images."
        if any(row.p50_interval for run in runs for row in run.rows)
        else "This bench has no intervals of p50."
    )
    size = series.size_points(runs)
    shown = [
        Chart("accuracy-over-latency", "Accuracy over latency", timed, f"{front} {bars}{hollow}{numbers}"),
        *(
            Chart(
                f"accuracy-over-{title.lower()}",
                f"Accuracy over {title}",
                {"": charts.accuracy_chart(size, cost, title, domain, by)},
                front + numbers,
            )
            for cost, title in (("params", "parameters"), ("macs", "MACs"))
            if size
        ),
    ]
    return Section("accuracy", "Accuracy", words, [chart for chart in shown if chart.choices])


def latency_sections(runs: Sequence[TrainedRun]) -> list[Section]:
    """What peers were cut for, where that was a latency; nothing where none was."""
    if not any(run.family.latency for run in runs):
        return []
    return [
        Section("budgets", "Latency budgets", budgets.plan_words(runs), table=budgets.plan_table(runs, len(runs) > 1))
    ]


def _told_apart(runs: Sequence[TrainedRun]) -> tuple[str, list[str]]:
    """What colours stand for, and all that they may stand for: networks of one run, or several runs."""
    return ("run", [run.name for run in runs]) if len(runs) > 1 else ("network", network_names(runs[0]))


def _cells(runs: Iterable[TrainedRun]) -> list[Cell]:
    return all_cells(row for run in runs for row in run.rows)


def _keyed(runs: Sequence[TrainedRun]) -> list[tuple[TrainedRun, str, str]]:
    """Each run with what its charts' keys end in and their titles begin with, where there are several runs."""
    several = len(runs) > 1
    return [(run, f"-{k}" if several else "", f"{run.name}: " if several else "") for k, run in enumerate(runs, 1)]


def training_section(runs: Sequence[TrainedRun]) -> Section:
    """Held-out top-1 and training loss over the epochs."""
    words = ["Top-1 on the held-out images that the epoch is chosen on, not on the test set."]
    shown = []
    for run, key, name in _keyed(runs):
        words.append(_cost(run, name))
        networks = network_names(run)
        if top1 := series.top1_lines(run):
            chart = charts.line_chart(top1, networks, "held-out top-1, %", ".2f")
            shown.append(Chart(f"top1-curves{key}", f"{name}Top-1 while training", {"": chart}))
            loss = charts.line_chart(
                series.loss_lines(run), [*networks, "family"], "training loss, mean over peers", ".3f"
            )
            weight = run.settings.feature_weight
            caption = f"The family's has {weight:g} times the feature term in it." if weight else ""
            shown.append(Chart(f"loss-curves{key}", f"{name}Training loss", {"": loss}, caption))
        else:
            words.append(_no_curve(run))
        if run.family.baseline and not run.baseline_epochs:
            own = run.settings.start is not None and run.settings.baseline_from is None
            why = "it is the start, as it stands" if own else "it was trained in another run"
            words.append(f"{run.name}: the baseline has no curve here, as {why}.")
    return Section("training", "Training curves", words, shown)


def _cost(run: TrainedRun, name: str) -> str:
    """What training its peers took, and what that counts."""
    apart = ["the baseline's apart"] if run.family.baseline and run.family.baseline.best_epoch else []
    if run.settings.method == "prune-finetune" and run.settings.start is None:
        apart = ["with the network that it cut"]
    if run.settings.start is not None:
        apart.append("that of the start not counted")
    return f"{name}Training: {cost_words(run.family)}{' (' + ', '.join(apart) + ')' if apart else ''}."


def _no_curve(run: TrainedRun) -> str:
    settings = run.settings
    if settings.epochs == 0 or (settings.method == "prune-finetune" and settings.finetune_epochs == 0):
        whole = "its baseline" if settings.start is None else "the start"
        return f"{run.name} trained nothing: its peers are {whole}, cut."
    return f"{run.name} has no {run.root / 'metrics.jsonl'}, which 'wmlc train' writes."


def _weighed(run: TrainedRun) -> str:
    """What ω weighs, and which peers have none."""
    said = "How much each peer's teaching counts; all weights sum to 1."
    if run.settings.weigh == "sources":
        said = (
            "How much each peer counts in the ensemble; all weights sum to 1. What each peer learns from has weights "
            "of its own."
        )
    trained = [peer.peer for peer in run.trained_peers]
    apart = [str(peer.peer) for peer in run.family.peers if peer.peer not in trained]
    if apart:
        one, whole = len(apart) == 1, "the unpruned baseline" if run.settings.start is None else "the start"
        who = f"Peer {apart[0]} is" if one else f"Peers {', '.join(apart)} are"
        said += f" {who} {whole}, not trained, and {'has' if one else 'have'} no weight here."
    return said


def weights_section(runs: Sequence[TrainedRun]) -> Section:
    """The trace of the peer weights."""
    words, shown = [], list[Chart]()
    for run, key, name in _keyed(runs):
        lines = series.weight_lines(run)
        if not lines:
            words.append(_no_curve(run))
            continue
        words.append(name + _weighed(run))
        if len({value for line in lines.values() for _, value in line}) == 1:
            words.append(f"{run.name}: its weights are equal throughout ({run.family.method}).")
        chart = charts.line_chart(lines, network_names(run), "ω", ".4f", level=1 / len(lines))
        caption = "The dotted line is equal weights."
        shown.append(Chart(f"peer-weights{key}", f"{name}Peer weights ω", {"": chart}, caption))
        teaching, who = series.teaching_lines(run), [*network_names(run), series.LABELS, series.START]
        if teaching:
            choices = {peer: charts.line_chart(own, who, "w", ".4f") for peer, own in teaching.items()}
            caption = "The weight of each source in what a peer learns; they sum to 1."
            shown.append(Chart(f"sources{key}", f"{name}What each peer learns from", choices, caption))
    return Section("weights", "Peer weights", words, shown)


def widths_section(runs: Sequence[TrainedRun]) -> Section:
    """Channels a stage as bars for each network."""
    caption = "Mean over a stage's layers; the line spans its narrowest to its widest."
    lost = "KL divergence by about half of a channel group alone (a diamond: without its residual block)"
    kept = f"{lost}; beside it, what each peer keeps, the smallest first; 0: it is without the block."
    words = [
        f"{name}Peer {peer.peer} is without the residual blocks {', '.join(peer.left_out)}."
        for run, _, name in _keyed(runs)
        for peer in run.family.peers
        if peer.left_out
    ]
    shown = [
        Chart(f"widths{key}", f"{name}Channels a stage", {"": charts.widths_chart(bars, network_names(run))}, caption)
        for run, key, name in _keyed(runs)
        if (bars := series.width_bars(run))
    ]
    shown += [
        Chart(
            f"sensitivity{key}",
            f"{name}What the start's answers lose",
            {"": charts.sensitivity_chart(groups)},
            kept if run.family.latency else f"{lost}.",
        )
        for run, key, name in _keyed(runs)
        if (groups := series.group_bars(run))
    ]
    return Section("widths", "Widths", words, shown)


def layers_section(runs: Sequence[TrainedRun]) -> Section:
    """Time a layer, the baseline beside a peer."""
    words, shown = [], []
    for run, key, name in _keyed(runs):
        choices = {}
        for label, baseline, peer in series.profile_pairs(run):
            rows, who = series.layer_rows(baseline, peer), network_of(peer.name, peer.peer)
            choices[label] = charts.profile_chart(rows, peer.name, network_names(run), who)
        if not choices:
            lone = " of a baseline to set one beside" if run.bench and run.bench.profiles else ""
            words.append(f"{run.name} has no layer profile{lone}; 'wmlc bench {run.named} --profile' makes one.")
            continue
        caption = (
            f"▲ has fewer MACs and got no faster (took over {NO_FASTER:.0%} of the time), △ was not cut. "
            "Channels, MACs an image and FLOPs a byte are the baseline's | the peer's where they differ. "
            "Times are the engine's own profiler's."
        )
        if run.bench and any(layer.blocked is False for one in run.bench.profiles for layer in one.layers):
            caption += f" {UNBLOCKED} runs outside of ONNX Runtime's blocked layout, which its channels do not fit."
        shown.append(Chart(f"layers{key}", f"{name}Time a layer", choices, caption, wide=True))
    return Section("layers", "Layers", words, shown)


def scenarios_section(runs: Sequence[TrainedRun]) -> Section:
    """What a server and an offline job would see."""
    by, domain = _told_apart(runs)
    server, offline = {}, {}
    for cell in _cells(runs):
        held = series.scenario_bars(runs, cell, "server", lambda found: found.rate_per_s)
        if any(bar.value is not None for bar in held):
            server[cell.words] = charts.bar_chart(held, domain, by, "queries/s")
        at_once = series.scenario_bars(runs, cell, "offline", lambda found: found.samples_per_s)
        if any(bar.value is not None for bar in at_once):
            offline[cell.words] = charts.bar_chart(at_once, domain, by, "samples/s")
    shown = [
        Chart("server-rate", "Server: highest rate within the bound on p99", server),
        Chart("offline-rate", "Offline: all samples at once", offline),
    ]
    table = tables.scenario_table(series.entries(runs), len(runs) > 1)
    words = ["No scenario was run; 'wmlc bench --scenario offline,server --latency-bound 20' runs two of them."]
    if table:
        starred = any(text.endswith("*") for row in table.rows for text in row)
        words = ["A star marks a number that rests on too few queries."] if starred else []
    return Section("scenarios", "Scenarios", words, [chart for chart in shown if chart.choices], table)


def table_section(runs: Sequence[TrainedRun]) -> Section:
    """Every row, and the notes of the benches."""
    several = len(runs) > 1
    words = ["Click a heading to sort; – was not measured, and the notes below say why."]
    notes = [note for run in runs for note in all_notes(run, several)]
    return Section("table", "Table", words, table=tables.row_table(series.entries(runs), several), notes=notes)


def all_notes(run: TrainedRun, several: bool) -> list[str]:
    """Each note of the training and of the bench once, after the rows that it is about; and when an earlier one was."""
    rows = [replace(row, notes=[*row.notes, f"measured at {row.time}"]) if row.time else row for row in run.rows]
    lines = [*run.family.notes, *(run.bench.notes if run.bench else []), *grouped_notes(rows)]
    return [f"{run.name}: {line}" if several else line for line in lines]


def origin(run: TrainedRun) -> Origin:
    """Commands, machines, versions and settings."""
    bench = run.bench
    elsewhere = ("settings", "command", "latency", "sensitivity")  # on the page
    trained = {key: value for key, value in asdict(run.record).items() if key not in elsewhere}
    blocks = {
        "Machine and versions of the bench": asdict(bench.environment) if bench else {},
        "Machine and versions of the training": trained,
        "Settings of the bench": vars(bench.settings) if bench else {},
        "Settings of the training": vars(run.settings),
        "Data": vars(run.family.data),
    }
    return Origin(
        run=run.name,
        commands={"trained with": run.record.command, "benched with": bench.command if bench else "not benched"},
        blocks={title: _facts(facts) for title, facts in blocks.items() if facts},
    )


def _facts(facts: Mapping[str, Any]) -> dict[str, str]:
    return {key.replace("_", " "): _fact(value) for key, value in facts.items() if key != "schema_version"}


def _fact(value: Any) -> str:
    """A value in words; a list or a mapping as a sentence."""
    if isinstance(value, Framing):
        return value.words
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_fact(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_fact, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)
