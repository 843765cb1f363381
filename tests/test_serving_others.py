"""Servers on loopback besides the Triton of test_serving.py: MLServer, and a Triton that refuses wrong configurations."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from servers.clients import connect, infer, request_input
from servers.mlserver import mlserver
from servers.process import ServerFailed, missing
from servers.shipped import (
    MODEL,
    PROTOCOLS,
    REQUESTS,
    SAME,
    ask_at_once,
    assert_all_right,
    digest,
    invoke,
    ship,
    ship_peer1,
)
from servers.triton import triton
from tritonclient.grpc import model_config_pb2

from wmlc.run import Run

SPOILED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "preferred_batch": (
        lambda config: config.dynamic_batching.preferred_batch_size.append(4096),
        "preferred size must be <= max batch size",
    ),
    "negative_batch": (lambda config: setattr(config, "max_batch_size", -1), "'max_batch_size' must be non-negative"),
    "input_name": (
        lambda config: setattr(config.input[0], "name", "pixels"),
        "the config has 'pixels', the file has ['input']",
    ),
}


@pytest.mark.skipif(missing("triton") is not None, reason=str(missing("triton")))
def test_a_wrong_config_is_refused(benched_run: Run, tmp_path: Path) -> None:
    """So the one that passed was read, and was right."""
    ship(benched_run, 1, "triton", tmp_path / "shipped")
    for name, (spoil, _) in SPOILED.items():
        model = tmp_path / "models" / name
        shutil.copytree(tmp_path / "shipped" / MODEL, model)
        config = text_format.Parse((model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
        config.name = name
        spoil(config)
        (model / "config.pbtxt").write_text(text_format.MessageToString(config))
    with pytest.raises(ServerFailed) as refused, triton(tmp_path / "models", timeout_s=30):
        pass
    assert [message for _, message in SPOILED.values() if message not in str(refused.value)] == []


@pytest.mark.skipif(missing("mlserver") is not None, reason=str(missing("mlserver")))
def test_mlserver_answers_as_onnx_runtime_does(benched_run: Run, tmp_path: Path) -> None:
    shipped = ship_peer1(benched_run, "mlserver", tmp_path / "mlserver")
    out, expected = shipped.repository, shipped.expected()
    before = digest(out)
    with mlserver(out) as server:
        for protocol in PROTOCOLS:
            json_only = {"binary_data": False} if protocol == "http" else {}  # it speaks no binary tensors over HTTP
            tensor = request_input(protocol, shipped.images_NCHW, binary=False)
            with connect(server, protocol) as client:
                result = infer(client, protocol, MODEL, tensor, **json_only)
            np.testing.assert_allclose(result.as_numpy("logits"), expected, rtol=0, atol=SAME)
        answers = ask_at_once(shipped, server, 16, ["grpc"])
        invoke("ship", "--run", shipped.run.root, "--out", out, "--verify", f"http://{server.http}")
    assert len(answers) == 16 * REQUESTS
    assert_all_right(answers)
    assert digest(out) == before, "a server writes nothing into the shipped directory"
