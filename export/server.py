"""A running inference server, asked by the V2 protocol over HTTP, and never believed.

Nothing is taken from it without bounds: a question has its seconds and an answer its bytes, and an answer of another
shape than the protocol's is one line, whatever it is.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import quote, urlsplit

import numpy as np
from pydantic import ValidationError

from wmlc.errors import InputError, one_line
from wmlc.records import Manifest
from wmlc.records.serial import reader

DATATYPES = {"float32": "FP32", "uint8": "UINT8"}
TIMEOUT_S, INFER_TIMEOUT_S = 10.0, 60.0  # of one question, its answer read to the end
MOST_BYTES = 16 << 20  # of an answer; logits of some images have kilobytes
LENGTH = "Inference-Header-Content-Length"  # of the JSON in front of binary tensors


@dataclass(frozen=True)
class Served:
    """An input or an output, as the server names it."""

    name: str
    datatype: str
    shape: list[int]
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "ignore"}


@dataclass(frozen=True)
class Metadata:
    """What a server says of a model."""

    inputs: list[Served]
    outputs: list[Served]
    versions: list[str] | None = None
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "ignore"}


@dataclass(frozen=True)
class Answered(Served):
    """An output of an inference: numbers in JSON, or the bytes that follow it."""

    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


@dataclass(frozen=True)
class Inferred:
    """The answer to an inference."""

    outputs: list[Answered]
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "ignore"}


@dataclass(frozen=True)
class Extensions:
    """What a server says of itself."""

    extensions: list[str] | None = None
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "ignore"}


@dataclass(frozen=True)
class Answer:
    """A whole answer of HTTP."""

    status: int
    header_bytes: str | None  # of `LENGTH`
    body: bytes


@dataclass(frozen=True)
class Server:
    """A server at an address; every question has a connection of its own."""

    url: str
    host: str
    port: int

    @staticmethod
    def at(url: str) -> Server:
        """The server at an address like http://127.0.0.1:8000."""
        try:
            parts = urlsplit(url)
            if parts.scheme == "http" and parts.hostname and parts.path + parts.query in ("", "/"):
                return Server(url, parts.hostname, 80 if parts.port is None else parts.port)
        except ValueError:  # a port that is none
            pass
        raise InputError(f"--verify takes an address like http://127.0.0.1:8000, got {url}")

    def check_live(self) -> None:
        """Raise `InputError` where no server is there, or one that is not live."""
        answer = self._ask("GET", "/v2/health/live", "its health")
        if answer.status != 200:
            raise InputError(
                f"the server at {self.url} does not say that it is live (HTTP {answer.status}); look into its log"
            )

    def metadata(self, name: str, version: int) -> Metadata:
        """What it says of a version of a model."""
        what = f"the metadata of {name}"
        answer = self._ask("GET", f"/v2/models/{quote(name, safe='')}/versions/{version}", what)
        self._check_served(name, answer)
        return self._read(answer.body, Metadata, what)

    def takes_binary(self, name: str) -> bool:
        """Whether it takes tensors as bytes behind the JSON."""
        answer = self._ask("GET", "/v2", "its metadata")
        self._check_served(name, answer)
        return "binary_tensor_data" in (self._read(answer.body, Extensions, "its metadata").extensions or [])

    def infer(self, manifest: Manifest, fed: np.ndarray, binary: bool) -> np.ndarray:
        """The logits [N, classes] that it answers to a batch."""
        name, what = manifest.model, f"an answer of {manifest.model}"
        tensor: dict[str, Any] = {"name": manifest.input.name, "shape": list(fed.shape)}
        tensor["datatype"] = DATATYPES[manifest.input.dtype]
        asked: dict[str, Any] = {"inputs": [tensor], "outputs": [{"name": manifest.output.name}]}
        if binary:
            tensor["parameters"] = {"binary_data_size": fed.nbytes}
            asked["outputs"][0]["parameters"] = {"binary_data": True}
        else:
            tensor["data"] = fed.ravel().tolist()
        text = json.dumps(asked).encode()
        answer = self._ask(
            "POST", f"/v2/models/{quote(name, safe='')}/versions/{manifest.version}/infer", what,
            text + (np.ascontiguousarray(fed).tobytes() if binary else b""),
            {LENGTH: str(len(text))} if binary else {}, INFER_TIMEOUT_S,
        )  # fmt: skip
        self._check_served(name, answer)
        expected = (len(fed), len(manifest.labels))
        try:
            return self._logits(answer, manifest.output.name, what, expected)
        except (ValueError, TypeError, OverflowError) as error:
            if isinstance(error, InputError):
                raise
            raise self._unreadable(what, str(error)) from None

    def _logits(self, answer: Answer, name: str, what: str, expected: tuple[int, int]) -> np.ndarray:
        """float32 logits of the `expected` shape in an answer; `InputError` or ValueError where they are not there."""
        length = len(answer.body) if answer.header_bytes is None else int(answer.header_bytes)
        if not 0 < length <= len(answer.body):
            raise ValueError(f"its {LENGTH} is {length}, the answer has {len(answer.body)} bytes")
        outputs = self._read(answer.body[:length], Inferred, what).outputs
        (output,) = outputs if [output.name for output in outputs] == [name] else (None,)
        if output is None or output.datatype != "FP32" or int(np.prod(output.shape, dtype=object)) != np.prod(expected):
            got = [(output.name, output.datatype, output.shape) for output in outputs]
            raise ValueError(f"its outputs are {one_line(ascii(got))}, expected {[(name, 'FP32', list(expected))]}")
        if output.data is not None:
            return np.asarray(output.data, np.float32).reshape(expected)
        return np.frombuffer(answer.body[length:], "<f4").reshape(expected)

    def _ask(
        self, method: str, path: str, what: str, body: bytes | None = None, headers: dict[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Answer:  # fmt: skip
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)
        too_late = threading.Event()
        try:
            connection.connect()
        except (OSError, ValueError, OverflowError) as error:
            said = error.strerror if isinstance(error, OSError) else None
            raise InputError(f"no server answers at {self.url} ({said or error}); start it, or name another") from None
        try:
            with _closed_after(connection.sock, timeout_s, too_late):
                connection.request(method, path, body, {"Connection": "close", **(headers or {})})
                answer = connection.getresponse()
                read = answer.read(MOST_BYTES + 1)
                length = answer.length  # what is still to come
            if too_late.is_set():
                raise TimeoutError
        except (OSError, http.client.HTTPException, ValueError) as error:
            late = too_late.is_set() or isinstance(error, TimeoutError)
            why = f"it did not end within {timeout_s:g} s" if late else str(error) or type(error).__name__
            raise self._unreadable(what, why) from None
        finally:
            connection.close()
        if len(read) > MOST_BYTES:
            raise self._unreadable(what, f"it has more than {MOST_BYTES:,} bytes")
        if length:
            raise self._unreadable(what, "it ends in the middle")
        return Answer(answer.status, answer.getheader(LENGTH), read)

    def _check_served(self, name: str, answer: Answer) -> None:
        if answer.status != 200:
            said = one_line(ascii(answer.body[:1000].decode(errors="replace"))[1:-1])
            why = f"HTTP {answer.status}: {said}"
            raise InputError(f"the server at {self.url} does not serve {name} as shipped ({why}); load it there")

    def _read(self, body: bytes, kind: Any, what: str) -> Any:
        try:
            return reader(kind).validate_json(body)
        except ValidationError as error:
            faults = error.errors(include_url=False, include_input=False)
            said = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'it'}: {fault['msg']}" for fault in faults[:3])
            raise self._unreadable(what, said) from None

    def _unreadable(self, what: str, why: str) -> InputError:
        shown = one_line(ascii(why)[1:-1])
        return InputError(
            f"the server at {self.url} did not give {what} as the V2 protocol has it ({shown}); look into its log"
        )


@contextlib.contextmanager
def _closed_after(sock: socket.socket, seconds: float, too_late: threading.Event) -> Iterator[None]:
    """End a conversation when its time is over: a time-out of the socket's starts anew with every byte."""

    def close() -> None:
        too_late.set()
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, close)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
