"""Readers that we did not write run the exported files, and their logits are those that the files mean.

What a file means is what ONNX Runtime computes with its graph optimizations off: every node as it stands, in fp32, with
the rounding of Q/DQ in between. docs/readers.md is for people who use such a reader; its table and examples are tested here.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

HOUSE = Path(__file__).resolve().parent.parent
DOCS = HOUSE / "docs" / "readers.md"
NODE_SCRIPT = Path(__file__).resolve().parent / "servers" / "readers" / "infer.mjs"
NODE_PACKAGES = HOUSE / ".servers" / "node"

ARCHS = ("resnet20", "mobilenet_v2")
FORMS = ("fp32", "fp16", "int8-cpu", "int8-gpu")
BATCHES = (1, 4)  # fed one after another, to one loaded file: its batch is dynamic

FP32_ALLOWED = 1e-4  # of the largest logit; what export itself allows between torch and ONNX Runtime
HALF = 2.0**-11  # float16 rounds a number by at most this part of it

Reader = Callable[[Path, list[np.ndarray]], list[np.ndarray]]  # float32 [N, C, H, W] batches → logits [N, classes] each


def opencv(path: Path, batches: list[np.ndarray], engine: str = "ENGINE_NEW") -> list[np.ndarray]:
    """OpenCV 5; of its engines, `readNetFromONNX` takes the new one first if it is not told."""
    cv2 = pytest.importorskip("cv2", minversion="5", reason="needs OpenCV 5: pip install '.[test]'")
    net = cv2.dnn.readNetFromONNX(str(path), getattr(cv2.dnn, engine))
    answers = []
    for images in batches:
        net.setInput(images, "input")
        answers.append(net.forward("logits").copy())
    return answers


def openvino(path: Path, batches: list[np.ndarray], integers: bool = True) -> list[np.ndarray]:
    """OpenVINO on the CPU; without `integers` it runs Q/DQ in float instead of turning them into int8 kernels."""
    runtime = pytest.importorskip("openvino", reason="needs OpenVINO: pip install '.[test]'")
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",  # else it computes fp32 files in bf16 where the CPU has that
        "INFERENCE_NUM_THREADS": 1,
        "LP_TRANSFORMS_MODE": integers,
    }
    compiled = runtime.Core().compile_model(str(path), "CPU", settings)
    return [compiled([images])["logits"].copy() for images in batches]


def onnxruntime_node(path: Path, batches: list[np.ndarray], optimization: str = "all") -> list[np.ndarray]:
    """onnxruntime-node in a process of its own."""
    shape, sizes = ",".join(map(str, batches[0].shape[1:])), [str(len(images)) for images in batches]
    done = subprocess.run(
        [need_node(), str(NODE_SCRIPT), str(path), optimization, shape, *sizes],
        input=b"".join(images.tobytes() for images in batches), cwd=NODE_PACKAGES, capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    ends = list(itertools.accumulate(len(images) for images in batches))
    logits = np.frombuffer(done.stdout, np.float32).reshape(ends[-1], -1)
    return np.split(logits, ends[:-1])


def reference(path: Path, batches: list[np.ndarray]) -> list[np.ndarray]:
    """The reference evaluator of the `onnx` package: NumPy, each node in the type that it has in the file."""
    evaluator = ReferenceEvaluator(str(path))
    return [evaluator.run(None, {"input": images})[0] for images in batches]  # type: ignore[index]


READERS: dict[str, Reader] = {
    "OpenCV": opencv,
    "OpenCV, classic engine": functools.partial(opencv, engine="ENGINE_CLASSIC"),
    "OpenVINO": openvino,
    "onnxruntime-node": onnxruntime_node,
    "onnx reference evaluator": reference,
}
AS_WRITTEN: dict[str, Reader] = {  # for readers that otherwise turn Q/DQ into int8 kernels of their own
    "OpenVINO": functools.partial(openvino, integers=False),
    "onnxruntime-node": functools.partial(onnxruntime_node, optimization="disabled"),
}
# The table in the docs, for FORMS. "as written": only so, unless the CPU has VNNI. int8-gpu is made for TensorRT; its
# full 8-bit weights overflow the int8 kernels of other CPUs.
TAKES = {
    "OpenCV": ["yes", "yes", "yes", "yes"],
    "OpenCV, classic engine": ["yes", "no", "yes", "yes"],
    "OpenVINO": ["yes", "yes", "yes", "as written"],
    "onnxruntime-node": ["yes", "yes", "yes", "as written"],
    "onnx reference evaluator": ["yes", "yes", "yes", "yes"],
}
REFUSAL = {("OpenCV, classic engine", "fp16"): re.escape("'input' is 7 (CV_16FC1)")}


WRONG_WITH_VNNI = ("OpenCV", "int8-cpu", "mobilenet_v2")  # as docs/readers.md says; right on a CPU without


def cpu_flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    return set(info.read_text(encoding="utf-8").split()) if info.exists() else set()


def cases(*cells: str) -> list[tuple[str, str]]:
    """Reader and form of the cells of the table that say one of `cells`."""
    return [
        (reader, form) for reader, row in TAKES.items() for form, cell in zip(FORMS, row, strict=True) if cell in cells
    ]


def need_node() -> str:
    """The path of node; skips where it or the package isn't there."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node.js 20 or newer")
    if not (NODE_PACKAGES / "node_modules" / "onnxruntime-node").is_dir():
        pytest.skip("needs onnxruntime-node; 'make servers' installs it")
    return node


