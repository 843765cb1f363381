"""What each inference server wants to find: its files around one model, and around all of them."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from wmlc.errors import InputError, one_line
from wmlc.export.config import ShipConfig
from wmlc.export.publish import LABELS_FILE, TRITON_CONFIG, models_in
from wmlc.files import read_text
from wmlc.forms import INPUT, OUTPUT

KSERVE_MANIFEST, OVMS_CONFIG = "inference-service.yaml", "config.json"
KSERVE_MARK = "# Written by wmlc ship, which writes it anew\n"
ELSEWHERE = "move it away, or ship into another --out"
OVMS_ROOT = "/models"  # where OpenVINO Model Server's container mounts the repository
OVMS_PLUGIN = {"INFERENCE_PRECISION_HINT": "f32"}  # as benched: else bf16, on a CPU that has it


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model to be served."""

    name: str
    version: int
    file_name: str  # model.onnx or model.plan
    labels: list[str]
    input_dims: list[int]  # without the batch
    pixels: bool  # uint8 [H, W, C] in, else float32 [C, H, W]
    device: str  # cpu or cuda
    threads: int | None  # of one instance on the CPU, as benched
    preferred_batches: list[int]  # a plan's own batch size; an ONNX file has none


@dataclass(frozen=True)
class Layout:
    """The files of one model: those that all its versions share, and those of a version."""

    shared: dict[str, bytes]
    version: dict[str, bytes]


def lay_out(model: Model, config: ShipConfig) -> Layout:
    """The files around `model` for the server `config.to`, besides the model itself, its manifest and its card."""
    check_labels(model.labels)
    labels = {LABELS_FILE: "".join(f"{label}\n" for label in model.labels).encode()}
    if config.to in ("triton", "kserve"):
        return Layout(labels | {TRITON_CONFIG: triton_config(model, config).encode()}, {})
    if config.to == "mlserver":
        runtime = Path(__file__).with_name("mlserver_runtime.py").read_bytes()
        settings = json.dumps(_mlserver_settings(model, config), indent=2) + "\n"
        return Layout({}, labels | {"model-settings.json": settings.encode(), "wmlc_runtime.py": runtime})
    return Layout({}, labels)


