"""`wmlc report`: one HTML page that holds all it needs, from the records of one or several runs."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from wmlc.console import say
from wmlc.errors import InputError
from wmlc.files import new_file, refuse_existing
from wmlc.report.headline import headline
from wmlc.report.palette import DARK, LIGHT, PAGE_SHAPES
from wmlc.report.runs import TrainedRun, read_runs
from wmlc.report.sections import all_sections
from wmlc.run import Run

HERE = Path(__file__).parent
BUNDLE = "window.vegaEmbed = vegaEmbed;"


def write_report(runs: Sequence[Run], out: Path, *, force: bool) -> None:
    """Write the page of `runs` to `out`, whole or not at all; `InputError` for what the caller can fix."""
    refuse_existing(out, force)
    if out.is_dir():
        raise InputError(f"{out} is a directory; name the page, such as {out / 'report.html'}")
    page = make_page(read_runs(runs, with_bench=True))
    with new_file(out) as aside:
        aside.write_text(page, encoding="utf-8", errors="backslashreplace")  # names that are no Unicode, as \\udcff
    say(f"wrote {out}")


def make_page(runs: Sequence[TrainedRun]) -> str:
    """The page as text. Its policy lets only its own two scripts run, and nothing be fetched."""
    sections = all_sections(runs)
    bundle, script = _bundle(), (HERE / "page.js").read_text(encoding="utf-8")
    allowed = " ".join(f"'sha256-{_digest(code)}'" for code in (bundle, script))
    drawn = {
        "themes": {"light": asdict(LIGHT), "dark": asdict(DARK)},
        "shapes": PAGE_SHAPES,
        "charts": {
            chart.key: [{"label": label, "spec": spec} for label, spec in chart.choices.items()]
            for section in sections
            for chart in section.charts
        },
    }
    page = templates().get_template("page.html")
    # What is marked as safe is our own: hashes, JSON without brackets, and scripts that hold no end tag.
    return page.render(
        policy=Markup(f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"),
        headlines={run.name: headline(run) for run in runs},
        sections=sections,
        light=LIGHT,
        dark=DARK,
        drawn=Markup(script_json(drawn)),
        bundle=Markup(bundle),
        script=Markup(script),
    )


def templates() -> jinja2.Environment:
    """The page's templates: everything is escaped, and a name that they do not know is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def script_json(record: Any) -> str:
    """JSON that can stand inside a `script` element: no text in it can end the element."""
    text = json.dumps(record, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@functools.cache  # it takes seconds
def _bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script."""
    import vl_convert

    return str(vl_convert.javascript_bundle(BUNDLE)).replace("</script", "<\\/script")


def _digest(code: str) -> str:
    return base64.b64encode(hashlib.sha256(code.encode("utf-8")).digest()).decode("ascii")