def make_images(count: int) -> np.ndarray:
    """Images from the distribution that the int8 files were calibrated on."""
    return np.random.default_rng(1).standard_normal((count, 3, 32, 32), dtype=np.float32)


@functools.cache
def meaning(path: Path) -> np.ndarray:
    """Logits of sixteen images, the file taken node by node."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"input": make_images(16)})[0])


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def allowed_error(form: str, path: Path, fp32: Path) -> float:
    """How far a right reader's logits may be from the file's meaning: the largest error, for int8 the RMS.

    fp32: other orders of summation, as export allows them.

    fp16: a reader rounds to float16 after each of the L nodes, or never. L independent roundings of relative size u that
    reach the logits undiminished come to √L · u of their size; twice that, as the largest of 40 errors is looked at.

    int8: where two readers' sums differ in the last bit, an activation may be rounded to the neighbouring step, and the
    following layers carry that on. At worst no rounding has to do with the other's any more. Both are then the
    fp32 network plus an error of the same size, which is the file's own and known; their difference is √2 of it.
    """
    largest = float(np.abs(meaning(path)).max())
    if form == "fp32":
        return FP32_ALLOWED * largest
    if form == "fp16":
        nodes = sum(node.op_type != "Cast" for node in onnx.load(str(path)).graph.node)
        return 2 * nodes**0.5 * HALF * largest
    return 2**0.5 * rms(meaning(path) - meaning(fp32))


def error(form: str, logits: np.ndarray, due: np.ndarray) -> float:
    """The figure that `allowed_error` limits."""
    return rms(logits - due) if form.startswith("int8") else float(np.abs(logits - due).max())


def read_batches(reader: Reader, path: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each batch, the reader's logits and those that the file means."""
    ends = list(itertools.accumulate(BATCHES))
    batches, due = (np.split(rows[: ends[-1]], ends[:-1]) for rows in (make_images(16), meaning(path)))
    answers = reader(path, [np.ascontiguousarray(images) for images in batches])
    assert [logits.shape for logits in answers] == [logits.shape for logits in due]
    return list(zip(answers, due, strict=True))


READ = [(*case, arch) for case in cases("yes", "as written") for arch in ARCHS]
# ResNet-50 for its bottlenecks, in one form, and not through NumPy, where it takes long
READ += [(name, "fp32", "resnet50") for name in READERS if name != "onnx reference evaluator"]


