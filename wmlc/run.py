"""The run directory: its paths and records, written down once."""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from wmlc import records
from wmlc.arch import needs_caller
from wmlc.data import Data, DataConfig, open_data
from wmlc.errors import InputError
from wmlc.files import new_file
from wmlc.records import Epoch, Family, Provenance, RunRecord
from wmlc.settings import TrainConfig

RUNS = Path("runs")
BASELINE = 0  # the peer number that stands for the unpruned network trained alone


@dataclass(frozen=True)
class Run:
    """A training run on disk; rooms hand each other its directories."""

    root: Path

    @property
    def config(self) -> Path:
        """All that the run depends on: the `TrainConfig`, versions, commit, device."""
        return self.root / "config.json"

    @property
    def family(self) -> Path:
        """What came out: the peers, the tree, the data set, accuracies; `finished` once all is there."""
        return self.root / "family.json"

    @property
    def checkpoint(self) -> Path:
        """The latest complete training state, or absent."""
        return self.root / "checkpoint"

    def metrics(self, phase: str) -> Path:
        """A JSON line an epoch, of the phase "family" or "baseline"."""
        return self.root / ("metrics.jsonl" if phase == "family" else "baseline-metrics.jsonl")

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.root / "tensorboard"

    @property
    def onnx(self) -> Path:
        """The ONNX files of its networks, which `extract` and `bench` make and share."""
        return self.root / "onnx"

    @property
    def bench(self) -> Path:
        """The newest bench of this run."""
        return self.root / "bench.json"

    @property
    def report(self) -> Path:
        """The page that shows this run."""
        return self.root / "report.html"

    def network(self, peer: int) -> Path:
        """The directory of one network: `peers/K`, or `baseline` for peer 0."""
        return self.root / "baseline" if peer == BASELINE else self.root / "peers" / str(peer)


def find_run(name: Path | None) -> Run:
    """The run called `name` (a directory, or a name under `runs/`), or the newest one under `runs/`."""
    if name is None:
        runs = list(all_runs())
        if not runs:
            raise InputError(f"there is no run under {RUNS}/; make one with 'wmlc train', or pass --run DIR")
        return max(runs, key=lambda run: run.config.stat().st_mtime)
    for root in (name, RUNS / name):
        if (root / "config.json").is_file():
            return Run(root)
    raise InputError(f"no run at {name} or {RUNS / name}; 'wmlc list' shows the runs, 'wmlc train' makes one")


def all_runs() -> Iterator[Run]:
    """Every run under `runs/`, those of a sweep in its directory among them, by name."""
    for config in sorted([*RUNS.glob("*/config.json"), *RUNS.glob("*/*/config.json")]):
        within = config.parent.relative_to(RUNS).parts
        hidden = any(part.startswith(".") for part in within)  # such as what is not done yet
        if not hidden and not _of_another(config):
            yield Run(config.parent)


