"""Triton on loopback serves the very directory that `wmlc ship` writes, and every answer is checked.

It is its own core with a Python stand-in for its ONNX Runtime backend (tests/servers/triton.py). `make servers`
installs it; without it these tests skip. The last two tests change the repository.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from google.protobuf import json_format, text_format
from PIL import Image
from servers.clients import Answer, ask, connect, infer, request_input, statistics
from servers.process import Server, missing
from servers.shipped import (
    IMAGES,
    MODEL,
    PROTOCOLS,
    REQUESTS,
    SAME,
    Shipped,
    ask_at_once,
    assert_all_right,
    close,
    digest,
    invoke,
    run_onnx,
    ship,
    ship_peer1,
)
from servers.triton import triton
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from wmlc.export.extract import run_file
from wmlc.files import sha256
from wmlc.run import Run

if why := missing("triton"):
    pytest.skip(why, allow_module_level=True)

PIXEL_MODEL = "resnet20_digits_p0"  # peer 2, shipped with preprocessing inside
CLIENTS = 64


@pytest.fixture(scope="module")
def shipped(benched_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    """Peer 1 as it is, and peer 2 with preprocessing inside, in one model repository."""
    shipped = ship_peer1(benched_run, "triton", tmp_path_factory.mktemp("serving") / "models")
    ship(benched_run, 2, "triton", shipped.repository, "--with-preprocess")
    return shipped


@pytest.fixture(scope="module")
def server(shipped: Shipped, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Triton on the repository, looking for changes every second."""
    with triton(shipped.repository, poll_seconds=1, log=tmp_path_factory.mktemp("log") / "triton.log") as live:
        yield live


def wait_until(happened: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}"
        time.sleep(0.1)


def versions(server: Server) -> dict[str, str]:
    """Triton's word on each version of the model: READY, LOADING, or UNAVAILABLE and why."""
    with connect(server, "http") as client:
        index = client.get_model_repository_index()
    return {
        entry["version"]: f"{entry.get('state')} {entry.get('reason', '')}".strip()
        for entry in index if entry["name"] == MODEL and "version" in entry
    }  # fmt: skip


def retrain(run: Run, root: Path) -> Run:
    """A copy of the run whose peer 1 has another classifier, in its ONNX file and in the bench's record of that."""
    shutil.copytree(run.root, root)
    copy = Run(root)
    file = run_file(copy, 1, "fp32", ".onnx")
    before = sha256(file)
    model = onnx.load(str(file))
    (classifier,) = (node for node in model.graph.node if "logits" in node.output)
    (bias,) = (tensor for tensor in model.graph.initializer if tensor.name == classifier.input[2])
    values = onnx.numpy_helper.to_array(bias)
    bias.CopyFrom(onnx.numpy_helper.from_array(values + np.arange(len(values), dtype=values.dtype), bias.name))
    onnx.save_model(model, str(file))
    copy.bench.write_text(copy.bench.read_text().replace(before, sha256(file)))
    return copy


# Triton, as shipped


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("batch", [1, 7])
def test_answers_are_onnx_runtimes(shipped: Shipped, server: Server, protocol: str, batch: int) -> None:
    before = digest(shipped.repository)
    with connect(server, protocol) as client:
        result = infer(client, protocol, MODEL, request_input(protocol, shipped.images_NCHW[:batch]))
    np.testing.assert_allclose(result.as_numpy("logits"), shipped.expected()[:batch], rtol=0, atol=SAME)
    assert digest(shipped.repository) == before, "a server writes nothing into the repository"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_network_with_preprocessing_takes_pixels(shipped: Shipped, server: Server, protocol: str) -> None:
    with connect(server, protocol) as client:
        result = infer(client, protocol, PIXEL_MODEL, request_input(protocol, shipped.pixels_NHWC))
    expected = run_onnx(shipped.repository / PIXEL_MODEL / "1" / "model.onnx", shipped.pixels_NHWC)
    np.testing.assert_allclose(result.as_numpy("logits"), expected, rtol=0, atol=SAME)


def test_the_server_says_what_the_manifest_says(shipped: Shipped, server: Server) -> None:
    manifest = shipped.manifest()
    with connect(server, "http") as client:
        metadata = client.get_model_metadata(MODEL)
    assert (metadata["name"], metadata["versions"]) == (manifest.model, [str(manifest.version)]) == (MODEL, ["1"])
    assert metadata["platform"] == "onnxruntime_onnx"
    for key, tensor in (("inputs", manifest.input), ("outputs", manifest.output)):
        said = {"name": tensor.name, "datatype": "FP32", "shape": tensor.shape}
        assert tensor.dtype == "float32" and metadata[key] == [said]


