"""An ONNX file → a TensorRT plan with its record, by one strongly typed path for TensorRT 10 and 11.

What a plan computes in is what its ONNX file says: there is no precision flag here. TensorRT's module is passed in, as
TensorRT-RTX, whose builder needs no GPU, runs the same code in the tests.

N images, C channels, H height, W width
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wmlc.console import note
from wmlc.errors import InputError
from wmlc.files import check_writable, new_file, sha256, write_json
from wmlc.forms import INPUT, open_as_written
from wmlc.run import provenance
from wmlc.tensorrt import (
    AMPERE,
    MOST_MESSAGES,
    is_current,
    keep_timings,
    load_tensorrt,
    make_logger,
    range_for,
    read_timings,
    record_path,
    short,
    this_machine,
    timings_file,
    version_numbers,
)

COMPARED_OPS = ("Conv", "Gemm", "Relu", "Clip", "Add")  # whose outputs `compare_layers` looks at


def build_plan(
    trt: Any,
    onnx_file: Path,
    plan: Path,
    *,
    batch_range: tuple[int, int, int],
    version_compatible: bool = False,
    hardware_compatible: bool = False,
    timing_cache: Path | None = None,
    profile_input: str = INPUT,
) -> None:
    """Build `plan` from `onnx_file` with the module `trt` (tensorrt, or tensorrt_rtx).

    Args: the smallest, most usual and largest batch; where timings are kept between builds; the input's name.
    Raises `InputError` with what the parser and the builder said, leaving nothing behind, where the file is no
    ONNX, holds what TensorRT does not take, or its input is not one of that name with a free first dimension only.
    """
    check_writable(plan)
    if not onnx_file.is_file():
        raise InputError(f"{onnx_file} is not a file; extract it again")
    logger = make_logger(trt)
    built = _serialize(
        trt, logger, onnx_file, batch_range, version_compatible, hardware_compatible, timing_cache, profile_input
    )
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
    profile_input: str,
) -> bytes | str:
    """The plan's bytes, or why there are none: an exception would keep TensorRT's objects, and their logger, alive."""
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))  # 1 in 10, 0 in 11
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_file)):
        errors = [short(parser.get_error(i).desc()) for i in range(parser.num_errors)]
        said = "; ".join(errors[:MOST_MESSAGES]) or logger.words()
        return f"{said}; extract it again, int8 with --target gpu"
    if wrong := _wrong_input(trt, network, profile_input):
        return f"{wrong}; extract it again"
    config = builder.create_builder_config()
    profile, rest = builder.create_optimization_profile(), tuple(network.get_input(0).shape)[1:]
    profile.set_shape(profile_input, *((batch, *rest) for batch in batch_range))
    if config.add_optimization_profile(profile) < 0:
        return f"{logger.words()}; choose another batch range than {','.join(map(str, batch_range))}"
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that the plan can tell its precision
    config.clear_flag(trt.BuilderFlag.TF32)  # TF32 is not fp32: the file says what precision it is in
    if version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if timing_cache is not None:
        _attach_timings(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return f"{logger.words()}; if it ran out of memory, free the GPU, else extract the peer in another precision"
    if timing_cache is not None:
        keep_timings(timing_cache, bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def _wrong_input(trt: Any, network: Any, name: str) -> str | None:
    """Why a profile for `name` would not do; TensorRT accepts one for an input that is not there."""
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    shapes = [tuple(value.shape) for value in inputs]
    if [value.name for value in inputs] == [name] and inputs[0].dtype in (trt.DataType.FLOAT, trt.DataType.UINT8):
        free = [axis for axis, size in enumerate(shapes[0]) if size < 0]
        if free == [0] and len(shapes[0]) == 4:
            return None
    found = ", ".join(
        f"{value.name!r} of {value.dtype.name} {list(shape)}" for value, shape in zip(inputs, shapes, strict=True)
    )
    return f"its input is {found}, a plan needs {name!r} of FLOAT or UINT8 with a free batch (-1) and all else fixed"


def _attach_timings(config: Any, file: Path) -> None:
    """Give `config` the timings kept in `file`, or an empty cache, with a word where they are not of this machine."""
    cache = config.create_timing_cache(read_timings(file))
    if cache is None or not config.set_timing_cache(cache, False):
        note(f"the kept timings {file} do not fit this TensorRT and GPU; starting anew")
        config.set_timing_cache(config.create_timing_cache(b""), False)


def extract_plan(
    onnx_file: Path,
    plan: Path,
    *,
    batch_range: tuple[int, int, int],
    version_compatible: bool = False,
    hardware_compatible: bool = False,
    cache_dir: Path | None = None,
) -> None:
    """Build `plan` on this machine, with the record that loading checks beside it.

    The record gets its name first, and an older plan goes before that: where there is a plan, there is its own record.
    Raises `InputError` where GPU, driver or package are missing, before any of TensorRT is loaded, and as `build_plan`.
    """
    trt = load_tensorrt(f"building {plan}")
    machine, about = this_machine(), read_metadata(onnx_file)
    _check_buildable(onnx_file, about, machine, hardware_compatible)
    note(f"building {plan} with TensorRT {trt.__version__} on {machine['gpu']}; the first time may take minutes")
    start = time.perf_counter()
    with new_file(plan) as aside:
        build_plan(
            trt, onnx_file, aside, batch_range=batch_range, version_compatible=version_compatible,
            hardware_compatible=hardware_compatible, timing_cache=timings_file(machine, cache_dir),
        )  # fmt: skip
        record = {
            **machine, "batch_range": list(batch_range), "version_compatible": version_compatible,
            "hardware_compatible": hardware_compatible, "precision": about.get("precision", "fp32"),
            "target": about.get("target"), "onnx_sha256": sha256(onnx_file), "plan_sha256": sha256(aside),
            "plan_bytes": aside.stat().st_size, "build_seconds": round(time.perf_counter() - start, 2),
            "network": about, **vars(provenance()), "schema_version": 1,
        }  # fmt: skip
        with new_file(record_path(plan)) as record_aside:
            write_json(record_aside, record)
            plan.unlink(missing_ok=True)


def _check_buildable(
    onnx_file: Path, about: Mapping[str, Any], machine: Mapping[str, Any], hardware_compatible: bool
) -> None:
    if about.get("precision") == "int8" and about.get("target") != "gpu":
        made_for = about.get("target") or "cpu"
        raise InputError(f"{onnx_file} is int8 for {made_for}, a plan takes int8 of --target gpu; extract that")
    if hardware_compatible and version_numbers(machine["compute_capability"]) < AMPERE:
        found = f"{machine['gpu']} has {machine['compute_capability']}"
        raise InputError(f"hardware-compatible plans need compute capability 8.0 or newer, {found}; build without it")


def plan_for(onnx_file: Path, batches: Sequence[int]) -> Path:
    """The plan beside `onnx_file` for these batch sizes and this machine, built where it is missing or another's."""
    plan = onnx_file.with_suffix(".plan")
    load_tensorrt(f"building {plan}")
    if not is_current(plan, sha256(onnx_file), batches, this_machine()):
        extract_plan(onnx_file, plan, batch_range=range_for(batches))
    return plan


