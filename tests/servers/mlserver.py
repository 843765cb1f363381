"""A real MLServer on loopback."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from servers.process import HOST, Server, environment, free_ports, running


@contextlib.contextmanager
def mlserver(directory: Path, *, log: Path | None = None, timeout_s: float = 60) -> Iterator[Server]:
    """Serve `directory`, one folder with a `model-settings.json` a model, and write nothing into it."""
    http_port, grpc_port, metrics_port = free_ports(3)
    variables = {
        "MLSERVER_HOST": HOST,
        "MLSERVER_HTTP_PORT": str(http_port),
        "MLSERVER_GRPC_PORT": str(grpc_port),
        "MLSERVER_METRICS_PORT": str(metrics_port),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    with tempfile.TemporaryDirectory(prefix="mlserver-") as scratch:  # where it keeps its metrics
        server = Server(f"{HOST}:{http_port}", f"{HOST}:{grpc_port}", log or Path(scratch, "log"))
        command = [environment("mlserver").absolute() / "bin" / "mlserver", "start", directory.absolute()]
        with running(command, variables, server, Path(scratch), timeout_s):
            yield server
