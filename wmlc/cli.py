"""The command line: one command a verb. Rooms are imported inside, so `--help` is quick."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

import wmlc
from wmlc.bench.config import DEVICES, FORMATS, BenchConfig
from wmlc.bench.engines import ENGINES, PLAN, engine_class
from wmlc.bench.scenarios import SCENARIOS
from wmlc.compress.config import CHOICES, TrainConfig, config_from
from wmlc.compress.recipes import override, print_recipes, read_recipe
from wmlc.console import note
from wmlc.errors import InputError
from wmlc.export.config import CALIBRATORS, SERVERS, SHIP_DEVICES, SHIPPED_ENGINES, ExportConfig, ShipConfig
from wmlc.forms import PRECISIONS
from wmlc.options import (
    PATH,
    Cli,
    command_words,
    force_option,
    json_option,
    names,
    precision_option,
    ratios,
    run_option,
    target_option,
    three_sizes,
    whole_numbers,
)

VERIFY_TAKES = ("run_name", "out", "verify", "as_json")  # of `wmlc ship`
FILES_RECORD = Path("bench.json")  # of a bench of files


def setting(name: str, text: str, **kind: Any) -> Callable[[Any], Any]:
    """An option for one field of `TrainConfig`: unset unless given, so that a recipe's value stands."""
    default = getattr(TrainConfig, name)
    shown = ",".join(f"{v:g}" for v in default) if isinstance(default, tuple) else default
    if name in CHOICES:
        kind["metavar"] = "|".join(CHOICES[name])
    elif isinstance(default, int | float) and not isinstance(default, bool) and "type" not in kind:
        kind["type"] = type(default)
    word = name.replace("_", "-")
    return click.option(
        f"--{word}/--no-{word}" if isinstance(default, bool) else f"--{word}", name, default=None, help=text,
        show_default=str(shown) if shown not in (None, False, True, "") else False, **kind,
    )  # fmt: skip


