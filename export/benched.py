"""What the bench says of a network that is to ship, and whether that holds where it will be served."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from wmlc import records
from wmlc.console import note
from wmlc.errors import InputError
from wmlc.export.config import CPU_ONLY, ShipConfig
from wmlc.export.extract import run_file
from wmlc.files import sha256
from wmlc.records import Bench, Latency, Row
from wmlc.run import Run, own_code, peer_name


@dataclass(frozen=True, kw_only=True)
class Benched:
    """What the bench says of a network: its row at the smallest batch, where and when that was measured."""

    row: Row
    latency: Latency  # the row's
    machine: str | None  # the GPU or the CPU that it ran on
    time: str
    test_images: int
    against: str  # the precision of the baseline that it is compared with


def read_bench(run: Run, config: ShipConfig) -> Bench:
    """The bench of `run`; `InputError`, with the command that makes it, where there is none."""
    return records.read(run.bench, Bench, "bench", _remedy(run, config))


def as_benched(config: ShipConfig, bench: Bench) -> ShipConfig:
    """`config` with the target of the int8 files that the bench ran, where none is named: a GPU's are others."""
    if config.precision != "int8" or config.target or config.engine != "ort":
        return config
    return replace(config, target=bench.settings.target)


def check_device(name: str, row: Row, config: ShipConfig) -> None:
    """Raise `InputError` where what was measured on one device cannot hold where the server runs it; else a note."""
    served = served_on(row, config)
    where = f"{name} was benched on {row.device}, and {config.to} will run it on {served}"
    remedy = f"bench with --device {served}, or ship to where it was benched"
    if served == "cpu" and config.form == "int8-gpu" and (row.device != "cpu" or config.to == "ovms"):
        raise InputError(
            f"{name} is int8 made for a GPU, which may give other answers in {config.to} on the CPU; bench with "
            "--precision fp32,int8 --target cpu --device cpu"
        )
    if served == row.device:
        return
    if config.max_latency_ms is not None:
        raise InputError(f"{where}, so --max-latency-ms says nothing of it; {remedy}")
    note(f"{where}: its latency there is another; {remedy}")


def served_on(row: Row, config: ShipConfig) -> str:
    """The device of the server, cpu or cuda: where the bench was, unless one is asked for or the server has but one."""
    if config.to in CPU_ONLY:
        return "cpu"
    return row.device if config.device == "auto" else config.device


def _remedy(run: Run, config: ShipConfig, beside: Sequence[str] = ()) -> str:
    """How what is to ship is measured; `beside` it the precisions whose baseline it is compared with."""
    command = f"wmlc bench --run {shlex.quote(str(run.root))} {_asked(config, beside)}{own_code(run)}"
    return f"run '{command}' first, as only what was measured ships"


def _asked(config: ShipConfig, beside: Sequence[str] = ()) -> str:
    asked = f"--engine {config.engine} --precision {','.join(dict.fromkeys((*beside, config.precision)))}"
    return asked + (f" --target {config.target}" if config.target else "")


def read_benched(run: Run, bench: Bench, peer: int, config: ShipConfig) -> Benched:
    """What the bench measured of this very file at its smallest batch; `InputError` where it did not pass."""
    remedy = _remedy(run, config, bench.settings.precisions[:1])
    wanted = (peer, config.engine, config.precision)
    rows = [row for row in bench.rows if (row.peer, row.engine, row.precision) == wanted]
    if not rows or bench.data is None:
        raise InputError(f"{peer_name(peer)} was not benched with {_asked(config)}; {remedy}")
    row = min(rows, key=lambda row: row.batch)
    if row.latency_ms is None:
        raise InputError(f"{peer_name(peer)} did not pass the bench ({'; '.join(row.notes)}); it cannot ship")
    if row.budget_met is False:
        note(f"{peer_name(peer)} misses its budget of {row.latency_budget_ms:g} ms: {row.latency_ms.p50:.3g} ms (p50)")
    file = run_file(run, peer, config.form, config.suffix)
    if not file.is_file() or sha256(file) != row.file_sha256:
        raise InputError(f"{file} is not the file that was benched; {remedy}")
    return Benched(
        row=row,
        latency=row.latency_ms,
        machine=bench.environment.gpu if row.device == "cuda" else bench.environment.cpu,
        time=row.time or bench.environment.time,
        test_images=bench.data.test_images,
        against=bench.settings.precisions[0],
    )


def missed_gates(name: str, benched: Benched, config: ShipConfig) -> list[str]:
    """The gates that a benched network misses, in words."""
    missed, top1, p99 = [], benched.row.top1, benched.latency.p99
    if config.min_top1 is not None and (top1 is None or top1 < config.min_top1):
        got = "was not measured" if top1 is None else f"is {top1:.2f}"
        missed.append(f"{name}: top-1 {got}, --min-top1 asks for {config.min_top1:g}")
    if config.max_latency_ms is not None and p99 > config.max_latency_ms:
        missed.append(
            f"{name}: p99 at batch {benched.row.batch} is {p99:.3g} ms, --max-latency-ms allows "
            f"{config.max_latency_ms:g}"
        )
    return missed
