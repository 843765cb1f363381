"""The run directory: its paths and records, written down once."""

from __future__ import annotations

import datetime
import functools
import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wmlc.data import Data, DataConfig, open_data
from wmlc.errors import InputError
from wmlc.files import FORMER, new_file, read_json

RUNS = Path("runs")
BASELINE = 0  # the peer number that stands for the unpruned network trained alone
# What makes a baseline what it is; one from another run must agree in these.
BASELINE_SETTINGS = (
    "data", "image_size", "train_images", "held_out", "arch", "epochs", "batch_size", "lr", "momentum", "nesterov",
    "weight_decay", "schedule", "warmup_epochs", "clip", "seed",
)  # fmt: skip


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
        """The ONNX files that `bench` makes for itself."""
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
        if not any(part.startswith(".") or part.endswith(FORMER) for part in within):
            yield Run(config.parent)


def read_family(run: Run) -> dict[str, Any]:
    """The record of a finished run; `InputError` where it is not finished or damaged."""
    remedy = f"finish the run with 'wmlc train --resume --out {run.root}'"
    if not run.family.exists():
        raise InputError(f"{run.root} is not finished; {remedy}")
    family = read_json(run.family, "family record", f"train again, or {remedy}")
    peers, fields = family.get("peers"), {"peer", "ratio", "achieved_ratio", "params", "macs", "top1"}
    if not (isinstance(peers, list) and peers and all(isinstance(p, dict) and fields <= p.keys() for p in peers)):
        raise InputError(f"{run.family} is damaged: it lists no peers; {remedy}")
    return family


def select_peers(family: dict[str, Any], wanted: str) -> list[int]:
    """The peers meant by `--peer K|all|baseline`, the baseline as 0; `InputError` if there is none."""
    count, has_baseline = len(family["peers"]), family.get("baseline") is not None
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


def data_config(settings: Mapping[str, Any]) -> DataConfig:
    """Which images a run's settings (`TrainConfig`'s fields) are about."""
    root = settings["data_root"]
    return DataConfig(
        name=settings["data"],
        root=None if root is None else Path(root),
        download=settings["download"],
        image_size=settings["image_size"],
        train_images=settings["train_images"],
        held_out=settings["held_out"],
        seed=settings["seed"],
        workers=settings["workers"],
    )


def read_settings(run: Run) -> dict[str, Any]:
    """The settings that the run was started with; `InputError` where its record is damaged."""
    remedy = "start the run again with 'wmlc train --force'"
    settings = read_json(run.config, "run record", remedy).get("settings")
    if not isinstance(settings, dict):
        raise InputError(f"{run.config} is damaged: it holds no settings; {remedy}")
    return _from_older(settings) if "join" not in settings else settings


def _from_older(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run from before shared stages had a choice of `join`, with what was done then."""
    method = settings.get("method")
    summed = method in ("wml", "wml-p", "one", "self-distillation")
    then: dict[str, Any] = {"join": "sum" if summed else "mean", "feature_loss": "none"}
    then |= {"temperature": 1.0} if method in ("wml", "wml-p") else {}
    return {**then, **settings, **({"alpha": None} if method == "independent" else {})}


def open_run_data(run: Run) -> Data:
    """The data set that the run was trained on, on the CPU."""
    try:
        config = data_config(read_settings(run))
    except KeyError as error:
        raise InputError(f"{run.config} is damaged: no setting {error}; start the run again with --force") from None
    return open_data(config)


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Add one JSON line to `path`."""
    with path.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(record, allow_nan=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of `path`, none if it does not exist; a line cut short by a kill is dropped."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def keep_lines(path: Path, count: int) -> None:
    """Cut `path` back to its first `count` lines."""
    records = read_lines(path)[:count]
    with new_file(path) as aside:
        aside.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def provenance() -> dict[str, Any]:
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
    return {
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": versions,
    }


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
