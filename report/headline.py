"""What the page says first of a run: what it gave, and the smallest peer that is as good as the baseline."""

from __future__ import annotations

from wmlc.console import scaled
from wmlc.records import Network, Row
from wmlc.report.budgets import kept_words
from wmlc.report.cells import cell_of
from wmlc.report.runs import TrainedRun, network_of
from wmlc.run import peer_name
from wmlc.stats import top1_difference

NEAR = 1.0  # top-1 points below the baseline that count as "within a point"


def headline(run: TrainedRun) -> str:
    """What the run gave, the smallest pruned peer within a point of the baseline, its speed-up, and budgets kept."""
    return " ".join([_given(run), _found(run), *kept_words(run)]).replace(" %", "\u00a0%")


def _given(run: TrainedRun) -> str:
    family = run.family
    sizes = [peer.params for peer in family.peers]
    start = f"One training run of {family.arch} on {family.data.name} gave"
    if len(sizes) == 1:
        return f"{start} a network of {scaled(sizes[0])} parameters."
    return f"{start} {len(sizes)} networks of {scaled(min(sizes))} to {scaled(max(sizes))} parameters."


def _found(run: TrainedRun) -> str:
    baseline = run.family.baseline
    if baseline is None:
        return (
            "There is no baseline to compare with, so neither a drop nor a speed-up is known; "
            "'wmlc train' without --no-baseline trains one."
        )
    pruned = [peer for peer in run.family.peers if peer.achieved_ratio > 0]
    if not pruned:
        return "None of them is pruned, so none can be faster; 'wmlc train --ratios' takes how much to cut."
    top1 = {peer.peer: _both_top1(run, baseline, peer) for peer in pruned}
    drop = {number: round(whole - own, 6) for number, (whole, own) in top1.items()}
    near = [peer for peer in pruned if drop[peer.peer] <= NEAR]
    peer = min(near, key=lambda p: p.params) if near else min(pruned, key=lambda p: drop[p.peer])
    whole, own = top1[peer.peer]
    scores = f"top-1 {own:.2f} % against {whole:.2f} %{_shown_by(run, whole, own)}"
    less = f"{1 - peer.params / baseline.params:.0%} fewer parameters".replace("%", " %")
    if not near:
        start = (
            f"No pruned peer is within a point of the baseline: the nearest is peer {peer.peer}, "
            f"{drop[peer.peer]:.2f} points below ({scores}), which misses the point by {drop[peer.peer] - NEAR:.2f}"
        )
    elif _tells_a_point(run, whole, own):
        start = f"Peer {peer.peer}, with {less}, is the smallest within a point of the baseline ({scores})"
    else:
        start = (
            f"Peer {peer.peer}, with {less}, is the smallest that was measured within a point of the baseline, "
            f"which so few test images cannot show ({scores})"
        )
    return start + _speed(run, peer.peer, joint=", and " if near else ". It is ")


def _tells_a_point(run: TrainedRun, whole: float, own: float) -> bool:
    """Whether the test images are enough to tell a drop from another that is a point away; unknown numbers pass."""
    images = run.top1_images
    if not images:
        return True
    low, high = top1_difference(whole, own, images)
    return (high - low) / 2 <= NEAR


def _shown_by(run: TrainedRun, whole: float, own: float) -> str:
    """What the number of test images can show of the drop."""
    images = run.top1_images
    if not images:
        return "; on how many test images is not recorded"
    low, high = top1_difference(whole, own, images)
    return f"; on {images:,} test images the drop is {low:.1f} to {high:.1f} points, 95 %"


def _both_top1(run: TrainedRun, baseline: Network, peer: Network) -> tuple[float, float]:
    """The baseline's and the peer's, both through one engine where it measured both, else both as after training."""
    whole = {cell_of(row): row.top1 for row in _rows(run, baseline.peer)}
    for row in _rows(run, peer.peer):
        at = whole.get(cell_of(row))
        if at is not None and row.top1 is not None:
            return at, row.top1
    return baseline.top1, peer.top1


def _rows(run: TrainedRun, peer: int) -> list[Row]:
    """The peer's rows, the first cell's first, in the precision that all are compared in."""
    inside = [row for row in run.rows if row.precision == run.rows[0].precision]
    return [row for row in inside if network_of(row.name, row.peer) == peer_name(peer)]


def _speed(run: TrainedRun, peer: int, joint: str) -> str:
    """How the headline ends: what is known of the peer's speed; `joint` leads to a speed-up that was shown."""
    command = f"'wmlc bench {run.named}'"
    if run.bench is None:
        return f". Nothing was timed yet: {command} measures the speed-up."
    rows = _rows(run, peer)
    if not rows:
        return f". The bench has no times of it: {command} measures the speed-up."
    row = next((row for row in rows if row.speedup), rows[0])
    if row.speedup is None:
        return f". Its speed-up was not measured: {'; '.join(row.notes) or f'{command} measures it'}."
    low, high = row.speedup.low, row.speedup.high
    in_what = "" if row.precision == "fp32" else f", both in {row.precision}"
    times = (
        f"{row.speedup.median:.2f} times as fast (95 % interval {low:.2f} to {high:.2f}; {cell_of(row).words}{in_what})"
    )
    if low > 1:
        return f"{joint}{times}."
    if high < 1:
        return f". It is not faster but slower: {times}."
    return f". It is not shown to be faster: {times}."
