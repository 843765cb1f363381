"""An ONNX file → a TensorRT plan with its record, by one strongly typed path for TensorRT 10 and 11.

What a plan computes in is what its ONNX file says: there is no precision flag here. TensorRT's module is passed in, as
TensorRT-RTX, whose builder needs no GPU, runs the same code in the tests.

N images, C channels, H height, W width
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wmlc import records
from wmlc.console import note
from wmlc.errors import InputError, one_line
from wmlc.export.about import read_about
from wmlc.export.timings import attach_timings, keep_timings, timings_file
from wmlc.files import check_writable, new_file, sha256
from wmlc.forms import INPUT
from wmlc.plan_record import is_current, range_for, record_path
from wmlc.records import FileAbout, Machine, PlanRecord
from wmlc.run import provenance
from wmlc.trt_machine import (
    AMPERE,
    MOST_MESSAGES,
    load_tensorrt,
    make_logger,
    this_machine,
    version_numbers,
)


def build_plan(
    trt: Any,
    onnx_file: Path,
    plan: Path,
    *,
    batch_range: tuple[int, int, int],
    version_compatible: bool = False,
    hardware_compatible: bool = False,
    timing_cache: Path | None = None,
) -> None:
    """Build `plan` from `onnx_file` with the module `trt` (tensorrt, or tensorrt_rtx).

    Args: the smallest, most usual and largest batch; where timings are kept between builds.
    Raises `InputError` with what the parser and the builder said, leaving nothing behind, where the file is no
    ONNX, holds what TensorRT does not take, or its input is not one, `input`, with a free first dimension only.
    """
    check_writable(plan)
    if not onnx_file.is_file():
        raise InputError(f"{onnx_file} is not a file; extract it again")
    logger = make_logger(trt)
    built = _serialize(trt, logger, onnx_file, batch_range, version_compatible, hardware_compatible, timing_cache)
    if isinstance(built, str):
        raise InputError(f"TensorRT {trt.__version__} cannot build a plan from {onnx_file}: {built}")
    with new_file(plan) as aside:
        aside.write_bytes(built)


def _serialize(
    trt: Any,
    logger: Any,
    onnx_file: Path,
    batch_range: tuple[int, int, int],
    version_compatible: bool,
    hardware_compatible: bool,
    timing_cache: Path | None,
) -> bytes | str:
    """The plan's bytes, or why there are none: an exception would keep TensorRT's objects, and their logger, alive."""
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))  # 1 in 10, 0 in 11
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_file)):
        errors = [one_line(parser.get_error(i).desc()) for i in range(parser.num_errors)]
        said = "; ".join(errors[:MOST_MESSAGES]) or logger.words()
        return f"{said}; extract it again, int8 with --target gpu"
    if wrong := _wrong_input(trt, network):
        return f"{wrong}; extract it again"
    config = builder.create_builder_config()
    profile, rest = builder.create_optimization_profile(), tuple(network.get_input(0).shape)[1:]
    profile.set_shape(INPUT, *((batch, *rest) for batch in batch_range))
    if config.add_optimization_profile(profile) < 0:
        return f"{logger.words()}; choose another batch range than {','.join(map(str, batch_range))}"
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that the plan can tell its precision
    config.clear_flag(trt.BuilderFlag.TF32)  # TF32 is not fp32: the file says what precision it is in
    if version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if timing_cache is not None:
        attach_timings(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return f"{logger.words()}; if it ran out of memory, free the GPU, else extract the peer in another precision"
    if timing_cache is not None:
        keep_timings(timing_cache, bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def _wrong_input(trt: Any, network: Any) -> str | None:
    """Why a profile for `input` would not do; TensorRT accepts one for an input that is not there."""
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    shapes = [tuple(value.shape) for value in inputs]
    if [value.name for value in inputs] == [INPUT] and inputs[0].dtype in (trt.DataType.FLOAT, trt.DataType.UINT8):
        free = [axis for axis, size in enumerate(shapes[0]) if size < 0]
        if free == [0] and len(shapes[0]) == 4:
            return None
    found = ", ".join(
        f"{value.name!r} of {value.dtype.name} {list(shape)}" for value, shape in zip(inputs, shapes, strict=True)
    )
    return f"its input is {found}, a plan needs {INPUT!r} of FLOAT or UINT8 with a free batch (-1) and all else fixed"


def extract_plan(
    onnx_file: Path,
    plan: Path,
    *,
    batch_range: tuple[int, int, int],
    version_compatible: bool = False,
    hardware_compatible: bool = False,
) -> None:
    """Build `plan` on this machine, with the record that loading checks beside it.

    An older plan goes first and the new one comes last: where there is a plan, there is its own record.
    Raises `InputError` where GPU, driver or package are missing, before any of TensorRT is loaded, and as `build_plan`.
    """
    trt = load_tensorrt(f"building {plan}")
    machine, about = this_machine(), read_about(onnx_file)
    _check_buildable(onnx_file, about, machine, hardware_compatible)
    note(f"building {plan} with TensorRT {trt.__version__} on {machine.gpu}; the first time may take minutes")
    start = time.perf_counter()
    with new_file(plan) as aside:
        build_plan(
            trt, onnx_file, aside, batch_range=batch_range, version_compatible=version_compatible,
            hardware_compatible=hardware_compatible, timing_cache=timings_file(machine),
        )  # fmt: skip
        record = PlanRecord(
            **vars(machine),
            batch_range=batch_range,
            version_compatible=version_compatible,
            hardware_compatible=hardware_compatible,
            precision=about.precision,
            target=about.target,
            onnx_sha256=sha256(onnx_file),
            plan_sha256=sha256(aside),
            plan_bytes=aside.stat().st_size,
            build_seconds=round(time.perf_counter() - start, 2),
            network=about,
            **vars(provenance()),
        )
        plan.unlink(missing_ok=True)
        records.write(record_path(plan), record)


def _check_buildable(onnx_file: Path, about: FileAbout, machine: Machine, hardware_compatible: bool) -> None:
    if about.precision == "int8" and about.target != "gpu":
        made_for = about.target or "cpu"
        raise InputError(f"{onnx_file} is int8 for {made_for}, a plan takes int8 of --target gpu; extract that")
    if hardware_compatible and version_numbers(machine.compute_capability) < AMPERE:
        found = f"{machine.gpu} has {machine.compute_capability}"
        raise InputError(f"hardware-compatible plans need compute capability 8.0 or newer, {found}; build without it")


def plan_for(onnx_file: Path, batches: Sequence[int]) -> Path:
    """The plan beside `onnx_file` for these batch sizes and this machine, built where it is missing or another's."""
    plan = onnx_file.with_suffix(".plan")
    load_tensorrt(f"building {plan}")
    if not is_current(plan, sha256(onnx_file), batches, this_machine()):
        extract_plan(onnx_file, plan, batch_range=range_for(batches))
    return plan