def _of_another(config: Path) -> bool:
    """Whether a config.json is another program's: readable, and without our version. A damaged one is ours."""
    try:
        found = json.loads(config.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return not (isinstance(found, dict) and "schema_version" in found)


def read_family(run: Run) -> Family:
    """The record of a finished run; `InputError` where it is not finished or damaged."""
    remedy = f"finish the run with 'wmlc train --resume --out {run.root}{own_code(run)}'"
    if not run.family.exists():
        raise InputError(f"{run.root} is not finished; {remedy}")
    return records.read(run.family, Family, "family record", f"train again, or {remedy}")


def own_code(run: Run) -> str:
    """What a command on a run takes besides: ` --arch …`, where its network is code that only the caller names."""
    with contextlib.suppress(InputError):
        arch = read_config(run).settings.arch
        return f" --arch {shlex.quote(arch)}" if needs_caller(arch) else ""
    return ""


def read_config(run: Run) -> RunRecord:
    """What the run was started with; `InputError` where its record is damaged."""
    return records.read(run.config, RunRecord, "run record", "train again into another --out")


def is_run(directory: Path) -> bool:
    """Whether a directory is a run of ours: its config.json says so, as other programs' files of that name do not."""
    try:
        read_config(Run(directory))
    except InputError:
        return False
    return True


def read_epochs(run: Run, phase: str) -> list[Epoch]:
    """The epochs of a phase that are done, none before the first; a line cut short by a kill is dropped."""
    return records.read_lines(run.metrics(phase), Epoch, "record of an epoch", "train the run again with --force")


def select_peers(family: Family, wanted: str) -> list[int]:
    """The peers meant by `--peer K|all|baseline`, the baseline as 0; `InputError` if there is none."""
    count, has_baseline = len(family.peers), family.baseline is not None
    allowed = f"1 to {count}, all{', or baseline' if has_baseline else ''}"
    if wanted == "all":
        return [*([BASELINE] if has_baseline else []), *range(1, count + 1)]
    if wanted == "baseline":
        if has_baseline:
            return [BASELINE]
        raise InputError(f"this run has no baseline (it was trained with --no-baseline); --peer may be {allowed}")
    if not wanted.isdecimal() or not 1 <= int(wanted) <= count:
        raise InputError(f"--peer must be {allowed}, got {wanted!r}")
    return [int(wanted)]


def peer_name(peer: int) -> str:
    """How a network is called in tables and file names."""
    return "baseline" if peer == BASELINE else f"peer{peer}"


def data_config(settings: TrainConfig) -> DataConfig:
    """Which images a run's settings are about."""
    return DataConfig(
        name=settings.data,
        root=None if settings.data_root is None else Path(settings.data_root),
        download=settings.download,
        image_size=settings.image_size,
        interpolation=settings.interpolation,
        crop=settings.crop,
        normalise=settings.normalise,
        train_images=settings.train_images,
        held_out=settings.held_out,
        seed=settings.seed,
        workers=settings.workers,
        skip_broken=settings.skip_broken,
    )


def open_run_data(run: Run, root: str | None = None) -> Data:
    """The data set that the run was trained on, on the CPU; in the folder `root`, if it has moved there.

    Raises `InputError` where it has other classes than what was trained on, as classes are numbers to a network, and
    where what lies in `root` has another shape.
    """
    config, trained = replace(data_config(read_config(run).settings), tested=True), read_family(run).data
    data = open_data(config if root is None else replace(config, root=Path(root)))
    found: dict[str, tuple[object, object]] = {"class_names": (data.test_classes(), trained.class_names)}
    if root is not None:
        found["input_shape"] = data.input_shape, trained.input_shape
    for what, (here, there) in found.items():
        if here != there:
            raise InputError(
                f"{data.config.root or config.name} is not the data set of {run.root}: its {what} is {_short(here)}, "
                f"the run's {_short(there)}; name that with --data-root"
            )
    return data


def _short(value: object) -> str:
    """A value in at most 60 letters."""
    shown = ascii(value)
    return shown if len(shown) <= 60 else shown[:59] + "…"


def append_epoch(run: Run, phase: str, epoch: Epoch) -> None:
    """Add an epoch to those of a phase."""
    with run.metrics(phase).open("a", encoding="utf-8") as lines:
        lines.write(records.text(epoch) + "\n")


def keep_epochs(run: Run, phase: str, count: int) -> None:
    """Cut the epochs of a phase back to the first `count`."""
    kept = read_epochs(run, phase)[:count]
    with new_file(run.metrics(phase)) as aside:
        aside.write_text("".join(records.text(epoch) + "\n" for epoch in kept), encoding="utf-8")


def provenance() -> Provenance:
    """Commit, time and library versions, for every record that holds a number."""
    import importlib.metadata as metadata
    import platform

    versions = {"python": platform.python_version()}
    for package in (
        "wmlc", "torch", "torchvision", "torch-pruning", "onnx", "onnxruntime-gpu", "onnxruntime", "tensorrt",
        "polygraphy", "openvino", "mlcommons-loadgen", "numpy",
    ):  # fmt: skip
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return Provenance(
        time=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        commit=commit(),
        versions=versions,
    )


@functools.cache  # as it stood when this process first asked: a long run is of the code it started with
def commit() -> str | None:
    """The commit of the checkout that this code runs from, `-dirty` if changed; None when installed."""
    here = Path(__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=here, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None
