"""Runs side by side as a person or a script reads them: tables, Markdown, CSV or JSON, on screen and in a file."""

from __future__ import annotations

import contextlib
import functools
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from wmlc.console import UNKNOWN, note, say, say_exactly, say_notes, scaled
from wmlc.errors import InputError
from wmlc.files import check_writable, new_file, refuse_existing
from wmlc.report.configurations import Comparable, Configuration, comparable
from wmlc.report.cost import places_of
from wmlc.report.figures import render_svg
from wmlc.report.findings import findings, separation
from wmlc.report.paper import PaperEntry, Published, beside_paper, check_table, in_words
from wmlc.report.plots import spec_of
from wmlc.report.runs import RANDOM, finished_runs, read_runs
from wmlc.report.sizes import accuracy_over_latency, accuracy_over_macs
from wmlc.run import provenance
from wmlc.stats import Spread, spread
from wmlc.table import FORMATS, Table

SUFFIXES = {".md": "md", ".csv": "csv", ".json": "json"}
NAME = 13  # letters of a method's name; what is longer goes on below
MOST = 4  # peers that fit beside a method; of more only the second table tells
WIDE, STACKED = ("baseline", "ensemble", "FLOPs −%"), ("base-\nline", "ens-\nemble", "FLOPs\n−%")  # in a terminal
FIGURES = {"macs": accuracy_over_macs, "latency": accuracy_over_latency}  # that stand beside a file in Markdown
WHERE = "as figures: --out FILE.md draws top-1 over MACs and over latency beside it, 'wmlc plot' draws more"
LEGEND = (
    "top-1 in % on the test set; mean: over the peers; drop: baseline less mean, in points; FLOPs −%:",
    "percent less than the unpruned network's, mean over the peers; cost: MACs of training all peers, in",
    "epochs of the unpruned network; min: minutes of the same, beside whatever else ran then; neither",
    "counts the baseline, but where prune-finetune trains what it cuts, nor a start that was given;",
    "±: standard deviation over seeds; ratio: pruned, asked/got; FLOPs are twice the MACs",
)


@dataclass(frozen=True)
class Section:
    """One comparable set with all that is said of it."""

    runs: Comparable
    notes: list[str]
    published: Published | None
    pictures: dict[str, str] = field(default_factory=dict)  # names of SVG files beside the tables, by what they show


def compare_runs(names: Sequence[Path], paper: str | None, out: Path | None, form: str, force: bool) -> None:
    """Print the runs called `names` beside each other as `form` (table, md, csv or json), and write them to `out`.

    Seeds of one configuration are one entry. Runs of other data, epochs or baselines get a table of their own, and a
    line says what separates them. Args: the `paper`'s table to set beside them; an `out` that ends in .md, .csv or
    .json, replaced only with `force`, as are the figures that stand beside one in .md. Raises `InputError`.
    """
    if form not in FORMATS:
        raise InputError(f"--format must be one of {', '.join(FORMATS)}, got {form!r}")
    if not names:
        raise InputError("compare needs runs; name them ('wmlc list' shows what there is)")
    if paper is not None:
        check_table(paper)
    if out is not None:
        if out.suffix not in SUFFIXES:
            raise InputError(f"--out must end in {', '.join(SUFFIXES)}, got {out}")
        refuse_existing(out, force)
        check_writable(out)
    pictured = out is not None and out.suffix == ".md"
    sets = comparable(read_runs(finished_runs(names), with_bench=pictured))
    sections = [Section(each, findings(each), beside_paper(paper, each) if paper else None) for each in sets]
    drawn: dict[Path, bytes] = {}
    if out is not None and pictured:
        sections, drawn = _with_pictures(sections, out)
        for path in drawn:
            refuse_existing(path, force)
    apart = separation(sets)
    _print(sections, apart, form)
    if out is None:
        return
    text = _captured(lambda: _print(sections, apart, SUFFIXES[out.suffix]))
    for path, picture in drawn.items():
        with new_file(path) as aside:
            aside.write_bytes(picture)
    with new_file(out) as aside:
        aside.write_text(text.lstrip("\n"), encoding="utf-8")
    beside = f", beside it {', '.join(path.name for path in drawn)}" if drawn else ""
    (note if form in ("csv", "json") else say)(f"wrote {out}{beside}")


