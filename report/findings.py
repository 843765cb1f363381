"""What a comparison's numbers show and do not show, in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from wmlc.report.budgets import planned_words
from wmlc.report.configurations import UNRECORDED, Comparable, Configuration, baseline_top1
from wmlc.report.cost import ALIKE, amount_text
from wmlc.report.paper import in_words
from wmlc.report.runs import TrainedRun
from wmlc.stats import Z, spread, student_t, top1_interval

WITHIN = 1.0  # points of FLOPs drop up to which families count as equally large


def findings(runs: Comparable) -> list[str]:
    """The notes below one comparable set's tables."""
    found = runs.configurations
    return [
        *_chance(runs),
        *_lead(found),
        *_costs(found),
        *_sizes(found),
        *_latencies(runs),
        *_rates(runs),
        *_baselines(runs),
        *_conditions(runs),
    ]


def separation(sets: Sequence[Comparable]) -> str | None:
    """Which settings keep runs out of one table; None where all stand in one."""
    if len(sets) < 2:
        return None
    differing = []
    for words in [words for words in sets[0].settings if all(words in each.settings for each in sets)]:
        nothing = "unknown" if words in UNRECORDED else "none"
        values = list(dict.fromkeys(in_words(each.settings[words], nothing) for each in sets))
        if len(values) > 1:
            differing.append(f"{words} ({' / '.join(values)})")
    return f"{len(sets)} tables, not to be compared with each other: their runs differ in {', '.join(differing)}"


def _chance(runs: Comparable) -> list[str]:
    """How much of a number is chance: seeds, and the images of the test set."""
    single = [one.name for one in runs.configurations if one.n == 1]
    notes = [f"{', '.join(single)}: n = 1, so no spread is known"] if single else []
    for one in runs.configurations:
        twice = sorted({seed for seed in one.seeds if one.seeds.count(seed) > 1})
        if twice:
            which = ", ".join(map(str, twice))
            notes.append(f"{one.name}: several runs of seed {which}, so its ± is not that of as many seeds")
    images, top1 = runs.settings["test images"], max(one.mean.mean or 0.0 for one in runs.configurations)
    if not images:
        return [*notes, "how many test images there were is not recorded, so the error of a top-1 is unknown"]
    low, high = top1_interval(top1, images)
    half = (high - low) / 2
    return [
        *notes,
        f"one top-1 near {top1:.0f} % on {images:,} test images has a standard error of {half / Z:.2f} points "
        f"(95 %: ±{half:.2f}); ± in the table is the standard deviation over seeds, not this",
    ]


def _lead(configurations: Sequence[Configuration]) -> list[str]:
    """Which configuration leads the mean over its peers, at which cost, and which leads among those of equal cost."""
    if len(configurations) < 2:
        return []
    first, second = _best_two(configurations)
    found = [_lead_of(first, second)]
    for cost, level in _of_equal_cost(configurations):
        if len(level) > 1 and _best_two(level) != (first, second):
            where = f"at equal cost, {amount_text(cost)} epochs of the unpruned network"
            found.append(f"{where}: {_lead_of(*_best_two(level), told=False)}")
    return found


def _best_two(configurations: Sequence[Configuration]) -> tuple[Configuration, Configuration]:
    first, second, *_ = sorted(configurations, key=lambda one: -(one.mean.mean or 0))
    return first, second


