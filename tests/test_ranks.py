"""Training in two processes: tests/two_processes.py in a process of its own. Takes 40 s.

It forks, and torch refuses to differentiate in a fork of a process whose autograd has threads, as other tests leave one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def test_two_processes_train_as_one() -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(TESTS / "two_processes.py")],
        cwd=TESTS.parent, env=inherited | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    assert " passed" in done.stdout and " failed" not in done.stdout and " skipped" not in done.stdout
