"""What a bench may be asked for. Free of torch, so that `--help` is quick."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from wmlc.bench.engines import ENGINES, NETWORK, PLAN, engine_class, on_gpu
from wmlc.bench.engines.machine import allowed_cpus
from wmlc.bench.scenarios import SCENARIOS
from wmlc.errors import InputError
from wmlc.forms import MOST_BATCH, PRECISIONS, TARGETS
from wmlc.settings import BUDGET, BenchSettings, option_of, setting
from wmlc.table import FORMATS

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class BenchConfig(BenchSettings):
    """The settings of one bench, checked for this machine; `InputError` for those that cannot be."""

    def __post_init__(self) -> None:
        for name, allowed in (("engine", tuple(ENGINES)), ("precision", PRECISIONS), ("scenario", SCENARIOS)):
            _check_names(f"--{name}", getattr(self, f"{name}s"), allowed, empty=name == "scenario")
        if self.device not in DEVICES:
            raise InputError(f"--device must be one of {', '.join(DEVICES)}, got {self.device!r}")
        if self.target is not None and (self.target not in TARGETS or "int8" not in self.precisions):
            raise InputError(f"--target is {' or '.join(TARGETS)}, and only of --precision int8; got {self.target!r}")
        self._check_engines()
        check_sizes("--batch", self.batches, MOST_BATCH, f"{MOST_BATCH:,} images")
        cpus = len(allowed_cpus())
        check_sizes("--threads", self.threads, cpus, f"the {cpus} CPUs there are")
        for name in ("seconds", "min_speedup", "latency_bound_ms", "max_latency_ms"):
            value = getattr(self, name)
            if value not in (None, BUDGET) and not (math.isfinite(value) and value > 0):
                raise InputError(f"{option_of(self, name)} must be above 0, got {value:g}")
        if self.launches < 1:
            raise InputError(f"--launches must be at least 1, got {self.launches}")
        if self.seed < 0:
            raise InputError(f"--seed must be at least 0, got {self.seed}")
        if self.max_drop is not None and not math.isfinite(self.max_drop):
            raise InputError(f"--max-drop must be a number of top-1 points, got {self.max_drop:g}")
        if self.max_drop is not None and not self.accuracy:
            raise InputError("--max-drop needs the accuracy; leave --no-accuracy out")
        if ("server" in self.scenarios) != (self.latency_bound_ms is not None):
            raise InputError(
                "the scenario server and --latency-bound go together: the highest rate whose 99th percentile stays "
                "under it; give both, such as --scenario server --latency-bound 20"
            )

    @property
    def takes_plans(self) -> bool:
        """Some engine opens TensorRT plans."""
        return any(engine_class(name).takes == PLAN for name in self.engines)

    @property
    def int8_target(self) -> str | None:
        """What int8 files are made for; None leaves it to the export."""
        return self.target or ("gpu" if on_gpu(self.engines, self.device) else None)

    def _check_engines(self) -> None:
        takes = {name: engine_class(name).takes for name in self.engines}
        as_trained = [name for name in self.engines if takes[name] == NETWORK]
        if as_trained and "fp32" not in self.precisions:
            raise InputError(
                f"the engine {as_trained[0]} runs a peer as it was trained, in fp32; use --engine ort for others"
            )
        if PLAN in takes.values() and "cpu" in (self.device, self.target):
            raise InputError("the engine trt runs on a GPU; leave --device and --target out, or use --engine ort")
        if not self.cuda_graph and PLAN not in takes.values():
            raise InputError(
                f"--no-cuda-graph is a choice of the engine trt; leave it out for {','.join(self.engines)}"
            )


@dataclass(frozen=True, kw_only=True)
class FileSettings:
    """What a caller says of ONNX files that do not say it themselves."""

    output: str | None = setting(
        None, "The output that holds the scores, where several can.", group="Files", metavar="NAME"
    )
    mean: str | None = setting(
        None, "What files that do not say it take from pixels 0 … 1, one number or one a channel.",
        group="Files", metavar="X,…", shown="the data set's",
    )  # fmt: skip
    std: str | None = setting(
        None, "What they divide by then, such as 0.25; 1/255 with --mean 0 gives pixels 0 … 255.",
        group="Files", metavar="X,…", shown="the data set's",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise InputError("--mean and --std go together; give both, such as --mean 0.5 --std 0.25")


UNSAID = FileSettings()


def check_asked(
    config: BenchConfig, shown: str, *, run: bool, files: int, data: bool, said: FileSettings = UNSAID
) -> None:
    """Raise `InputError` where options of `wmlc bench` do not go together: a run or `files`, and what is for files."""
    if shown not in FORMATS:
        raise InputError(f"--format must be one of {', '.join(FORMATS)}, got {shown!r}")
    if files and run:
        raise InputError("bench measures a run or files; give --run or FILEs, not both")
    if said != UNSAID and not files:
        raise InputError("--output, --mean and --std are for files; a run's networks say these themselves")
    if data and not files:
        raise InputError("--data is for files; a run is benched on the data that it was trained on")
    if files and config.max_latency_ms == BUDGET:
        raise InputError("files were not cut for a latency; give --max-latency-ms a number of milliseconds")
    if files == 1 and (config.max_drop is not None or config.min_speedup is not None):
        raise InputError("--max-drop and --min-speedup hold a file against the first of them; give a second file")
    if files and (config.precisions != ("fp32",) or config.target):
        raise InputError("files run in the precision that is in them; leave --precision and --target out")


def _check_names(what: str, names: Sequence[str], allowed: Sequence[str], *, empty: bool) -> None:
    unknown = [name for name in names if name not in allowed]
    if unknown or (not names and not empty) or len(set(names)) < len(names):
        got = ",".join(names) or "none"
        raise InputError(f"{what} must name some of {', '.join(allowed)}, each once; got {got}")


def check_sizes(what: str, sizes: Sequence[int], most: int, in_words: str) -> None:
    got = ",".join(map(str, sizes)) or "none"
    if not sizes or min(sizes) < 1 or max(sizes) > most:
        raise InputError(f"{what} must be from 1 to {in_words}, got {got}")
    if len(set(sizes)) < len(sizes):
        raise InputError(f"{what} must name each size once, got {got}")