def test_the_server_runs_the_config_that_was_shipped(shipped: Shipped, server: Server) -> None:
    text = (shipped.repository / MODEL / "config.pbtxt").read_text()
    written = json_format.MessageToDict(text_format.Parse(text, model_config_pb2.ModelConfig()))
    with connect(server, "grpc") as client:
        live = json_format.MessageToDict(client.get_model_config(MODEL).config)
    assert {"dynamicBatching", "maxBatchSize", "modelWarmup", "versionPolicy"} <= written.keys()
    assert_holds(live, written)


def assert_holds(live: Any, written: Any) -> None:
    """Everything in `written` is in `live`, which may hold defaults beside it."""
    if isinstance(written, dict):
        for key, value in written.items():
            assert key in live
            assert_holds(live[key], value)
    elif isinstance(written, list):
        assert len(live) == len(written)
        for ours, theirs in zip(live, written, strict=True):
            assert_holds(ours, theirs)
    else:
        assert live == written


def test_classification_answers_with_a_label(shipped: Shipped, server: Server) -> None:
    labels = (shipped.repository / MODEL / "labels.txt").read_text().split()
    assert labels == shipped.manifest().labels
    best = int(shipped.expected()[0].argmax())
    for protocol in PROTOCOLS:
        with connect(server, protocol) as client:
            result = infer(client, protocol, MODEL, request_input(protocol, shipped.images_NCHW[:1]), class_count=1)
        _, index, label = result.as_numpy("logits").item().decode().split(":")
        assert (int(index), label) == (best, labels[best])


def test_triton_refuses_what_the_config_does_not_allow(shipped: Shipped, server: Server) -> None:
    image = shipped.images_NCHW[:1]
    cases = {
        "unexpected inference input 'pixels'": request_input("http", image, name="pixels"),
        "unexpected shape for input 'input'": request_input("http", np.pad(image, ((0, 0), (0, 0), (0, 0), (0, 1)))),
        "batch-size must be <= ": request_input("http", np.repeat(image, 1000, axis=0)),
    }
    with connect(server, "http") as client:
        for message, tensor in cases.items():
            with pytest.raises(InferenceServerException, match=re.escape(message)):
                infer(client, "http", MODEL, tensor)


def test_64_clients_get_every_answer_and_all_of_them_right(shipped: Shipped, server: Server) -> None:
    apart = [np.abs(one - other).max() for one, other in itertools.combinations(shipped.expected(), 2)]
    assert min(apart) > 10 * SAME, "an answer to another image would not pass for the right one"
    before = statistics(server, MODEL)
    answers = ask_at_once(shipped, server, CLIENTS, PROTOCOLS)
    assert len(answers) == CLIENTS * REQUESTS
    assert_all_right(answers)

    after = statistics(server, MODEL)
    inferences = after["inference_count"] - before["inference_count"]
    executions = after["execution_count"] - before["execution_count"]
    assert inferences == len(answers)
    assert executions < inferences, "requests that wait together run together"
    assert max(entry["batch_size"] for entry in after["batch_stats"]) > 1


def test_verify_believes_the_server_and_not_another_repository(
    shipped: Shipped, server: Server, tmp_path: Path
) -> None:
    url = f"http://{server.http}"
    said = invoke("ship", "--run", shipped.run.root, "--out", shipped.repository, "--verify", url).output
    assert f"{MODEL} version 1: metadata equals the manifest" in said
    assert f"{PIXEL_MODEL} version 1: metadata equals the manifest" in said

    other, run = tmp_path / "models", retrain(shipped.run, tmp_path / "run")
    ship(run, 1, "triton", other)
    refused = invoke("ship", "--run", run.root, "--out", other, "--verify", url, code=1).output
    assert refused.startswith(f"Error: {MODEL} at {url}: ") and len(refused.splitlines()) == 1


# docs/serving.md

EXAMPLES = (Path(__file__).parent.parent / "docs" / "serving.md").read_text(encoding="utf-8")


