"""The machine that a bench runs on: which CPUs, which device, and whether the engine asked for can run at all."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from wmlc.console import note
from wmlc.errors import InputError
from wmlc.files import OURS, one_at_a_time, user_cache
from wmlc.records import Environment
from wmlc.run import provenance
from wmlc.trt_machine import this_machine

BUSY = 0.5  # load average a core
LOCK = "measuring.lock"  # in the user's cache


def allowed_cpus() -> list[int]:
    """The CPUs that this process may run on, ascending; all of them where the system does not tell."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def pinned_cpus(threads: int) -> list[int] | None:
    """The CPUs that engines are pinned to, one a thread, on cores of their own first; None where none can be."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    cpus, cores, seconds = allowed_cpus(), set[str](), list[int]()
    for cpu in cpus:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        core = siblings.read_text(encoding="utf-8").strip() if siblings.exists() else str(cpu)
        if core in cores:
            seconds.append(cpu)
        cores.add(core)
    return [*(cpu for cpu in cpus if cpu not in seconds), *seconds][:threads]


def choose_torch_device(device: str) -> str:
    """`cpu` or `cuda` by what torch sees; imports torch.

    Raises `InputError` where `cuda` was asked for and is not there: never another device instead.
    """
    import torch

    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise InputError("cuda was asked for, but torch sees no CUDA GPU; choose cpu, or a GPU machine")
    return "cuda" if has_gpu and device != "cpu" else "cpu"


def read_environment(devices: Mapping[str, str], threads: Sequence[int]) -> Environment:
    """What a record must say of where its numbers come from: hardware, versions, commit, time.

    Args: the device of each engine, by its name; the numbers of threads that the bench has.
    """
    return Environment(
        cpu=_cpu_name(),
        gpu=_gpu_name() if "cuda" in devices.values() else None,
        devices=dict(devices),
        plan_machine=this_machine() if "trt" in devices else None,
        cores=os.cpu_count(),
        pinning="each engine's process" if pinned_cpus(1) else f"not available on {platform.system()}",
        system=platform.platform(),
        load_average_before=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        threads=list(threads),
        **vars(provenance()),
    )


def measuring_alone() -> AbstractContextManager[None]:
    """No other wmlc of this user measures here meanwhile, so that no two timings share the machine."""
    return one_at_a_time(
        user_cache() / f"{LOCK}{OURS}", lambda: note("another wmlc measures on this machine; waiting until it is done")
    )


def busy(environment: Environment) -> str | None:
    """In words, what else the machine had to do before something was timed on it; None: little, or nobody knows."""
    load, cores = environment.load_average_before, environment.cores
    if load is None or cores is None or load <= BUSY * cores:
        return None
    return f"load {load:.1f} on {cores} CPUs"


def _cpu_name() -> str:
    """The processor's model, and the widest vector instructions that torch finds in it."""
    import torch

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line for line in cpuinfo.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def _gpu_name() -> str:
    import torch

    return torch.cuda.get_device_name(0)