def _lead_of(first: Configuration, second: Configuration, told: bool = True) -> str:
    """By how much one leads, whether more seeds might turn that over, and where it is `told` at which cost."""
    lead = (first.mean.mean or 0) - (second.mean.mean or 0)
    cost = _at_cost(first, second) if told else ""
    if not lead:
        return f"{first.name} and {second.name} have the same mean over peers{cost}"
    start = f"{first.name} leads the mean over peers by {lead:.2f} points before {second.name}{cost}"
    pairs = _paired(first, second)
    if len(pairs) < 2:
        return f"{start}; with {_seeds(len(pairs))} in common, that it is more than chance cannot be shown"
    difference = spread(pairs)
    half = student_t(len(pairs) - 1) * (difference.sd or 0) / math.sqrt(len(pairs))
    middle = difference.mean or 0
    words = f"paired by seed {middle:+.2f} (95 %: {middle - half:+.2f} to {middle + half:+.2f}, n = {len(pairs)})"
    verdict = "more than the seeds' spread" if middle - half > 0 else "no difference that these n could show"
    if middle + half < 0:
        verdict = f"by the seeds in common {second.name} leads, by more than their spread"
    return f"{start}; {words}: {verdict}"


def _at_cost(first: Configuration, second: Configuration) -> str:
    """How much the training of the first cost beside the second's; nothing where either was not counted."""
    ours, theirs = first.cost.mean, second.cost.mean
    if not ours or not theirs:
        return ""
    if ours > ALIKE * theirs:
        return f", but cost {ours / theirs:.3g} times as much"
    return " at equal cost" if theirs <= ALIKE * ours else f", and cost {ours / theirs:.2g} times as much"


def _of_equal_cost(configurations: Sequence[Configuration]) -> list[tuple[float, list[Configuration]]]:
    """The configurations of known cost by levels of it: each from its cheapest up to `ALIKE` times that."""
    levels: list[tuple[float, list[Configuration]]] = []
    for one in sorted(configurations, key=lambda one: one.cost.mean or 0):
        if one.cost.mean is None:
            continue
        if levels and one.cost.mean <= ALIKE * levels[-1][0]:
            levels[-1][1].append(one)
        else:
            levels.append((one.cost.mean, [one]))
    return levels


def _costs(configurations: Sequence[Configuration]) -> list[str]:
    """What trainings cost where that differs, and whose was not counted."""
    notes, known = [], {one.name: one.cost.mean for one in configurations if one.cost.mean is not None}
    if known and max(known.values()) > ALIKE * min(known.values()):
        shown = ", ".join(f"{name} {amount_text(cost)}" for name, cost in known.items())
        notes.append(f"training costs differ, in epochs of the unpruned network: {shown}")
    partly = [one.name for one in configurations if 0 < one.cost.n < one.n]
    unknown = [one.name for one in configurations if one.name not in known or one.name in partly]
    if known and unknown:
        notes.append(f"not comparable by cost, as an older wmlc did not count it: {', '.join(unknown)}")
    return notes


def _rates(runs: Comparable) -> list[str]:
    """Which learning rates `--lr auto` chose."""
    chosen: dict[str, list[str]] = {}
    by_root = {str(run.root): run.settings for run in runs.runs}
    for one in runs.configurations:
        own = [by_root[root] for root in one.runs]
        if any(settings.lr_auto for settings in own):
            chosen[one.name] = [f"{settings.lr:g}" for settings in own]
    told = [f"{name} {rates[0] if len(set(rates)) == 1 else ', '.join(rates)}" for name, rates in chosen.items()]
    return [f"learning rates that were found on held-out images: {'; '.join(told)}"] if told else []


def _paired(first: Configuration, second: Configuration) -> list[float | None]:
    """Differences of the mean over peers, a seed each; a seed with several runs is its last."""
    ours, theirs = (dict(zip(one.seeds, one.mean.values, strict=True)) for one in (first, second))
    return [(ours[seed] or 0) - (theirs[seed] or 0) for seed in ours if seed in theirs]


def _seeds(count: int) -> str:
    return f"{count or 'no'} seed{'s' * (count != 1)}"