def _with_pictures(sections: Sequence[Section], out: Path) -> tuple[list[Section], dict[Path, bytes]]:
    """The sections with the names of their figures, and these by path: study.md has study-macs.svg beside it.

    Of several tables each has its own, as study-2-macs.svg; what was not benched has none over latency.
    """
    found, pictures = [], dict[Path, bytes]()
    for number, section in enumerate(sections, 1):
        runs, names = section.runs.runs, dict[str, str]()
        which = f"-{number}" if len(sections) > 1 else ""
        for over, draw in FIGURES.items():
            if (figure := draw(runs)).lines:
                path = out.with_name(f"{out.stem}{which}-{over}.svg")
                pictures[path] = render_svg(spec_of(figure, runs))
                names[figure.title] = path.name
        found.append(replace(section, pictures=names))
    return found, pictures


def _captured(show: Callable[[], None]) -> str:
    """What `show` would print."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        show()
    return printed.getvalue()


def _print(sections: Sequence[Section], apart: str | None, form: str) -> None:
    if form == "json":
        say_exactly(json.dumps(as_record(sections, apart), indent=2))
    elif form == "csv":
        say_exactly(Table.of(csv_lines(sections)).csv().rstrip("\n"))
    else:
        _print_tables(sections, apart, markdown=form == "md")


def as_record(sections: Sequence[Section], apart: str | None) -> dict[str, Any]:
    """All of it for a script: every spread with the value of each seed."""
    tables = [
        {
            "settings": section.runs.settings,
            "rows": [{**asdict(one), "n": one.n} for one in section.runs.configurations],
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
        about = {key: settings[key] for key in ("network", "start", "data", "training images", "epochs", "batch size")}
        for one in section.runs.configurations:
            own = {"table": number, "source": "measured", **about, "method": one.name, "n": one.n}
            own["seeds"] = " ".join(map(str, one.seeds))
            lines.append(own | _measured_numbers(one) | {"differs": _differs(one, section.published)})
        for line in section.published.lines if section.published else []:
            if not line.measured:
                whose = {"table": number, "source": "paper", "network": line.network, "method": line.name}
                lines.append(whose | _published_numbers(line))
    return lines


def _differs(one: Configuration, found: Published | None) -> str:
    """Every setting in which the configuration differs from the paper's, if the paper has such a row."""
    own = [line for line in found.lines if line.measured and line.name == one.name] if found else []
    return "; ".join([*found.differs, *own[0].differs]) if found and own else ""


def _measured_numbers(one: Configuration) -> dict[str, float | None]:
    found = {"baseline": one.baseline}
    for k, peer in enumerate(one.peers, 1):
        found |= {
            f"peer{k}": peer.top1, f"peer{k}_top1_drop": peer.top1_drop, f"peer{k}_flops_drop": peer.flops_drop,
            f"peer{k}_params": peer.params, f"peer{k}_macs": peer.macs,
        }  # fmt: skip
    found |= {"mean": one.mean, "ensemble": one.ensemble, "top1_drop": one.top1_drop, "flops_drop": one.flops_drop}
    return _mean_and_sd(found | {"cost": one.cost, "training_macs": one.training_macs, "seconds": one.seconds})


def _published_numbers(line: PaperEntry) -> dict[str, float | None]:
    found = {"baseline": line.baseline, **{f"peer{k}": top1 for k, top1 in enumerate(line.peers, 1)}}
    found |= {"mean": line.mean, "ensemble": line.ensemble, "top1": line.top1, "top1_drop": line.top1_drop}
    return _mean_and_sd(found | {"flops_drop": line.flops_drop})


def _mean_and_sd(found: dict[str, Spread]) -> dict[str, float | None]:
    """Each spread as a mean and a `_sd`."""
    return {name: value for key, each in found.items() for name, value in ((key, each.mean), (f"{key}_sd", each.sd))}


def _print_tables(sections: Sequence[Section], apart: str | None, markdown: bool) -> None:
    if apart:
        _print_notes([apart], markdown)
    for number, section in enumerate(sections, 1):
        configurations = section.runs.configurations
        title = (f"{number} of {len(sections)}: " if apart else "") + _title(section.runs)
        for table in (_methods(configurations, title, markdown), _peers(configurations, markdown)):
            say("")
            table.show(markdown=markdown)
        say("")
        for line in LEGEND:
            say(line)
        _print_notes(section.notes, markdown)
        if section.published:
            _print_published(section.published, markdown)
        if markdown and section.pictures:
            say("")
            say("\n\n".join(f"![{title}]({quote(name)})" for title, name in section.pictures.items()))
    if not markdown and not any(section.pictures for section in sections):
        say(f"\n{WHERE}")


