"""The command line: one command a verb. Rooms are imported inside, so `--help` is quick."""

from __future__ import annotations

import gc
import io
import sys
from pathlib import Path
from typing import Any

import click

import wmlc
from wmlc import options
from wmlc.bench.choose import Among, Bounds, print_choice
from wmlc.bench.config import BenchConfig, FileSettings, check_asked
from wmlc.bench.latency.config import LatencyConfig, NetworkConfig
from wmlc.compress.config import CHOICES, SweepConfig
from wmlc.compress.recipes import print_recipes, print_settings
from wmlc.data.look import data_command
from wmlc.errors import InputError
from wmlc.export.config import ExportConfig, ShipConfig
from wmlc.options import PATH, Cli, command_words, forced, given, json_option, options_of, run_option, shown_as, split
from wmlc.report.commands import compare, plot, report
from wmlc.settings import BenchSettings, TrainConfig


@click.group(
    cls=Cli,
    commands=[data_command, report, compare, plot],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(wmlc.__version__)
def main() -> None:
    """One training run, a family of dense networks, each measured against the unpruned one.

    \b
    wmlc data pets                             what a folder of pictures holds
    wmlc train                                 train four peers and the baseline
    wmlc latency --arch resnet18               what its layers take at any width, here
    wmlc extract --peer 2 --out p2.onnx        one peer as a standalone ONNX file
    wmlc bench --engine ort                    is it faster, and what did it cost?
    wmlc choose --max-latency-ms 3             the peer to ship, by what was measured
    wmlc predict cat.png --peer 2              what a picture shows
    wmlc report                                all of it on one page
    wmlc ship --peer 2 --to triton             into a server's model repository
    wmlc sweep study --set seed=0,1,2          a grid of runs
    wmlc compare runs/study/*                  methods side by side
    wmlc plot runs/study/*                     the paper's figures from them
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # of an encoding that lacks a letter that is said
            stream.reconfigure(errors="replace")
    gc.set_threshold(10_000, 20, 20)  # what is imported stays: going through it as often takes 7 % of a start


@main.command()
@click.argument("recipe", required=False)
@options_of(TrainConfig, CHOICES, switches=True)
@click.option("--out", type=PATH, help="The run's directory.  [default: runs/ARCH-DATA-METHOD]")
@click.option("--resume", is_flag=True, help="Go on with the run at --out (or the newest) from its last checkpoint.")
@click.option("--dry-run", is_flag=True, help="Print the family and train nothing.")
@click.option("--print-config", is_flag=True, help="Print all settings as YAML that 'wmlc train FILE' takes, and stop.")
@click.option("--list", "list_recipes", is_flag=True, help="List the recipes that came with wmlc.")
@json_option
@forced
def train(recipe: str | None, print_config: bool, list_recipes: bool, as_json: bool, **settings: Any) -> None:
    """Train a family of peers, and the unpruned baseline.

    RECIPE is a YAML file, or the name of one that came with wmlc (--list shows them); options override it. Where
    neither it nor an option says what to train, it is 'digits'.
    """
    wanted = {name: settings.pop(name) for name in ("out", "resume", "dry_run", "force")} | {"as_json": as_json}
    asked = given(list(settings))
    if list_recipes or print_config:
        print_recipes(as_json) if list_recipes else print_settings(recipe, asked, beside=wanted)
        return
    from wmlc.compress import command

    def clocks(config: TrainConfig) -> Any:
        tables = Path(config.latency_tables) if config.latency_tables else None
        served = LatencyConfig(
            engine=config.engine, threads=config.threads, batch=config.batch, precision=config.latency_precision,
            device=config.latency_device,
        )  # fmt: skip
        return _clock(served, tables)

    command.train(recipe, asked, command.Wanted(**wanted), command_words(), clocks)


def _clock(config: LatencyConfig, directory: Path | None, force: bool = False) -> Any:
    from wmlc.bench.latency.files import Writers
    from wmlc.bench.latency.session import EngineClock
    from wmlc.export.for_latency import onnx_writer
    from wmlc.export.to_tensorrt import plan_for

    writers = Writers(onnx_writer(config.precision, config.int8_target), plan_for)
    return EngineClock(config, writers, directory, command=command_words(), force=force)


@main.command()
@options_of(NetworkConfig)
@options_of(LatencyConfig)
@click.option("--out", type=PATH, metavar="DIR", help="Where tables are kept.  [default: the user's cache]")
@json_option
@forced
def latency(out: Path | None, as_json: bool, force: bool, **settings: Any) -> None:
    """Measure what a network's layers take at any of their widths, in the engine that will serve.

    One table of milliseconds over channels in and out a layer shape, with intervals, which 'wmlc train
    --max-latency-ms' chooses widths by. Stopped, the same command goes on. --force measures again what is kept.

    \b
    wmlc latency --arch resnet18 --image-size 224 --engine ort --threads 1
    """
    network, config = split(settings, NetworkConfig, LatencyConfig)
    from wmlc.bench.latency.show import print_table
    from wmlc.compress.standalone import resizable_named

    with _clock(config, out, force) as clock:
        print_table(clock, resizable_named(**vars(network)), as_json)


@main.command()
@run_option
@options.peer_option
@click.option("--out", type=PATH, required=True, help="FILE.onnx, FILE.plan, or a directory (spec.json and weights).")
@options_of(ExportConfig)
@forced
def extract(run_name: Path | None, peer: str, out: Path, force: bool, **settings: Any) -> None:
    """Write a peer as a standalone dense network.

    An ONNX file is read back before it is called done: shapes, and logits on real images. Of an fp16
    or int8 file, top-1 on the test set is measured and stands beside fp32's.
    With --peer all, --out family.onnx makes family-peer1.onnx, family-peer2.onnx, …
    """
    config = ExportConfig(**settings)
    from wmlc.export.extract import print_extracted

    print_extracted(options.the_run(run_name), peer, out, config, force=force)


@main.command()
@click.argument("files", nargs=-1, type=PATH, metavar="[FILE.onnx …]")
@run_option
@options_of(BenchSettings)
@options_of(FileSettings)
@click.option("--data", "data_name", metavar="NAME", help="With files: the data set to measure their top-1 on.")
@click.option("--data-root", metavar="DIR", help="Where that lies; or the run's data set, if it has moved.")
@shown_as
@click.option("--out", type=PATH, metavar="FILE.json", help="The record.  [default: bench.json in the run]")
@forced
def bench(
    files: tuple[Path, ...], run_name: Path | None, data_name: str | None, data_root: str | None, shown: str,
    out: Path | None, force: bool, **settings: Any,
) -> None:  # fmt: skip
    """Is it really faster, and what did it cost?

    Times the baseline and every peer by turns, each engine in a process of its own, and measures top-1 on the
    whole test set through the same engine; one cell for each engine, number of threads and batch size. What could
    not be measured is left empty, with the reason. With FILEs it is about them, the first being the baseline.

    \b
    wmlc bench --engine ort,openvino --batch 1,8 --threads 1,2
    wmlc bench --scenario server --latency-bound 20
    wmlc bench theirs.onnx ours.onnx
    """
    config, said = split(settings, BenchConfig, FileSettings)
    check_asked(config, shown, run=run_name is not None, files=len(files), data=bool(data_name), said=said)
    from wmlc.bench import session
    from wmlc.files import refuse_existing

    out = Path("bench.json") if files and out is None else out
    if out is not None:
        refuse_existing(out, force)
    devices = session.choose_devices(config)  # before minutes are spent on files for an engine that is not there
    from wmlc.bench.budgets import check_budgets
    from wmlc.bench.gates import enforce
    from wmlc.export.for_bench import bench_forms
    from wmlc.report.terminal import print_bench
    from wmlc.run import find_run, open_run_data

    try:
        if files:
            assert out is not None
            data = session.open_test_images(data_name, data_root)
            record = session.bench_files(files, config, data, out, said, command=command_words())
        else:
            check_budgets(run := find_run(run_name), config, devices)
            run_data, keep, out = open_run_data(run, data_root), out is None and not force, out or run.bench
            asked = config.precisions, config.int8_target
            made = bench_forms(run, run_data, *asked, plans=config.takes_plans, batches=config.batches)
            record = session.bench_run(run, config, made, run_data, out, command=command_words(), keep=keep)
    except session.Unwritten as error:
        print_bench(error.record, None, shown)
        raise
    print_bench(record, out, shown)
    enforce(record, out)


@main.command()
@run_option
@click.option("--bench", "bench_file", type=PATH, metavar="FILE.json", help="A bench's record.  [default: the run's]")
@options_of(Bounds)
@options_of(Among)
@json_option
def choose(run_name: Path | None, bench_file: Path | None, as_json: bool, **settings: Any) -> None:
    """Name the peer to ship, from what was measured.

    Of the peers within the bounds the most accurate; with --min-top1 alone, or where top-1 was not measured, the
    fastest. Exits with 3 where none fits, and says by how much the nearest misses.

    \b
    wmlc choose --max-latency-ms 3 --engine ort
    wmlc choose --min-top1 75
    """
    run = options.the_run(run_name) if run_name or bench_file is None else None
    bounds, among = split(settings, Bounds, Among)
    print_choice(run, bench_file, bounds, among, as_json=as_json)


@main.command()
@click.argument("pictures", nargs=-1, required=True, type=PATH, metavar="PICTURE…")
@run_option
@options.peer_option
@json_option
def predict(pictures: tuple[Path, ...], run_name: Path | None, peer: str, as_json: bool) -> None:
    """Say what pictures show, from pixels as top-1 was measured on: the five likeliest classes of each."""
    from wmlc.predict import print_predictions

    print_predictions(options.the_run(run_name), peer, pictures, as_json)


@main.command()
@run_option
@click.option("--peer", metavar="K,K,…|all|baseline", help="Which networks, peers counted from 1, the smallest first.")
@click.option("--out", type=PATH, default="model_repository", show_default=True, metavar="DIR", help="Where to.")
@options_of(ShipConfig)
@click.option("--verify", metavar="URL", help="Ship nothing; ask the server at URL whether it serves what DIR holds.")
@json_option
def ship(
    run_name: Path | None, peer: str | None, out: Path, verify: str | None, as_json: bool, **settings: Any
) -> None:
    """Put peers that passed the bench into a server's model repository.

    One model a peer, such as resnet20_cifar10_p05, with labels, manifest.json and a model card; shipped again,
    it becomes version 2. A server that watches the repository never sees half a version.

    \b
    wmlc ship --peer 2,4 --to triton --out model_repository
    wmlc ship --verify http://127.0.0.1:8000 --out model_repository
    """
    from wmlc.run import find_run

    if verify is not None:
        if other := [f"--{name.replace('_', '-')}" for name in given(["peer", *settings]) if name != "data_root"]:
            raise InputError(f"--verify ships nothing: give it --out, --run and --json, without {', '.join(other)}")
        from wmlc.export.verify import print_verified

        print_verified(find_run(run_name), out, verify, as_json, settings["data_root"])
        return
    if peer is None:
        raise click.UsageError("name the networks with --peer, or a running server with --verify")
    config = ShipConfig(**settings)
    from wmlc.export.ship import print_shipped

    print_shipped(find_run(run_name), peer, out, config, as_json)


@main.command()
@click.argument("recipe", required=False)
@options.sets_option
@click.option("--out", type=PATH, metavar="DIR", help="Where the runs go.  [default: runs/RECIPE]")
@options_of(SweepConfig)
@click.option("--dry-run", is_flag=True, help="Print the grid and how far each run is; train nothing.")
@json_option
def sweep(
    recipe: str | None, sets: tuple[str, ...], out: Path | None, dry_run: bool, as_json: bool, **settings: Any
) -> None:
    """Train a grid of runs: every combination of the values given with --set, over RECIPE.

    What is finished is skipped and what was killed goes on, so the same command again completes a sweep. One failed
    run does not stop the others; the end lists it with its cause. Runs that need the same baseline train it once.

    \b
    wmlc sweep study --set data_root=DIR --set method=wml,wml-p,dml --set seed=0,1,2 --jobs 2
    """
    from wmlc.compress.sweep.session import run_sweep

    run_sweep(recipe, sets, out, SweepConfig(**settings), dry_run=dry_run, as_json=as_json)


@main.command("list")
@click.option("--networks", metavar="TEXT", help="Search what --arch takes instead: built in, torchvision's, timm's.")
@json_option
def list_runs(networks: str | None, as_json: bool) -> None:
    """Show the runs, their peers, and what training cost: epochs of the unpruned network, minutes."""
    from wmlc.models.catalogue import find
    from wmlc.report.listing import print_networks, print_runs

    print_runs(as_json) if networks is None else print_networks(find(networks), as_json)
