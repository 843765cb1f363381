"""What is used of TensorRT's interface exists in TensorRT 10 and 11, and nothing of it is touched where there is no GPU."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from trt_parts import NO_GPU

from wmlc.run import Run

HOUSE = Path(__file__).resolve().parent.parent
USERS = ("export/to_tensorrt.py", "export/timings.py", "bench/engines/trt_engine.py", "wmlc/trt_machine.py")

# All of TensorRT's interface that is used, by class; an enumeration's members count as its attributes.
RUNTIME_API: dict[str, set[str]] = {
    "ILogger": {"Severity", "WARNING", "__init__", "log"},
    "Runtime": {"deserialize_cuda_engine", "engine_host_code_allowed"},
    "ICudaEngine": {
        "create_engine_inspector", "create_execution_context", "get_tensor_dtype", "get_tensor_mode", "get_tensor_name",
        "get_tensor_profile_shape", "num_io_tensors",
    },
    "IExecutionContext": {
        "execute_async_v3", "get_tensor_shape", "infer_shapes", "profiler", "set_input_shape", "set_tensor_address",
    },
    "IProfiler": {"__init__"},
    "DataType": {"FLOAT", "UINT8"},
    "TensorIOMode": {"INPUT", "OUTPUT"},
    "LayerInformationFormat": {"JSON"},
    "BuilderFlag": {"TF32", "VERSION_COMPATIBLE"},
    "HardwareCompatibilityLevel": {"AMPERE_PLUS"},
    "ProfilingVerbosity": {"DETAILED"},
    "ITimingCache": {"serialize"},
    "IOptimizationProfile": {"set_shape"},
}  # fmt: skip
BUILDER_API: dict[str, set[str]] = {  # the lean runtimes have none of these
    "Builder": {
        "build_serialized_network", "create_builder_config", "create_network", "create_optimization_profile",
    },
    "NetworkDefinitionCreationFlag": {"STRONGLY_TYPED"},
    "INetworkDefinition": {"get_input", "num_inputs"},
    "ITensor": {"dtype", "name", "shape"},
    "OnnxParser": {"get_error", "num_errors", "parse_from_file"},
    "ParserError": {"desc"},
    "IBuilderConfig": {
        "add_optimization_profile", "clear_flag", "create_timing_cache", "get_timing_cache",
        "hardware_compatibility_level", "profiling_verbosity", "set_flag", "set_timing_cache",
    },
    "EngineInspector": {"execution_context", "get_engine_information"},
}  # fmt: skip
# What the code calls the objects of these classes; ITensor, ParserError and ITimingCache have no names of their own.
CALLED = {
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser", "config": "IBuilderConfig",
    "profile": "IOptimizationProfile", "runtime": "Runtime", "engine": "ICudaEngine", "context": "IExecutionContext",
    "inspector": "EngineInspector",
}  # fmt: skip


def used_api() -> dict[str, set[str]]:
    """What the sources use of TensorRT, by class: `trt.X.Y`, and attributes of what `CALLED` names."""
    used: dict[str, set[str]] = {}
    for name in USERS:
        for node in ast.walk(ast.parse((HOUSE / name).read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Attribute):
                continue
            path = ast.unparse(node).split(".")
            if path[0] == "trt" and path[1] != "__version__":
                used.setdefault(path[1], set()).update(path[2:])
            owner = path[-2].lstrip("_") if len(path) > 1 else ""
            if owner in CALLED and path[:-2] in ([], ["self"]):
                used.setdefault(CALLED[owner], set()).add(path[-1])
    return used


def test_all_of_the_interface_in_use_is_listed() -> None:
    listed, used = RUNTIME_API | BUILDER_API, used_api()
    without_names = {"ITensor", "ParserError", "ITimingCache"}
    assert used.keys() == listed.keys() - without_names
    assert {name: attributes - listed[name] for name, attributes in used.items() if attributes - listed[name]} == {}
    assert listed["IExecutionContext"] == used["IExecutionContext"] and listed["Builder"] == used["Builder"]


def lacking(module: Any, api: dict[str, set[str]]) -> list[str]:
    """What `module` does not have of `api`."""
    return [
        f"{name}.{attribute}"
        for name, attributes in api.items()
        for attribute in sorted(attributes)
        if not hasattr(getattr(module, name, None), attribute)
    ]


def test_rtx_has_the_whole_interface() -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx: pip install '.[test]' on Linux, x86_64")
    assert lacking(rtx, RUNTIME_API | BUILDER_API) == []


@pytest.mark.parametrize(("name", "version"), [("trt-lean-10", "10.16."), ("trt-lean-11", "11.4.")])
def test_tensorrt_10_and_11_have_the_runtimes_interface(name: str, version: str) -> None:
    python = HOUSE / ".servers" / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"needs {name}: run 'make servers'")
    program = (
        "import json, sys, tensorrt_lean as trt\n"
        "api = json.loads(sys.argv[1])\n"
        "lacks = [f'{c}.{a}' for c, names in api.items() for a in names if not hasattr(getattr(trt, c, None), a)]\n"
        "print(json.dumps([trt.__version__, lacks]))"
    )
    api = json.dumps({name: sorted(attributes) for name, attributes in RUNTIME_API.items()})
    done = subprocess.run([str(python), "-c", program, api], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found, missing = json.loads(done.stdout)
    assert found.startswith(version) and missing == []
    pinned = (HOUSE / "tests" / "servers" / f"{name}.txt").read_text(encoding="utf-8").strip()
    assert pinned == f"tensorrt-lean=={found}"


# Without a GPU


ENTRANCES = """
import sys
from pathlib import Path
import numpy as np
from click.testing import CliRunner
from wmlc.bench.engines.trt_engine import TrtEngine
from wmlc.cli import main
from wmlc.errors import InputError
from wmlc.export.layer_by_layer import compare_layers
from wmlc.export.to_tensorrt import extract_plan, plan_for
from wmlc.trt_machine import this_machine
run, file, plan = sys.argv[1], Path("p.onnx"), Path("p.plan")
for words in (["bench", "--engine", "trt"], ["extract", "--peer", "1", "--out", "p.plan"]):
    result = CliRunner().invoke(main, [*words, "--run", run])
    assert result.exit_code == 1
    print(result.output, end="")
for enter in (
    this_machine,
    lambda: TrtEngine(plan, 1, "cuda"),
    lambda: extract_plan(file, plan, batch_range=(1, 8, 32)),
    lambda: plan_for(file, [1]),
    lambda: compare_layers(file, np.zeros((1, 3, 8, 8), np.float32)),
):
    try:
        enter()
    except InputError as error:
        print(error)
assert "tensorrt" not in sys.modules and "polygraphy" not in sys.modules
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_no_entrance_touches_tensorrt_without_a_gpu(run: Run, tmp_path: Path) -> None:
    """In a process where importing tensorrt is the end, as its native code may be without a driver."""
    trap, work = tmp_path / "trap" / "tensorrt", tmp_path / "work"
    trap.mkdir(parents=True)
    work.mkdir()
    (trap / "__init__.py").write_text("import os; os.abort()")
    done = subprocess.run(
        [sys.executable, "-c", ENTRANCES, str(run.root.resolve())],
        cwd=work, env={**os.environ, "PYTHONPATH": str(trap.parent)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    said = done.stdout.splitlines()
    assert len(said) == 7 and all(NO_GPU in line for line in said)
    assert all(line.startswith("Error: ") for line in said[:2])
    assert said[3] == f"--engine trt {NO_GPU}; use a GPU machine, or use --engine ort or torch"
    assert list(work.iterdir()) == []
