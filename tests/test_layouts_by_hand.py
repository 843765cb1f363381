"""What servers are told of a model, by its description alone: kinds, shapes, devices, CPUs and places."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from made import made_family, made_framing, made_plan, made_record, made_run, made_settings

from wmlc import records
from wmlc.export.config import ShipConfig
from wmlc.export.layouts import Model, read_triton_config, root_files, triton_config
from wmlc.export.naming import model_name
from wmlc.records import About, NetworkSpec
from wmlc.run import Run

triton = pytest.importorskip("tritonclient.grpc.model_config_pb2")

MODEL = Model(name="m", version=3, file_name="model.onnx", labels=["a", "b", "c"], input_dims=[3, 24, 32], pixels=False,
              device="cpu", threads=4, preferred_batches=[])  # fmt: skip
SPEC = NetworkSpec(arch="resnet20", class_names=["cat", "dog"], input_shape=(3, 32, 32), mean=[0.5] * 3, std=[0.25] * 3,
                   widths={}, framing=made_framing(32), about=About(peer=1, data="cifar10"))  # fmt: skip


def told(config: ShipConfig | None = None, **changes: Any) -> Any:
    return read_triton_config(triton_config(replace(MODEL, **changes), config or ShipConfig()))


def test_triton_is_told_kinds_and_shapes() -> None:
    plain, pixels = told(), told(pixels=True, input_dims=[24, 32, 3])
    for found, kind, dims in ((plain, triton.TYPE_FP32, [3, 24, 32]), (pixels, triton.TYPE_UINT8, [24, 32, 3])):
        assert (found.input[0].data_type, list(found.input[0].dims)) == (kind, dims)
        warmed = [warm.inputs["input"] for warm in found.model_warmup]
        assert [(each.data_type, list(each.dims)) for each in warmed] == [(kind, dims)] * 2
        assert (found.output[0].data_type, list(found.output[0].dims)) == (triton.TYPE_FP32, [3])


def test_triton_is_told_how_many_run_where() -> None:
    group = triton.ModelInstanceGroup
    found = told(ShipConfig(instances=2, max_batch=16, queue_delay_us=700))
    assert [(own.count, own.kind) for own in found.instance_group] == [(2, group.KIND_CPU)]
    assert found.parameters["intra_op_thread_count"].string_value == "4"
    assert found.dynamic_batching.max_queue_delay_microseconds == 700
    assert (found.max_batch_size, [warm.batch_size for warm in found.model_warmup]) == (16, [1, 16])
    assert [warm.batch_size for warm in told(ShipConfig(max_batch=1)).model_warmup] == [1]
    on_gpu = told(device="cuda")
    assert [own.kind for own in on_gpu.instance_group] == [group.KIND_GPU]
    (cuda,) = on_gpu.optimization.execution_accelerators.gpu_execution_accelerator
    assert (cuda.name, dict(cuda.parameters)) == ("cuda", {"use_tf32": "0"})
    plan = told(ShipConfig(engine="trt"), device="cuda", file_name="model.plan", preferred_batches=[8])
    assert plan.platform == "tensorrt_plan" and list(plan.dynamic_batching.preferred_batch_size) == [8]
    assert "intra_op_thread_count" not in plan.parameters


def shipped(root: Path, name: str, config: str = "") -> None:
    """A model of ours in a repository."""
    (root / name / "1").mkdir(parents=True)
    (root / name / "1" / "manifest.json").touch()
    (root / name / "config.pbtxt").write_text(config)


def service(root: Path, **config: Any) -> Any:
    text = root_files(root, ShipConfig(to="kserve", **config), on_gpu=False)["inference-service.yaml"]
    return yaml.safe_load(text)["spec"]["predictor"]["model"]


def test_a_service_has_the_gpu_and_the_cpus_of_all_its_models(tmp_path: Path) -> None:
    shipped(tmp_path, "a", triton_config(MODEL, ShipConfig(instances=3)))
    assert service(tmp_path)["resources"]["limits"] == {"cpu": "12", "memory": "4Gi"}
    shipped(tmp_path, "b", triton_config(replace(MODEL, device="cuda", threads=32), ShipConfig()))
    assert service(tmp_path)["resources"]["limits"] == {"cpu": "12", "memory": "4Gi", "nvidia.com/gpu": "1"}
    shipped(tmp_path, "c", "somebody's own")
    assert service(tmp_path, instances=20)["resources"]["limits"]["cpu"] == "20"


def test_openvinos_list_keeps_what_is_others_and_drops_what_is_gone(tmp_path: Path) -> None:
    def listed(*staged: str) -> list[str]:
        text = root_files(tmp_path, ShipConfig(to="ovms"), on_gpu=False, staged=staged)["config.json"]
        (tmp_path / "config.json").write_text(text)
        return [entry["config"]["base_path"] for entry in json.loads(text)["model_config_list"]]

    assert listed("gone", "a") == ["/models/a", "/models/gone"]
    shipped(tmp_path, "a")
    entries = json.loads((tmp_path / "config.json").read_text())
    entries["model_config_list"].append({"config": {"name": "theirs", "base_path": "/elsewhere/theirs"}})
    (tmp_path / "config.json").write_text(json.dumps(entries))
    assert listed("b") == ["/models/a", "/elsewhere/theirs", "/models/b"]
    (tmp_path / "b").mkdir()  # a directory is left of it
    assert listed() == ["/models/a", "/elsewhere/theirs", "/models/b"]
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace("/models/", "/mounted/"))
    assert listed("c")[-1] == "/mounted/c"


def test_names_tell_peers_apart_and_say_their_milliseconds(tmp_path: Path) -> None:
    top1 = (80.0, 85.0, 90.0)

    def names(root: str, change: Any = lambda record: record, **settings: Any) -> list[str]:
        asked = made_settings(top1, **settings)
        run = made_run(tmp_path / root, asked, made_family(top1, settings=asked))
        records.write(run.config, change(made_record(asked)))
        return [model_name(run, replace(SPEC, about=replace(SPEC.about, peer=peer)), "fp32") for peer in (1, 2, 3)]

    assert names("alike", ratios=(0.7, 0.7, 0.0)) == [f"resnet20_cifar10_{own}" for own in ("p07-1", "p07-2", "p0")]
    budgets = made_plan((0.5, 0.8, 1.0), full_ms=1.0)
    timed = names(
        "timed", lambda record: replace(record, latency=budgets), max_latency_ms=(0.5, 0.8), ratio_of="latency"
    )
    assert timed == [f"resnet20_cifar10_{own}" for own in ("0-5ms", "0-8ms", "p0")]


@pytest.mark.parametrize("kind", ["imagefolder", "hf", "wds"])
def test_pictures_in_a_directory_are_called_as_it_is(tmp_path: Path, kind: str) -> None:
    asked = made_settings(data=kind, data_root=str(tmp_path / "flowers"))
    run: Run = made_run(tmp_path / "run", asked, made_family(settings=asked))
    spec = replace(SPEC, about=replace(SPEC.about, data=kind))
    assert model_name(run, spec, "fp32") == "resnet20_flowers_p07"
