"""What every server here has in common: an environment of its own, free loopback ports, a log, a sure end."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENTS = Path(__file__).resolve().parent.parent.parent / ".servers"
HOST = "127.0.0.1"


class ServerFailed(Exception):
    """A server that did not become ready; the message holds the end of its log."""


@dataclass(frozen=True)
class Server:
    """A live server."""

    http: str  # HOST:PORT
    grpc: str
    log: Path

    def said(self) -> str:
        """All that it has logged so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")


def environment(name: str) -> Path:
    """The virtual environment that `make servers` makes."""
    return ENVIRONMENTS / name


def missing(name: str) -> str | None:
    """Why the server of that name cannot be started here, and what to do; None where it can."""
    installed = (environment(name) / ".installed").exists()
    return None if installed else f"needs the {name} server; 'make servers' installs it"


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on at the moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def running(
    command: Sequence[str | Path], variables: Mapping[str, str], server: Server, cwd: Path, timeout_s: float
) -> Iterator[Server]:
    """Run `command`, which is to bring up `server`, and yield once it is ready; it ends with the block.

    Its process group is asked to end (SIGTERM), and killed when ten seconds have passed. If this process is killed
    itself, the server gets its SIGTERM from the kernel. Raises `ServerFailed` if it isn't ready in time.
    """
    tied = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
    with server.log.open("wb") as log:
        process = subprocess.Popen(
            [*tied, *command], env={**os.environ, **variables}, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        _wait_until_ready(process, server, Path(command[0]).name, timeout_s)
        yield server
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):  # its workers, and itself if it is still there
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], server: Server, name: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not _is_ready(server.http):
        if process.poll() is not None:
            raise ServerFailed(f"{name} ended with status {process.returncode}; its log:\n{server.said()}")
        if time.monotonic() > deadline:
            raise ServerFailed(f"{name} was not ready after {timeout_s:g} s; its log:\n{server.said()}")
        time.sleep(0.1)


def _is_ready(address: str) -> bool:
    """Whether the server says that it and all its models are ready."""
    connection = http.client.HTTPConnection(address, timeout=5)  # unlike urllib's, never through a proxy
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
