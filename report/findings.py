"""What a comparison's numbers show and do not show, in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wmlc.files import read_json
from wmlc.report.comparison import Comparable, Row, baseline_top1, own_baseline, spread
from wmlc.report.paper import in_words
from wmlc.report.trained import Trained
from wmlc.run import Run
from wmlc.stats import student_t, top1_interval

WITHIN = 1.0  # points of FLOPs drop up to which families count as equally large


def findings(runs: Comparable) -> list[str]:
    """The notes below one comparable set's tables."""
    return [*_chance(runs), *_lead(runs.rows), *_sizes(runs.rows), *_baselines(runs), *_conditions(runs)]


def separation(sets: Sequence[Comparable]) -> str | None:
    """Which settings keep runs out of one table; None where all stand in one."""
    if len(sets) < 2:
        return None
    differing = []
    for words in sets[0].settings:
        values = list(dict.fromkeys(in_words(each.settings[words]) for each in sets))
        if len(values) > 1:
            differing.append(f"{words} ({' / '.join(values)})")
    return f"{len(sets)} tables, not to be compared with each other: their runs differ in {', '.join(differing)}"


def _chance(runs: Comparable) -> list[str]:
    """How much of a number is chance: seeds, and the images of the test set."""
    single = [row.name for row in runs.rows if row.n == 1]
    notes = [f"{', '.join(single)}: n = 1, so no spread is known"] if single else []
    for row in runs.rows:
        twice = sorted({seed for seed in row.seeds if row.seeds.count(seed) > 1})
        if twice:
            which = ", ".join(map(str, twice))
            notes.append(f"{row.name}: several runs of seed {which}, so its ± is not that of as many seeds")
    images, top1 = runs.settings["test images"], max(row.mean.mean or 0.0 for row in runs.rows)
    if images is None:
        return [*notes, "how many test images there were is not recorded, so the error of a top-1 is unknown"]
    low, high = top1_interval(top1, images)
    half = (high - low) / 2
    return [
        *notes,
        f"one top-1 near {top1:.0f} % on {images:,} test images has a standard error of {half / 1.96:.2f} points "
        f"(95 %: ±{half:.2f}); ± in the table is the standard deviation over seeds, not this",
    ]


def _lead(rows: Sequence[Row]) -> list[str]:
    """Which row leads the mean over its peers, and whether more seeds might turn that over."""
    if len(rows) < 2:
        return []
    first, second = sorted(rows, key=lambda row: -(row.mean.mean or 0))[:2]
    lead = (first.mean.mean or 0) - (second.mean.mean or 0)
    start = f"{first.name} leads the mean over peers by {lead:.2f} points before {second.name}"
    pairs = _paired(first, second)
    if len(pairs) < 2:
        return [f"{start}; with {_seeds(len(pairs))} in common, that it is more than chance cannot be shown"]
    difference = spread(pairs)
    half = student_t(len(pairs) - 1) * (difference.sd or 0) / math.sqrt(len(pairs))
    middle = difference.mean or 0
    words = f"paired by seed {middle:+.2f} (95 %: {middle - half:+.2f} to {middle + half:+.2f}, n = {len(pairs)})"
    verdict = "more than the seeds' spread" if middle - half > 0 else "no difference that these n could show"
    return [f"{start}; {words}: {verdict}"]


def _paired(first: Row, second: Row) -> list[float | None]:
    """Differences of the mean over peers, a seed each; a seed with several runs is its last."""
    one, two = (dict(zip(row.seeds, row.mean.values, strict=True)) for row in (first, second))
    return [(one[seed] or 0) - (two[seed] or 0) for seed in one if seed in two]


def _seeds(count: int) -> str:
    return f"{count or 'no'} seed{'s' * (count != 1)}"


def _sizes(rows: Sequence[Row]) -> list[str]:
    """That equal ratios are not equal MACs, with the case that shows it most."""
    notes, cuts = [], {row.name: row.flops_drop.mean or 0.0 for row in rows}
    if max(cuts.values()) - min(cuts.values()) > WITHIN:
        shown = ", ".join(f"{name} {cut:.1f} %" for name, cut in cuts.items())
        notes.append(f"the means are over families of different size; mean FLOPs drop: {shown}")
    held = Counter(ratio for row in rows for ratio in {peer.ratio for peer in row.peers})
    ratio = max((ratio for ratio, rows_with_it in held.items() if rows_with_it > 1), default=0.0)
    if ratio == 0:
        return notes
    found = [(row, peer) for row in rows for peer in row.peers if peer.ratio == ratio]
    by_cut: dict[str, list[str]] = {}
    for row, peer in found:
        by_cut.setdefault(f"{peer.flops_drop.mean:.1f} %", []).append(row.name)
    words = "; ".join(f"{cut} in {', '.join(dict.fromkeys(names))}" for cut, names in by_cut.items())
    return [*notes, f"equal ratios are not equal MACs: the FLOPs drop of a peer with ratio {ratio:g} is {words}"]


def _baselines(runs: Comparable) -> list[str]:
    """Where a drop does not rest on the run's own baseline, or baselines of one seed differ."""
    notes = []
    lacking = [run for run in runs.runs if own_baseline(run) is None]
    lent = [str(run.root) for run in lacking if baseline_top1(run, runs.runs) is not None]
    none = [str(run.root) for run in lacking if str(run.root) not in lent]
    if lent:
        notes.append(f"no baseline of their own: {', '.join(lent)}; that of the same seed and settings stands in")
    if none:
        rest = "; drops are over the other runs" if len(none) < len(runs.runs) else ""
        notes.append(f"no baseline: {', '.join(none)}{rest}")
    by_seed: dict[Any, dict[float, str]] = {}
    for run in runs.runs:
        own = own_baseline(run)
        if own is not None:
            by_seed.setdefault(run.settings.get("seed"), {}).setdefault(own, str(run.root))
    for seed, found in by_seed.items():
        if len(found) > 1:
            which = ", ".join(f"{top1:.2f} in {root}" for top1, root in found.items())
            notes.append(f"baselines of seed {seed} differ: {which}; each run's drop is to its own")
    return notes


def _conditions(runs: Comparable) -> list[str]:
    """Where runs differ in what the table cannot tell: the folder of their images, the machine."""
    notes = []
    roots = dict.fromkeys(str(run.settings.get("data_root")) for run in runs.runs)
    if len(roots) > 1:
        notes.append(f"the data come from {' and '.join(roots)}; taken for the same, with as many images and classes")
    machines = dict.fromkeys(_machine(run) for run in runs.runs)
    if len(machines) > 1:
        notes.append(f"times are not comparable: trained on {', '.join(machines)}")
    return notes


def _machine(run: Trained) -> str:
    """Device, precision and threads of a run, which its time depends on."""
    path: Path = Run(run.root).config
    record = read_json(path, "run record", "start the run again with 'wmlc train --force'")
    device, threads = record.get("device") or {}, record.get("threads")
    words = f"{device.get('name', 'unknown')}, {'bf16' if device.get('bf16') else 'fp32'}"
    return f"{words}, {threads} thread{'s' * (threads != 1)}" if device.get("name") == "cpu" else words