def _sizes(configurations: Sequence[Configuration]) -> list[str]:
    """That equal ratios are not equal MACs, with the case that shows it most."""
    notes, cuts = [], {one.name: one.flops_drop.mean or 0.0 for one in configurations}
    if max(cuts.values()) - min(cuts.values()) > WITHIN:
        shown = ", ".join(f"{name} {cut:.1f} %" for name, cut in cuts.items())
        notes.append(f"the means are over families of different size; mean FLOPs drop: {shown}")
    held = Counter(ratio for one in configurations for ratio in {peer.ratio for peer in one.peers})
    ratio = max((ratio for ratio, with_it in held.items() if with_it > 1), default=0.0)
    if ratio == 0:
        return notes
    found = [(one, peer) for one in configurations for peer in one.peers if peer.ratio == ratio]
    by_cut: dict[str, list[str]] = {}
    for one, peer in found:
        by_cut.setdefault(f"{peer.flops_drop.mean:.1f} %", []).append(one.name)
    if len(by_cut) == 1:
        return notes
    words = "; ".join(f"{cut} in {', '.join(dict.fromkeys(names))}" for cut, names in by_cut.items())
    return [*notes, f"equal ratios are not equal MACs: the FLOPs drop of a peer with ratio {ratio:g} is {words}"]


def _latencies(runs: Comparable) -> list[str]:
    """Which configurations were cut for a latency, so that their ratios are shares of it, and what came of that."""
    by_root, notes = {str(run.root): run for run in runs.runs}, []
    for one in runs.configurations:
        if told := planned_words([by_root[root] for root in one.runs]):
            notes.append(f"{one.name}: {told}")
    return notes


def _baselines(runs: Comparable) -> list[str]:
    """Where a drop does not rest on the run's own baseline, or baselines of one seed differ."""
    notes = []
    lacking = [run for run in runs.runs if run.baseline_top1 is None]
    lent = [str(run.root) for run in lacking if baseline_top1(run, runs.runs) is not None]
    none = [str(run.root) for run in lacking if str(run.root) not in lent]
    if lent:
        notes.append(f"no baseline of their own: {', '.join(lent)}; that of the same seed and settings stands in")
    if none:
        rest = "; drops are over the other runs" if len(none) < len(runs.runs) else ""
        notes.append(f"no baseline: {', '.join(none)}{rest}")
    by_seed: dict[int, dict[float, str]] = {}
    for run in runs.runs:
        if run.baseline_top1 is not None:
            by_seed.setdefault(run.seed, {}).setdefault(run.baseline_top1, str(run.root))
    for seed, found in by_seed.items():
        if len(found) > 1:
            which = ", ".join(f"{top1:.2f} in {root}" for top1, root in found.items())
            notes.append(f"baselines of seed {seed} differ: {which}; each run's drop is to its own")
    if trained := [str(run.root) for run in runs.runs if run.control]:
        notes.append(
            f"the baseline of {', '.join(trained)} is the start, trained on; that of others is the start as it stands, "
            "so their drops do not compare"
        )
    return notes


def _conditions(runs: Comparable) -> list[str]:
    """Where runs differ in what the table cannot tell: the folder of their images, the machine."""
    notes = []
    roots = dict.fromkeys(str(run.settings.data_root) for run in runs.runs)
    if len(roots) > 1:
        notes.append(f"the data come from {' and '.join(roots)}; taken for the same, with as many images and classes")
    known: dict[int | None, dict[str, str]] = {}  # each seed draws a random subset of its own
    for run in runs.runs:
        if run.record.images is not None:
            seed = None if run.settings.train_images is None else run.seed
            known.setdefault(seed, {}).setdefault(run.record.images, str(run.root))
    for found in known.values():
        if len(found) > 1:
            notes.append(f"the training images are others in {' than in '.join(found.values())}, by names and labels")
    machines = dict.fromkeys(_machine(run) for run in runs.runs)
    if len(machines) > 1:
        notes.append(f"times are not comparable: trained on {', '.join(machines)}")
    return notes


def _machine(run: TrainedRun) -> str:
    """Device, precision and threads of a run, which its time depends on."""
    device, threads = run.record.device, run.record.threads
    words = f"{device.name}, {'bf16' if device.bf16 else 'fp32'}"
    return f"{words}, {threads} thread{'s' * (threads != 1)}" if device.name == "cpu" else words