@click.group(cls=Cli, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(wmlc.__version__)
def main() -> None:
    """One training run, a family of dense networks, each measured against the unpruned one.

    \b
    wmlc train                                 train four peers and the baseline
    wmlc extract --peer 2 --out p2.onnx        one peer as a standalone ONNX file
    wmlc bench --engine ort                    is it faster, and what did it cost?
    wmlc choose --max-latency-ms 3             the peer to ship, by what was measured
    wmlc report                                all of it on one page
    wmlc ship --peer 2 --to triton             into a server's model repository
    wmlc sweep study --set seed=0,1,2          a grid of runs
    wmlc compare runs/study/*                  methods side by side
    wmlc plot runs/study/*                     the paper's figures from them
    """


@main.command()
@click.argument("recipe", required=False)
@setting("data", "Data set: digits, cifar10, cifar100, imagefolder or imagenet.")
@setting("data_root", "Where the data set lies; an imagefolder has train/ and val/ or test/ below it.", metavar="DIR")
@setting("download", "Fetch CIFAR if it is missing.")
@setting("image_size", "Image side in pixels.  [default: the files' own if small, else 224]", type=int)
@setting("train_images", "Use a fixed random subset of so many training images.", type=int)
@setting("held_out", "Share of train held out for choosing checkpoints and for the peer weights.")
@setting("workers", "Processes that decode large images.")
@setting("arch", "resnet20|32|56 (16 filters), resnet18|34|50|101, mobilenet_v2.")
@setting(
    "ratios",
    "Pruning ratio of each peer, up to 8.  [default: 0.7,0.5,0.3,0; 0,0,0,0 for one and cl]",
    metavar="R,R,…",
    callback=lambda c, p, v: ratios(v),
)
@setting("ratio_of", "What a ratio is a share of.")
@setting("saliency", "Score that decides what is cut.")
@setting(
    "share",
    "tree, none, branches (all but the last stage), or the last stage that all peers share (stem, stage1, …).  "
    "[default: tree; branches for one; none for dml and independent]",
)
@setting(
    "join",
    "What a shared stage gets of its peers' gradients: with the mean its steps are as large as those of a network "
    "trained alone, with the sum as many times as large as peers share it.  [default: mean; sum for one]",
)
@setting("trunk_ratio", "Cut the shared stages too, by this share, for every peer.")
@setting("divisor", "Keep channels at multiples of this: 8; 16 for AVX-512 CPUs; 32 for int8.")
@setting(
    "method",
    "How the peers learn: wml, weighted mutual learning; wml-p, the same with equal weights; dml, one, cl and "
    "self-distillation, the methods that the paper compares with; independent, nobody teaches; "
    "prune-finetune, the unpruned network trained, cut by magnitude and fine-tuned.",
)
@setting(
    "alpha",
    "Weight of the teaching against the labels.  [default: 0.1; 0.5 for cl]",
    type=float,
)
@setting("temperature", "Softens what is taught.  [default: 1; 2 for cl; 3 for one and self-distillation]", type=float)
@setting("feature_loss", "Let the largest peer's stages teach too: by FitNets' hints or by attention transfer.")
@setting("feature_weight", "Weight of that term.  [default: 100 for hints, 1000 for attention]", type=float)
@setting("weight_lr", "Step of the mirror descent on the peer weights.")
@setting("reweigh_every", "Training steps between two updates of the peer weights.")
@setting("epochs", "Passes over the training images.")
@setting(
    "finetune_epochs",
    "Of prune-finetune, after the cut.  [default: so many that all takes as long as a wml family]",
    type=int,
)
@setting("finetune_lr", "Peak learning rate of fine-tuning.  [default: lr / 10]", type=float)
@setting("batch_size", "Images a step.")
@setting("lr", "Peak learning rate.")
@setting("momentum", "SGD momentum.")
@setting("nesterov", "Nesterov momentum.")
@setting("weight_decay", "L2 penalty.")
@setting("schedule", "Learning-rate schedule.")
@setting("warmup_epochs", "Epochs of linear warm-up.")
@setting("clip", "Clip the gradient's norm to this.", type=float)
@click.option(
    "--baseline", "baseline_from", metavar="RUN", help="Take the baseline from another run instead of training it."
)
@click.option("--no-baseline", is_flag=True, help="Do without the unpruned baseline.")
@setting("seed", "Seed of initialisation, split, order and augmentation.")
@setting("device", "Where to train.")
@setting("precision", "auto: bf16 where the hardware has it.")
@setting("compile", "Compile the forward pass with torch.compile.")
@click.option("--out", type=PATH, help="The run's directory.  [default: runs/ARCH-DATA-METHOD]")
@click.option("--resume", is_flag=True, help="Go on with the run at --out (or the newest) from its last checkpoint.")
@click.option("--dry-run", is_flag=True, help="Print the family and train nothing.")
@click.option("--list", "list_recipes", is_flag=True, help="List the recipes that came with wmlc.")
@json_option
@force_option
def train(
    recipe: str | None,
    out: Path | None,
    resume: bool,
    dry_run: bool,
    list_recipes: bool,
    force: bool,
    as_json: bool,
    no_baseline: bool,
    **settings: Any,
) -> None:
    """Train a family of peers, and the unpruned baseline.

    RECIPE is a YAML file, or the name of one that came with wmlc ('digits'; --list shows them); options override it.
    """
    if list_recipes:
        print_recipes(as_json)
        return
    given = {name: value for name, value in settings.items() if value is not None}
    from wmlc.compress import session
    from wmlc.run import RUNS, find_run

    if resume:
        if given or recipe or no_baseline or force or dry_run or as_json:
            raise InputError("--resume takes all settings from the run; pass only --out with it")
        session.resume_run(find_run(out))
        return
    if as_json and not dry_run:
        raise InputError("--json goes with --dry-run; a finished run's record is its family.json")
    if no_baseline:
        given = {"baseline_from": None, **given, "baseline": False}
    elif "baseline_from" in given:
        given["baseline"] = True
    chosen, left = override(read_recipe(recipe) if recipe else {}, given)
    config = config_from(chosen, recipe or "options")
    if left:
        note(f"{' and '.join(left)} of {recipe} belong to its method; {config.method} takes its own")
    if dry_run:
        session.dry_run(config, as_json)
        return
    out = out or RUNS / f"{config.arch}-{config.data}-{config.method}"
    try:
        session.start_run(config, out, force, command_words())
    except KeyboardInterrupt:
        raise InputError(f"stopped; go on with 'wmlc train --resume --out {out}'") from None


@main.command()
@run_option
@click.option(
    "--peer", required=True, metavar="K|all|baseline", help="Which network, peers counted from 1, the smallest first."
)
@click.option(
    "--out",
    type=PATH,
    required=True,
    help="FILE.onnx, FILE.plan (or .engine, TensorRT), or a directory for spec.json and weights.safetensors.",
)
@precision_option(ExportConfig.precision, "|".join(PRECISIONS), "Arithmetic inside the file; inputs stay float32.")
@target_option
@click.option(
    "--calibration",
    default=ExportConfig.calibration,
    show_default=True,
    metavar="N",
    help="Training images that tell the ranges of int8 activations.",
)
@click.option(
    "--calibrator",
    default=ExportConfig.calibrator,
    show_default=True,
    metavar="|".join(CALIBRATORS),
    help="How a range is read off them.",
)
@click.option(
    "--max-drop", type=float, metavar="X", help="Write no fp16 or int8 file that loses more top-1 points; exit with 3."
)
@click.option(
    "--with-preprocess",
    is_flag=True,
    help="Take uint8 pixels [N, H, W, C]; scaling and normalisation go into the file.",
)
@click.option(
    "--batch-range",
    default=",".join(map(str, ExportConfig.batch_range)),
    show_default=True,
    metavar="MIN,OPT,MAX",
    help="Batch sizes that a plan is built for: smallest, most usual, largest.",
)
@click.option("--version-compatible", is_flag=True, help="A plan that later TensorRT versions load too.")
@click.option("--hardware-compatible", is_flag=True, help="A plan that other GPUs load too (Ampere and newer).")
@click.option("--compare", is_flag=True, help="Hold the plan's layers one by one against ONNX Runtime's (polygraphy).")
@force_option
def extract(run_name: Path | None, peer: str, out: Path, batch_range: str, force: bool, **settings: Any) -> None:
    """Write a peer as a standalone dense network.

    An ONNX file is read back before it is called done: shapes, and logits on real images. Of an fp16
    or int8 file, top-1 on the test set is measured and stands beside fp32's.
    With --peer all, --out family.onnx makes family-peer1.onnx, family-peer2.onnx, …
    """
    config = ExportConfig(batch_range=three_sizes(batch_range), **settings)
    from wmlc.console import say
    from wmlc.export.extract import extract as extract_peers
    from wmlc.run import find_run

    for made in extract_peers(find_run(run_name), peer, out, config, force=force):
        say(f"wrote {made.path} ({_size(made.path):,} bytes)" + made.accuracy(config.form))


@main.command()
@click.argument("files", nargs=-1, type=PATH, metavar="[FILE.onnx …]")
@run_option
@click.option(
    "--engine", "engines", default=",".join(BenchConfig.engines), show_default=True, metavar="E,E,…",
    help=f"What runs the networks: {', '.join(ENGINES)}.",
)  # fmt: skip
@precision_option("fp32", "P,P,…", "fp32, fp16, int8; all are compared with the baseline in the first.")
@target_option
@click.option("--batch", "batches", default="1", show_default=True, metavar="B,B,…", help="Images a call.")
@click.option("--threads", default="1", show_default=True, metavar="T,T,…", help="CPU threads of each engine, pinned.")
@click.option(
    "--device", default=BenchConfig.device, show_default=True, metavar="|".join(DEVICES), help="Where the engine runs."
)
@click.option(
    "--seconds", default=BenchConfig.seconds, show_default=True, help="Time to spend on each network and cell."
)
@click.option(
    "--launches", default=BenchConfig.launches, show_default=True,
    help="Processes that a network is timed in, one after another; intervals are drawn from them.",
)  # fmt: skip
@click.option(
    "--seed", default=BenchConfig.seed, show_default=True, help="Seed of the interleaving and of the bootstrap."
)
@click.option(
    "--scenario", "scenarios", default="", metavar="S,S,…", help=f"MLPerf's, by LoadGen: {', '.join(SCENARIOS)}."
)
@click.option(
    "--latency-bound", "latency_bound_ms", type=float, metavar="MS",
    help="With --scenario server: the highest rate whose p99 stays under it.",
)  # fmt: skip
@click.option("--profile", is_flag=True, help="Time a layer, baseline and peer side by side.")
@click.option("--data", "data_name", metavar="NAME", help="With files: the data set to measure their top-1 on.")
@click.option("--data-root", metavar="DIR", help="Where that lies.")
@click.option("--no-accuracy", is_flag=True, help="Time only; leave top-1 unmeasured.")
@click.option("--no-cuda-graph", is_flag=True, help="With --engine trt, launch every kernel anew, to compare.")
@click.option("--max-drop", type=float, metavar="X", help="Exit with 3 if a peer loses more than X top-1 points.")
@click.option(
    "--min-speedup", type=float, metavar="X", help="Exit with 3 if a pruned peer is less than X times as fast."
)
@click.option("--format", "shown", default="table", show_default=True, metavar="|".join(FORMATS), help="What to print.")
@click.option(
    "--out",
    type=PATH,
    metavar="FILE.json",
    help="Where to write the record.  [default: bench.json in the run]",
)
@force_option
def bench(
    files: tuple[Path, ...],
    run_name: Path | None,
    engines: str,
    precision: str,
    batches: str,
    threads: str,
    scenarios: str,
    data_name: str | None,
    data_root: str | None,
    no_accuracy: bool,
    no_cuda_graph: bool,
    shown: str,
    out: Path | None,
    force: bool,
    **settings: Any,
) -> None:
    """Is it really faster, and what did it cost?

    Times the baseline and every peer by turns, each engine in a process of its own, and measures top-1 on the
    whole test set through the same engine; one cell for each engine, number of threads and batch size. What could
    not be measured is left empty, with the reason. With FILEs it is about them, the first being the baseline.

    \b
    wmlc bench --engine ort,openvino --batch 1,8 --threads 1,2
    wmlc bench --scenario server --latency-bound 20
    wmlc bench theirs.onnx ours.onnx
    """
    config = BenchConfig(
        engines=names(engines), precisions=names(precision), batches=whole_numbers("--batch", batches),
        threads=whole_numbers("--threads", threads), scenarios=names(scenarios) if scenarios else (),
        accuracy=not no_accuracy, cuda_graph=not no_cuda_graph, **settings,
    )  # fmt: skip
    if shown not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, got {shown!r}")
    if files and run_name:
        raise InputError("bench measures a run or files; give --run or FILEs, not both")
    if (data_name or data_root) and not files:
        raise InputError("--data and --data-root are for files; a run is benched on the data that it was trained on")
    if files and (config.precisions != ("fp32",) or config.target):
        raise InputError("files run in the precision that is in them; leave --precision and --target out")
    from wmlc.bench import session
    from wmlc.files import refuse_existing

    if out is not None or files:
        refuse_existing(out or FILES_RECORD, force)
    session.choose_devices(config)  # before minutes are spent on files for an engine that is not there
    if files:
        from wmlc.data import DataConfig, open_data

        data = open_data(DataConfig(name=data_name, root=Path(data_root) if data_root else None)) if data_name else None
        out = out or FILES_RECORD
        record = session.bench_files(files, config, data, out, command=command_words())
    else:
        from wmlc.export.extract import bench_forms
        from wmlc.run import find_run, open_run_data

        run = find_run(run_name)
        run_data, out = open_run_data(run), out or run.bench
        takes = {engine_class(engine).takes for engine in config.engines}
        on_tensorrt = bool({"trt", "ort-trt"} & set(config.engines))
        made = bench_forms(
            run, run_data, config.precisions, config.target or ("gpu" if on_tensorrt else None), plans=PLAN in takes,
            batches=config.batches,
        )  # fmt: skip
        record = session.bench_run(run, config, made, run_data, out, command=command_words())
    from wmlc.bench.gates import enforce
    from wmlc.report.terminal import print_bench

    print_bench(record, out, shown)
    enforce(record, out)


@main.command()
@run_option
@click.option("--bench", "bench_file", type=PATH, metavar="FILE.json", help="A bench's record.  [default: the run's]")
@click.option("--max-latency-ms", type=float, metavar="X", help="Most milliseconds of a call, at the 99th percentile.")
@click.option("--max-bytes", type=int, metavar="N", help="Largest file.")
@click.option("--max-macs", type=float, metavar="N", help="Most multiply-accumulates an image, such as 5e8.")
@click.option("--min-top1", type=float, metavar="X", help="Least top-1 in percent.")
@click.option("--engine", metavar="E", help="As measured with.  [default: the bench's first]")
@click.option("--precision", metavar="P", help="In this precision only.")
@click.option("--threads", type=int, metavar="T", help="With so many threads.  [default: the bench's first]")
@click.option("--batch", type=int, metavar="B", help="At this batch size.  [default: the bench's first]")
@json_option
def choose(
    run_name: Path | None,
    bench_file: Path | None,
    as_json: bool,
    max_latency_ms: float | None,
    max_bytes: int | None,
    max_macs: float | None,
    min_top1: float | None,
    **wanted: Any,
) -> None:
    """Name the peer to ship, from what was measured.

    Of the peers within the bounds the most accurate; with --min-top1 alone, or where top-1 was not measured, the
    fastest. Exits with 3 where none fits, and says by how much the nearest misses.

    \b
    wmlc choose --max-latency-ms 3 --engine ort
    wmlc choose --min-top1 75
    """
    from wmlc.bench.choose import Bounds, print_choice
    from wmlc.run import find_run

    bounds = Bounds(max_latency_ms=max_latency_ms, max_bytes=max_bytes, max_macs=max_macs, min_top1=min_top1)
    run = find_run(run_name) if run_name or bench_file is None else None
    bench_file = bench_file or (run.bench if run else None)
    assert bench_file is not None
    print_choice(run, bench_file, bounds, as_json=as_json, **wanted)


@main.command()
@click.argument("run_names", nargs=-1, type=PATH, metavar="[RUN …]")
@click.option("--out", type=PATH, metavar="FILE.html", help="The page.  [default: report.html in the first run]")
@force_option
def report(run_names: tuple[Path, ...], out: Path | None, force: bool) -> None:
    """Make one page of what runs gave: to look at, to send, to print.

    Self-contained and without the network: accuracy over latency, parameters and MACs, training, peer
    weights, widths, layer times, the whole table, the machine and the commands. Several runs come on one page.
    """
    from wmlc.report.page import write_report
    from wmlc.run import find_run

    runs = [find_run(name) for name in run_names or (None,)]
    write_report(runs, out or runs[0].report, force=force or out is None)


@main.command()
@run_option
@click.option("--peer", metavar="K,K,…|all|baseline", help="Which networks, peers counted from 1, the smallest first.")
@click.option(
    "--to",
    default=ShipConfig.to,
    show_default=True,
    metavar="|".join(SERVERS),
    help="The server whose layout to write; kserve is Triton's with an InferenceService beside it.",
)
@click.option(
    "--out", type=PATH, default=Path("model_repository"), show_default=True, metavar="DIR", help="The model repository."
)
@click.option(
    "--engine",
    default=ShipConfig.engine,
    show_default=True,
    metavar="|".join(SHIPPED_ENGINES),
    help="ort ships the ONNX file, trt the TensorRT plan.",
)
@precision_option(ShipConfig.precision, "|".join(PRECISIONS), "Which of the benched files.")
@target_option
@click.option("--with-preprocess", is_flag=True, help="Take uint8 pixels [N, H, W, C] in.")
@click.option("--ensemble", is_flag=True, help="Ship the ω-weighted ensemble of all peers too, as one model.")
@click.option("--replace", is_flag=True, help="Overwrite the newest version instead of adding one.")
@click.option("--min-top1", type=float, metavar="X", help="Ship nothing below X percent; exit with 3.")
@click.option(
    "--max-latency-ms", type=float, metavar="X", help="Ship nothing whose p99 in the bench is above X; exit with 3."
)
@click.option(
    "--device",
    default=ShipConfig.device,
    show_default=True,
    metavar="|".join(SHIP_DEVICES),
    help="Where the server runs it; auto: where the bench did.",
)
@click.option("--instances", default=ShipConfig.instances, show_default=True, help="Copies that run side by side.")
@click.option(
    "--max-batch", default=ShipConfig.max_batch, show_default=True, help="Most images that the server puts together."
)
@click.option(
    "--queue-delay-us",
    default=ShipConfig.queue_delay_us,
    show_default=True,
    help="Longest wait for more of them, in microseconds.",
)
@click.option("--license", metavar="SPDX", help="The model's license, for its manifest.")
@click.option("--storage-uri", metavar="URI", help="Where KServe's cluster finds DIR.  [default: pvc://models/NAME]")
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
        context = click.get_current_context()
        told = [n for n in context.params if context.get_parameter_source(n) is ParameterSource.COMMANDLINE]
        if other := [f"--{name.replace('_', '-')}" for name in told if name not in VERIFY_TAKES]:
            raise InputError(f"--verify ships nothing: give it --out, --run and --json, without {', '.join(other)}")
        from wmlc.export.verify import print_verified

        print_verified(find_run(run_name), out, verify, as_json)
        return
    if peer is None:
        raise click.UsageError("name the networks with --peer, or a running server with --verify")
    config = ShipConfig(**settings)
    from wmlc.export.ship import print_shipped

    print_shipped(find_run(run_name), peer, out, config, as_json)


@main.command()
@click.argument("recipe", required=False)
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=V,V,…",
    help="Values of a setting, one or several; again for other settings. A list's own values take colons: "
    "ratios=0.7:0.5:0.3:0,0.3:0.2:0.1:0.",
)
@click.option("--out", type=PATH, metavar="DIR", help="Where the runs go.  [default: runs/RECIPE]")
@click.option("--jobs", default=1, show_default=True, metavar="N", help="Runs at once on a machine.")
@click.option(
    "--engine",
    default="local",
    show_default=True,
    metavar="local|ray",
    help="This machine, or the machines and GPUs of a Ray cluster, which must share a file system.",
)
@click.option("--address", metavar="auto|HOST:PORT", help="Ray's cluster.  [default: a Ray of this machine]")
@click.option("--dry-run", is_flag=True, help="Print the grid and how far each run is; train nothing.")
@json_option
def sweep(
    recipe: str | None, sets: tuple[str, ...], out: Path | None, jobs: int, engine: str, address: str | None,
    dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Train a grid of runs: every combination of the values given with --set, over RECIPE.

    What is finished is skipped and what was killed goes on, so the same command again completes a sweep. One failed
    run does not stop the others; the end lists it with its cause. Runs that need the same baseline train it once.

    \b
    wmlc sweep study --set data_root=DIR --set method=wml,wml-p,dml --set seed=0,1,2 --jobs 2
    """
    from wmlc.compress.sweep.session import run_sweep
    from wmlc.run import RUNS

    out = out or RUNS / (Path(recipe).stem if recipe else "sweep")
    run_sweep(recipe, sets, out, jobs, engine, address, dry_run, as_json)


@main.command()
@click.argument("runs", nargs=-1, required=True, type=PATH, metavar="RUN...")
@click.option("--paper", metavar="table6|table7|table8", help="Set the paper's published numbers beside the measured.")
@click.option("--format", "shown", default="table", show_default=True, metavar="|".join(FORMATS), help="What to print.")
@click.option("--out", type=PATH, metavar="FILE.md|csv|json", help="Write the comparison to a file too.")
@force_option
def compare(runs: tuple[Path, ...], paper: str | None, shown: str, out: Path | None, force: bool) -> None:
    """Set finished runs side by side: a row a method, seeds of one configuration as mean ± standard deviation.

    Runs whose data, epochs or baselines differ get tables of their own, and a line that says what separates them.

    \b
    wmlc compare runs/study/* --out study.md
    wmlc compare runs/table6-* --paper table6
    """
    from wmlc.report.compare import compare_runs

    compare_runs(runs, paper, out, shown, force)


@main.command()
@click.argument("runs", nargs=-1, required=True, type=PATH, metavar="RUN...")
@click.option("--figure", "figures", metavar="NAME,…", help="Some of the figures only; a wrong name lists them.")
@click.option("--out", type=PATH, default=Path("plots"), show_default=True, metavar="DIR", help="Where they go.")
@force_option
def plot(runs: tuple[Path, ...], figures: str | None, out: Path, force: bool) -> None:
    """Draw the paper's figures from finished runs, each as SVG, PNG and the numbers as JSON.

    Average against weighted ensemble over epochs (Figure 5), accuracy over ratio, MACs and η, the trace of the
    peer weights (Figures 6 and 7). Seeds of one configuration become one line with its spread.
    """
    from wmlc.report.plots import plot_runs

    plot_runs(runs, out, names(figures) if figures else (), force)


@main.command("list")
@json_option
def list_runs(as_json: bool) -> None:
    """Show the runs and their peers."""
    from wmlc.report.listing import print_runs

    print_runs(as_json)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.iterdir())
