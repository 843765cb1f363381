"""A latency table as people look at it: a row a shape, what it takes whole and at half its widths."""

from __future__ import annotations

from wmlc import records
from wmlc.bench.latency.session import EngineClock
from wmlc.bench.latency.table import widest_interval
from wmlc.console import digits, say, say_exactly
from wmlc.errors import some_of
from wmlc.latency_model import LatencyModel, Surface
from wmlc.layer_pairs import UNBLOCKED, UNBLOCKED_WORDS
from wmlc.models.resizable import Resizable
from wmlc.records import LatencyTable
from wmlc.table import Table

MOST_PAIRS = 8  # channels in and out, named in one line


def print_table(clock: EngineClock, network: Resizable, as_json: bool) -> None:
    """Have the table of a network, measured now or kept, and print it."""
    table = clock.table(network)
    if as_json:
        say_exactly(records.text(table, indent=2))
        return
    Table(["layer", "layers", "channels", "ms", "half of them", "ms", "times"], _rows(table)).show()
    whole_ms = LatencyModel(table).total(table.layers, network.channels(network.full))
    say(
        f"{table.at.words}, {table.at.gpu or table.at.cpu}: the whole network takes {digits(whole_ms)} ms by this "
        f"table; a point is ± {widest_interval(table):.1%}, and a whole network off by {table.error:.1%} (median of "
        f"{len({visit.design for visit in table.visits})})"
    )
    for line in _left_layout(table):
        say(line)
    say(f"{clock.file_of(network)}")


def _left_layout(table: LatencyTable) -> list[str]:
    """A line a shape that left ONNX Runtime's blocked layout at some channels, and one that says so before them."""
    lines = []
    for own in table.shapes:
        left = [f"{point.channels_in} → {point.channels_out}" for point in own.points if point.blocked is False]
        if left:
            lines.append(f"  {own.shape}: {some_of(left, MOST_PAIRS)}")
    return [f"{UNBLOCKED}: {UNBLOCKED_WORDS}, here at", *lines] if lines else []


def _rows(table: LatencyTable) -> list[list[str]]:
    """Of each shape the milliseconds at its most channels and at half of them, and how many times as fast that is."""
    rows = []
    for own in table.shapes:
        most = max(own.points, key=lambda point: (point.channels_in * point.channels_out, point.channels_out))
        half_in, half_out = (-(-channels // 2) for channels in (most.channels_in, most.channels_out))
        known = [point for point in own.points if point.channels_in <= half_in or most.channels_in < 4]
        half_in = max((point.channels_in for point in known), default=most.channels_in)
        half_out = max(
            (point.channels_out for point in own.points if point.channels_out <= half_out), default=most.channels_out
        )
        half_ms = Surface(own.points).at(half_in, half_out)
        channels = f"{most.channels_in} → {most.channels_out}{UNBLOCKED * (most.blocked is False)}"
        rows.append([
            str(own.shape), str(len(own.layers)), channels, digits(most.ms),
            f"{half_in} → {half_out}", digits(half_ms), f"{most.ms / half_ms:.2f}" if half_ms else "",
        ])  # fmt: skip
    return rows
