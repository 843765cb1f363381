"""Clients of a live server that check every answer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http

from servers.process import Server

PROTOCOLS: dict[str, ModuleType] = {"http": tritonclient.http, "grpc": tritonclient.grpc}
TIMEOUT_S = 30.0  # a request that takes longer counts as lost


@dataclass(frozen=True)
class Answer:
    """What became of one request."""

    image: int
    version: str  # of the model that answered; empty if none did
    right: bool
    error: str  # empty if there was an answer
    took_ms: float


@contextlib.contextmanager
def connect(server: Server, protocol: str) -> Iterator[Any]:
    """A tritonclient for "http" or "grpc"."""
    module = PROTOCOLS[protocol]
    timeouts = {"connection_timeout": TIMEOUT_S, "network_timeout": TIMEOUT_S} if protocol == "http" else {}
    with contextlib.closing(module.InferenceServerClient(getattr(server, protocol), **timeouts)) as client:
        yield client


def request_input(protocol: str, images: np.ndarray, *, name: str = "input", binary: bool = True) -> Any:
    """The input of a request; `binary` False asks for JSON over HTTP."""
    types = {"float32": "FP32", "uint8": "UINT8"}
    tensor = PROTOCOLS[protocol].InferInput(name, list(images.shape), types[images.dtype.name])
    tensor.set_data_from_numpy(images, **({} if protocol == "grpc" else {"binary_data": binary}))
    return tensor


def infer(client: Any, protocol: str, model: str, tensor: Any, **output: Any) -> Any:
    """Send one request for the logits; `output` goes to the client's InferRequestedOutput."""
    timeout = {"client_timeout": TIMEOUT_S} if protocol == "grpc" else {}
    return client.infer(
        model, [tensor], outputs=[PROTOCOLS[protocol].InferRequestedOutput("logits", **output)], **timeout
    )


def ask(
    server: Server,
    protocol: str,
    model: str,
    images: np.ndarray,
    order: Iterable[int],
    is_right: Callable[[int, str, np.ndarray], bool],
) -> list[Answer]:
    """One closed-loop client: ask for one image after the other, in this order, each as soon as the last is answered.

    `is_right(image, version, logits [C])` judges; its time is not the answer's.
    """
    tensors = [request_input(protocol, images[i : i + 1]) for i in range(len(images))]
    answers = []
    with connect(server, protocol) as client:
        for image in order:
            start, version, right, error = time.perf_counter(), "", False, ""
            try:
                result = infer(client, protocol, model, tensors[image])
                took_ms = 1e3 * (time.perf_counter() - start)
                version = response_version(result)
                right = is_right(image, version, result.as_numpy("logits")[0])
            except Exception as raised:  # whatever it is, this request was lost, and the caller counts it
                took_ms, error = 1e3 * (time.perf_counter() - start), f"{type(raised).__name__}: {raised}"
            answers.append(Answer(image, version, right, error, took_ms))
    return answers


def response_version(result: Any) -> str:
    """Which version of the model gave this answer."""
    response = result.get_response()
    return response["model_version"] if isinstance(response, dict) else response.model_version


def ask_together(clients: list[Callable[[], list[Answer]]]) -> list[Answer]:
    """All clients at once, each in a thread of its own; their answers."""
    with ThreadPoolExecutor(len(clients)) as pool:
        return [answer for future in [pool.submit(client) for client in clients] for answer in future.result()]


def statistics(server: Server, model: str) -> dict[str, Any]:
    """What Triton counted for the model's newest version: `inference_count`, `execution_count`, `batch_stats`, …"""
    with connect(server, "http") as client:
        versions = client.get_inference_statistics(model)["model_stats"]
    return max(versions, key=lambda entry: int(entry["version"]))
