"""Runs side by side as a person or a script reads them: tables, Markdown, CSV or JSON, on screen and in a file."""

from __future__ import annotations

import functools
import json
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wmlc.console import UNKNOWN, note, say, scaled
from wmlc.console import out as screen
from wmlc.errors import InputError
from wmlc.files import check_writable, new_file, refuse_existing
from wmlc.report.comparison import Comparable, Peer, Row, Spread, comparable
from wmlc.report.findings import findings, separation
from wmlc.report.paper import Line, Published, beside_paper, check_table, in_words
from wmlc.report.terminal import WIDTH, as_csv, print_aligned
from wmlc.report.trained import read_trained
from wmlc.run import provenance
from wmlc.table import FORMATS

SUFFIXES = {".md": "md", ".csv": "csv", ".json": "json"}
NAME = 13  # columns of a method's name; what is longer goes on below
MOST = 4  # peers that fit beside a method; of more only the second table tells
LEGEND = (
    "top-1 in % on the test set; mean: over the peers; drop: baseline less mean, in points; FLOPs −%:",
    "percent less than the unpruned network's, mean over the peers; min: minutes to train all peers, the",
    "baseline apart, but with it for prune-finetune, which cuts it, beside whatever else ran then;",
    "±: standard deviation over seeds; ratio: pruned, asked/got; FLOPs are twice the MACs",
)


@dataclass(frozen=True)
class Section:
    """One comparable set with all that is said of it."""

    runs: Comparable
    notes: list[str]
    published: Published | None


def compare_runs(names: Sequence[Path], paper: str | None, out: Path | None, form: str, force: bool) -> None:
    """Print the runs called `names` beside each other as `form` (table, md, csv or json), and write them to `out`.

    Seeds of one configuration are one row. Runs of other data, epochs or baselines get a table of their own, and a line
    says what separates them. Args: the `paper`'s table to set beside them; an `out` that ends in .md, .csv or .json,
    replaced only with `force`. Raises `InputError`.
    """
    if form not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, got {form!r}")
    if not names:
        raise InputError("compare needs runs; name them ('wmlc list' shows what there is)")
    if paper is not None:
        check_table(paper)
    if out is not None:
        if out.suffix not in SUFFIXES:
            raise InputError(f"--out must end in {', '.join(SUFFIXES)}, got {out}")
        refuse_existing(out, force)
        check_writable(out)
    sets = comparable(read_trained(names))
    sections = [Section(each, findings(each), beside_paper(paper, each) if paper else None) for each in sets]
    apart = separation(sets)
    _print(sections, apart, form)
    if out is not None:
        text = _captured(lambda: _print(sections, apart, SUFFIXES[out.suffix]))
        with new_file(out) as aside:
            aside.write_text(text.lstrip("\n"), encoding="utf-8")
        (note if form in ("csv", "json") else say)(f"wrote {out}")


def _captured(show: Callable[[], None]) -> str:
    """What `show` would print."""
    with screen.capture() as printed:
        show()
    return printed.get()


def _print(sections: Sequence[Section], apart: str | None, form: str) -> None:
    if form == "json":
        say(json.dumps(as_record(sections, apart), indent=2))
    elif form == "csv":
        say(as_csv(csv_lines(sections)).rstrip("\n"))
    else:
        _print_tables(sections, apart, markdown=form == "md")


def as_record(sections: Sequence[Section], apart: str | None) -> dict[str, Any]:
    """All of it for a script: every spread with the value of each seed."""
    tables = [
        {
            "settings": section.runs.settings,
            "rows": [{**asdict(row), "n": row.n} for row in section.runs.rows],
            "notes": section.notes,
            "published": None if section.published is None else asdict(section.published),
        }
        for section in sections
    ]
    return {"separated_by": apart, "tables": tables, **vars(provenance())}


