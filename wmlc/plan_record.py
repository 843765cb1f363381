"""X.plan.json beside a TensorRT plan: whether the plan is whole, and whether it belongs to this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wmlc import records
from wmlc.errors import InputError
from wmlc.files import sha256
from wmlc.records import Machine, PlanRecord
from wmlc.trt_machine import AMPERE, version_numbers

NEXT_MAJOR = {8: 10, 10: 11}  # whose version-compatible plans a major version loads besides its own
USUAL_LARGEST = 32
AGAIN = "build it again with 'wmlc extract … --force'"


def record_path(plan: Path) -> Path:
    """Where a plan's record lies: r50_p05.plan → r50_p05.plan.json."""
    return plan.with_name(plan.name + ".json")


def read_record(plan: Path) -> PlanRecord:
    """The record of a plan that is whole; `InputError` where either is missing, damaged or not the other's."""
    if not plan.is_file():
        raise InputError(f"{plan} is not a file; build it with 'wmlc extract … --out {plan}'")
    beside = record_path(plan)
    record = records.read(beside, PlanRecord, "record of a plan", AGAIN)
    size = plan.stat().st_size
    if size < record.plan_bytes:
        raise InputError(f"{plan} is truncated: {size:,} of {record.plan_bytes:,} bytes; {AGAIN}")
    if sha256(plan) != record.plan_sha256:
        raise InputError(f"{plan} is not the plan that {beside.name} describes (their hashes differ); {AGAIN}")
    return record


def check_record(record: PlanRecord, machine: Machine, plan: Path | str = "the plan") -> None:
    """Raise one `InputError` that lists all that differs, where a plan does not belong to this `machine`.

    A plan belongs to one TensorRT version and one model of GPU, and to no older driver than it was built with. If
    built version-compatible, later versions of the same major and the next one load it (8 → 10, 10 → 11); if
    hardware-compatible, every GPU from Ampere (compute capability 8.0) on. Another CUDA alone is no obstacle.
    """
    if (
        _version_fits(record.tensorrt, machine.tensorrt, record.version_compatible)
        and _gpu_fits(record, machine)
        and not _is_older(machine.driver, record.driver)
    ):
        return
    built, here = _described(record), _described(machine)
    differing = [name for name in built if built[name] != here[name]]
    were, are = (", ".join(facts[name] for name in differing) for facts in (built, here))
    raise InputError(f"{plan} was built with {were}; here {'are' if len(differing) > 1 else 'is'} {are}; {AGAIN}")


def is_current(plan: Path, onnx_sha256: str, batches: Sequence[int], machine: Machine) -> bool:
    """Whether `plan` is whole, made of that ONNX file, for this `machine` and these batches, tuned for the first."""
    try:
        record = read_record(plan)
        check_record(record, machine)
    except InputError:
        return False
    smallest, usual, largest = record.batch_range
    fits = smallest <= min(batches) and max(batches) <= largest and usual == batches[0]
    return fits and record.onnx_sha256 == onnx_sha256


def range_for(batches: Sequence[int]) -> tuple[int, int, int]:
    """The batch range of a plan that is to be timed at `batches`, the first of them the usual one."""
    return 1, batches[0], max(*batches, USUAL_LARGEST)


def _version_fits(built: str, here: str, compatible: bool) -> bool:
    if built == here:
        return True
    was, now = version_numbers(built), version_numbers(here)
    return compatible and (now > was if now[0] == was[0] else NEXT_MAJOR.get(was[0]) == now[0])


def _gpu_fits(record: PlanRecord, machine: Machine) -> bool:
    if (record.gpu, record.compute_capability) == (machine.gpu, machine.compute_capability):
        return True
    both = (record, machine)
    return record.hardware_compatible and all(version_numbers(one.compute_capability) >= AMPERE for one in both)


def _is_older(here: str | None, built: str | None) -> bool:
    """Of drivers; where one is not known, it is not."""
    return bool(here and built) and version_numbers(here) < version_numbers(built)


def _described(machine: Machine) -> dict[str, str]:
    return {
        "tensorrt": f"TensorRT {machine.tensorrt}",
        "gpu": f"{machine.gpu} ({machine.compute_capability})",
        "cuda": f"CUDA {machine.cuda}",
        "driver": f"driver {machine.driver}",
    }
