"""`wmlc ship --verify` against servers that lie: whatever they answer is one line, within bounds of time and size."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from made import made_family, made_framing
from made_files import manifest_of, write_run

from wmlc import records
from wmlc.cli import main
from wmlc.errors import InputError
from wmlc.export import server as server_module
from wmlc.export.server import LENGTH, Server
from wmlc.records import About, Manifest, NetworkSpec

LOGITS = np.arange(6, dtype=np.float32).reshape(3, 2)
FED = np.zeros((3, 3, 32, 32), np.float32)


@contextlib.contextmanager
def lying(answer: Callable[[socket.socket], Any] | bytes) -> Iterator[Server]:
    """A server that gives every connection these bytes, or to this function."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client, contextlib.suppress(OSError):
                    client.recv(1 << 20)
                    answer(client) if callable(answer) else client.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield Server.at(f"http://127.0.0.1:{listener.getsockname()[1]}")
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def http(body: bytes | dict[str, Any] | list[Any], headers: str = "", status: str = "200 OK") -> bytes:
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("manifest")
    (root / "file").write_bytes(b"a file")
    spec = NetworkSpec(arch="resnet20", class_names=["cat", "dog"], input_shape=(3, 32, 32), mean=[0.5] * 3,
                       std=[0.25] * 3, widths={}, framing=made_framing(32), about=About(peer=1, ratio=0.5))  # fmt: skip
    return manifest_of(made_family().data, root / "file", root / "run", spec)


def output(**changes: Any) -> dict[str, Any]:
    return {"outputs": [{"name": "logits", "datatype": "FP32", "shape": [3, 2], **changes}]}


def test_an_answer_is_read_from_json_and_from_bytes(manifest: Manifest) -> None:
    with lying(http(output(data=LOGITS.ravel().tolist()))) as server:
        np.testing.assert_array_equal(server.infer(manifest, FED, binary=False), LOGITS)
    head = json.dumps(output(parameters={"binary_data_size": 24})).encode()
    with lying(http(head + LOGITS.tobytes(), f"{LENGTH}: {len(head)}\r\n")) as server:
        np.testing.assert_array_equal(server.infer(manifest, FED, binary=True), LOGITS)


LIES: dict[str, bytes] = {
    "nothing": b"",
    "not HTTP": b"220 smtp.example.org ESMTP \x1b[31mhello\r\n",
    "a status that is none": b"HTTP/1.1 abc OK\r\n\r\n",
    "another status": http(b"\x1b[31mno\r\n", status="500 Broken"),
    "elsewhere": http(b"", "Location: http://example.org/\r\n", "302 Found"),
    "cut short": http({"a": 1}).replace(b"Content-Length: 8", b"Content-Length: 80"),
    "a length below zero": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{",
    "a chunk that is none": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
    "a header without end": b"HTTP/1.1 200 OK\r\n" + b"a" * 100_000,
    "no JSON": http(b"<html>"),
    "no UTF-8": http(b'{"outputs": "\xff"}'),
    "a list": http([]),
    "nested": http(b"[" * 10_000),
    "null": http(b"null"),
    "another shape of JSON": http({"inputs": 5, "outputs": [None], "versions": {"a": 1}}),
    "shapes of words": http({"inputs": [], "outputs": [{"name": "logits", "datatype": "FP32", "shape": ["x"]}]}),
    "logits of words": http(output(data=["cat"] * 6)),
    "too few logits": http(output(data=[1.0])),
    "ragged logits": http(output(data=[[1.0], [1.0, 2.0]])),
    "another output": http({**output(data=[0.0] * 6), "inputs": []}).replace(b"logits", b"scores"),
    "a huge shape": http(output(shape=[2**40, 2**40], data=[0.0])),
    "too few bytes": http(output(parameters={"binary_data_size": 24})),
    "a header length below zero": http(output(), f"{LENGTH}: -1\r\n"),
    "a header length of words": http(output(), f"{LENGTH}: many\r\n"),
    "a header length beyond the end": http(output(), f"{LENGTH}: 999999\r\n"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_one_line(lie: str, manifest: Manifest) -> None:
    with lying(LIES[lie]) as server:
        with pytest.raises(InputError) as caught:
            server.infer(manifest, FED, binary=True)
        with contextlib.suppress(InputError):  # nothing else; of some lies it is no part
            server.metadata("m", 1)
    told = str(caught.value)
    assert told.startswith((f"the server at {server.url} did not give", f"the server at {server.url} does not serve m"))
    assert told.isprintable() and len(told) < 700


def test_an_answer_has_a_time_and_a_size(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "TIMEOUT_S", 0.4)
    monkeypatch.setattr(server_module, "MOST_BYTES", 1 << 16)

    def drip(client: socket.socket, head: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> None:
        client.sendall(head)
        while True:
            client.sendall(b"a")
            time.sleep(0.02)

    def flood(client: socket.socket) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            client.sendall(b" " * 4096)

    def silent(client: socket.socket) -> None:
        client.recv(1)

    for answer, said in (
        (drip, "did not end within 0.4 s"),
        (lambda client: drip(client, b"HTTP/1.1 200 OK\r\nX: "), "did not end within 0.4 s"),
        (silent, "did not end within 0.4 s"),
        (flood, "has more than 65,536 bytes"),
    ):
        start = time.monotonic()
        with lying(answer) as server, pytest.raises(InputError, match=said):
            server._ask("GET", "/v2", "its metadata", timeout_s=0.4)
        assert time.monotonic() - start < 5


def test_verify_says_it_in_one_line_and_exits_with_1(tmp_path: Path, manifest: Manifest) -> None:
    run, version = write_run(tmp_path / "run"), tmp_path / "models" / "m" / "1"
    version.mkdir(parents=True)
    (tmp_path / "models" / "mine" / "1").mkdir(parents=True)  # no manifest: a model that wmlc did not ship
    (version / "model.onnx").write_bytes(b"a file")
    records.write(version / "manifest.json", manifest)
    words = ["ship", "--run", str(run.root), "--out", str(tmp_path / "models"), "--verify"]
    with lying(http({"inputs": [], "outputs": [], "versions": []})) as server:
        told = CliRunner().invoke(main, [*words, server.url])
    assert told.exit_code == 1 and told.output.count("\n") == 1
    assert told.output.startswith(f"Error: the server at {server.url} has m with versions none instead of 1; load ")
