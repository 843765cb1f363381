"""Tables measured of a real network in ONNX Runtime, in this process: kept, gone on with, refused. Takes 6 s.

One table is measured for all tests, of nine widths with five calls each; no time decides a test.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from measured import InProcess
from resizables import WRITERS, exported_once, real

from wmlc import records
from wmlc.bench.engines.machine import allowed_cpus
from wmlc.bench.engines.worker import Seat
from wmlc.bench.latency import session, visits
from wmlc.bench.latency.config import LatencyConfig
from wmlc.bench.latency.design import design
from wmlc.bench.latency.session import LAUNCHES, ROUNDS, EngineClock
from wmlc.bench.latency.show import print_table
from wmlc.bench.layout import blocked_layers, has_blocks
from wmlc.cli import main
from wmlc.errors import EngineFailed, InputError, Stopped
from wmlc.latency_model import LatencyModel
from wmlc.models.resizable import Resizable
from wmlc.records import LatencyTable, Visit

QUICK = LatencyConfig(seconds=1e-3)  # after which intervals need not be narrow
NETWORK = real("mixed", divisor=4)
WIDTHS = len(design(NETWORK))  # few, as groups have two or three levels
SAME = 1 + 1e-9  # but for rounding
FEW = 3  # of them show how a whole network follows, where all layers are known


@dataclass
class Started:
    """What was started and visited."""

    workers: int = 0
    visited: list[int] = field(default_factory=list)
    stop_after: int | None = None  # visits
    error: BaseException = field(default_factory=KeyboardInterrupt)


@contextlib.contextmanager
def in_this_process() -> Iterator[Started]:
    """Workers in this process, visits of five calls; counted."""
    started, visit = Started(), visits.Visitor.visit

    class Counted(InProcess):
        def __init__(self, seat: Seat) -> None:
            started.workers += 1
            super().__init__(seat)

    def counted(self: visits.Visitor, design_: int, path: Path) -> Visit:
        if started.stop_after is not None and len(started.visited) == started.stop_after:
            raise started.error
        started.visited.append(design_)
        return visit(self, design_, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(visits, "Worker", Counted)
        for name in ("latency.visits.VISIT_MS", "latency.visits.TURNS_MS", "measure.BURST_MS"):
            patch.setattr(f"wmlc.bench.{name}", 1e-3)
        patch.setattr(session, "SCALE_NETWORKS", FEW)
        patch.setattr(visits.Visitor, "visit", counted)
        yield started


@pytest.fixture
def started() -> Iterator[Started]:
    with in_this_process() as own:
        yield own


@dataclass(frozen=True)
class Measured:
    """A directory with a table that was measured there."""

    directory: Path
    file: Path
    table: LatencyTable
    workers: int


def clock_in(directory: Path, config: LatencyConfig = QUICK, **how: Any) -> EngineClock:
    return EngineClock(config, WRITERS, directory, command="wmlc latency", **how)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """The table that tests leave as it is, or copy."""
    directory = tmp_path_factory.mktemp("tables")
    with in_this_process() as own, clock_in(directory) as clock:
        return Measured(directory, clock.file_of(NETWORK), clock.table(NETWORK), own.workers)


@pytest.fixture
def copied(measured: Measured, tmp_path: Path) -> Path:
    """A copy of its directory."""
    shutil.copytree(measured.directory, tmp_path / "tables")
    return tmp_path / "tables"


def test_all_widths_are_visited_three_times_in_launches_of_their_own(measured: Measured) -> None:
    table = measured.table
    assert Counter(visit.design for visit in table.visits) == dict.fromkeys(range(WIDTHS), ROUNDS)
    assert measured.workers == ROUNDS and table.finished
    by_round = [[visit.design for visit in table.visits[k * WIDTHS : (k + 1) * WIDTHS]] for k in range(ROUNDS)]
    assert by_round[0] != by_round[1] and sorted(by_round[0]) == sorted(by_round[1]), "in an order drawn anew"


def test_a_table_says_what_it_is_of(measured: Measured) -> None:
    table = measured.table
    assert (table.arch, table.classes, table.input_shape, table.divisor) == ("mixed", 5, (3, 8, 8), 4)
    assert table.levels == {name: list(own) for name, own in zip(NETWORK.groups, NETWORK.levels, strict=True)}
    assert table.layers == list(NETWORK.layers) and table.command == "wmlc latency"
    assert (table.at.engine, table.at.precision, table.at.threads, table.at.batch) == ("ort", "fp32", 1, 1)
    assert table.at.version != "unknown" and table.at.cpu and table.at.device == "cpu"


def test_each_layer_has_points_at_all_its_widths(measured: Measured) -> None:
    points = {layer: own.points for own in measured.table.shapes for layer in own.layers}
    assert points.keys() == set(NETWORK.layers), "all layers keep their names in the file"
    channels_DL2 = np.array([NETWORK.channels(own) for own in design(NETWORK)])
    for place, layer in enumerate(NETWORK.layers):
        seen = {(own.channels_in, own.channels_out) for own in points[layer]}
        assert seen >= {tuple(pair) for pair in channels_DL2[:, place].tolist()}, layer
        assert all(own.n == ROUNDS and 0 <= own.low <= own.ms * SAME <= own.high * SAME**2 for own in points[layer])
    shapes = {str(own.shape): own.layers for own in measured.table.shapes}
    assert shapes["Conv 3 x 3 at 8 x 8 + Relu"] == ["stem", "one"], "layers that differ in their channels alone"
    assert next(own.shape for own in measured.table.shapes if "deep" in own.layers).groups == "depthwise"
    model = LatencyModel(measured.table)
    assert model.total(NETWORK.layers, NETWORK.channels(NETWORK.full)) > 0


def test_points_outside_of_the_blocked_layout_are_those_that_the_engines_own_graph_has(
    measured: Measured, tmp_path: Path
) -> None:
    exported_once(NETWORK.build(NETWORK.full), NETWORK, tmp_path / "full.onnx")
    full_L2 = NETWORK.channels(NETWORK.full)
    channels = dict(zip(NETWORK.layers, map(tuple, full_L2.tolist()), strict=True))
    told = {
        layer: point.blocked
        for own in measured.table.shapes
        for layer in own.layers
        for point in own.points
        if (point.channels_in, point.channels_out) == channels[layer]
    }
    expected = blocked_layers(tmp_path / "full.onnx")
    assert expected or not has_blocks()
    assert told == {layer: expected.get(layer) for layer in NETWORK.layers}


def test_a_table_is_read_back_and_nothing_is_measured_again(measured: Measured, started: Started) -> None:
    assert records.read(measured.file, LatencyTable, "latency table", "measure again") == measured.table
    with clock_in(measured.directory) as clock:
        assert clock.table(NETWORK) == measured.table
    assert started.workers == 0 and not started.visited


def test_force_measures_what_is_kept(copied: Path, measured: Measured, started: Started) -> None:
    with clock_in(copied, force=True) as clock:
        table = clock.table(NETWORK)
    assert len(started.visited) == len(table.visits) == ROUNDS * WIDTHS and table.visits != measured.table.visits


@pytest.mark.parametrize("visited", [0, 5, WIDTHS, WIDTHS + 4])
def test_stopped_it_says_so_and_goes_on_where_it_was(visited: int, tmp_path: Path, started: Started) -> None:
    started.stop_after = visited
    with clock_in(tmp_path) as clock:
        file = clock.file_of(NETWORK)
        with pytest.raises(Stopped) as stopped:
            clock.table(NETWORK)
    assert str(stopped.value) == f"stopped; the same command goes on ({file} has what was measured)"
    kept = records.read(file, LatencyTable, "latency table", "measure again")
    assert not kept.finished and [own.design for own in kept.visits] == started.visited
    before, started.stop_after = started.workers, None
    with clock_in(tmp_path) as clock:
        table = clock.table(NETWORK)
    assert len(started.visited) == ROUNDS * WIDTHS and table.visits[:visited] == kept.visits
    assert Counter(own.design for own in table.visits) == dict.fromkeys(range(WIDTHS), ROUNDS)
    assert table.finished and table.seconds >= kept.seconds
    assert started.workers - before == ROUNDS - visited // WIDTHS, "a round that is done starts nothing"


def test_an_engine_that_fails_is_one_line_and_what_was_measured_is_kept(tmp_path: Path, started: Started) -> None:
    started.stop_after, started.error = 5, EngineFailed("its engine's process ended (killed)")
    with clock_in(tmp_path) as clock:
        with pytest.raises(InputError) as failed:
            clock.table(NETWORK)
        kept = records.read(clock.file_of(NETWORK), LatencyTable, "latency table", "measure again")
    assert str(failed.value) == (
        "ort failed: its engine's process ended (killed); the same command goes on where it was"
    )
    assert len(kept.visits) == 5


def test_another_machines_table_is_refused_in_words(
    copied: Path, measured: Measured, started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    file = copied / measured.file.relative_to(measured.directory)
    own = measured.table.at
    records.write(file, replace(measured.table, at=replace(own, cpu="an older one", version="0.9")))
    with clock_in(copied) as clock, pytest.raises(InputError) as refused:
        clock.table(NETWORK)
    assert str(refused.value) == (
        f"{file} was measured elsewhere: version '0.9' there, {own.version!r} here; cpu 'an older one' there, "
        f"{own.cpu!r} here; delete it, and it is measured anew"
    )
    assert not started.workers
    file.parent.rename(copied / "ort-of-another-machine")  # as it comes with its directory
    with clock_in(copied) as clock:
        assert clock.table(NETWORK).at == own
    assert "measured elsewhere: version '0.9' there" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("other", [{"threads": 2}, {"batch": 4}, {"precision": "int8"}])
def test_tables_of_other_conditions_lie_apart(other: dict[str, Any], measured: Measured, tmp_path: Path) -> None:
    if other.get("threads", 1) > len(allowed_cpus()):
        pytest.skip("this machine has one CPU")
    with clock_in(tmp_path) as plain, clock_in(tmp_path, replace(QUICK, **other)) as clock:
        assert clock.file_of(NETWORK).parent != plain.file_of(NETWORK).parent
        assert clock.file_of(NETWORK).name == plain.file_of(NETWORK).name == measured.file.name


def test_a_damaged_table_is_one_line(copied: Path, measured: Measured) -> None:
    file = copied / measured.file.relative_to(measured.directory)
    file.write_text(file.read_text()[:1000])
    with clock_in(copied) as clock, pytest.raises(InputError, match="delete it, and it is measured anew") as refused:
        clock.table(NETWORK)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"levels": {NETWORK.groups[0]: [8]}}, "is of other widths; measuring anew measuring "),
        ({"operations": "5x5"}, "is of a network of that name that does something else; measuring anew measuring "),
    ],
)
def test_a_table_of_another_network_is_measured_anew(
    other: dict[str, Any], said: str, copied: Path, measured: Measured, started: Started, capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(session, "busy", lambda environment: f"load 9.0 on {environment.cores} CPUs")
    file = copied / measured.file.relative_to(measured.directory)
    records.write(file, replace(measured.table, **other))
    with clock_in(copied) as clock:
        assert all(getattr(clock.table(NETWORK), name) == getattr(measured.table, name) for name in other)
    assert len(started.visited) == ROUNDS * WIDTHS
    notes = " ".join(capsys.readouterr().err.split())
    assert said in notes and "the machine is busy (load 9.0 on " in notes


def test_what_another_network_has_shown_is_not_measured_again(
    copied: Path, started: Started, measured: Measured, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same layers under another name: a few networks show how a whole one follows, the rest is known."""
    damaged = copied / measured.file.parent.name / "damaged.json"
    damaged.write_text("{")
    other = replace(NETWORK, arch="a twin")
    with clock_in(copied) as clock:
        table = clock.table(other)
    assert set(started.visited) == set(range(FEW)) and table.finished
    assert len(started.visited) == ROUNDS * FEW
    places = [{(own.channels_in, own.channels_out) for own in each.points} for each in table.shapes]
    assert places == [{(own.channels_in, own.channels_out) for own in each.points} for each in measured.table.shapes], (
        "all of its widths have points"
    )
    assert "going without another table" in capsys.readouterr().err


