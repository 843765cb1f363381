"""`wmlc report`: one HTML page that holds all it needs, from the records of one or several runs."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from wmlc.console import say
from wmlc.errors import InputError
from wmlc.files import new_file, refuse_existing
from wmlc.report.sections import Figure, Section, all_sections
from wmlc.report.summary import Report, headline, read_reports
from wmlc.run import Run

HERE = Path(__file__).parent
BUNDLE = "window.vegaEmbed = vegaEmbed;"


def write_report(runs: Sequence[Run], out: Path, *, force: bool) -> None:
    """Write the page of `runs` to `out`, whole or not at all; `InputError` for what the caller can fix."""
    refuse_existing(out, force)
    if out.is_dir():
        raise InputError(f"{out} is a directory; name the page, such as {out / 'report.html'}")
    page = make_page(read_reports(runs))
    with new_file(out) as aside:
        aside.write_text(page, encoding="utf-8")
    say(f"wrote {out}")


def make_page(reports: Sequence[Report]) -> str:
    """The page as text. Its policy lets only its own two scripts run, and nothing be fetched."""
    sections = all_sections(reports)
    bundle, script = _bundle(), (HERE / "page.js").read_text(encoding="utf-8")
    allowed = " ".join(f"'sha256-{_digest(code)}'" for code in (bundle, script))
    figures = {figure.key: _choices(figure) for section in sections for figure in section.figures}
    return Template((HERE / "page.html").read_text(encoding="utf-8")).substitute(
        policy=f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:",
        title=escape(f"wmlc report: {', '.join(report.name for report in reports)}"),
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        header=header_html(reports, sections),
        sections="\n".join(section_html(section) for section in sections),
        charts=script_json(figures),
        bundle=bundle,
        script=script,
    )


def script_json(record: Any) -> str:
    """JSON that can stand inside a `script` element: no text in it can end the element."""
    text = json.dumps(record, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script."""
    import vl_convert

    return str(vl_convert.javascript_bundle(BUNDLE)).replace("</script", "<\\/script")


def _digest(code: str) -> str:
    return base64.b64encode(hashlib.sha256(code.encode("utf-8")).digest()).decode("ascii")


def _choices(figure: Figure) -> list[dict[str, Any]]:
    return [{"label": label, "spec": spec} for label, spec in figure.choices.items()]


def header_html(reports: Sequence[Report], sections: Iterable[Section]) -> str:
    """The headline of each run, and the way to the sections."""
    if len(reports) == 1:
        top = f'<p class="kicker">{escape(reports[0].name)}</p>\n<h1>{escape(headline(reports[0]))}</h1>'
    else:
        lines = "".join(f"<dt>{escape(r.name)}</dt><dd>{escape(headline(r))}</dd>" for r in reports)
        top = f'<h1>{len(reports)} runs compared</h1>\n<dl class="headlines">{lines}</dl>'
    links = "".join(f'<a href="#{section.key}">{escape(section.title)}</a>' for section in sections)
    return f'{top}\n<nav aria-label="Sections">{links}</nav>'


def section_html(section: Section) -> str:
    """A section with its heading."""
    words = "".join(f"<p>{escape(text)}</p>" for text in section.words)
    figures = "".join(figure_html(figure) for figure in section.figures)
    shown = f'<div class="figures">{figures}</div>' if figures else ""
    return f'<section id="{section.key}"><h2>{escape(section.title)}</h2>{words}{shown}{section.html}</section>'


def figure_html(figure: Figure) -> str:
    """Where the script draws a chart, with its drop-down and its two buttons."""
    options = "".join(f'<option value="{i}">{escape(label)}</option>' for i, label in enumerate(figure.choices))
    select = f"<label>showing <select>{options}</select></label>" if len(figure.choices) > 1 else ""
    if len(figure.choices) == 1 and (only := next(iter(figure.choices))):
        select = f"<span>{escape(only)}</span>"
    title = figure.title
    save = "".join(f'<button type="button" data-save="{kind}">Save {kind.upper()}</button>' for kind in ("svg", "png"))
    return (
        f'<figure data-chart="{escape(figure.key)}"{" class=wide" * figure.wide}>'
        f'<div class="bar"><h3>{escape(title)}</h3>{select}</div>'
        f'<div class="scroll"><div class="plot" role="img" aria-label="{escape(title)}"></div></div>'
        f'<img class="print" alt="{escape(title)}">'
        f'<figcaption><span>{escape(figure.caption)}</span><span class="save">{save}</span></figcaption></figure>'
    )
