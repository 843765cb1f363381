"""What carries a sweep's runs out: processes on this machine, or Ray on several machines or GPUs.

Ray rather than submitit, which needs Slurm: Ray runs on bare machines, on clouds and inside a Slurm job.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from wmlc.console import say
from wmlc.errors import InputError, one_line
from wmlc.run import BASELINE, Run, read_family

FINISHED, FAILED, NO_BASELINE = "finished", "failed", "no baseline"  # how a run of the sweep ended
# A run ends with the process that started it: where that one's machine is lost to Ray, the run goes on elsewhere.
CHILD = (
    "import ctypes, signal, sys; sys.platform == 'linux' and ctypes.CDLL(None).prctl(1, signal.SIGTERM); "
    "from wmlc.cli import main; sys.argv[0] = 'wmlc'; main()"
)
GRACE_S = 20  # for a stopped process to end by itself
SOON_S = 0.2  # between two looks at whether it is time


@dataclass(frozen=True)
class Job:
    """One run to start or to go on with; paths are absolute, as another machine may do it."""

    name: str
    root: Path
    recipe: Path  # all settings, for a run that is not there yet
    log: Path  # what the process prints is added to it
    folder: Path  # where the process works, as relative paths in a recipe are meant from there
    baseline: Path | None  # the run that this one takes its baseline from
    after: str | None  # the job that trains that baseline now
    on_gpu: bool  # may use one
    arch: str | None = None  # code of the caller's own, which no recipe names


@dataclass(frozen=True)
class Outcome:
    """How one job ended; `text` says what came out or, where it failed, the cause."""

    name: str
    state: str
    minutes: float = 0.0
    text: str = ""


Engine = Callable[[Sequence[Job], Callable[[Outcome], None]], None]  # does the jobs, and reports each as it ends


def train_job(
    job: Job, threads: int | None = None, stopped: Callable[[], bool] = lambda: False, patience_s: float = 0
) -> Outcome:
    """Train or resume one run in a process of its own, with so many `threads` unless OMP_NUM_THREADS says else.

    Another process that trains it has `patience_s` to end. A run whose baseline is not where it should be is not
    started. Never raises for what befalls the process.
    """
    run = Run(job.root)
    resume = run.config.exists()
    if not resume and job.baseline is not None and not _has_baseline(job):
        return Outcome(job.name, NO_BASELINE)
    environment = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    doing = "resumed" if resume else "started"
    ended = _train(job, ["--resume"] if resume else [str(job.recipe)], doing, environment, stopped, patience_s)
    if ended.state == FAILED:
        return ended
    try:
        return replace(ended, text=_result(run))
    except InputError as error:
        return replace(ended, state=FAILED, text=str(error))


def _has_baseline(job: Job) -> bool:
    """Whether the baseline that it takes is there: a start as it stands is, from the beginning of its run."""
    return job.baseline is not None and Run(job.baseline).network(BASELINE).is_dir()


def plan_job(job: Job) -> Outcome:
    """Have the widths of a run that asks for milliseconds chosen and measured, where nothing else runs.

    The run itself finds in the user's cache what was measured, and measures nothing.
    """
    return _train(job, [str(job.recipe), "--dry-run"], "planning")


def _train(
    job: Job, words: Sequence[str], doing: str, environment: Mapping[str, str] = MappingProxyType({}),
    stopped: Callable[[], bool] = lambda: False, patience_s: float = 0,
) -> Outcome:  # fmt: skip
    """How `wmlc train` with these words ended; no text where it is done."""
    began = time.monotonic()
    own = ["--arch", job.arch] if job.arch else []
    command = [sys.executable, "-c", CHILD, "train", *words, *own, "--out", str(job.root)]
    try:
        with job.log.open("ab") as log:
            if not _lock(log, patience_s):
                return Outcome(job.name, FAILED, 0, "another process is training it; end that one, or wait for it")
            start = log.tell()
            say(f"{doing} {job.name}")
            code = _run_child(command, log, {**environment, **os.environ}, job.folder, stopped)
    except OSError as error:
        return Outcome(job.name, FAILED, 0, f"{error.strerror}: {error.filename}")
    minutes = (time.monotonic() - began) / 60
    return Outcome(job.name, FAILED if code else FINISHED, minutes, _cause(code, job.log, start) if code else "")


@contextlib.contextmanager
def local_engine(at_once: int) -> Iterator[Engine]:
    """So many runs at once on this machine, its cores divided among them; all are ended when the block is left."""
    threads = max(1, cores() // at_once) if at_once > 1 else None
    stop = threading.Event()

    def one(job: Job, after: Future[Outcome] | None) -> Outcome:
        while after is not None and not (after.done() or stop.is_set() or _has_baseline(job)):
            time.sleep(SOON_S)
        return train_job(job, threads, stop.is_set)

    def work(jobs: Sequence[Job], report: Callable[[Outcome], None]) -> None:
        futures: dict[str, Future[Outcome]] = {}
        with ThreadPoolExecutor(at_once) as pool:
            try:
                for job in jobs:
                    futures[job.name] = pool.submit(one, job, futures.get(job.after or ""))
                for future in as_completed(futures.values()):
                    report(future.result())
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    yield work


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def ray_engine(address: str | None, at_once: int) -> Iterator[Engine]:
    """The Ray cluster at `address`, or a Ray of this machine only, which ends with the block.

    A run takes one GPU where the cluster has any, with its share of the machine's cores; without GPUs so many
    runs share each machine's cores. Raises `InputError` where Ray is not installed or not there.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError(
            "--engine ray needs the package ray, which is not installed (pip install 'wmlc[sweep]'); "
            "install it, or use --engine local"
        )
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    import ray

    alone: dict[str, Any] = {"include_dashboard": False, "object_store_memory": 10**8} if address is None else {}
    try:
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **alone)
    except Exception as error:  # Ray raises just that where it does not come up in time
        ray.shutdown()
        why = one_line(error, None)
        if address is None:
            raise InputError(f"Ray did not start here ({why}); try again, or use --engine local") from error
        raise InputError(
            f"no Ray cluster at {address} ({why}); start one with 'ray start', or mend --address"
        ) from error
    try:
        yield _ray_work(ray, at_once)
    finally:
        ray.shutdown()