def _title(runs: Comparable) -> str:
    of = {words: in_words(value) for words, value in runs.settings.items()}
    start = runs.runs[0].start_name
    begun = "" if start == RANDOM else f" from {start}"
    return (
        f"{of['network']}{begun}, {of['data']} ({of['training images']} training images of {of['image size']}), "
        f"{of['epochs']} epoch{'' if of['epochs'] == '1' else 's'}, batch {of['batch size']}"
    )


def _print_notes(notes: Sequence[str], markdown: bool) -> None:
    say("")
    say_notes(notes, markdown=markdown)


def _methods(configurations: Sequence[Configuration], title: str, markdown: bool) -> Table:
    """A row a configuration, its ± below its numbers."""
    most = max(len(one.peers) for one in configurations)
    shown = most if markdown or most <= MOST else 0
    peers = [f"peer {peer + 1}" for peer in range(shown)]
    baseline, ensemble, flops = WIDE if markdown else STACKED
    header = ["method", "n", baseline, *peers, "mean", ensemble, "drop", flops, "cost", "min"]
    rows = [
        [
            one.name, str(one.n), _points(one.baseline),
            *(_points(one.peers[index].top1) if index < len(one.peers) else UNKNOWN for index in range(shown)),
            _points(one.mean), _points(one.ensemble), _points(one.top1_drop), _points(one.flops_drop, ".1f"),
            _amount(one.cost), _amount(_minutes(one.seconds)),
        ]
        for one in configurations
    ]  # fmt: skip
    return Table(header, rows, title, first_letters=NAME)


def _peers(configurations: Sequence[Configuration], markdown: bool) -> Table:
    """Every peer: its size beside its accuracy."""
    header = ("method", "peer", "ratio, %", "params", "MACs", "FLOPs −%", "top-1", "drop")
    rows = [
        (
            one.name if markdown or peer is one.peers[0] else "",
            str(peer.peer), f"{100 * peer.ratio:.3g}/{100 * (peer.achieved_ratio.mean or 0):.3g}",
            scaled(peer.params.mean or 0), scaled(peer.macs.mean or 0), _one_line(peer.flops_drop, ".1f"),
            _one_line(peer.top1), _one_line(peer.top1_drop),
        )
        for one in configurations
        for peer in one.peers
    ]  # fmt: skip
    return Table(header, rows, "what each peer keeps", first_letters=NAME)


def _print_published(found: Published, markdown: bool) -> None:
    """The paper's table, measured configurations first, and what differs."""
    say("")
    _paper_table(found).show(markdown=markdown)
    if not any(line.measured for line in found.lines):
        _print_notes(["none of these runs has a row in that table", *found.notes], markdown)
        return
    differs = ["; ".join(found.differs)] if found.differs else []
    own = [f"{line.name}: {'; '.join(line.differs)}" for line in found.lines if line.differs]
    marked = [f"differs: {words}" for words in [*differs, *own]] or ["no setting that is recorded differs"]
    _print_notes([*marked, *found.notes], markdown)


def _paper_table(found: Published) -> Table:
    peers = max((len(line.peers) for line in found.lines), default=0)
    names = "saliency" if found.table == "table7" else "method"

    def named(line: PaperEntry) -> str:
        told = names == "method" or not line.measured or f"saliency={line.key}" in line.name
        return line.name if told else f"{line.key} {line.name}"

    columns: dict[str, Callable[[PaperEntry], str]] = {
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
    rows = [[shown(line) for shown in columns.values()] for line in found.lines]
    return Table(list(columns), rows, f"beside the paper's {found.title}", first_letters=NAME)


def _peer_points(index: int, line: PaperEntry) -> str:
    return _points(line.peers[index]) if index < len(line.peers) else UNKNOWN


def _points(value: Spread, form: str = ".2f") -> str:
    """Mean, and its ± below where there is one."""
    if value.mean is None:
        return UNKNOWN
    return f"{value.mean:{form}}" + ("" if value.sd is None else f"\n±{value.sd:{form}}")


def _one_line(value: Spread, form: str = ".2f") -> str:
    return _points(value, form).replace("\n", " ")


def _amount(value: Spread) -> str:
    """Mean, and its ± below, in as many digits: 0.85, 12.7, 240."""
    if value.mean is None:
        return UNKNOWN
    places = places_of(value.mean)
    return f"{value.mean:.{places}f}" + ("" if value.sd is None else f"\n±{value.sd:.{places}f}")


def _minutes(seconds: Spread) -> Spread:
    return spread([None if value is None else value / 60 for value in seconds.values])