def check_labels(labels: Sequence[str]) -> None:
    """Raise `InputError` for a class name that no line of labels.txt can be: every later label would be a wrong one."""
    for label in labels:
        unprintable = [c for c in label if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
        if unprintable or not label.strip():
            why = f"holds {unprintable[0]!a}, which no line of {LABELS_FILE} can" if unprintable else "is empty"
            raise InputError(f"the class name {label!a} {why}; rename the class's folder and train again")


def root_files(out: Path, config: ShipConfig, on_gpu: bool, staged: Sequence[str] = ()) -> dict[str, str]:
    """The files beside the models of the repository `out`, as its models now are and those that are `staged` will be.

    Args: whether one of these runs on a GPU. Raises `InputError` where a file is there that somebody else wrote.
    """
    if config.to == "kserve":
        on_gpu |= any("KIND_GPU" in _triton_config_of(model) for model in models_in(out))
        text = yaml.safe_dump(_inference_service(out, config, on_gpu), sort_keys=False)
        return {KSERVE_MANIFEST: KSERVE_MARK + text}
    if config.to == "ovms":
        return {OVMS_CONFIG: json.dumps(_ovms_config(out, staged), indent=2) + "\n"}
    return {}


def most_images(model: Path) -> int | None:
    """The images of one request that a model's configuration allows; None where that says nothing of it."""
    said = re.search(r"^max_batch_size:\s*(\d+)", _triton_config_of(model), re.MULTILINE)
    return int(said[1]) if said else None


def read_triton_config(text: str) -> Any:
    """A `config.pbtxt` as Triton's own protobuf; `ImportError` without tritonclient, `ValueError` for what is none."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as triton

    try:
        return text_format.Parse(text, triton.ModelConfig())
    except text_format.ParseError as error:
        raise ValueError(str(error)) from None


def _triton_config_of(model: Path) -> str:
    file = model / TRITON_CONFIG
    return read_text(file, "model configuration", ELSEWHERE) if file.is_file() else ""


def _ovms_config(out: Path, staged: Sequence[str]) -> dict[str, Any]:
    """OpenVINO Model Server's list of models: the one that is there, with an entry for each model that wmlc shipped.

    Others' entries and settings stay, also in entries of ours that somebody has changed; an entry just as we
    write it goes when there is nothing left of its model.
    """
    file, shipped = out / OVMS_CONFIG, {model.name for model in models_in(out)}
    names = sorted({*shipped, *staged})
    if not file.exists():
        return {"model_config_list": [_ovms_entry(name, OVMS_ROOT) for name in names]}
    what = f"{file} is no model list of OpenVINO Model Server"
    try:
        there = json.loads(read_text(file, "model list", ELSEWHERE))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} ({one_line(str(error))}); {ELSEWHERE}") from None
    entries = there.get("model_config_list") if isinstance(there, dict) else None
    if not isinstance(entries, list) or not all(_named(entry) for entry in entries):
        raise InputError(f"{what} (it has no model_config_list of named models); {ELSEWHERE}")
    mounts = {  # where the repository is, which may have been changed
        str(entry["config"].get("base_path")).rstrip("/").rpartition("/")[0]
        for entry in entries
        if entry["config"]["name"] in shipped
    }
    for entry in entries:
        name, place = entry["config"]["name"], str(entry["config"].get("base_path"))
        root, _, last = place.rstrip("/").rpartition("/")
        if name in names and (last != name or (name not in shipped and root not in (OVMS_ROOT, *mounts))):
            raise InputError(f"{file} has a model {one_line(name)} at {one_line(place)} already; {ELSEWHERE}")
    mount = mounts.pop() if len(mounts) == 1 else OVMS_ROOT
    ours = {name: _ovms_entry(name, mount) for name in names}
    kept = [
        ours[name] if name in ours and _as_written(entry) else entry
        for entry in entries
        if (name := entry["config"]["name"]) in ours or not _as_written(entry) or (out / name).exists()
    ]
    listed = {entry["config"]["name"] for entry in kept}
    added = [entry for name, entry in ours.items() if name not in listed]
    return there | {"model_config_list": kept + added}


def _named(entry: Any) -> bool:
    config = entry.get("config") if isinstance(entry, dict) else None
    return isinstance(config, dict) and isinstance(config.get("name"), str)


def _as_written(entry: Any) -> bool:
    """Whether an entry is to the letter what wmlc writes, or wrote before it asked for float32."""
    name = entry["config"]["name"]
    written = _ovms_entry(name, OVMS_ROOT)
    return entry in (written, {"config": {"name": name, "base_path": written["config"]["base_path"]}})


def _ovms_entry(name: str, root: str) -> dict[str, Any]:
    return {"config": {"name": name, "base_path": f"{root}/{name}", "plugin_config": OVMS_PLUGIN}}


def triton_config(model: Model, config: ShipConfig) -> str:
    """`config.pbtxt`, made and checked by Triton's own protobuf.

    Shapes leave the batch out; a preferred batch size is only given for a plan, whose profile has one (an ONNX file
    runs any size alike); one thread count an instance, as benched, so that instances do not fight for cores.
    """
    try:
        from google.protobuf import text_format
        from tritonclient.grpc import model_config_pb2 as triton
    except ImportError:
        raise InputError(
            f"--to {config.to} needs the package tritonclient, which is not installed (pip install 'wmlc[serve]')"
        ) from None
    kind = triton.TYPE_UINT8 if model.pixels else triton.TYPE_FP32
    group = triton.ModelInstanceGroup
    message = triton.ModelConfig(
        name=model.name,
        platform="tensorrt_plan" if config.engine == "trt" else "onnxruntime_onnx",
        max_batch_size=config.max_batch,
        version_policy=triton.ModelVersionPolicy(latest=triton.ModelVersionPolicy.Latest(num_versions=1)),
        input=[triton.ModelInput(name=INPUT, data_type=kind, dims=model.input_dims)],
        output=[
            triton.ModelOutput(
                name=OUTPUT, data_type=triton.TYPE_FP32, dims=[len(model.labels)], label_filename=LABELS_FILE
            )
        ],
        instance_group=[
            group(count=config.instances, kind=group.KIND_GPU if model.device == "cuda" else group.KIND_CPU)
        ],
        dynamic_batching=triton.ModelDynamicBatching(
            preferred_batch_size=model.preferred_batches, max_queue_delay_microseconds=config.queue_delay_us
        ),
        model_warmup=[
            triton.ModelWarmup(
                name=f"batch {batch}",
                batch_size=batch,
                inputs={INPUT: triton.ModelWarmup.Input(data_type=kind, dims=model.input_dims, random_data=True)},
            )
            for batch in dict.fromkeys((1, config.max_batch))
        ],
    )
    if model.threads is not None and config.engine == "ort":
        message.parameters["intra_op_thread_count"].string_value = str(model.threads)
    if model.device == "cuda" and config.engine == "ort":  # TF32 is not the fp32 that was benched
        cuda = triton.ModelOptimizationPolicy.ExecutionAccelerators.Accelerator(
            name="cuda", parameters={"use_tf32": "0"}
        )
        message.optimization.execution_accelerators.gpu_execution_accelerator.append(cuda)
    text = text_format.MessageToString(message)
    read_triton_config(text)  # it reads back
    return str(text)


def _mlserver_settings(model: Model, config: ShipConfig) -> dict[str, Any]:
    return {
        "name": model.name,
        "platform": "onnx",
        "versions": [str(model.version)],
        "implementation": "wmlc_runtime.OnnxRuntime",
        "inputs": [{"name": INPUT, "datatype": "UINT8" if model.pixels else "FP32", "shape": [-1, *model.input_dims]}],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, len(model.labels)]}],
        "max_batch_size": config.max_batch,
        "max_batch_time": config.queue_delay_us / 1e6,
        "parameters": {
            "uri": f"./{model.file_name}",
            "version": str(model.version),
            "extra": {"intra_op_threads": model.threads or 0},  # as benched; 0: all cores
        },
    }


def _inference_service(out: Path, config: ShipConfig, on_gpu: bool) -> dict[str, Any]:
    """KServe's manifest of a Triton repository; one service serves all models in it."""
    name = re.sub("[^a-z0-9]+", "-", out.resolve().name.lower()).strip("-")[:50].strip("-")
    gpu = {"nvidia.com/gpu": "1"} if on_gpu else {}
    busy = [_cpus_of(model) for model in models_in(out)]  # another model may have more copies
    cpus = max(2, _served_before(out)[1], config.instances, *busy)
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name if name[:1].isalpha() else f"wmlc-{name}".strip("-")},
        "spec": {
            "predictor": {
                "model": {
                    "modelFormat": {"name": "triton"},
                    "protocolVersion": "v2",
                    "runtime": "kserve-tritonserver",
                    "storageUri": storage_uri(out, config),
                    "resources": {"limits": {"cpu": str(cpus), "memory": "4Gi", **gpu}},
                }
            }
        },
    }


