"""What `wmlc ship` makes ready and `--verify` asks for, step by step, on four pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import made_family, made_latency, made_row, made_run, made_settings, made_speedup
from squares import DATA, SPEC, light_or_dark

from wmlc import records
from wmlc.errors import GateError, InputError
from wmlc.export import ship as room
from wmlc.export import verify as asking
from wmlc.export.benched import Benched
from wmlc.export.config import ShipConfig
from wmlc.export.publish import MANIFEST_FILE, read_manifest
from wmlc.export.server import Metadata, Served
from wmlc.files import sha256
from wmlc.records import About, Cost, Interval, Manifest, ShippedAccuracy
from wmlc.run import Run

PLAIN = ShipConfig(to="mlserver")
ROW = made_row(
    1, threads=4, batch=8, params=3210, macs=345, latency_ms=made_latency(2.0, p99=3.5), speedup=(1.5, 1.6, 1.7),
    throughput_per_s=512.0, top1=88.5, top1_drop=1.25, file_sha256="1" * 64, latency_budget_ms=2.5, budget_met=True,
)  # fmt: skip
ACCURACY = ShippedAccuracy(top1=88.5, top1_drop=1.25, test_images=4, engine="ort")


@pytest.fixture
def small_run(tmp_path: Path) -> Run:
    """A run of two peers that tell dark pictures from light ones."""
    settings = made_settings(data="digits")
    made = made_run(tmp_path / "run", settings, made_family(settings=settings))
    for peer in (1, 2):
        made.network(peer).mkdir(parents=True, exist_ok=True)
        about = About(peer=peer, ratio=0.7 if peer == 1 else 0.0, data="digits")
        records.write(made.network(peer) / "spec.json", replace(SPEC, about=about, mean=[0.5 / peer]))
    made.onnx.mkdir()
    light_or_dark(made.onnx / "family-peer1.onnx")
    return made


def test_a_file_that_the_bench_has_not_seen_is_measured_and_held_against_the_gate(tmp_path: Path) -> None:
    file = light_or_dark(tmp_path / "x.onnx", bias=100.0)  # right about half
    found = room._measure(file, SPEC, DATA, replace(PLAIN, min_top1=50.0), "ensemble", 80.0)
    assert found == ShippedAccuracy(top1=50.0, top1_drop=30.0, test_images=4, engine="ort")
    assert room._measure(file, SPEC, DATA, PLAIN, "ensemble", None).top1_drop is None
    with pytest.raises(GateError, match=r"^ensemble: top-1 is 50\.00, --min-top1 asks for 50\.1$"):
        room._measure(file, SPEC, DATA, replace(PLAIN, min_top1=50.1), "ensemble", 80.0)


def test_a_file_with_other_answers_is_refused(tmp_path: Path) -> None:
    file = light_or_dark(tmp_path / "x.onnx")
    pixels = next(DATA.test_pixels(4))[0].numpy()
    answers = room.OnnxFile(file, SPEC, room._export_config(PLAIN)).logits(pixels)
    room._check_equal(file, answers, pixels, SPEC, PLAIN, "torch")
    with pytest.raises(InputError, match=r"^x cannot ship in this form: "):
        room._check_equal(file, answers[::-1], pixels, SPEC, PLAIN, "torch")


def staged(small_run: Run, monkeypatch: pytest.MonkeyPatch, config: ShipConfig) -> tuple[dict[str, Any], list[str]]:
    """What a peer was made ready with, and which steps were taken."""
    steps: list[str] = []
    last: dict[str, Any] = {}

    def measure(
        file: Path, spec: Any, data: Any, config: ShipConfig, name: str, baseline_top1: float
    ) -> ShippedAccuracy:
        steps.append(f"measured {file.name} against {baseline_top1}")
        return ACCURACY

    def keep(run: Run, spec: Any, file: Path, staging: Path, out: Path, config: Any, *of_it: Any) -> None:
        last.update(zip(("accuracy", "latency", "cost", "row"), of_it, strict=True), file=file)

    monkeypatch.setattr(room, "write_file", lambda run, peer, file, *rest, **how: steps.append(f"wrote {file.name}"))
    monkeypatch.setattr(room, "_check_equal", lambda file, *rest: steps.append(f"compared {file.name} with {rest[-1]}"))
    monkeypatch.setattr(room, "_measure", measure)
    monkeypatch.setattr(room, "_stage", keep)
    own = Benched(
        row=ROW,
        latency=ROW.latency_ms or made_latency(9.0),
        machine="a CPU",
        time="then",
        test_images=400,
        against="int8",
    )
    room._stage_peer(small_run, 1, own, DATA, small_run.root / "staging", small_run.root / "out", config)
    return last, steps


def test_a_peer_ships_with_what_was_measured_of_it(small_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    last, steps = staged(small_run, monkeypatch, PLAIN)
    accuracy, latency = last["accuracy"], last["latency"]
    assert steps == [] and last["file"].name == "family-peer1.onnx"
    assert (last["cost"], accuracy.top1, accuracy.top1_drop, accuracy.test_images) == (Cost(3210, 345), 88.5, 1.25, 400)
    assert (accuracy.baseline_precision, latency.machine, latency.time) == ("int8", "a CPU", "then")
    assert (latency.ms, latency.batch, latency.threads, latency.throughput_per_s) == (ROW.latency_ms, 8, 4, 512.0)
    assert (latency.speedup, latency.p50_interval) == (made_speedup(1.5, 1.6, 1.7), Interval(low=1.9, high=2.1))
    assert (latency.latency_budget_ms, latency.budget_met, latency.of_sha256) == (2.5, True, "1" * 64)


def test_with_pixels_in_it_is_compared_and_measured_anew(small_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    last, steps = staged(small_run, monkeypatch, replace(PLAIN, with_preprocess=True))
    assert steps == [
        "wrote peer1.onnx", "compared peer1.onnx with the benched file", "measured peer1.onnx against 89.75",
    ]  # fmt: skip
    assert last["accuracy"] == replace(ACCURACY, baseline_precision="int8")


def test_versions_shapes_and_threads_are_the_files_own(small_run: Run, tmp_path: Path) -> None:
    file, out = small_run.onnx / "family-peer1.onnx", tmp_path / "models"
    spec = replace(
        SPEC, input_shape=(3, 24, 32), mean=[0.5] * 3, std=[0.25] * 3, about=About(peer=1, ratio=0.7, data="digits")
    )

    def stage(place: str, spec: Any = spec, **config: Any) -> Any:
        return room._stage(
            small_run, spec, file, tmp_path / place, out, replace(PLAIN, **config), ACCURACY, None, Cost(1, 1), ROW
        )

    first = stage("a")
    assert (first.version, first.input_dims, first.pixels, first.threads, first.device) == (
        1,
        [3, 24, 32],
        False,
        4,
        "cpu",
    )
    assert first.preferred_batches == [] and first.labels == ["dark", "light"]
    pixels = stage("b", with_preprocess=True)
    assert (pixels.input_dims, pixels.pixels) == ([24, 32, 3], True)
    made = tmp_path / "a" / first.name / "1"
    assert (made / "model.onnx").read_bytes() == file.read_bytes()
    assert read_manifest(made).sha256 == sha256(file) and (made / "labels.txt").read_text() == "dark\nlight\n"
    (out / first.name).mkdir(parents=True)
    made.rename(out / first.name / "1")
    assert [stage(f"c{again}", replace=again).version for again in (False, True)] == [2, 1]
    (out / first.name / "away-12").mkdir()  # its number is not given again
    assert [stage(f"e{again}", replace=again).version for again in (False, True)] == [13, 1]
    for again in (False, True):  # what is served as version 1 is asked by its clients as it was
        with pytest.raises(InputError, match="in this repository has another labels than the new one"):
            stage(f"d{again}", replace(spec, class_names=["light", "dark"]), replace=again)


class Serving:
    """A server that gives a file's answers, or others, and remembers how many pictures it was asked about at once."""

    url = "http://a-server"

    def __init__(self, file: Path, manifest: Manifest, turn: bool = False) -> None:
        self._file, self._manifest, self._turn, self.asked = file, manifest, turn, list[int]()

    def metadata(self, name: str, version: int) -> Metadata:
        def served(own: Any) -> list[Served]:
            return [Served(own.name, "FP32", own.shape)]

        return Metadata(served(self._manifest.input), served(self._manifest.output), [str(version)])

    def takes_binary(self, name: str) -> bool:
        return True

    def infer(self, manifest: Manifest, fed: np.ndarray, binary: bool) -> np.ndarray:
        self.asked.append(len(fed))
        session = room.OnnxFile(self._file, SPEC, room._export_config(PLAIN))._session
        answers = np.asarray(session.run(None, {"input": fed})[0])
        return answers[:, ::-1] if self._turn else answers


