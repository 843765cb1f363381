"""What `wmlc ship` promises: only what passed the bench, whole or not at all, and said of it what is true."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from google.protobuf import text_format
from made import made_speedup
from torch import nn

import wmlc
from wmlc import records
from wmlc.cli import main
from wmlc.errors import InputError
from wmlc.export.card import model_card
from wmlc.export.config import ShipConfig
from wmlc.export.layouts import root_files
from wmlc.export.publish import read_manifest
from wmlc.export.ship import ship
from wmlc.files import sha256
from wmlc.models.checkpoint import read_spec
from wmlc.models.cost import total_cost
from wmlc.models.ensemble import Ensemble
from wmlc.records import Bench, Tensor
from wmlc.run import Run, open_run_data, read_family

triton = pytest.importorskip("tritonclient.grpc.model_config_pb2")

TRITON = ShipConfig()


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["ship", *map(str, arguments)])


def listing(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def read_config(model: Path) -> Any:
    return text_format.Parse((model / "config.pbtxt").read_text(), triton.ModelConfig())


@pytest.fixture(scope="module")
def repository(benched_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("served") / "models"
    list(ship(benched_run, "1,2", out, replace(TRITON, ensemble=True, license="Apache-2.0")))
    return out


def test_the_layout_is_tritons(repository: Path) -> None:
    names = ["resnet20_digits_ensemble", "resnet20_digits_p0", "resnet20_digits_p07"]
    files = ["1/manifest.json", "1/model.onnx", "1/model_card.md", "config.pbtxt", "labels.txt"]
    assert listing(repository) == [f"{name}/{file}" for name in names for file in files]
    assert [path.name for path in repository.parent.iterdir()] == ["models"], "nothing that was staged stays"


def test_the_configuration_is_the_files_own(repository: Path, benched_run: Run) -> None:
    for model in repository.iterdir():
        config, file = read_config(model), onnx.load(str(model / "1" / "model.onnx"))
        ((given,), (answer,)) = file.graph.input, file.graph.output
        assert (config.name, config.platform) == (model.name, "onnxruntime_onnx")
        assert [value.name for value in config.input] == [given.name]
        assert list(config.input[0].dims) == [d.dim_value for d in given.type.tensor_type.shape.dim[1:]]
        assert [value.name for value in config.output] == [answer.name]
        assert list(config.output[0].dims) == [d.dim_value for d in answer.type.tensor_type.shape.dim[1:]] == [10]
        assert config.output[0].label_filename == "labels.txt"
        assert (model / "labels.txt").read_text().splitlines() == [str(digit) for digit in range(10)]
        assert config.max_batch_size == 32 and config.HasField("dynamic_batching")
        assert not config.dynamic_batching.preferred_batch_size, "an ONNX file runs any batch alike"
        assert [(group.count, group.kind) for group in config.instance_group] == [
            (1, triton.ModelInstanceGroup.KIND_CPU)
        ]
        assert [warm.batch_size for warm in config.model_warmup] == [1, 32]
        assert config.version_policy.latest.num_versions == 1


def test_the_manifest_says_what_was_measured(repository: Path, benched_run: Run) -> None:
    model = repository / "resnet20_digits_p07" / "1"
    manifest, bench = read_manifest(model), records.read(benched_run.bench, Bench, "bench", "")
    row = next(row for row in bench.rows if (row.peer, row.precision) == (1, "fp32"))
    spec = read_spec(benched_run.network(1))
    assert row.latency_ms is not None and manifest.latency is not None
    assert manifest.sha256 == sha256(model / "model.onnx") == row.file_sha256
    assert (manifest.accuracy.top1, manifest.accuracy.top1_drop) == (row.top1, row.top1_drop)
    assert (manifest.latency.ms, manifest.latency.speedup) == (row.latency_ms, row.speedup)
    assert (manifest.latency.machine, manifest.latency.time) == (bench.environment.cpu, bench.environment.time)
    assert (manifest.preprocess.mean, manifest.preprocess.std) == (spec.mean, spec.std)
    assert manifest.input == Tensor(name="input", dtype="float32", shape=[-1, 1, 8, 8], layout="NCHW")
    assert (manifest.network.params, manifest.network.macs) == (row.params, row.macs)
    assert (manifest.license, manifest.version, manifest.labels) == ("Apache-2.0", 1, spec.class_names)
    card = (model / "model_card.md").read_text()
    assert f"{row.top1:.2f} %" in card and f"p99 {row.latency_ms.p99:.3f} ms" in card and "Apache-2.0" in card
    assert "by the method `wml`; fp32" in card
    from_start = replace(manifest, network=replace(manifest.network, start="r20.safetensors"))
    assert "by the method `wml` from `r20.safetensors`; fp32" in model_card(from_start)
    assert row.p50_interval and manifest.latency.p50_interval == row.p50_interval and "budget" not in card
    assert f"p50 {row.latency_ms.p50:.3f} ms [{row.p50_interval.low:.3f}, {row.p50_interval.high:.3f}], p99" in card
    own = replace(manifest.latency, latency_budget_ms=0.25, budget_met=False, speedup=made_speedup(0.98, 1.01, 1.04))
    missed = model_card(replace(manifest, latency=own))
    assert "| latency budget | 0.250 ms, **missed** by p50 |" in missed
    assert "1.01 [0.98, 1.04], not shown to be faster |" in missed


def test_the_ensemble_is_the_weighted_mean_of_all_peers(repository: Path, benched_run: Run) -> None:
    family = read_family(benched_run)
    peers = [wmlc.load(benched_run.network(peer)) for peer in (1, 2)]
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = sum(w * peer(images) for w, peer in zip(family.peer_weights, peers, strict=True))
    model = repository / "resnet20_digits_ensemble" / "1"
    session = onnxruntime.InferenceSession(str(model / "model.onnx"), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"input": images.numpy()})[0], expected, atol=1e-4)
    manifest = read_manifest(model)
    assert manifest.accuracy.top1 == pytest.approx(family.ensemble_top1, abs=0.5)
    assert manifest.latency is None, "bench does not time it"
    assert "| latency | not measured |" in (model / "model_card.md").read_text()


def test_an_ensemble_runs_what_is_shared_once(benched_run: Run) -> None:
    peers = [wmlc.load(benched_run.network(peer)) for peer in (1, 2)]
    ensemble = Ensemble(peers, [0.5, 0.5])
    shared = [name for name in ensemble.branches if name.startswith("stem")]
    apart = [total_cost(peer, (1, 8, 8)).macs for peer in peers]
    assert len(shared) == 1 and max(apart) < total_cost(ensemble, (1, 8, 8)).macs < sum(apart)
    same = Ensemble([peers[0], wmlc.load(benched_run.network(1))], [0.3, 0.7]).eval()
    assert total_cost(same, (1, 8, 8)).macs == apart[0] + 2 * 10  # and two peers' logits are weighed
    images = torch.randn(2, 1, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(same(images), peers[0](images), atol=1e-5, rtol=1e-4)


def test_equal_later_stages_after_different_early_ones_run_apart() -> None:
    def network(first: float) -> nn.Sequential:
        stages = nn.Sequential()
        stages.add_module("stem", nn.Linear(2, 2, bias=False))
        stages.add_module("head", nn.Linear(2, 2, bias=False))
        with torch.no_grad():
            stages[0].weight.fill_(first)
            stages[1].weight.fill_(1.0)
        return stages

    one, other, x_BC = network(1.0), network(2.0), torch.ones(1, 2)
    torch.testing.assert_close(Ensemble([one, other], [0.5, 0.5])(x_BC), (one(x_BC) + other(x_BC)) / 2)


def test_shipped_again_it_is_version_2_and_the_first_stays(benched_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "models"
    assert list(ship(benched_run, "1", out, TRITON)) == [out / "resnet20_digits_p07" / "1"]
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert list(ship(benched_run, "1", out, TRITON)) == [out / "resnet20_digits_p07" / "2"]
    assert all(path.read_bytes() == content for path, content in before.items())
    assert read_manifest(out / "resnet20_digits_p07" / "2").version == 2
    assert list(ship(benched_run, "1", out, replace(TRITON, replace=True, max_batch=4))) == [
        out / "resnet20_digits_p07" / "2"
    ]
    assert sorted(path.name for path in (out / "resnet20_digits_p07").iterdir()) == [
        "1",
        "2",
        "config.pbtxt",
        "labels.txt",
    ]
    assert read_config(out / "resnet20_digits_p07").max_batch_size == 4


def test_a_precision_has_a_name_of_its_own(benched_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "models"
    list(ship(benched_run, "2,baseline", out, replace(TRITON, precision="int8")))
    assert sorted(path.name for path in out.iterdir()) == ["resnet20_digits_baseline_int8", "resnet20_digits_p0_int8"]
    manifest = read_manifest(out / "resnet20_digits_p0_int8" / "1")
    assert (manifest.precision, manifest.target) == ("int8", "cpu")


def test_pixels_in_is_another_interface(benched_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "models"
    list(ship(benched_run, "1", out, TRITON))
    with pytest.raises(
        InputError, match="in this repository has another input than the new one; ship into another --out"
    ):
        list(ship(benched_run, "1", out, replace(TRITON, with_preprocess=True)))
    assert not (out / "resnet20_digits_p07" / "2").exists()
    list(ship(benched_run, "1", tmp_path / "pixels", replace(TRITON, with_preprocess=True)))
    model = tmp_path / "pixels" / "resnet20_digits_p07"
    config = read_config(model)
    assert (config.input[0].data_type, list(config.input[0].dims)) == (triton.TYPE_UINT8, [8, 8, 1])
    pixels = next(iter(open_run_data(benched_run).test_pixels(8)))[0].numpy()
    session = onnxruntime.InferenceSession(str(model / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    assert session.run(None, {"input": pixels})[0].shape == (8, 10)
    manifest = read_manifest(model / "1")
    assert manifest.preprocess.inside and manifest.latency is not None
    assert manifest.sha256 != manifest.latency.of_sha256, "another file than the benched one, and it says so"
    assert "of the same network without preprocessing inside" in (model / "1" / "model_card.md").read_text()


def test_kserve_is_tritons_repository_with_a_service_beside_it(benched_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "My_models"
    result = invoke("--run", benched_run.root, "--peer", "1", "--to", "kserve", "--out", out)
    assert result.exit_code == 0
    service = yaml.safe_load((out / "inference-service.yaml").read_text())
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", service["metadata"]["name"])
    model = service["spec"]["predictor"]["model"]
    assert (model["runtime"], model["protocolVersion"]) == ("kserve-tritonserver", "v2")
    assert model["storageUri"] == "pvc://models/My_models" and "--storage-uri names another place" in result.output
    assert read_config(out / "resnet20_digits_p07").name == "resnet20_digits_p07"


@pytest.mark.parametrize(
    ("directory", "name"),
    [("models", "models"), ("1Modèle_x", "wmlc-1mod-le-x"), ("___", "wmlc"), ("a" * 90, "a" * 50)],
)
def test_a_service_has_a_name_that_kubernetes_takes(directory: str, name: str) -> None:
    text = root_files(Path(directory), ShipConfig(to="kserve"), on_gpu=True)["inference-service.yaml"]
    service = yaml.safe_load(text)
    assert service["metadata"]["name"] == name
    assert service["spec"]["predictor"]["model"]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_a_service_keeps_its_place_and_its_cpus_when_another_model_joins(tmp_path: Path) -> None:
    def served(**settings: Any) -> dict[str, Any]:
        text = root_files(tmp_path, ShipConfig(to="kserve", **settings), on_gpu=False)["inference-service.yaml"]
        (tmp_path / "inference-service.yaml").write_text(text)
        return yaml.safe_load(text)["spec"]["predictor"]["model"]

    served(storage_uri="s3://ours/models", instances=4)
    assert (now := served())["storageUri"] == "s3://ours/models" and now["resources"]["limits"]["cpu"] == "4"
    assert served(storage_uri="gs://theirs")["storageUri"] == "gs://theirs"
    text = (tmp_path / "inference-service.yaml").read_text()
    (tmp_path / "inference-service.yaml").write_text(text.replace("storageUri", "uri"))
    with pytest.raises(InputError, match="is no InferenceService as wmlc writes it"):
        served()


def test_a_repository_is_for_one_kind_of_server(benched_run: Run, tmp_path: Path) -> None:
    list(ship(benched_run, "1", tmp_path / "models", TRITON))
    with pytest.raises(InputError, match="has another server than the new one; ship into another --out"):
        list(ship(benched_run, "1", tmp_path / "models", replace(TRITON, to="mlserver")))
    assert list(ship(benched_run, "1", tmp_path / "models", replace(TRITON, to="kserve"))), "it is Triton's layout too"


def test_openvino_model_server_finds_every_model(benched_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "models"
    list(ship(benched_run, "1", out, replace(TRITON, to="ovms")))
    list(ship(benched_run, "2", out, replace(TRITON, to="ovms")))
    listed = json.loads((out / "config.json").read_text())["model_config_list"]
    assert listed == [  # in the order in which they were shipped, as entries that are there stay where they are
        {
            "config": {
                "name": name,
                "base_path": f"/models/{name}",
                "plugin_config": {"INFERENCE_PRECISION_HINT": "f32"},  # what was benched, and no bf16
            }
        }
        for name in ("resnet20_digits_p07", "resnet20_digits_p0")
    ]
    assert listing(out / "resnet20_digits_p0") == ["1/labels.txt", "1/manifest.json", "1/model.onnx", "1/model_card.md"]


def test_mlserver_gets_settings_and_a_runtime(benched_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "models"
    list(ship(benched_run, "1", out, replace(TRITON, to="mlserver")))
    model = out / "resnet20_digits_p07" / "1"
    settings = json.loads((model / "model-settings.json").read_text())
    assert (settings["name"], settings["implementation"]) == ("resnet20_digits_p07", "wmlc_runtime.OnnxRuntime")
    assert settings["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    extra = {"intra_op_threads": 1}  # as benched
    assert settings["parameters"] == {"uri": "./model.onnx", "version": "1", "extra": extra}
    assert "class OnnxRuntime(MLModel)" in (model / "wmlc_runtime.py").read_text()


def test_two_peers_of_one_ratio_have_two_names(benched_run: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    shutil.copytree(benched_run.root, run.root)
    family, spec = read_family(run), read_spec(run.network(2))
    ratio = family.peers[0].ratio
    records.write(run.family, replace(family, peers=[family.peers[0], replace(family.peers[1], ratio=ratio)]))
    records.write(run.network(2) / "spec.json", replace(spec, about=replace(spec.about, ratio=ratio)))
    made = list(ship(run, "1,2", tmp_path / "models", TRITON))
    assert [path.parent.name for path in made] == ["resnet20_digits_p07-1", "resnet20_digits_p07-2"]


def test_the_manifests_come_as_json(benched_run: Run, tmp_path: Path) -> None:
    result = invoke("--run", benched_run.root, "--peer", "1", "--out", tmp_path / "models", "--json")
    assert [manifest["model"] for manifest in json.loads(result.output)] == ["resnet20_digits_p07"]
