"""The command line: one command a verb. Rooms are imported inside, so `--help` is quick."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

import wmlc
from wmlc.bench.config import DEVICES, ENGINE_NAMES, BenchConfig
from wmlc.compress.config import CHOICES, TrainConfig, config_from, read_recipe
from wmlc.errors import GateError, InputError
from wmlc.export.config import CALIBRATORS, SERVERS, SHIP_DEVICES, SHIPPED_ENGINES, ExportConfig, ShipConfig
from wmlc.forms import PRECISIONS, TARGETS


class Fixable(click.ClickException):
    """Shown as one line; the caller can act on it."""

    exit_code = InputError.exit_code


class GateMissed(click.ClickException):
    """Shown as one line; something measured misses a bound."""

    exit_code = GateError.exit_code


class Cli(click.Group):
    """Turns errors that the caller can act on into one line and their exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            raise Fixable(_one_line(error)) from error
        except GateError as error:
            raise GateMissed(_one_line(error)) from error
        except click.MissingParameter:
            raise
        except click.BadParameter as error:  # a wrong value, not a wrong command line
            raise Fixable(error.format_message()) from error
        except OSError as error:
            place = f": {error.filename}" if error.filename else ""
            raise Fixable(f"{error.strerror or error}{place}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def setting(name: str, text: str, **kind: Any) -> Callable[[Any], Any]:
    """An option for one field of `TrainConfig`: unset unless given, so that a recipe's value stands."""
    default = getattr(TrainConfig, name)
    shown = ",".join(f"{v:g}" for v in default) if isinstance(default, tuple) else default
    if name in CHOICES:
        kind["metavar"] = "|".join(CHOICES[name])
    elif isinstance(default, bool):
        kind |= {"is_flag": True, "flag_value": True}
    elif isinstance(default, int | float) and "type" not in kind:
        kind["type"] = type(default)
    return click.option(
        f"--{name.replace('_', '-')}", name, default=None, help=text,
        show_default=str(shown) if shown not in (None, False, True) else False, **kind,
    )  # fmt: skip


PATH = click.Path(path_type=Path)
VERIFY_TAKES = ("run_name", "out", "verify", "as_json")  # of `wmlc ship`
run_option = click.option(
    "--run", "run_name", type=PATH, help="A run's directory or its name under runs/.  [default: the newest]"
)
force_option = click.option("--force", is_flag=True, help="Replace what is there.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def precision_option(default: str, metavar: str, text: str) -> Callable[[Any], Any]:
    return click.option("--precision", default=default, show_default=True, metavar=metavar, help=text)


target_option = click.option(
    "--target", metavar="|".join(TARGETS), help="What an int8 file shall run on.  [default: gpu for TensorRT, else cpu]"
)


@click.group(cls=Cli, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(wmlc.__version__)
def main() -> None:
    """One training run, a family of dense networks, each measured against the unpruned one.

    \b
    wmlc train                                 train four peers and the baseline
    wmlc extract --peer 2 --out p2.onnx        one peer as a standalone ONNX file
    wmlc bench --engine ort                    is it faster, and what did it cost?
    wmlc ship --peer 2 --to triton             into a server's model repository
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
@setting("ratios", "Pruning ratio of each peer, up to 8.", metavar="R,R,…", callback=lambda c, p, v: _numbers(v))
@setting("ratio_of", "What a ratio is a share of.")
@setting("saliency", "Score that decides what is cut.")
@setting(
    "share",
    "tree, none, or the last stage that all peers share (stem, stage1, …).  [default: tree; none if independent]",
)
@setting("trunk_ratio", "Cut the shared stages too, by this share, for every peer.")
@setting("divisor", "Keep channels at multiples of this: 8; 16 for AVX-512 CPUs; 32 for int8.")
@setting("method", "How the peers learn.")
@setting("alpha", "Weight of the mutual teaching against the labels.")
@setting("weight_lr", "Step of the mirror descent on the peer weights.")
@setting("reweigh_every", "Training steps between two updates of the peer weights.")
@setting("epochs", "Passes over the training images.")
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
@json_option
@force_option
def train(
    recipe: str | None,
    out: Path | None,
    resume: bool,
    dry_run: bool,
    force: bool,
    as_json: bool,
    no_baseline: bool,
    **settings: Any,
) -> None:
    """Train a family of peers, and the unpruned baseline.

    RECIPE is a YAML file, or the name of one that came with wmlc ('digits'); options override it.
    """
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
    given |= {"baseline": False} if no_baseline else {}
    config = config_from({**(read_recipe(recipe) if recipe else {}), **given}, recipe or "options")
    if dry_run:
        session.dry_run(config, as_json)
        return
    out = out or RUNS / f"{config.arch}-{config.data}-{config.method}"
    try:
        session.start_run(config, out, force)
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
    config = ExportConfig(batch_range=_batch_range(batch_range), **settings)
    from wmlc.console import say
    from wmlc.export.extract import extract as extract_peers
    from wmlc.run import find_run

    for made in extract_peers(find_run(run_name), peer, out, config, force=force):
        say(f"wrote {made.path} ({_size(made.path):,} bytes)" + made.accuracy(config.form))


@main.command()
@run_option
@click.option(
    "--engine",
    default=BenchConfig.engine,
    show_default=True,
    metavar="|".join(ENGINE_NAMES),
    help="What runs the networks: PyTorch, ONNX Runtime or TensorRT.",
)
@precision_option("fp32", "P,P,…", "fp32, fp16, int8; all are compared with the baseline in the first.")
@target_option
@click.option(
    "--batch", "batches", default="1", show_default=True, metavar="B,B,…", help="Images a call; one table for each."
)
@click.option("--threads", default=BenchConfig.threads, show_default=True, help="CPU threads of each engine, pinned.")
@click.option(
    "--device", default=BenchConfig.device, show_default=True, metavar="|".join(DEVICES), help="Where the engine runs."
)
@click.option(
    "--seconds", default=BenchConfig.seconds, show_default=True, help="Time to spend on each network and batch size."
)
@click.option(
    "--seed", default=BenchConfig.seed, show_default=True, help="Seed of the interleaving and of the bootstrap."
)
@click.option("--no-accuracy", is_flag=True, help="Time only; leave top-1 unmeasured.")
@click.option("--no-cuda-graph", is_flag=True, help="With --engine trt, launch every kernel anew, to compare.")
@click.option("--max-drop", type=float, metavar="X", help="Exit with 3 if a peer loses more than X top-1 points.")
@click.option(
    "--min-speedup", type=float, metavar="X", help="Exit with 3 if a pruned peer is less than X times as fast."
)
@click.option(
    "--out", type=PATH, metavar="FILE.json", help="Where to write the record.  [default: bench.json in the run]"
)
@force_option
def bench(
    run_name: Path | None,
    precision: str,
    batches: str,
    no_accuracy: bool,
    no_cuda_graph: bool,
    out: Path | None,
    force: bool,
    **settings: Any,
) -> None:
    """Is it really faster, and what did it cost?

    Times the baseline and every peer by turns, each engine in a process of its own, and measures top-1
    on the whole test set through the same engine. What could not be measured is left empty, with the reason.
    """
    config = BenchConfig(
        precisions=tuple(precision.split(",")), batches=_whole_numbers("--batch", batches), accuracy=not no_accuracy,
        cuda_graph=not no_cuda_graph, **settings,
    )  # fmt: skip
    from wmlc.bench.machine import choose_device
    from wmlc.bench.session import bench_run
    from wmlc.export.extract import plan_files, run_files
    from wmlc.files import refuse_existing
    from wmlc.run import find_run, open_run_data

    run = find_run(run_name)
    if out is not None:
        refuse_existing(out, force)
    choose_device(config.engine, config.device)  # before minutes are spent on files for an engine that is not there
    data = open_run_data(run)
    files: dict[tuple[int, str], Path] = {}
    for name in config.precisions if config.engine != "torch" else ():
        target = "gpu" if config.engine == "trt" else config.target
        form = ExportConfig(precision=name, target=target if name == "int8" else None)
        made = plan_files(run, data, form, config.batches) if config.engine == "trt" else run_files(run, data, form)
        files |= {(peer, name): file for peer, file in made}
    bench_run(run, config, files, data, out or run.bench)


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


@main.command("list")
@json_option
def list_runs(as_json: bool) -> None:
    """Show the runs and their peers."""
    from wmlc.listing import print_runs

    print_runs(as_json)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.iterdir())


def _whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """The numbers in "1,8"."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} must be whole numbers with commas between them, like 1,8; got {text!r}") from None


def _batch_range(text: str) -> tuple[int, int, int]:
    numbers = _whole_numbers("--batch-range", text)
    if len(numbers) != 3:
        raise InputError(f"--batch-range must be three batch sizes, like 1,8,32; got {text!r}")
    return numbers[0], numbers[1], numbers[2]


def _numbers(text: str | None) -> tuple[float, ...] | None:
    """The numbers in "0.7,0.5"."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"--ratios must be numbers with commas between them, like 0.7,0.5,0.3,0; got {text!r}"
        ) from None