def test_a_server_is_asked_about_every_picture_in_batches_that_it_takes(small_run: Run, tmp_path: Path) -> None:
    def shipped(**changes: Any) -> tuple[Path, Manifest]:
        spec = records.read(small_run.network(1) / "spec.json", type(SPEC), "", "")
        model = room._stage(small_run, spec, small_run.onnx / "family-peer1.onnx", tmp_path / f"of{len(changes)}", tmp_path / "out",
                            replace(PLAIN, **changes), ACCURACY, None, Cost(1, 1), ROW)  # fmt: skip
        version = tmp_path / f"of{len(changes)}" / model.name / "1"
        return version, read_manifest(version)

    for changes, batches in (({}, [4]), ({"max_batch": 3}, [3, 1])):
        version, manifest = shipped(**changes)
        server: Any = Serving(version / "model.onnx", manifest)
        found = asking._verify_model(server, version, manifest, small_run, DATA)
        assert (found.images, found.apart, server.asked) == (4, 0.0, batches)
    turned: Any = Serving(version / "model.onnx", manifest, turn=True)
    with pytest.raises(InputError, match="is another model loaded"):
        asking._verify_model(turned, version, manifest, small_run, DATA)
    (version / "model.onnx").write_bytes(b"another")
    with pytest.raises(InputError, match="is not the file of its manifest; ship it again"):
        asking._verify_model(server, version, manifest, small_run, DATA)
    assert (version / MANIFEST_FILE).is_file()


def test_a_server_is_asked_with_the_pictures_as_they_were_shipped(small_run: Run, tmp_path: Path) -> None:
    spec = records.read(small_run.network(2) / "spec.json", type(SPEC), "", "")
    model = room._stage(small_run, replace(spec, std=[0.125]), small_run.onnx / "family-peer1.onnx", tmp_path / "s", tmp_path / "out",
                        PLAIN, ACCURACY, None, Cost(1, 1), ROW)  # fmt: skip
    manifest = read_manifest(tmp_path / "s" / model.name / "1")
    described, export = asking._describe(manifest, small_run)
    assert (described.about.peer, described.mean, described.std) == (2, [0.25], [0.125])
    assert (export.precision, export.with_preprocess) == ("fp32", False)
    with pytest.raises(InputError, match=r"which is not .*; name it with --run"):
        asking._describe(replace(manifest, labels=["light", "dark"]), small_run)
