"""Training in two processes: tests/two_processes.py in a process of its own. Takes 40 s.

It forks, and torch refuses to differentiate in a fork of a process whose autograd has threads, as other tests leave one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from wmlc.ranks import BACKENDS, Ranks

TESTS = Path(__file__).parent


def test_two_processes_train_as_one() -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(TESTS / "two_processes.py")],
        cwd=TESTS.parent, env=inherited | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    assert " passed" in done.stdout and " failed" not in done.stdout and " skipped" not in done.stdout


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_nccl_carries_what_processes_tell_each_other(tmp_path: Path) -> None:
    """A group of one, as NCCL wants a GPU for each; called as one of two, so that a mean is half of the sum."""
    one_of_two = Ranks(0, 2)
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group(BACKENDS, store=store, rank=0, world_size=1)
    try:
        halves = [torch.full((3,), 8.0, device="cuda"), torch.full((2, 2), 4.0, device="cuda", dtype=torch.float64)]
        one_of_two.mean_(halves)
        assert [own.unique().tolist() for own in halves] == [[4.0], [2.0]]
        counts = torch.arange(3, dtype=torch.float64, device="cuda")
        assert one_of_two.sum_(counts).tolist() == [0.0, 1.0, 2.0]
        one_of_two.take_of_first([counts])
        assert one_of_two.of_first(lambda: {"widths": [8, 16]}) == {"widths": [8, 16]}
    finally:
        dist.destroy_process_group()