def _cpus_of(model: Path) -> int:
    """The CPUs that a model's copies compute on at once, by its configuration; 0 of one on a GPU."""
    try:
        config = read_triton_config(_triton_config_of(model))
        threads = int(config.parameters["intra_op_thread_count"].string_value or 1)
    except (ImportError, ValueError):  # somebody's own, which may be anything
        return 1
    copies = [group.count or 1 for group in config.instance_group if group.kind != group.KIND_GPU]
    return threads * sum(copies if config.instance_group else [1])


def storage_uri(out: Path, config: ShipConfig) -> str:
    """Where the cluster finds the repository: as given, as before, or under its own name on a volume claim `models`."""
    return config.storage_uri or _served_before(out)[0] or f"pvc://models/{out.resolve().name}"


def _served_before(out: Path) -> tuple[str, int]:
    """The place and the CPUs that an earlier shipment's InferenceService names; `InputError` where it is another's."""
    file = out / KSERVE_MANIFEST
    if not file.exists():
        return "", 0
    text = read_text(file, "InferenceService", ELSEWHERE)
    if not text.startswith(KSERVE_MARK):
        raise InputError(f"{file} does not begin with {KSERVE_MARK.strip()!r}, so it is not wmlc's; {ELSEWHERE}")
    try:
        model = yaml.safe_load(text)["spec"]["predictor"]["model"]
        return str(model["storageUri"]), int(model["resources"]["limits"]["cpu"])
    except (yaml.YAMLError, TypeError, KeyError, ValueError):
        raise InputError(f"{file} is no InferenceService as wmlc writes it; {ELSEWHERE}") from None