def _ray_work(ray: Any, at_once: int) -> Engine:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1]
    share = min((int(node["CPU"] // node.get("GPU", at_once)) for node in with_gpu or nodes), default=1) or 1
    gpus = sum(int(node["GPU"]) for node in with_gpu)
    say(f"Ray: machines {len(nodes)}, GPUs {gpus}; a run takes {'one GPU, ' if gpus else ''}cores {share}")

    @ray.remote
    def one(job: Job, _after: Outcome | None) -> Outcome:
        return train_job(job, patience_s=GRACE_S)  # its process on a machine that was lost may be ending

    def work(jobs: Sequence[Job], report: Callable[[Outcome], None]) -> None:
        refs: dict[str, Any] = {}
        for job in jobs:
            needs = {"num_cpus": share, "num_gpus": int(bool(with_gpu) and job.on_gpu)}
            refs[job.name] = one.options(name=job.name, **needs).remote(job, refs.get(job.after or ""))
        of, waiting = {ref: job for job, ref in zip(jobs, refs.values(), strict=True)}, list(refs.values())
        try:
            while waiting:
                (ref,), waiting = ray.wait(waiting)
                report(_ray_outcome(ray, of[ref], ref))
        except BaseException:
            for ref in waiting:
                ray.cancel(ref)
            ray.wait(waiting, num_returns=len(waiting), timeout=GRACE_S)
            raise

    return work


def _ray_outcome(ray: Any, job: Job, ref: Any) -> Outcome:
    """What the task returned; where Ray lost it, or the one that it waits for, that."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayError as error:
        text = one_line(error, None)
        return Outcome(job.name, NO_BASELINE if job.after else FAILED, 0, f"Ray lost it: {text}")


def _lock(log: IO[bytes], patience_s: float) -> bool:
    """Whether nobody else trains this run: the lock is on the log and lasts as long as a child holds that open."""
    until = time.monotonic() + patience_s
    with contextlib.suppress(OSError):  # a file system without locks
        while True:
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    return False
                time.sleep(SOON_S)
    return True


def _run_child(
    command: Sequence[str], log: IO[bytes], environment: dict[str, str], folder: Path, stopped: Callable[[], bool]
) -> int:
    """The exit code of a process; it and its own are ended when `stopped` says so or an exception comes."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=folder, start_new_session=True
    )
    try:
        while not stopped():
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(0.5)  # short, as Ray's cancelling does not wake a sleeping process
        return -signal.SIGTERM
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for kind in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired, ProcessLookupError):
                os.killpg(process.pid, kind)
                process.wait(GRACE_S)


def _result(run: Run) -> str:
    family = read_family(run)
    top1 = [peer.top1 for peer in family.peers]
    return f"mean top-1 {sum(top1) / len(top1):.2f}, ensemble {family.ensemble_top1:.2f}"


def _cause(code: int, log: Path, start: int) -> str:
    """The last line that a failed process wrote behind `start`, and the signal where one ended it."""
    with log.open("rb") as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    last = lines[-1].removeprefix("Error: ") if lines else "it said nothing"
    return last if code > 0 else f"ended by {signal.Signals(-code).name}; its last line: {last}"