def test_the_examples_in_the_docs_work(shipped: Shipped, server: Server, tmp_path: Path) -> None:
    """They run as they stand there, but for the address."""
    blocks = re.findall(r"```(python|console)\n(.*?)```", EXAMPLES.replace("127.0.0.1:8000", server.http), re.DOTALL)
    (tmp_path / "models").symlink_to(shipped.repository)
    Image.fromarray(shipped.pixels_NHWC[0, :, :, 0]).save(tmp_path / "digit.png")
    expected = shipped.expected()[0]

    (program,) = [text for kind, text in blocks if kind == "python"]
    assert run_in(tmp_path, sys.executable, "-c", program).strip() == shipped.manifest().labels[expected.argmax()]

    commands = re.findall(r"^\$ (curl .*)$", "".join(text for kind, text in blocks if kind == "console"), re.MULTILINE)
    ready, metadata, answer, counts = [run_in(tmp_path, "bash", "-c", command) for command in commands]
    assert ready == ""
    assert json.loads(metadata)["name"] == MODEL
    np.testing.assert_allclose(json.loads(answer)["outputs"][0]["data"], expected, rtol=0, atol=SAME)
    assert json.loads(counts)["model_stats"][0]["inference_count"] > 0


def run_in(directory: Path, *command: str) -> str:
    """A command's output; it must exit with 0."""
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


# The live repository: from here on it changes


def test_a_new_version_takes_over_and_goes_back_and_no_request_fails(
    shipped: Shipped, server: Server, tmp_path: Path
) -> None:
    retrained, model = retrain(shipped.run, tmp_path / "run"), shipped.repository / MODEL
    with clients_at_work(shipped, server) as answers:
        ship(retrained, 1, "triton", shipped.repository)
        wait_until(lambda: ready_versions(server) == ["2"], "version 2 in place of 1")
        change = np.abs(shipped.expected("2") - shipped.expected("1")).max(axis=1)
        time.sleep(0.5)
        (model / "2").rename(model / "away-2")
        wait_until(lambda: ready_versions(server) == ["1"], "version 1 in place of 2")
    assert change.min() > 10 * SAME, "an answer of one version would not pass for the other's"
    for client in answers:
        assert_all_right(client)
        assert [version for version, _ in itertools.groupby(answer.version for answer in client)] == ["1", "2", "1"]


def test_a_corrupt_version_is_refused_and_the_old_one_serves_on(
    shipped: Shipped, server: Server, tmp_path: Path
) -> None:
    model = shipped.repository / MODEL
    shutil.copytree(model / "1", tmp_path / "3")
    whole = (model / "1" / "model.onnx").read_bytes()
    (tmp_path / "3" / "model.onnx").write_bytes(whole[: len(whole) // 2])
    with clients_at_work(shipped, server) as answers:
        shutil.move(tmp_path / "3", model)
        wait_until(lambda: "UNAVAILABLE" in versions(server).get("3", ""), "the refusal of version 3")
        refusal = versions(server)["3"]
        with connect(server, "http") as client:
            assert client.is_model_ready(MODEL)
        shutil.rmtree(model / "3")
    assert f"{MODEL}/3/model.onnx is not a readable model" in refusal
    assert f"failed to load '{MODEL}' version 3" in server.said()
    for client in answers:
        assert_all_right(client)
        assert {answer.version for answer in client} == {"1"}


def ready_versions(server: Server) -> list[str]:
    return [version for version, state in versions(server).items() if state == "READY"]


@contextlib.contextmanager
def clients_at_work(
    shipped: Shipped, server: Server, clients: int = 4, most: int = 20_000
) -> Iterator[list[list[Answer]]]:
    """Clients that ask, at their ease, until the block ends; yields the list that will then hold each one's answers."""
    expected, stop = functools.cache(shipped.expected), threading.Event()
    answers: list[list[Answer]] = []

    def order(seed: int) -> Iterator[int]:
        for image in np.random.default_rng(seed).integers(IMAGES, size=most).tolist():
            if stop.wait(0.01):
                return
            yield image

    def is_right(image: int, version: str, logits: np.ndarray) -> bool:
        return close(logits, expected(version)[image])

    with ThreadPoolExecutor(clients) as pool:
        asked = [
            pool.submit(ask, server, PROTOCOLS[i % 2], MODEL, shipped.images_NCHW, order(i), is_right)
            for i in range(clients)
        ]
        try:
            time.sleep(0.5)
            yield answers
            time.sleep(0.5)
        finally:
            stop.set()
        answers += [each.result() for each in asked]