def whole(*halved: int) -> np.ndarray:
    """The counts of the full network, with some groups at their narrowest."""
    counts_G = NETWORK.full
    for group in halved:
        counts_G[group] = NETWORK.levels[group][0]
    return counts_G


def test_whole_networks_are_timed_once(copied: Path, measured: Measured, started: Started) -> None:
    with clock_in(copied) as clock:
        first = clock.time(NETWORK, [whole(), whole(0)])
        assert started.workers == 2 * LAUNCHES and not started.visited, "the full network and another, by turns"
        assert [own.counts for own in first] == [whole().tolist(), whole(0).tolist()]
        assert all(0 < own.low <= own.ms <= own.high and own.launches == LAUNCHES for own in first)
        assert first[0].full_ms == first[1].full_ms > 0, "beside the full network, by turns"
        again = clock.time(NETWORK, [whole(0), whole(), whole(0)])
        assert again == [first[1], first[0], first[1]] and started.workers == 2 * LAUNCHES
    with clock_in(copied) as clock:  # another process of the command
        later = clock.time(NETWORK, [whole(1), whole(0)])
        assert later[1] == first[1] and started.workers == 4 * LAUNCHES
        kept = records.read(clock.file_of(NETWORK), LatencyTable, "latency table", "measure again")
    assert kept.whole == [*first, later[0]] and replace(kept, whole=[]) == measured.table
    with clock_in(copied) as clock:
        assert clock.table(NETWORK) == kept


