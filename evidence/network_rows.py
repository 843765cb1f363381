"""How far each network came, as a row, and the rows as a table."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

END = "<!-- end -->"
WAYS = ("all the way", "reduced", "refused", "failed", "wrong")


@dataclass
class Row:
    """How far one network came."""

    network: str
    pixels: int
    verdict: str = "failed"  # one of WAYS
    reason: str = ""  # why it stopped, or was reduced
    stopped_at: str = ""
    params: int = 0
    macs: int = 0
    groups: int = 0  # proven
    left_whole: int = 0
    left_why: list[str] = field(default_factory=list)  # the layers and the reason, the commonest reasons first
    reach: float = 0.0  # the share of the MACs that can go
    stages: dict[str, str] = field(default_factory=dict)  # → the last of the network's own modules in it
    share: str = ""
    gone: list[float] = field(default_factory=list)  # share of the MACs, of each peer, counted
    macs_planned: list[int] = field(default_factory=list)
    macs_counted: list[int] = field(default_factory=list)
    round_trip: bool | None = None
    forward_ad: float | None = None  # relative error
    forward_ad_why: str = ""
    onnx: bool | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    peak_mib: int = 0
    date: str = ""
    machine: str = ""


def write_table(document: Path, found: dict[str, Any]) -> None:
    rows = [Row(**row) for row in found["rows"]]
    text, begin = document.read_text(), f"<!-- {found['command']}: begin -->"
    before, rest = text.split(begin) if begin in text else (text.rstrip("\n") + "\n\n", END + "\n")
    document.write_text(f"{before}{begin}\n{as_markdown(found, rows)}\n{END}{rest.partition(END)[2]}")


def as_markdown(found: dict[str, Any], rows: list[Row]) -> str:
    kinds = {way: [row for row in rows if row.verdict == way] for way in WAYS}
    goal = [row for row in rows if row.verdict == "all the way"]
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    lines = [
        f"Of {len(rows)} networks {len(goal)} went all the way, "
        + ", ".join(f"{len(kinds[way])} {way}" for way in WAYS[1:])
        + f". `{found['command']}`, {_when_and_where(rows)}; {versions}.",
        "",
        "| network | pixels | groups proven / whole | MACs that can go | stages | shared | gone, two peers | "
        "again, bit for bit | ONNX | forward AD | proof, s | all, s | outcome |",
        "|" + " --- |" * 13,
    ]
    return "\n".join([*lines, *map(_line, rows)])


def _when_and_where(rows: list[Row]) -> str:
    """Each day and machine that rows are of, with their number where there are several."""
    of = Counter(f"{row.date}, {row.machine}" for row in rows)
    return "; ".join(f"{place} ({count} networks)" if len(of) > 1 else place for place, count in sorted(of.items()))


def _line(row: Row) -> str:
    def sign(is_right: bool | None) -> str:
        return "yes" if is_right else "" if is_right is None else "no"

    derivative = f"{row.forward_ad:.0e}" if row.forward_ad is not None else "none" if row.forward_ad_why else ""
    gone = " / ".join(f"{share:.0%}" for share in row.gone)
    why = row.reason or (row.left_why[0] if row.left_why else "")
    where = f", at {row.stopped_at}" if row.stopped_at else ""
    outcome = f"{row.verdict}{where}{f'; {why}' if why else ''}".replace("|", "/").replace("\n", " ")
    outcome = outcome if len(outcome) <= 160 else outcome[:159] + "…"
    total = sum(row.seconds.values()) - row.seconds.get("onnx", 0) * ("round trip" in row.seconds)
    name = row.network.rpartition(".py:")[2]
    cells = [
        f"`{name}`", row.pixels, f"{row.groups} / {row.left_whole}", f"{row.reach:.0%}", len(row.stages),
        row.share, gone, sign(row.round_trip), sign(row.onnx), derivative, f"{row.seconds.get('proof', 0):.0f}",
        f"{total:.0f}", outcome,
    ]  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"
