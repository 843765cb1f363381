"""A real Triton inference server on loopback, from the `tritonserver` that nvidia-pytriton's wheel carries.

The wheel has Triton's core and its Python backend, no ONNX Runtime backend; `backends/onnxruntime` stands in for that.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from servers.process import HOST, Server, environment, free_ports, running

STAND_IN = Path(__file__).resolve().parent / "backends" / "onnxruntime" / "model.py"
ASK_PYTHON = (
    "import json, sysconfig as s; "
    "print(json.dumps([s.get_path('purelib'), s.get_config_var('LIBDIR'), s.get_python_version()]))"
)


@contextlib.contextmanager
def triton(
    repository: Path, *, poll_seconds: int | None = None, log: Path | None = None, timeout_s: float = 60
) -> Iterator[Server]:
    """Serve a model repository as it is; with `poll_seconds`, look that often whether it has changed.

    The log goes to the file `log`, which stays, or to one that goes with the server. Raises `ServerFailed`
    where Triton refuses a model at the start.
    """
    python = environment("triton") / "bin" / "python"
    asked = subprocess.run([python, "-c", ASK_PYTHON], capture_output=True, text=True, check=True, timeout=60)
    site, python_libraries, version = json.loads(asked.stdout)
    wheel = Path(site, "pytriton", "tritonserver")
    http_port, grpc_port = free_ports(2)
    poll = ["--model-control-mode=poll", f"--repository-poll-secs={poll_seconds}"] if poll_seconds else []
    variables = {
        "PATH": f"{python.parent.absolute()}{os.pathsep}{os.environ['PATH']}",  # by this the stub finds its environment
        "LD_LIBRARY_PATH": os.pathsep.join([str(Path(site, "nvidia_pytriton.libs")), python_libraries]),
        "OMP_NUM_THREADS": "1",
    }
    with tempfile.TemporaryDirectory(prefix="triton-") as scratch:
        backends = _assemble_backends(wheel, version, Path(scratch, "backends"))
        server = Server(f"{HOST}:{http_port}", f"{HOST}:{grpc_port}", log or Path(scratch, "log"))
        command = [
            wheel / "bin" / "tritonserver", f"--model-repository={repository.absolute()}",
            f"--backend-directory={backends}", f"--http-address={HOST}", f"--http-port={http_port}",
            f"--grpc-address={HOST}", f"--grpc-port={grpc_port}", "--allow-metrics=false", "--exit-timeout-secs=5", *poll,
        ]  # fmt: skip
        with running(command, variables, server, Path(scratch), timeout_s):
            yield server


def _assemble_backends(wheel: Path, python_version: str, folder: Path) -> Path:
    """Triton's Python backend with the stub for the environment's Python, and our stand-in beside it."""
    shutil.copytree(wheel / "backends" / "python", folder / "python")
    stub = shutil.copy(
        wheel / "python_backend_stubs" / python_version / "triton_python_backend_stub", folder / "python"
    )
    Path(stub).chmod(0o755)
    (folder / "onnxruntime").mkdir()
    shutil.copy(STAND_IN, folder / "onnxruntime")
    return folder