def test_a_file_that_tells_no_layer_apart_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wmlc.bench.latency.shapes.FileLayers.__init__", _of_no_layers)
    with clock_in(tmp_path) as clock, pytest.raises(InputError) as refused:
        clock.table(NETWORK)
    assert str(refused.value) == ("no layer of mixed goes by its name in the exported file, so none can be timed")


def _of_no_layers(self: Any, onnx_file: Path) -> None:
    self.graph, self.layers = type("Graph", (), {"nodes": []}), {}


def test_a_table_is_shown(measured: Measured, started: Started, capsys: pytest.CaptureFixture[str]) -> None:
    with clock_in(measured.directory) as clock:
        print_table(clock, NETWORK, as_json=False)
        shown = " ".join(capsys.readouterr().out.split())
        print_table(clock, NETWORK, as_json=True)
    assert "Conv 3 x 3 depthwise at 8 x 8 + Clip 1 1 → 12" in shown and "+ Add + Relu 1 8 → 8" in shown
    assert f"ort {measured.table.at.version}, fp32, 1 thread, batch 1" in shown and f"(median of {WIDTHS})" in shown
    json = capsys.readouterr().out
    assert records.text(measured.table, indent=2) + "\n" == json
    assert not started.workers


def test_the_command_measures_keeps_and_prints(tmp_path: Path, started: Started, monkeypatch: Any) -> None:
    def named(arch: str, arch_args: str, image_size: int, classes: int, divisor: int) -> Resizable:
        assert (arch, image_size, classes, divisor) == ("mixed", 8, 5, 4)
        return NETWORK

    monkeypatch.setattr("wmlc.compress.standalone.resizable_named", named)
    monkeypatch.setattr("wmlc.export.for_latency.onnx_writer", lambda precision, target: exported_once)
    words = shlex.split("latency --arch mixed --image-size 8 --classes 5 --divisor 4 --seconds 0.001")
    result = CliRunner().invoke(main, [*words, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    (file,) = tmp_path.rglob("*.json")
    table = records.read(file, LatencyTable, "latency table", "measure again")
    assert table.finished and table.command.startswith("wmlc latency") and file.name in "".join(result.output.split())
    visited = len(started.visited)
    again = CliRunner().invoke(main, [*words, "--out", str(tmp_path), "--json"])
    assert again.exit_code == 0 and len(started.visited) == visited
    assert again.stdout == records.text(table, indent=2) + "\n"