def read_metadata(onnx_file: Path) -> dict[str, Any]:
    """What an ONNX file says of itself, its values read as the JSON they are; `InputError` if it is no ONNX file."""
    import onnx

    try:
        model = onnx.load(str(onnx_file), load_external_data=False)
    except Exception as error:  # protobuf's, or the system's
        raise InputError(f"{onnx_file} is not a readable ONNX file ({short(str(error))}); extract it again") from None
    said: dict[str, Any] = {}
    for entry in model.metadata_props:
        try:
            said[entry.key] = json.loads(entry.value)
        except json.JSONDecodeError:
            said[entry.key] = entry.value
    return said


def compare_layers(onnx_file: Path, images_NCHW: np.ndarray) -> list[tuple[str, float]]:
    """Where TensorRT leaves ONNX Runtime: (layer, distance) in the file's order, on float32 `images_NCHW`.

    The distance is sqrt(mean((t - o)²) / mean(o²)) between a layer's outputs t in TensorRT and o in ONNX Runtime on the
    CPU, which runs every node as it stands. All layers' outputs are returned, so TensorRT fuses less than in the plan.
    Raises `InputError` where GPU, driver, tensorrt or polygraphy are missing, and as `build_plan`.
    """
    trt = load_tensorrt("comparing layers")
    if importlib.util.find_spec("polygraphy") is None:
        raise InputError("comparing layers needs polygraphy, which is not installed (pip install 'wmlc[trt]')")
    polygraphy = importlib.import_module("polygraphy.backend.trt")

    with tempfile.TemporaryDirectory() as directory:
        marked, plan = Path(directory) / "layers.onnx", Path(directory) / "layers.plan"
        names = mark_layers(onnx_file, marked)
        build_plan(trt, marked, plan, batch_range=(len(images_NCHW),) * 3)
        expected = dict(zip(names, run_plainly(marked, images_NCHW), strict=True))
        with polygraphy.TrtRunner(polygraphy.EngineFromBytes(plan.read_bytes())) as runner:
            got = runner.infer({INPUT: images_NCHW})
            return [(name, distance(got[name], expected[name])) for name in names]


def mark_layers(onnx_file: Path, out: Path) -> list[str]:
    """Write `onnx_file` to `out` with the outputs of all its layers (`COMPARED_OPS`) as outputs; all their names."""
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(str(onnx_file)))
    typed = {value.name: value for value in model.graph.value_info}
    layers = [name for node in model.graph.node if node.op_type in COMPARED_OPS for name in node.output]
    final = list(model.graph.output)
    del model.graph.output[:]
    model.graph.output.extend([typed[name] for name in layers if name in typed] + final)
    onnx.save_model(model, str(out))
    return [value.name for value in model.graph.output]


def run_plainly(onnx_file: Path, images_NCHW: np.ndarray) -> list[np.ndarray]:
    """All outputs of an ONNX file in ONNX Runtime on the CPU, every node as it stands."""
    return [np.asarray(output) for output in open_as_written(onnx_file).run(None, {INPUT: images_NCHW})]


def distance(got: np.ndarray, expected: np.ndarray) -> float:
    """sqrt(mean((got - expected)²) / mean(expected²)), in float64."""
    o = expected.astype(np.float64)
    difference, size = (float(np.sqrt(np.square(x).mean())) for x in (got - o, o))
    return difference / max(size, float(np.finfo(np.float64).tiny))
