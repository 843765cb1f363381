"""A shipped repository with real images to ask for, and what counts as the right answer to them."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from click.testing import CliRunner, Result

from servers.clients import Answer, ask, ask_together
from servers.process import Server
from wmlc.cli import main
from wmlc.data import normalise
from wmlc.export.publish import read_manifest
from wmlc.files import sha256
from wmlc.records import Manifest
from wmlc.run import Run, open_run_data

MODEL = "resnet20_digits_p07"  # what `wmlc ship` calls peer 1 of the run that these tests share
SAME = 1e-5  # absolute, between the server's logits and ONNX Runtime's here; their versions differ
IMAGES = 32
REQUESTS = 16
PROTOCOLS = ["http", "grpc"]


@dataclass(frozen=True)
class Shipped:
    """A run, what was shipped of it, and real test images to ask for."""

    run: Run
    repository: Path
    pixels_NHWC: np.ndarray  # uint8
    images_NCHW: np.ndarray  # float32, normalised as the manifest says

    def manifest(self, version: str = "1") -> Manifest:
        return read_manifest(self.repository / MODEL / version)

    def expected(self, version: str = "1") -> np.ndarray:
        """ONNX Runtime's own answers [N, classes] to the images."""
        return run_onnx(self.repository / MODEL / version / "model.onnx", self.images_NCHW)


def ship_peer1(run: Run, to: str, repository: Path) -> Shipped:
    """Peer 1 as it is, for the server `to`."""
    ship(run, 1, to, repository)
    pixels, _ = next(iter(open_run_data(run).test_pixels(IMAGES)))
    preprocess = read_manifest(repository / MODEL / "1").preprocess
    images = normalise(pixels, preprocess.mean, preprocess.std).contiguous()
    return Shipped(run, repository, pixels.numpy(), images.numpy())


def run_onnx(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"input": images})[0])


def invoke(*arguments: object, code: int = 0) -> Result:
    """Run the command line; its exit code must be `code`."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def ship(run: Run, peer: int, to: str, out: Path, *options: str) -> None:
    """For the CPU, whatever the bench ran on: the servers here have no other."""
    invoke("ship", "--run", run.root, "--peer", peer, "--to", to, "--out", out, "--device", "cpu", *options)


def close(logits: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(logits - expected).max() <= SAME)


def digest(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): sha256(path) for path in directory.rglob("*") if path.is_file()}


def ask_at_once(shipped: Shipped, server: Server, clients: int, protocols: list[str]) -> list[Answer]:
    """So many clients, taking turns in protocol, that start together and ask REQUESTS times each."""
    expected, start = shipped.expected(), threading.Barrier(clients)

    def order(seed: int) -> Iterator[int]:
        start.wait(60)
        yield from np.random.default_rng(seed).integers(IMAGES, size=REQUESTS).tolist()

    def is_right(image: int, version: str, logits: np.ndarray) -> bool:
        return version == "1" and close(logits, expected[image])

    return ask_together(
        [
            functools.partial(ask, server, protocol, MODEL, shipped.images_NCHW, order(i), is_right)
            for i, protocol in zip(range(clients), itertools.cycle(protocols))
        ]
    )


def assert_all_right(answers: list[Answer]) -> None:
    assert {answer.error for answer in answers} == {""}
    assert all(answer.right for answer in answers)
