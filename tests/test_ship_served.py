"""Whether what was benched is what is served: the device, the threads, the arithmetic, and the names of models."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from made import made_framing, made_plan
from measured import change_rows, copy_of
from torch import nn

from wmlc import records
from wmlc.errors import InputError
from wmlc.export.card import model_card
from wmlc.export.config import ShipConfig
from wmlc.export.extract import run_file
from wmlc.export.layouts import Model, most_images, root_files, triton_config
from wmlc.export.naming import LONGEST, model_name
from wmlc.export.publish import read_manifest
from wmlc.export.ship import ship
from wmlc.export.verify import _describe
from wmlc.models.checkpoint import read_spec
from wmlc.records import Bench, NetworkSpec
from wmlc.run import Run, read_config, read_family

pytest.importorskip("tritonclient.grpc.model_config_pb2")

TRITON = ShipConfig()


def test_what_was_benched_on_a_gpu_says_nothing_of_a_server_on_the_cpu(
    benched_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = copy_of(benched_run, tmp_path / "run"), tmp_path / "models"
    change_rows(run, device="cuda")
    with pytest.raises(InputError, match="benched on cuda, and mlserver will run it on cpu, so --max-latency-ms says"):
        list(ship(run, "1", out, ShipConfig(to="mlserver", max_latency_ms=1e6)))
    assert not out.exists()
    assert list(ship(run, "1", out, ShipConfig(to="mlserver")))
    assert "its latency there is another; bench with --device cpu" in " ".join(capsys.readouterr().err.split())
    assert list(ship(run, "1", tmp_path / "triton", replace(TRITON, max_latency_ms=1e6)))
    assert "KIND_GPU" in (tmp_path / "triton" / "resnet20_digits_p07" / "config.pbtxt").read_text()


def test_int8_ships_for_the_target_that_was_benched(benched_run: Run, tmp_path: Path) -> None:
    run = copy_of(benched_run, tmp_path / "run")
    (run.onnx / "family-int8-cpu-peer1.onnx").rename(run.onnx / "family-int8-gpu-peer1.onnx")
    bench = records.read(run.bench, Bench, "bench", "")
    records.write(run.bench, replace(bench, settings=replace(bench.settings, target="gpu")))
    (version,) = ship(run, "1", tmp_path / "models", replace(TRITON, precision="int8"))
    assert (read_manifest(version).target, version.parent.name) == ("gpu", "resnet20_digits_p07_int8-gpu")
    refused = r"peer1 is int8 made for a GPU, which may give other answers in (ovms|triton) on the CPU; bench with"
    with pytest.raises(InputError, match=refused):
        list(ship(run, "1", tmp_path / "ovms", ShipConfig(to="ovms", precision="int8")))
    assert list(ship(run, "1", tmp_path / "mlserver", ShipConfig(to="mlserver", precision="int8"))), "benched by it"
    change_rows(run, device="cuda")
    with pytest.raises(InputError, match=refused):
        list(ship(run, "1", tmp_path / "triton", replace(TRITON, precision="int8", device="cpu")))


def served(**changes: Any) -> Model:
    made: dict[str, Any] = {
        "name": "one", "version": 1, "file_name": "model.onnx", "labels": ["a", "b"], "input_dims": [3, 8, 8],
        "pixels": False, "device": "cpu", "threads": 8, "preferred_batches": [],
    }  # fmt: skip
    return Model(**made | changes)


def test_a_gpu_computes_fp32_as_it_was_benched() -> None:
    assert 'key: "use_tf32"' in triton_config(served(device="cuda"), TRITON)
    assert "use_tf32" not in triton_config(served(), TRITON)
    assert "use_tf32" not in triton_config(served(device="cuda", file_name="model.plan"), ShipConfig(engine="trt"))


@pytest.mark.parametrize(("instances", "device", "cpus"), [(1, "cpu", "8"), (3, "cpu", "24"), (3, "cuda", "2")])
def test_a_service_gets_the_cpus_that_its_copies_compute_on(
    tmp_path: Path, benched_run: Run, instances: int, device: str, cpus: str
) -> None:
    list(ship(benched_run, "1", tmp_path / "models", TRITON))
    config = ShipConfig(to="kserve", instances=instances)
    model = tmp_path / "models" / "resnet20_digits_p07"
    (model / "config.pbtxt").write_text(triton_config(served(device=device), config))
    text = root_files(tmp_path / "models", replace(config, instances=1), on_gpu=False)["inference-service.yaml"]
    assert yaml.safe_load(text)["spec"]["predictor"]["model"]["resources"]["limits"]["cpu"] == cpus
    assert most_images(model) == 32


def test_openvinos_model_list_may_name_another_mount(benched_run: Run, tmp_path: Path) -> None:
    out, ovms = tmp_path / "models", ShipConfig(to="ovms")
    list(ship(benched_run, "1", out, ovms))
    (out / "config.json").write_text((out / "config.json").read_text().replace("/models/", "/srv/ours/"))
    list(ship(benched_run, "1,2", out, ovms))
    listed = json.loads((out / "config.json").read_text())["model_config_list"]
    names = ("resnet20_digits_p07", "resnet20_digits_p0")
    assert [entry["config"]["base_path"] for entry in listed] == [f"/srv/ours/{name}" for name in names]


def test_openvinos_entries_from_before_ask_for_float32_too(benched_run: Run, tmp_path: Path) -> None:
    out, ovms = tmp_path / "models", ShipConfig(to="ovms")
    list(ship(benched_run, "1", out, ovms))
    now = json.loads((out / "config.json").read_text())
    before = json.loads(json.dumps(now))
    del before["model_config_list"][0]["config"]["plugin_config"]
    (out / "config.json").write_text(json.dumps(before))
    list(ship(benched_run, "1", out, ovms))
    assert json.loads((out / "config.json").read_text()) == now


def test_a_model_of_that_name_elsewhere_is_not_ours(benched_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "models"
    out.mkdir()
    theirs = {"name": "resnet20_digits_p07", "base_path": "s3://theirs/resnet20_digits_p07"}
    (out / "config.json").write_text(json.dumps({"model_config_list": [{"config": theirs}]}))
    with pytest.raises(InputError, match="has a model resnet20_digits_p07 at s3://theirs/resnet20_digits_p07 already"):
        list(ship(benched_run, "1", out, ShipConfig(to="ovms")))


def test_a_model_whose_versions_were_all_moved_away_is_still_ours(benched_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "models"
    (version,) = ship(benched_run, "1", out, TRITON)
    shutil.move(version, tmp_path / "bad")
    assert [path.name for path in ship(benched_run, "1", out, TRITON)] == ["1"]
    shutil.rmtree(version)
    (version.parent / "config.pbtxt").write_text('backend: "python"')
    with pytest.raises(InputError, match="was not shipped by wmlc, which would overwrite it"):
        list(ship(benched_run, "1", out, TRITON))


def test_int8_with_another_mean_inside_is_refused(
    benched_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wmlc.export import to_onnx

    once = to_onnx.WithPreprocess

    def wrong(network: nn.Module, mean: list[float], std: list[float]) -> nn.Module:
        return once(network, [value + 2.5 for value in mean], std)

    monkeypatch.setattr(to_onnx, "WithPreprocess", wrong)
    monkeypatch.setattr(to_onnx, "_check_logits", lambda *_: None)
    asked, run = replace(TRITON, precision="int8", with_preprocess=True), copy_of(benched_run, tmp_path / "run")
    run_file(run, 1, "pixels").unlink(missing_ok=True)  # that another test may have made
    with pytest.raises(InputError, match=r"cannot ship in this form: its engine's logits differ from the benched file"):
        list(ship(run, "1", tmp_path / "models", asked))


def test_all_is_in_place_before_the_first_is_told(benched_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "models"
    assert next(iter(ship(benched_run, "1,2", out, ShipConfig(to="ovms")))).parent.name == "resnet20_digits_p07"
    assert {path.name for path in out.iterdir()} == {"config.json", "resnet20_digits_p07", "resnet20_digits_p0"}


def test_a_version_is_verified_by_the_pictures_that_it_was_shipped_for(benched_run: Run, tmp_path: Path) -> None:
    """The run may have been trained anew since, on another split, whose mean is another."""
    run = copy_of(benched_run, tmp_path / "run")
    (version,) = ship(run, "1", tmp_path / "models", TRITON)
    manifest, spec = read_manifest(version), read_spec(run.network(1))
    records.write(run.network(1) / "spec.json", replace(spec, mean=[0.123]))
    assert _describe(manifest, run)[0].mean == spec.mean
    records.write(run.network(1) / "spec.json", replace(spec, framing=made_framing(16)))
    with pytest.raises(InputError, match="was shipped from run 'run', which is not"):
        _describe(manifest, run)


def test_the_baseline_was_not_trained_by_the_method(benched_run: Run, tmp_path: Path) -> None:
    (version,) = ship(benched_run, "baseline", tmp_path / "models", TRITON)
    card = (version / "model_card.md").read_text()
    assert "the unpruned baseline, trained alone on digits; fp32" in card
    assert "| speed-up over the baseline | 1.00 [1.00, 1.00] |" in card
    manifest = read_manifest(version)
    start = replace(manifest.network, start="r20.pth", trained=False)
    assert "baseline, `r20.pth` as it stands, measured on digits; fp32" in model_card(replace(manifest, network=start))
    control = replace(start, trained=True)
    assert "baseline, trained alone on digits from `r20.pth`; fp32" in model_card(replace(manifest, network=control))


def named(run: Run, arch: str, **about: Any) -> str:
    spec = read_spec(run.network(1))
    made: NetworkSpec = replace(spec, arch=arch, about=replace(spec.about, **about))
    return model_name(run, made, "fp32")


def test_models_are_named_by_what_they_are(benched_run: Run, tmp_path: Path) -> None:
    run = copy_of(benched_run, tmp_path / "run")
    assert named(run, "/home/alice/net.py:make_net") == named(run, "./net.py:make_net") == "net-make_net_digits_p07"
    assert named(run, "other.py:make_net") == named(run, "theirs.other:make_net") == "other-make_net_digits_p07"
    assert named(run, "resnet20", data="blümchen").startswith("resnet20_bl-mchen_p07-")
    assert named(run, "torchvision:resnet18") == "torchvision-resnet18_digits_p07"
    long = named(run, "timm:" + "x" * 300)
    assert len(long) == LONGEST and long != named(run, "timm:" + "x" * 299 + "y")
    record = read_config(run)
    settings = replace(record.settings, ratio_of="latency", max_latency_ms=(12.5, 3.0))
    plan = made_plan((12.5, 3.0), full_ms=20.0)
    records.write(run.config, replace(record, settings=settings, latency=plan))
    assert named(run, "resnet20", peer=1) == "resnet20_digits_12-5ms"
    assert named(run, "resnet20", peer=2) == "resnet20_digits_3ms"
    family = read_family(run)
    records.write(run.family, replace(family, peers=[replace(peer, ratio=0.7) for peer in family.peers]))
    records.write(run.config, record)
    assert named(run, "resnet20", peer=2) == "resnet20_digits_p07-2"


def test_constructor_arguments_make_another_model(benched_run: Run, tmp_path: Path) -> None:
    run, out = copy_of(benched_run, tmp_path / "run"), tmp_path / "models"
    list(ship(run, "1", out, TRITON))
    version = out / "resnet20_digits_p07" / "1"
    records.write(version / "manifest.json", replace(read_manifest(version), arch_args="depth=56"))
    with pytest.raises(InputError, match="in this repository has another arch_args than the new one"):
        list(ship(run, "1", out, TRITON))