@pytest.mark.parametrize(("name", "form", "arch"), READ)
def test_logits_are_those_that_the_file_means(
    name: str, form: str, arch: str, exported: Callable[[str, str], Path], request: pytest.FixtureRequest
) -> None:
    if (name, form, arch) == WRONG_WITH_VNNI and "avx512_vnni" in cpu_flags():
        request.applymarker(pytest.mark.xfail(strict=True, reason="OpenCV 5.0.0.93 is wrong on a CPU with AVX512-VNNI"))
    path = exported(arch, form)
    allowed = allowed_error(form, path, exported(arch, "fp32"))
    reader = READERS[name] if (name, form) in cases("yes") else AS_WRITTEN[name]
    for logits, due in read_batches(reader, path):
        assert error(form, logits, due) <= allowed


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("form", ["fp32", "fp16", "int8-cpu"])
def test_a_wrong_answer_would_be_noticed(form: str, arch: str, exported: Callable[[str, str], Path]) -> None:
    """The logits of one image are no right answer for another one."""
    path = exported(arch, form)
    apart = [error(form, one, other) for one, other in itertools.combinations(meaning(path), 2)]
    assert 1.5 * allowed_error(form, path, exported(arch, "fp32")) < np.median(apart)


@pytest.mark.parametrize(("name", "form"), cases("no"))
def test_what_a_reader_does_not_take_it_refuses(name: str, form: str, exported: Callable[[str, str], Path]) -> None:
    cv2 = pytest.importorskip("cv2", minversion="5", reason="needs OpenCV 5: pip install '.[test]'")
    with pytest.raises(cv2.error, match=REFUSAL[name, form]):
        read_batches(READERS[name], exported("resnet20", form))


@pytest.mark.parametrize(("name", "form"), cases("as written"))
def test_int8_gpu_overflows_the_int8_kernels_of_older_cpus(
    name: str, form: str, exported: Callable[[str, str], Path]
) -> None:
    """Why there is a form for CPUs, and why the docs send these readers there."""
    if "avx2" not in (flags := cpu_flags()) or {"avx_vnni", "avx512_vnni"} & flags:
        pytest.skip("needs a CPU with AVX2 and without VNNI, which adds pairs of products in 16 bits")
    path, fp32 = exported("resnet20", form), exported("resnet20", "fp32")
    allowed = allowed_error(form, path, fp32)
    assert all(error(form, logits, due) > allowed for logits, due in read_batches(READERS[name], path))


def test_the_docs_say_which_reader_takes_which_precision() -> None:
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    header = lines.index("| reader | " + " | ".join(FORMS) + " |")
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[header + 2 :])
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert {reader: taken for reader, *taken in cells} == TAKES


def examples(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("code", examples("python"), ids=lambda code: code.split()[1])
def test_the_docs_examples_in_python_run(
    code: str, exported: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(code.split()[1], reason="needs OpenCV and OpenVINO: pip install '.[test]'")
    path = exported("resnet20", "fp32")
    shutil.copy(path, tmp_path / "peer.onnx")
    monkeypatch.chdir(tmp_path)
    names = {"images": make_images(16)[:4]}
    exec(code, names)
    assert error("fp32", names["logits"], meaning(path)[:4]) <= allowed_error("fp32", path, path)


def test_the_docs_example_for_node_runs(exported: Callable[[str, str], Path]) -> None:
    path = exported("resnet20", "fp32")
    (code,) = examples("js")
    numbers = json.dumps(make_images(16)[:4].ravel().tolist())
    program = f"const images = Float32Array.from({numbers});\n{code.replace('peer.onnx', str(path))}\n"
    done = subprocess.run(
        [need_node(), "--input-type=module", "-"],
        input=program + "console.log(JSON.stringify(Array.from(logits.data)));",
        cwd=NODE_PACKAGES, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    logits = np.array(json.loads(done.stdout), np.float32).reshape(4, -1)
    assert error("fp32", logits, meaning(path)[:4]) <= allowed_error("fp32", path, path)
