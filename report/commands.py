"""The commands that look at finished runs: report, compare, plot. Rooms are imported inside, so `--help` is quick."""

from __future__ import annotations

from pathlib import Path

import click

from wmlc.errors import InputError
from wmlc.options import PATH, Grouped, forced, shown_as, the_run


@click.command(cls=Grouped)
@click.argument("run_names", nargs=-1, type=PATH, metavar="[RUN …]")
@click.option("--out", type=PATH, metavar="FILE.html", help="The page.  [default: report.html in the first run]")
@forced
def report(run_names: tuple[Path, ...], out: Path | None, force: bool) -> None:
    """Make one page of what runs gave: to look at, to send, to print.

    Self-contained and without the network: accuracy over latency, parameters and MACs, training, peer
    weights, widths, layer times, the whole table, the machine and the commands. Several runs come on one page.
    """
    from wmlc.report.page import write_report

    if out is not None and out.suffix not in (".html", ".htm"):
        raise InputError(f"--out must end in .html, got {out}")
    runs = [the_run(name) for name in run_names or (None,)]
    write_report(runs, out or runs[0].report, force=force or (out is None and len(runs) == 1))


@click.command(cls=Grouped)
@click.argument("runs", nargs=-1, required=True, type=PATH, metavar="RUN...")
@click.option("--paper", metavar="table6|table7|table8", help="Set the paper's published numbers beside the measured.")
@shown_as
@click.option("--out", type=PATH, metavar="FILE.md|csv|json", help="Write it to a file too; beside .md its figures.")
@forced
def compare(runs: tuple[Path, ...], paper: str | None, shown: str, out: Path | None, force: bool) -> None:
    """Set finished runs side by side: a row a method, seeds of one configuration as mean ± standard deviation.

    Runs of other data, starts or epochs get tables apart. --out study.md draws study-macs.svg, study-latency.svg too.
    """
    from wmlc.report.compare import compare_runs

    compare_runs(runs, paper, out, shown, force)


@click.command(cls=Grouped)
@click.argument("runs", nargs=-1, required=True, type=PATH, metavar="RUN...")
@click.option("--figure", "figures", metavar="NAME,…", help="Some of the figures only; a wrong name lists them.")
@click.option("--out", type=PATH, default=Path("plots"), show_default=True, metavar="DIR", help="Where they go.")
@forced
def plot(runs: tuple[Path, ...], figures: str | None, out: Path, force: bool) -> None:
    """Draw the paper's figures from finished runs, each as SVG, PNG and the numbers as JSON.

    Average against weighted ensemble over epochs (Figure 5), accuracy over ratio, MACs, latency and η, the trace of
    the peer weights (Figures 6, 7). Seeds of one configuration become one line with its spread.
    """
    from wmlc.report.plots import plot_runs

    plot_runs(runs, out, tuple(name.strip() for name in figures.split(",")) if figures else (), force)