def csv_lines(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """A line a configuration, then one a published row; the number of the `table` tells comparable sets apart."""
    lines: list[dict[str, Any]] = []
    for number, section in enumerate(sections, 1):
        settings = section.runs.settings
        about = {key: settings[key] for key in ("network", "data", "training images", "epochs", "batch size")}
        for row in section.runs.rows:
            own = {"table": number, "source": "measured", **about, "method": row.name, "n": row.n}
            own["seeds"] = " ".join(map(str, row.seeds))
            lines.append(own | _flat(row) | {"differs": _differs(row, section.published)})
        for line in section.published.lines if section.published else []:
            if not line.measured:
                whose = {"table": number, "source": "paper", "network": line.network, "method": line.name}
                lines.append(whose | _flat(line))
    return lines


def _differs(row: Row, found: Published | None) -> str:
    """Every setting in which the row differs from the paper's, if the paper has such a row."""
    own = [line for line in found.lines if line.measured and line.name == row.name] if found else []
    return "; ".join([*found.differs, *own[0].differs]) if found and own else ""


def _flat(row: Row | Line) -> dict[str, Any]:
    """Each spread as a mean and a `_sd`."""
    found: dict[str, Spread] = {"baseline": row.baseline}
    peers: Sequence[Peer | Spread] = row.peers
    for index, peer in enumerate(peers, 1):
        if isinstance(peer, Peer):
            found[f"peer{index}"] = peer.top1
            for key in ("top1_drop", "flops_drop", "params", "macs"):
                found[f"peer{index}_{key}"] = getattr(peer, key)
        else:
            found[f"peer{index}"] = peer
    for key in ("mean", "ensemble", "top1", "top1_drop", "flops_drop", "seconds"):
        if hasattr(row, key):
            found[key] = getattr(row, key)
    return {name: value for key, each in found.items() for name, value in ((key, each.mean), (f"{key}_sd", each.sd))}


def _print_tables(sections: Sequence[Section], apart: str | None, markdown: bool) -> None:
    if apart:
        _print_notes([apart], markdown)
    for number, section in enumerate(sections, 1):
        _head((f"{number} of {len(sections)}: " if apart else "") + _title(section.runs), markdown)
        _print_rows(section.runs.rows, markdown)
        _head("what each peer keeps", markdown)
        _print_peers(section.runs.rows, markdown)
        say("")
        for line in LEGEND:
            say(line)
        _print_notes(section.notes, markdown)
        if section.published:
            _print_published(section.published, markdown)


def _title(runs: Comparable) -> str:
    of = {words: in_words(value) for words, value in runs.settings.items()}
    return (
        f"{of['network']}, {of['data']} ({of['training images']} training images of {of['image size']}), "
        f"{of['epochs']} epochs, batch {of['batch size']}"
    )


def _head(title: str, markdown: bool) -> None:
    """A line above a table; a Markdown table needs an empty line before it."""
    say(f"\n**{title}**\n" if markdown else f"\n{textwrap.fill(title, WIDTH)}")


def _print_notes(notes: Sequence[str], markdown: bool) -> None:
    say("")
    for line in notes:
        say(f"- {line}" if markdown else textwrap.fill(f"note: {line}", WIDTH, subsequent_indent="      "))


def _print_rows(rows: Sequence[Row], markdown: bool) -> None:
    """The methods: a row each, its ± below its numbers."""
    most = max(len(row.peers) for row in rows)
    shown = most if markdown or most <= MOST else 0
    header = ["method", "n", "baseline", *(f"peer {peer + 1}" for peer in range(shown)), "mean", "ensemble", "drop"]
    cells = [
        [
            row.name, str(row.n), _points(row.baseline),
            *(_points(row.peers[index].top1) if index < len(row.peers) else UNKNOWN for index in range(shown)),
            _points(row.mean), _points(row.ensemble), _points(row.top1_drop), _points(row.flops_drop, ".1f"),
            _minutes(row.seconds),
        ]
        for row in rows
    ]  # fmt: skip
    _print_stacked([*header, "FLOPs −%", "min"], cells, markdown)


def _print_peers(rows: Sequence[Row], markdown: bool) -> None:
    """Every peer: its size beside its accuracy."""
    header = ("method", "peer", "ratio, %", "params", "MACs", "FLOPs −%", "top-1", "drop")
    cells = [
        (
            row.name if markdown or peer is row.peers[0] else "",
            str(peer.peer), f"{100 * peer.ratio:.3g}/{100 * (peer.achieved_ratio.mean or 0):.3g}",
            scaled(peer.params.mean or 0), scaled(peer.macs.mean or 0), _one_line(peer.flops_drop, ".1f"),
            _one_line(peer.top1), _one_line(peer.top1_drop),
        )
        for row in rows
        for peer in row.peers
    ]  # fmt: skip
    _print_stacked(header, cells, markdown)


def _print_published(found: Published, markdown: bool) -> None:
    """The paper's table, measured rows first, and what differs."""
    _head(f"beside the paper's {found.title}", markdown)
    header, cells = _paper_columns(found)
    _print_stacked(header, cells, markdown)
    if not any(line.measured for line in found.lines):
        _print_notes(["none of these runs has a row in that table", *found.notes], markdown)
        return
    differs = ["; ".join(found.differs)] if found.differs else []
    own = [f"{line.name}: {'; '.join(line.differs)}" for line in found.lines if line.differs]
    marked = [f"differs: {words}" for words in [*differs, *own]] or ["no setting that is recorded differs"]
    _print_notes([*marked, *found.notes], markdown)


def _paper_columns(found: Published) -> tuple[list[str], list[list[str]]]:
    peers = max((len(line.peers) for line in found.lines), default=0)
    names = "saliency" if found.table == "table7" else "method"

    def named(line: Line) -> str:
        told = names == "method" or not line.measured or f"saliency={line.key}" in line.name
        return line.name if told else f"{line.key} {line.name}"

    columns: dict[str, Callable[[Line], str]] = {
        names: named,
        "network": lambda line: line.network,
        "whose": lambda line: "measured" if line.measured else "paper",
    }
    if found.table == "table8":
        columns["top-1"] = lambda line: _points(line.top1)
    else:
        columns["baseline"] = lambda line: _points(line.baseline)
    if found.table == "table7":
        columns["pruned"] = lambda line: _points(line.peers[0])
        columns["drop"] = lambda line: _points(line.top1_drop)
        columns["FLOPs −%"] = lambda line: _points(line.flops_drop, ".1f")
    if found.table == "table6":
        for index in range(peers if peers <= MOST else 0):
            columns[f"peer {index + 1}"] = functools.partial(_peer_points, index)
        columns["mean"] = lambda line: _points(line.mean)
        columns["ensemble"] = lambda line: _points(line.ensemble)
        columns["drop"] = lambda line: _points(line.top1_drop)
    return list(columns), [[cell(line) for cell in columns.values()] for line in found.lines]


def _peer_points(index: int, line: Line) -> str:
    return _points(line.peers[index]) if index < len(line.peers) else UNKNOWN


def _print_stacked(header: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool) -> None:
    """A table whose cells may go on below: after a line feed, and the first one where it is too long."""
    if markdown:
        print_aligned(header, [[cell.replace("\n", " ") for cell in row] for row in rows], markdown=True)
        return
    lines: list[list[str]] = []
    for first, *rest in rows:
        parts = [textwrap.wrap(first, NAME), *(cell.split("\n") for cell in rest)]
        height = max(map(len, parts))
        lines += [[part[index] if index < len(part) else "" for part in parts] for index in range(height)]
    print_aligned(header, lines, markdown=False)


def _points(value: Spread, form: str = ".2f") -> str:
    """Mean, and its ± below where there is one."""
    if value.mean is None:
        return UNKNOWN
    return f"{value.mean:{form}}" + ("" if value.sd is None else f"\n±{value.sd:{form}}")


def _one_line(value: Spread, form: str = ".2f") -> str:
    return _points(value, form).replace("\n", " ")


def _minutes(seconds: Spread) -> str:
    if seconds.mean is None:
        return UNKNOWN
    form = ".2f" if seconds.mean < 600 else ".1f"
    return f"{seconds.mean / 60:{form}}" + ("" if seconds.sd is None else f"\n±{seconds.sd / 60:{form}}")
